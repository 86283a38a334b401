//! What a download brings.

use std::path::PathBuf;

/// A checkpoint's files in the cache.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// The snapshot folder.
    pub folder: PathBuf,
    /// The commit it is of.
    pub commit: String,
    /// The files, within the folder.
    pub files: Vec<PathBuf>,
}
