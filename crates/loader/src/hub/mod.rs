//! The Hugging Face hub: its cache on this machine, and downloads into it.

mod cache;
mod config;

pub use config::HubConfig;

use crate::{
    error::{LoadError, Result},
    source::HubRef,
};
use std::path::PathBuf;

/// A checkpoint's files in the cache.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// The snapshot folder.
    pub folder: PathBuf,
    /// The commit it is of.
    pub commit: String,
}

/// Brings the files a checkpoint needs into the cache.
pub(crate) fn fetch(id: &HubRef, config: &HubConfig, _quiet: bool) -> Result<Fetched> {
    match cache::find(id, config) {
        Some(found) => Ok(found),
        None => Err(LoadError::HubDisabled { repo: id.repo.clone() }),
    }
}
