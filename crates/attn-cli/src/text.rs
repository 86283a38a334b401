//! The text that models are measured on.

use crate::output::usage;
use anyhow::{Context, Result};
use loader::sha256;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

/// A public-domain text for when none is given.
const SAMPLE: &str = include_str!("../../../models/sample.txt");

/// What `--text` names.
pub(crate) struct Source {
    /// What reports call it: the path as given.
    pub(crate) name: String,
    /// The text, the documents of a JSON Lines file joined by blank lines.
    pub(crate) text: String,
    /// Of the file, in hexadecimal.
    pub(crate) sha256: String,
    /// Size of the file.
    pub(crate) bytes: usize,
    /// Documents in it.
    pub(crate) documents: usize,
}

impl Source {
    fn new(name: String, text: String) -> Self {
        Self { name, sha256: sha256(text.as_bytes()), bytes: text.len(), documents: 1, text }
    }
}

/// Reads `path`, `-` for stdin, or the embedded sample. A `.jsonl` file is one document per line, in its key `field`.
///
/// # Errors
/// The file can't be read, isn't UTF-8, or has a line without a text.
pub(crate) fn read(path: Option<&Path>, field: &str) -> Result<Source> {
    let Some(path) = path else { return Ok(Source::new("embedded sample".into(), SAMPLE.to_string())) };
    let source = Source::new(path.display().to_string(), read_file(path)?);
    let is_lines = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("jsonl"));
    if is_lines { documents(source, field) } else { Ok(source) }
}

/// Reads several texts, or the embedded sample if none is named.
///
/// # Errors
/// As [`read`], and a text named twice.
pub(crate) fn read_all(paths: &[PathBuf], field: &str) -> Result<Vec<Source>> {
    if paths.is_empty() {
        return Ok(vec![read(None, field)?]);
    }
    for (i, path) in paths.iter().enumerate() {
        if paths[..i].contains(path) {
            return usage(format!("--text {} is given twice", path.display()));
        }
    }
    paths.iter().map(|path| read(Some(path), field)).collect()
}

/// The documents of JSON Lines as one text.
fn documents(source: Source, field: &str) -> Result<Source> {
    let mut documents = vec![];
    for (index, line) in source.text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let at = || format!("{}, line {}", source.name, index + 1);
        let value: serde_json::Value = serde_json::from_str(line).with_context(at)?;
        match value.get(field).and_then(|text| text.as_str()) {
            Some(text) => documents.push(text.to_string()),
            None => anyhow::bail!("{}: there is no text under {field:?} (--text-field names another key)", at()),
        }
    }
    Ok(Source { documents: documents.len(), text: documents.join("\n\n"), ..source })
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
        let error = read_file(&path).unwrap_err().to_string();
        assert!(error.contains("latin1.txt") && error.contains("byte 3"), "{error}");
        assert!(read(None, "text").unwrap().text.len() > 10_000);
    }

    #[test]
    fn json_lines_are_documents() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.jsonl");
        fs::write(&path, "{\"text\": \"one\"}\n\n{\"text\": \"two\\n\", \"id\": 2}\n").unwrap();
        let source = read(Some(&path), "text").unwrap();
        assert_eq!((source.text.as_str(), source.documents), ("one\n\ntwo\n", 2));
        assert_eq!(source.sha256, sha256(fs::read(&path).unwrap()));
        let error = format!("{:#}", read(Some(&path), "body").err().unwrap());
        assert!(error.contains("line 1") && error.contains("--text-field"), "{error}");
        fs::write(&path, "{\"text\": \"one\"}\n{\"text\"").unwrap();
        let error = format!("{:#}", read(Some(&path), "text").err().unwrap());
        assert!(error.contains("line 2"), "{error}");
    }

    #[test]
    fn the_digest_is_the_published_one() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(b"abc"), abc);
    }
}
