//! GGUF files: golden checkpoints written as llama.cpp would, read back, and files whose headers are wrong.
#![allow(missing_docs)]

#[path = "../common/mod.rs"]
mod common;

mod lies;
mod tokenizers;
mod weights;

use common::offline;
use loader::{Checkpoint, LoadError};
use std::path::Path;

pub(crate) fn open(path: &Path) -> Result<Checkpoint, LoadError> {
    Checkpoint::open(path.to_str().unwrap(), &offline())
}

pub(crate) fn open_bytes(bytes: &[u8]) -> Result<Checkpoint, LoadError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    open(&path)
}
