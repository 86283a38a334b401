//! The one error type of the loader.
//!
//! A checkpoint is untrusted input that often comes over a poor network, so almost everything here is
//! an expected event rather than a bug: every message is one line that names the file, the key or the tensor, and says
//! what to do where there is something to do.

use std::path::{Path, PathBuf};

/// The result of every fallible function of this crate.
pub type Result<T, E = LoadError> = std::result::Result<T, E>;

/// Why a checkpoint could not be found, fetched, read or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// MODEL looks like a path and nothing is there.
    #[error("{}: no such file or folder; MODEL is a folder with config.json, a .gguf file, or a hub id like org/name", .path.display())]
    NotFound {
        /// The path as given.
        path: PathBuf,
    },

    /// MODEL is neither a path nor a hub id.
    #[error(
        "{model:?} is not a model: {reason}; give a folder, a .gguf file, or a hub id like org/name or org/name@revision"
    )]
    BadModel {
        /// MODEL as given.
        model: String,
        /// What is wrong with it.
        reason: String,
    },

    /// The operating system refused to read or write a file.
    #[error("{}: can't {action}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried, as a verb phrase.
        action: &'static str,
        /// The operating system's reason.
        source: std::io::Error,
    },

    /// A file that every checkpoint needs is not in the folder.
    #[error("{}: {file} is missing; {hint}", .folder.display())]
    MissingFile {
        /// The folder that was searched.
        folder: PathBuf,
        /// The file's name.
        file: String,
        /// What else was found, or what to do.
        hint: String,
    },

    /// The only weights are pickled Python objects, which run code when they are read.
    #[error(
        "{location}: the only weights are pickled ({files}), which can run code when read and are refused; \
         convert them first, in Python: model = AutoModel.from_pretrained(...); model.save_pretrained(FOLDER, safe_serialization=True)"
    )]
    PickledWeights {
        /// The folder or repository.
        location: String,
        /// The pickled files, comma-separated.
        files: String,
    },

    /// A JSON file is malformed, or a value in it is not what it has to be.
    #[error("{}: {reason}", .file.display())]
    Json {
        /// The file.
        file: PathBuf,
        /// What is wrong, with the key or the line.
        reason: String,
    },

    /// An index names a shard that climbs out of its folder.
    #[error("{}: the shard name {name:?} points outside the folder and is refused", .file.display())]
    UnsafePath {
        /// The file that holds the name.
        file: PathBuf,
        /// The name.
        name: String,
    },

    /// A safetensors file is malformed as a whole.
    #[error("{}: not a valid safetensors file: {reason}", .file.display())]
    Safetensors {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },

    /// A GGUF file is malformed as a whole.
    #[error("{}: not a usable GGUF file: {reason}", .file.display())]
    Gguf {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },

    /// A GGUF metadata key is missing or has a value that can't be used.
    #[error("{}: metadata key {key}: {reason}", .file.display())]
    GgufKey {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
        /// What is wrong with it.
        reason: String,
    },

    /// A GGUF file holds a model of a kind the loader can't translate.
    #[error("{}: architecture {architecture:?} is not supported from GGUF (supported: {supported}); use the safetensors version of the model", .file.display())]
    Architecture {
        /// The file.
        file: PathBuf,
        /// The architecture's name in the file.
        architecture: String,
        /// The supported ones.
        supported: String,
    },

    /// One tensor can't be used.
    #[error("{}: tensor {tensor}: {reason}", .file.display())]
    Tensor {
        /// The file.
        file: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// What is wrong with it.
        reason: String,
    },

    /// A tensor is stored in a dtype that can't be computed with.
    #[error("{}: tensor {tensor} is stored as {dtype}, which is not supported; use a version of the model in {instead}", .file.display())]
    UnsupportedDtype {
        /// The file.
        file: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// The dtype's name.
        dtype: String,
        /// What to look for instead.
        instead: &'static str,
    },

    /// The tokenizer can't be read or built.
    #[error("{}: tokenizer: {reason}", .file.display())]
    Tokenizer {
        /// The file it comes from.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },

    /// A GGUF file's tokenizer can't be built, which its other contents do not need.
    #[error("{reason}")]
    NoUsableTokenizer {
        /// What is wrong, with the file.
        reason: String,
    },

    /// A GGUF file asks for a pre-tokenizer that is not known, so that its tokens would come out wrong.
    #[error("{}: tokenizer.ggml.pre {pre:?} is not supported; use the safetensors version of the model, which has a tokenizer.json", .file.display())]
    PreTokenizer {
        /// The file.
        file: PathBuf,
        /// The pre-tokenizer's name.
        pre: String,
    },

    /// The checkpoint came without a tokenizer and one is needed.
    #[error("{model}: the checkpoint has no usable tokenizer ({found}); put a tokenizer.json next to its config.json")]
    NoTokenizer {
        /// MODEL as given.
        model: String,
        /// What was found instead.
        found: String,
    },

    /// Text produced a token that the model has no embedding for.
    #[error(
        "token {token:?} has id {id}, but the model's vocabulary ends at {vocab_size}: its tokenizer belongs to another model"
    )]
    TokenOutOfVocabulary {
        /// The token.
        token: String,
        /// Its id.
        id: u32,
        /// The number of embeddings.
        vocab_size: usize,
    },

    /// A chat template can't be parsed or rendered, or asked for too much.
    #[error("chat template: {reason}")]
    ChatTemplate {
        /// What is wrong.
        reason: String,
    },

    /// The hub could not be asked and there is no copy in the cache.
    #[error("{repo}: {reason}; {hint}")]
    Unreachable {
        /// The repository.
        repo: String,
        /// What happened.
        reason: String,
        /// What to do.
        hint: String,
    },

    /// The hub knows the repository but won't give it to this user.
    #[error("{repo}: access refused (HTTP {status}); {hint}")]
    AccessDenied {
        /// The repository.
        repo: String,
        /// The HTTP status.
        status: u16,
        /// What to do.
        hint: String,
    },

    /// The hub has no such repository, revision or file.
    #[error("{repo}: {what} not found on {endpoint}; {hint}")]
    NotOnHub {
        /// The repository.
        repo: String,
        /// What is missing: the repository, a revision or a file.
        what: String,
        /// The hub.
        endpoint: String,
        /// What to do.
        hint: String,
    },

    /// The hub's address is not an address.
    #[error("HF_ENDPOINT {endpoint:?} is not the address of a hub: it must begin with https:// or http:// and a host")]
    BadEndpoint {
        /// The address as given, without a password.
        endpoint: String,
    },

    /// The hub answered, but not with what was asked for.
    #[error("{url}: {reason}")]
    BadResponse {
        /// The address, without its query.
        url: String,
        /// What is wrong with the answer.
        reason: String,
    },

    /// A downloaded file is not the one the hub announced; it was deleted.
    #[error("{file}: the download is damaged: {reason}; it was deleted, run the command again")]
    Damaged {
        /// The file's name in the repository.
        file: String,
        /// How it differs.
        reason: String,
    },

    /// Another process holds the download lock.
    #[error("{}: another process has been downloading this file for {waited} s; wait for it, or delete the lock file if that process has ended", .lock.display())]
    Locked {
        /// The lock file.
        lock: PathBuf,
        /// How long this process waited, in seconds.
        waited: u64,
    },

    /// The loader was built without its `hub` feature.
    #[error(
        "{repo} is not in the cache, and this program was built without network access (feature `hub`); give a folder or a .gguf file"
    )]
    HubDisabled {
        /// The repository.
        repo: String,
    },
}

impl LoadError {
    /// Wraps an I/O error with the file and what was being done to it.
    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { path, action, source }
    }

    /// An unusable tensor.
    pub(crate) fn tensor(file: &Path, tensor: &str, reason: impl Into<String>) -> Self {
        Self::Tensor { file: file.to_path_buf(), tensor: tensor.to_string(), reason: reason.into() }
    }
}

/// `TensorSource` speaks Candle's error type; the message stays as it is.
impl From<LoadError> for candle_core::Error {
    fn from(err: LoadError) -> Self {
        candle_core::Error::Msg(err.to_string())
    }
}
