//! A tokenizer that is read while the weights are.
//!
//! A tokenizer.json of 50 000 tokens takes a quarter of a second to parse, on one core, and it is not needed before the
//! weights are there. So a thread reads it from the moment a checkpoint is opened, and the first use waits for it.

use crate::{
    error::{LoadError, Result},
    tokenizer::Tokenizer,
};
use std::{
    path::PathBuf,
    sync::{Arc, LazyLock},
    thread::Builder,
};

type Read = Result<Tokenizer, String>;
type Lazy = LazyLock<Read, Box<dyn FnOnce() -> Read + Send>>;

/// A tokenizer that has been read or is still being read.
pub(crate) struct Deferred {
    file: PathBuf,
    value: Arc<Lazy>,
}

impl Deferred {
    /// Begins to run `read`, whose error says what is wrong with `file`.
    pub(crate) fn start(file: PathBuf, read: impl FnOnce() -> Read + Send + 'static) -> Self {
        let value: Arc<Lazy> = Arc::new(LazyLock::new(Box::new(read)));
        let job = value.clone();
        // If no thread can be started, the first caller that needs the tokenizer reads it.
        let _ = Builder::new().name("tokenizer".to_string()).spawn(move || _ = LazyLock::force(&job));
        Self { file, value }
    }

    /// A tokenizer that has been read.
    pub(crate) fn ready(tokenizer: Tokenizer) -> Self {
        Self { file: PathBuf::new(), value: Arc::new(LazyLock::new(Box::new(|| Ok(tokenizer)))) }
    }

    /// A tokenizer that cannot be read; callers that need it get the reason.
    pub(crate) fn failed(reason: LoadError) -> Self {
        let reason = reason.to_string();
        Self { file: PathBuf::new(), value: Arc::new(LazyLock::new(Box::new(|| Err(reason)))) }
    }

    /// The tokenizer, once it is there.
    ///
    /// # Errors
    /// The file holds no tokenizer that can be used.
    pub(crate) fn get(&self) -> Result<&Tokenizer> {
        let value = LazyLock::force(&self.value).as_ref();
        value.map_err(|reason| match self.file.as_os_str().is_empty() {
            true => LoadError::NoUsableTokenizer { reason: reason.clone() },
            false => LoadError::Tokenizer { file: self.file.clone(), reason: reason.clone() },
        })
    }
}
