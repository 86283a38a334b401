//! Downloads from a hub that answers well, badly, slowly, or not at all.
#![cfg(feature = "hub")]
#![allow(missing_docs)]

#[path = "../common/mod.rs"]
mod common;

mod answers;
mod fetching;
mod sharing;

use common::hub::{Hub, TOKEN, git_blob, sha256};
use loader::{LoadError, LoadOptions, download};
use std::path::{Path, PathBuf};

pub(crate) fn cache() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

pub(crate) fn repo(cache: &Path) -> PathBuf {
    cache.join("models--org--name")
}

/// The error, after checking that it is one line, tells no secrets and left nothing broken behind.
pub(crate) fn fails(hub: &Hub, cache: &Path) -> LoadError {
    fails_for("org/name", &hub.options(cache), cache)
}

pub(crate) fn fails_for(model: &str, options: &LoadOptions, cache: &Path) -> LoadError {
    let err = download(model, options).unwrap_err();
    let text = format!("{err} {err:?}");
    assert!(!err.to_string().contains('\n'), "{text}");
    assert!(!text.contains(TOKEN) && !text.contains("sig="), "{text}");
    nothing_broken(cache);
    err
}

/// Checks that every file under a final name is complete: its name is its hash.
pub(crate) fn nothing_broken(cache: &Path) {
    let Ok(blobs) = std::fs::read_dir(repo(cache).join("blobs")) else { return };
    for blob in blobs.flatten() {
        let name = blob.file_name().to_string_lossy().into_owned();
        if !name.contains('.') {
            let bytes = std::fs::read(blob.path()).unwrap();
            assert!(name == sha256(&bytes) || name == git_blob(&bytes), "{name} is broken");
        }
    }
}

/// A safetensors file of one tensor of `n` bytes.
pub(crate) fn weights(n: usize) -> Vec<u8> {
    let header = serde_json::json!({"w": {"dtype": "U8", "shape": [n], "data_offsets": [0, n]}});
    common::safetensors(&header, &(0..n).map(|i| (i * 31 % 251) as u8).collect::<Vec<_>>())
}
