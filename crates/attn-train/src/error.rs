//! The one error type of this crate: what is wrong with which setting, step, tensor or file.
//!
//! A message contains that of its cause, which `source` returns too.

use std::path::{Path, PathBuf};

/// The result of every fallible function of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What to do about a checkpoint that is damaged.
const AWAY: &str = "its checksum does not match; remove this checkpoint's folder to resume from the one before it";

/// Why a model could not be made, trained, saved or resumed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting that is impossible, by itself or together with the others.
    #[error("{reason}")]
    Setting {
        /// Which, and why.
        reason: String,
    },

    /// A text has too few tokens for what is asked of it.
    #[error("{reason}")]
    TextTooShort {
        /// How many it has, and how many are needed.
        reason: String,
    },

    /// No tokenizer can be trained on the text.
    #[error("can't train a tokenizer: {reason}")]
    Tokenizer {
        /// Why.
        reason: String,
    },

    /// The initial weights are not those that the config describes.
    #[error("the initial weights don't fit the config: {source}")]
    FirstWeights {
        /// Which weight, and how it differs.
        source: candle_core::Error,
    },

    /// A loss or a gradient is not finite.
    #[error("step {step}: {reason}")]
    Diverged {
        /// The step, from 1.
        step: usize,
        /// Which of them, and what to do about it.
        reason: String,
    },

    /// A weight that the loss does not depend on.
    #[error("{name} got no gradient: the model does not depend on it")]
    NoGradient {
        /// The weight's name.
        name: String,
    },

    /// The operating system refused to make, read, write, name or remove a file.
    #[error("can't {action} {}: {source}", .path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },

    /// Another process writes the run's folder.
    #[error("{} is being written by another process", .path.display())]
    Busy {
        /// The folder.
        path: PathBuf,
    },

    /// A checkpoint of another run.
    #[error(
        "{} was made with another {setting}: resuming would mix two runs; use another folder or the same settings",
        .folder.display()
    )]
    OtherSettings {
        /// The checkpoint's folder.
        folder: PathBuf,
        /// The first setting that differs.
        setting: String,
    },

    /// A file of a checkpoint that does not hold what a trainer saves.
    #[error("{}: {reason}", .path.display())]
    Checkpoint {
        /// The file, or the folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// A file of a checkpoint, or a tensor in one, does not match its checksum.
    #[error(
        "{}{} is damaged: {}",
        .path.display(), .tensor.as_ref().map_or(String::new(), |name| format!(": tensor {name}")), AWAY
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The tensor; `None`: the file as a whole.
        tensor: Option<String>,
    },

    /// The threads to train with can't be started.
    #[error("can't start the threads: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),

    /// The model fails, or its config is refused.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),

    /// Weights can't be written as safetensors.
    #[error(transparent)]
    Safetensors(#[from] safetensors::SafeTensorError),

    /// Settings or steps can't be written as JSON.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

impl Error {
    /// Wraps an I/O error with the file and what was being done to it.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_path_buf(), source }
    }

    /// A file of a checkpoint that does not hold what it should.
    pub(crate) fn checkpoint(path: &Path, reason: impl Into<String>) -> Self {
        Self::Checkpoint { path: path.to_path_buf(), reason: reason.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error as _;
    use std::io;

    #[test]
    fn a_file_that_can_not_be_read_is_named_and_its_cause_kept() {
        let refused: Result<()> =
            Err(io::Error::from(io::ErrorKind::PermissionDenied)).map_err(Error::io("read", Path::new("out/a")));
        let error = refused.unwrap_err();
        assert!(error.to_string().starts_with("can't read out/a: "), "{error}");
        let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>()).unwrap();
        assert_eq!(cause.kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn what_is_damaged_is_the_file_or_a_tensor_of_it() {
        let damaged = |tensor: Option<&str>| {
            Error::Damaged { path: "c/model.safetensors".into(), tensor: tensor.map(String::from) }.to_string()
        };
        assert!(damaged(None).starts_with("c/model.safetensors is damaged: its checksum"));
        assert!(damaged(Some("w")).starts_with("c/model.safetensors: tensor w is damaged: its checksum"));
    }
}
