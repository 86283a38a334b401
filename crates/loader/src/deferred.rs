//! A tokenizer that is read while the weights are.
//!
//! A tokenizer.json of 50 000 tokens takes a quarter of a second to parse, on one core, and nobody needs it before the
//! weights are there. So a thread reads it from the moment a checkpoint is opened, and who asks first waits for it.

use crate::{
    error::{LoadError, Result},
    tokenizer::Tokenizer,
};
use std::{
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    thread::{Builder, JoinHandle},
};

type Read = Result<Tokenizer, String>;

/// A tokenizer that is there, or will be.
pub(crate) struct Deferred {
    file: PathBuf,
    read: Arc<dyn Fn() -> Read + Send + Sync>,
    thread: Mutex<Option<JoinHandle<Read>>>,
    value: OnceLock<Read>,
}

impl Deferred {
    /// Begins to run `read`, whose error says what is wrong with `file`.
    pub(crate) fn start(file: PathBuf, read: impl Fn() -> Read + Send + Sync + 'static) -> Self {
        let read: Arc<dyn Fn() -> Read + Send + Sync> = Arc::new(read);
        let job = read.clone();
        // Where no thread can be had, who asks first reads it.
        let thread = Builder::new().name("tokenizer".to_string()).spawn(move || job()).ok();
        Self { file, read, thread: Mutex::new(thread), value: OnceLock::new() }
    }

    /// A tokenizer that is there.
    pub(crate) fn ready(tokenizer: Tokenizer) -> Self {
        let read = || Err("it was made already".to_string());
        Self { file: PathBuf::new(), read: Arc::new(read), thread: Mutex::new(None), value: Ok(tokenizer).into() }
    }

    /// The tokenizer, once it is there.
    ///
    /// # Errors
    /// The file holds none.
    pub(crate) fn get(&self) -> Result<&Tokenizer> {
        let value = self.value.get_or_init(|| {
            let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
            thread.and_then(|t| t.join().ok()).unwrap_or_else(|| (self.read)())
        });
        value.as_ref().map_err(|reason| LoadError::Tokenizer { file: self.file.clone(), reason: reason.clone() })
    }
}
