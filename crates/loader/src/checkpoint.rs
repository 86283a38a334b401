//! `Checkpoint`: everything a model needs to run, from a folder, a file or the hub.

use crate::{
    chat::ChatTemplate,
    deferred::Deferred,
    digest::{sha256, sha256_file},
    error::{LoadError, Result},
    tokenizer::Tokenizer,
};
use attn_models::TensorSource;
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A model's config, weights, tokenizer and conventions.
pub struct Checkpoint {
    /// config.json as Hugging Face spells it; a GGUF file's metadata is translated into the same keys.
    pub config: serde_json::Value,
    /// The tensors, under Hugging Face names; nothing is read until it is asked for.
    pub weights: Arc<dyn TensorSource>,
    pub(crate) tokenizer: Option<Deferred>,
    /// The chat template, if the checkpoint has one.
    pub chat_template: Option<ChatTemplate>,
    /// The ids that begin and end a text.
    pub generation: GenerationDefaults,
    /// What the weights are quantised as, such as `Q4_K_M (Q4_K, Q6_K, F32)`, if that is known beside their dtypes.
    pub quantization: Option<String>,
    /// Warnings for the user: guesses that were made, and what was passed over.
    pub warnings: Vec<String>,
    /// Where all of this came from.
    pub origin: Origin,
}

/// The ids that begin and end a text, from generation_config.json, else config.json, else the GGUF metadata.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GenerationDefaults {
    /// The id that begins a text.
    pub bos_id: Option<u32>,
    /// The ids that end one; chat models often have several.
    pub eos_ids: Vec<u32>,
}

/// Where a checkpoint came from, for reports that others should be able to repeat.
#[derive(Debug, Clone)]
pub struct Origin {
    /// MODEL as given.
    pub model: String,
    /// The hub's commit, for a model from the hub.
    pub commit: Option<String>,
    /// The files that were read.
    pub files: Vec<OriginFile>,
}

/// One file of a checkpoint.
#[derive(Debug, Clone)]
pub struct OriginFile {
    /// Its name in the checkpoint.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    content: Content,
}

#[derive(Clone)]
enum Content {
    Path(PathBuf),
    Static(&'static [u8]),
    Digest(String),
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Path(path) => path.fmt(f),
            Self::Static(_) => f.write_str("embedded"),
            Self::Digest(hex) => hex.fmt(f),
        }
    }
}

impl OriginFile {
    pub(crate) fn on_disk(folder: &Path, path: PathBuf) -> Result<Self> {
        let size = std::fs::metadata(&path).map_err(LoadError::io(&path, "read the size of"))?.len();
        let name = path.strip_prefix(folder).unwrap_or(&path).to_string_lossy().into_owned();
        Ok(Self { name, size, content: Content::Path(path) })
    }

    pub(crate) fn embedded(name: &str, bytes: &'static [u8]) -> Self {
        Self { name: name.to_string(), size: bytes.len() as u64, content: Content::Static(bytes) }
    }

    pub(crate) fn digested(name: &str, bytes: &[u8]) -> Self {
        Self { name: name.to_string(), size: bytes.len() as u64, content: Content::Digest(sha256(bytes)) }
    }

    /// The file on disk, if it is one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match &self.content {
            Content::Path(path) => Some(path),
            _ => None,
        }
    }

    /// The SHA-256 of the file's contents in hexadecimal. Reads the whole file.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn sha256(&self) -> Result<String> {
        match &self.content {
            Content::Path(path) => sha256_file(path),
            Content::Static(bytes) => Ok(sha256(bytes)),
            Content::Digest(hex) => Ok(hex.clone()),
        }
    }
}

impl Checkpoint {
    /// The tokenizer, if the checkpoint has one. It is read in the background from the moment the checkpoint is opened;
    /// this waits for it.
    ///
    /// # Errors
    /// tokenizer.json is malformed.
    pub fn tokenizer(&self) -> Result<Option<&Tokenizer>> {
        self.tokenizer.as_ref().map(Deferred::get).transpose()
    }

    /// The tokenizer, or the reason there is none.
    ///
    /// # Errors
    /// The checkpoint has no tokenizer, or tokenizer.json is malformed.
    pub fn require_tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer()?.ok_or_else(|| {
            let files = &self.origin.files;
            let folder = files.iter().find_map(|f| f.path()?.parent());
            let found = match folder.map(|f| f.join("tokenizer.model").exists() || f.join("vocab.json").exists()) {
                Some(true) => "it has only the files of a slow tokenizer, which are not supported",
                _ => "there is no tokenizer.json",
            };
            LoadError::NoTokenizer { model: self.origin.model.clone(), found: found.to_string() }
        })
    }

    /// Renders a conversation with the checkpoint's chat template, ready to be encoded without special tokens.
    ///
    /// # Errors
    /// There is no template, or it fails; see [`ChatTemplate::render`].
    pub fn render_chat<R: AsRef<str>, C: AsRef<str>>(&self, messages: &[(R, C)], prompt: bool) -> Result<String> {
        let (bos, eos) = self.text_ends()?;
        self.require_chat_template()?.render(messages, prompt, &bos, &eos)
    }

    /// The chat template, or the reason there is none.
    ///
    /// # Errors
    /// The checkpoint has no chat template.
    pub fn require_chat_template(&self) -> Result<&ChatTemplate> {
        self.chat_template.as_ref().ok_or_else(|| LoadError::ChatTemplate {
            reason: format!("{} has none; it is not a chat model", self.origin.model),
        })
    }

    /// The texts of the tokens that begin and end a text, as chat templates see them; empty where there are none.
    ///
    /// # Errors
    /// tokenizer.json is malformed.
    pub fn text_ends(&self) -> Result<(String, String)> {
        let Some(tokenizer) = self.tokenizer()? else { return Ok(Default::default()) };
        let text = |id: Option<u32>| id.and_then(|id| tokenizer.token(id)).unwrap_or_default();
        Ok((text(tokenizer.bos_id), text(tokenizer.eos_ids.first().copied())))
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Checkpoint").field("origin", &self.origin).finish_non_exhaustive()
    }
}
