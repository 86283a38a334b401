//! SHA-256 of files, of bytes, and of bytes that come in parts, in hexadecimal.

use crate::{
    error::{LoadError, Result},
    regular,
};
use sha2::{Digest, Sha256};
use std::{io::Read, path::Path};

/// The SHA-256 of a file in hexadecimal.
pub(crate) fn sha256_file(path: &Path) -> Result<String> {
    let mut file = regular::open(path)?;
    let mut hash = Sha256::new();
    let mut buf = vec![0; 1 << 20];
    loop {
        match file.read(&mut buf).map_err(LoadError::io(path, "read"))? {
            0 => return Ok(hex(hash.finalize())),
            n => hash.update(&buf[..n]),
        }
    }
}

/// The SHA-256 of bytes in hexadecimal.
pub fn sha256(bytes: impl AsRef<[u8]>) -> String {
    hex(Sha256::digest(bytes))
}

/// The SHA-256 of bytes that come in parts.
#[derive(Debug, Clone, Default)]
pub struct Sha256Parts(Sha256);

impl Sha256Parts {
    /// Takes the next part.
    pub fn push(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest in hexadecimal.
    #[must_use]
    pub fn finish(self) -> String {
        hex(self.0.finalize())
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}
