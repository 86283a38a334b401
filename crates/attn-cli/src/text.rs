//! The text that models are measured on.

use crate::output::usage;
use anyhow::{Context, Result};
use std::fs;
use std::io::Read;
use std::path::Path;

/// A public-domain text for when none is given.
const SAMPLE: &str = include_str!("../../../models/sample.txt");

/// Reads `path`, `-` for stdin, or the embedded sample, and names it for reports.
///
/// # Errors
/// The file can't be read, or isn't UTF-8.
pub(crate) fn read(path: Option<&Path>) -> Result<(String, String)> {
    match path {
        None => Ok(("embedded sample".to_string(), SAMPLE.to_string())),
        Some(path) => Ok((path.display().to_string(), read_file(path)?)),
    }
}

/// Reads a UTF-8 file, `-` for stdin.
pub(crate) fn read_file(path: &Path) -> Result<String> {
    let mut bytes = vec![];
    let name = if path == Path::new("-") {
        std::io::stdin().lock().read_to_end(&mut bytes).context("can't read stdin")?;
        "stdin".to_string()
    } else {
        if path.is_dir() {
            return usage(format!("{} is a folder, not a text file", path.display()));
        }
        bytes = fs::read(path).with_context(|| format!("can't read {}", path.display()))?;
        path.display().to_string()
    };
    String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        anyhow::anyhow!("{name} is not UTF-8 text: byte {offset} doesn't belong; convert it first, e.g. with iconv")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_is_not_utf8_is_refused_with_the_offset() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("latin1.txt");
        fs::write(&path, b"caf\xe9 noir").unwrap();
        let error = read(Some(&path)).unwrap_err().to_string();
        assert!(error.contains("latin1.txt") && error.contains("byte 3"), "{error}");
        assert!(read(None).unwrap().1.len() > 10_000);
    }
}
