//! Opens files of a model folder, and refuses anything that is not a regular file.
//!
//! A FIFO waits for a writer when it is opened, a device may have no end, and a link may lead nowhere. A link that
//! leads nowhere is an error and does not count as a missing file, because its author wanted the file to be used.

use crate::error::{LoadError, Result};
use std::{
    fs::{self, File},
    io::{Error, ErrorKind, Read},
    path::Path,
};

/// Opens `path`, which has to lead to a regular file.
///
/// # Errors
/// It leads nowhere, or to something else.
pub(crate) fn open(path: &Path) -> Result<File> {
    // Looked at first: opening a FIFO waits, and a device may do anything.
    let found = fs::metadata(path).map_err(LoadError::io(path, "open"))?;
    check(path, &found)?;
    let file = File::open(path).map_err(LoadError::io(path, "open"))?;
    check(path, &file.metadata().map_err(LoadError::io(path, "read the size of"))?)?;
    Ok(file)
}

/// Reads a file of at most `max` bytes.
///
/// # Errors
/// As [`open`], it can't be read, or it is longer.
pub(crate) fn read(path: &Path, max: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(max + 1).read_to_end(&mut bytes).map_err(LoadError::io(path, "read"))?;
    if bytes.len() as u64 > max {
        let source = Error::other(format!("it is longer than {max} bytes"));
        return Err(LoadError::Io { path: path.to_path_buf(), action: "read", source });
    }
    Ok(bytes)
}

fn check(path: &Path, found: &fs::Metadata) -> Result<()> {
    if found.is_file() {
        return Ok(());
    }
    let what = if found.is_dir() { "it is a folder" } else { "not a regular file" };
    Err(LoadError::Io { path: path.to_path_buf(), action: "open", source: Error::other(what) })
}

/// Whether there is something at `path`.
///
/// # Errors
/// It can't be told, or there is a link that leads nowhere.
pub(crate) fn exists(path: &Path) -> Result<bool> {
    let failed = |source| LoadError::Io { path: path.to_path_buf(), action: "open", source };
    match fs::metadata(path) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == ErrorKind::NotFound || e.kind() == ErrorKind::NotADirectory => {
            match fs::symlink_metadata(path).is_ok() {
                true => Err(failed(Error::new(e.kind(), "it is a link to a file that does not exist"))),
                false => Ok(false),
            }
        }
        Err(e) => Err(failed(e)),
    }
}
