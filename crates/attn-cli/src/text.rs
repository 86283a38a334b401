//! The text that models are measured on, read and tokenised as it comes: neither the text nor what tokenising takes for it
//! is ever in memory as a whole, only the ids.

use crate::memory;
use crate::output::usage;
use anyhow::{Context, Result, ensure};
use loader::{Sha256Parts, Tokenizer, free_memory};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use std::fmt::Formatter;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// A public-domain text for when none is given.
pub(crate) const SAMPLE: &str = include_str!("../models/sample.txt");
/// Bytes read at once.
const PART: usize = 1 << 16;
/// From this length of a line of JSON Lines on, the free memory is checked.
const LONG_LINE: usize = 1 << 20;

/// A text that was read.
pub(crate) struct Source {
    /// What reports call it: the path as given.
    pub(crate) name: String,
    /// Of the file, in hexadecimal.
    pub(crate) sha256: String,
    /// Size of the file.
    pub(crate) bytes: usize,
    /// Documents in it.
    pub(crate) documents: usize,
}

/// A text as tokens.
pub(crate) struct Tokens {
    /// The text.
    pub(crate) source: Source,
    /// Its first ids, as many as were wanted.
    pub(crate) ids: Vec<u32>,
    /// How many it has in all, where they were counted.
    pub(crate) all: Option<usize>,
}

/// Refuses texts that can't be read, or are named twice, before a model is loaded for them.
///
/// # Errors
/// Names the first text that can't be read or is named twice.
pub(crate) fn check(paths: &[PathBuf]) -> Result<()> {
    for (i, path) in paths.iter().enumerate() {
        if paths[..i].contains(path) {
            return usage(format!("--text {} is given twice", path.display()));
        }
        if path.is_dir() {
            return usage(format!("{} is a folder, not a text file", path.display()));
        }
        if path != Path::new("-") {
            fs::metadata(path).with_context(|| format!("can't read {}", path.display()))?;
        }
    }
    Ok(())
}

/// Tokenises the first `most` tokens of `path`, `-` for stdin, or of the embedded sample. A `.jsonl` file is one document per
/// line, in its key `field`; documents are joined by blank lines. `also` sees the text that is tokenised.
///
/// # Errors
/// The file can't be read, isn't UTF-8, has a line without a text, can't be tokenised, or does not fit into memory.
pub(crate) fn tokenize(
    path: Option<&Path>,
    field: &str,
    tokenizer: &Tokenizer,
    most: usize,
    also: &mut dyn FnMut(&str),
) -> Result<Tokens> {
    let field = path.filter(|path| is_lines(path)).map(|_| field);
    encode(path, field, tokenizer, most, also)
}

fn encode(
    path: Option<&Path>,
    field: Option<&str>,
    tokenizer: &Tokenizer,
    most: usize,
    also: &mut dyn FnMut(&str),
) -> Result<Tokens> {
    if let (Some(path), Some(free), usize::MAX) = (path, free_memory(), most) {
        // An id takes four bytes and stands for three bytes of text or more, with rare exceptions.
        let bytes = fs::metadata(path).ok().filter(fs::Metadata::is_file).map_or(0, |file| file.len());
        memory::check_text(path, bytes.saturating_mul(4) / 3, free)?;
    }
    let mut encoder = tokenizer.text_encoder(most);
    let source = stream(path, field, &mut |text| {
        also(text);
        encoder.push(text)?;
        Ok(!encoder.is_full())
    })?;
    let (ids, all) = encoder.finish()?;
    Ok(Tokens { source, ids, all })
}

/// The text of `path` as several tokenizers see it: what was read of it, and the first `most` ids of each.
///
/// # Errors
/// As [`tokenize`].
pub(crate) fn tokenize_all(
    path: Option<&Path>,
    field: &str,
    tokenizers: &[&Tokenizer],
    most: usize,
) -> Result<(Source, String, Vec<Vec<u32>>)> {
    let field = path.filter(|path| is_lines(path)).map(|_| field);
    let mut encoders: Vec<_> = tokenizers.iter().map(|tokenizer| tokenizer.text_encoder(most)).collect();
    let (mut text, mut kept) = (String::new(), memory::Kept::of(path.unwrap_or(Path::new("-"))));
    let source = stream(path, field, &mut |part| {
        text.push_str(part);
        // A byte is hardly ever more than a token, of an id and a place for every tokenizer.
        kept.reach((text.len() * (1 + 8 * encoders.len())) as u64)?;
        encoders.iter_mut().try_for_each(|encoder| encoder.push(part))?;
        Ok(encoders.iter().any(|encoder| !encoder.is_full()))
    })?;
    let ids = encoders.into_iter().map(|encoder| Ok(encoder.finish()?.0)).collect::<Result<_>>()?;
    Ok((source, text, ids))
}

/// The first `most` tokens of a file that is read as plain text, also if its name ends in `.jsonl`.
///
/// # Errors
/// As [`tokenize`].
pub(crate) fn tokenize_plain(path: &Path, tokenizer: &Tokenizer, most: usize) -> Result<Vec<u32>> {
    Ok(encode(Some(path), None, tokenizer, most, &mut |_| ())?.ids)
}

/// The tokens of a text from its BOS on, if it has one; one that is written out is not doubled.
pub(crate) fn begun(mut ids: Vec<u32>, bos: Option<u32>) -> Vec<u32> {
    if let Some(bos) = bos.filter(|&bos| ids.first() != Some(&bos)) {
        ids.insert(0, bos);
    }
    ids
}

fn is_lines(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("jsonl"))
}

/// Hands the text of `path`, `-` for stdin, or of the embedded sample to `take`, part by part, until it wants no more. With a
/// `field`, it is JSON Lines. A byte order mark at its beginning is no part of the text.
///
/// # Errors
/// The file can't be read, isn't UTF-8, or has a line without a text; whatever `take` fails with.
pub(crate) fn stream(
    path: Option<&Path>,
    field: Option<&str>,
    take: &mut dyn FnMut(&str) -> Result<bool>,
) -> Result<Source> {
    stream_joined(path, field, "\n\n", take)
}

/// [`stream`], with `between` any two documents of JSON Lines.
fn stream_joined(
    path: Option<&Path>,
    field: Option<&str>,
    between: &str,
    take: &mut dyn FnMut(&str) -> Result<bool>,
) -> Result<Source> {
    let (mut reader, name) = open(path)?;
    let (mut digest, mut bytes) = (Sha256Parts::default(), 0);
    let mut utf8 = Utf8 { name: &name, held: vec![], read: 0 };
    let (line, lines, found) = (String::new(), 0, 0);
    let mut documents = field.map(|field| Documents { name: &name, field, between, line, lines, found });
    let (mut wanted, mut began) = (true, false);
    let mut buffer = vec![0; PART];
    loop {
        let n = match reader.read(&mut buffer) {
            Ok(n) => n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).with_context(|| format!("can't read {name}")),
        };
        digest.push(&buffer[..n]);
        let text = utf8.push(&buffer[..n])?;
        let text = if began { text.as_str() } else { text.strip_prefix('\u{feff}').unwrap_or(&text) };
        began |= utf8.read > 0;
        bytes += n;
        match &mut documents {
            Some(documents) => documents.push(text, n == 0, &mut wanted, take)?,
            None if wanted && !text.is_empty() => wanted = take(text)?,
            None => {}
        }
        if n == 0 {
            let documents = documents.map_or(1, |documents| documents.found);
            return Ok(Source { sha256: digest.finish(), bytes, documents, name });
        }
    }
}

fn open(path: Option<&Path>) -> Result<(Box<dyn Read>, String)> {
    let Some(path) = path else { return Ok((Box::new(SAMPLE.as_bytes()), "embedded sample".to_string())) };
    if path == Path::new("-") {
        return Ok((Box::new(std::io::stdin().lock()), "stdin".to_string()));
    }
    if path.is_dir() {
        return usage(format!("{} is a folder, not a text file", path.display()));
    }
    let file = File::open(path).with_context(|| format!("can't read {}", path.display()))?;
    Ok((Box::new(file), path.display().to_string()))
}

/// Text from bytes that may end within a character.
struct Utf8<'a> {
    name: &'a str,
    held: Vec<u8>,
    /// Bytes that were handed on.
    read: usize,
}

impl Utf8<'_> {
    /// The text of `bytes`; none of them means that there are no more.
    fn push(&mut self, bytes: &[u8]) -> Result<String> {
        self.held.extend_from_slice(bytes);
        let (valid, broken) = match std::str::from_utf8(&self.held) {
            Ok(_) => (self.held.len(), false),
            Err(error) => (error.valid_up_to(), error.error_len().is_some() || bytes.is_empty()),
        };
        let (name, offset) = (self.name, self.read + valid);
        ensure!(!broken, "{name} is not UTF-8 text (see byte {offset}): convert it first, for example with iconv");
        self.read += valid;
        let rest = self.held.split_off(valid);
        Ok(String::from_utf8(std::mem::replace(&mut self.held, rest))?)
    }
}

/// The documents of JSON Lines.
struct Documents<'a> {
    name: &'a str,
    field: &'a str,
    between: &'a str,
    /// What is there of a line.
    line: String,
    lines: usize,
    found: usize,
}

impl Documents<'_> {
    fn push(
        &mut self,
        mut text: &str,
        last: bool,
        wanted: &mut bool,
        take: &mut dyn FnMut(&str) -> Result<bool>,
    ) -> Result<()> {
        while let Some((end, rest)) = text.split_once('\n') {
            self.line.push_str(end);
            self.end(wanted, take)?;
            text = rest;
        }
        self.line.push_str(text);
        if last {
            return self.end(wanted, take);
        }
        if self.line.len() <= LONG_LINE {
            return Ok(());
        }
        memory::check_text(Path::new(self.name), self.line.len() as u64, longest_whole())
    }

    fn end(&mut self, wanted: &mut bool, take: &mut dyn FnMut(&str) -> Result<bool>) -> Result<()> {
        let line = std::mem::take(&mut self.line);
        self.lines += 1;
        if line.trim().is_empty() {
            return Ok(());
        }
        let text = document(&line, self.name, self.lines, self.field)?;
        if self.found > 0 && !self.between.is_empty() {
            *wanted = *wanted && take(self.between)?;
        }
        *wanted = *wanted && take(&text)?;
        self.found += 1;
        Ok(())
    }
}

/// The text that a line of JSON Lines has under `field`. Everything else in the line is skipped and takes no memory.
fn document(line: &str, name: &str, number: usize, field: &str) -> Result<String> {
    let mut json = serde_json::Deserializer::from_str(line);
    let found = Field(field).deserialize(&mut json).and_then(|found| json.end().map(|()| found));
    let found = found.with_context(|| format!("{name}, line {number}"))?;
    found.with_context(|| {
        format!("{name}, line {number}: there is no text under the key {field:?} (--text-field selects another key)")
    })
}

/// The text under a key of an object.
struct Field<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Field<'_> {
    type Value = Option<String>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Field<'_> {
    type Value = Option<String>;

    fn expecting(&self, out: &mut Formatter<'_>) -> std::fmt::Result {
        write!(out, "an object with a text under {:?}", self.0)
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut found = None;
        while let Some(key) = map.next_key::<String>()? {
            if key == self.0 {
                found = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// Hands the documents of a `.jsonl` file to `take`, one by one; `false` for any other file, which is one.
///
/// # Errors
/// As [`stream`].
pub(crate) fn each_document(
    path: Option<&Path>,
    field: &str,
    take: &mut dyn FnMut(&str) -> Result<()>,
) -> Result<bool> {
    let Some(path) = path.filter(|path| is_lines(path)) else { return Ok(false) };
    stream_joined(Some(path), Some(field), "", &mut |document| take(document).map(|()| true))?;
    Ok(true)
}

/// Bytes of a text that may be in memory as a whole, beside what is made of it.
fn longest_whole() -> u64 {
    free_memory().map_or(u64::MAX, |free| free / 8)
}

/// Reads a UTF-8 file, `-` for stdin, that is to be in memory as a whole.
///
/// # Errors
/// It can't be read, isn't UTF-8, or does not fit into memory.
pub(crate) fn read_file(path: &Path) -> Result<String> {
    let most = longest_whole();
    let mut text = String::new();
    if let Ok(file) = fs::metadata(path)
        && file.is_file()
    {
        memory::check_text(path, file.len(), most)?;
        text.reserve_exact(usize::try_from(file.len()).unwrap_or(0));
    }
    stream(Some(path), None, &mut |part| {
        memory::check_text(path, (text.len() + part.len()) as u64, most)?;
        text.push_str(part);
        Ok(true)
    })?;
    Ok(text)
}

/// Hands the text of `path` to `take`; a `.jsonl` file is one document per line, in its key `field`.
///
/// # Errors
/// As [`stream`].
pub(crate) fn each_part(path: &Path, field: &str, take: &mut dyn FnMut(&str) -> Result<()>) -> Result<Source> {
    stream(Some(path), is_lines(path).then_some(field), &mut |part| take(part).map(|()| true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use loader::sha256;

    fn read_all(path: &Path, field: &str) -> Result<(String, Source)> {
        let mut text = String::new();
        let source = each_part(path, field, &mut |part| {
            text.push_str(part);
            Ok(())
        })?;
        Ok((text, source))
    }

    #[test]
    fn text_that_is_not_utf8_is_refused_with_the_offset() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("latin1.txt");
        for (bytes, offset) in [(&b"caf\xe9 noir"[..], 3), (b"caf\xc3", 3), (b"\xff", 0), (b"abc\xe2\x82", 3)] {
            fs::write(&path, bytes).unwrap();
            let error = read_file(&path).unwrap_err().to_string();
            assert!(error.contains("latin1.txt") && error.contains(&format!("byte {offset})")), "{error}");
        }
        // Past the first part, and across its end.
        let long = [vec![b'a'; PART - 1], "\u{e9}x".as_bytes().to_vec()].concat();
        fs::write(&path, &long).unwrap();
        assert_eq!(read_file(&path).unwrap().as_bytes(), long);
        fs::write(&path, [&long[..], b"\xe9"].concat()).unwrap();
        assert!(read_file(&path).unwrap_err().to_string().contains(&format!("byte {}", PART + 2)));
        assert!(stream(None, None, &mut |_| Ok(true)).unwrap().bytes > 10_000);
    }

    #[test]
    fn a_byte_order_mark_is_no_text_and_zero_bytes_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.txt");
        for (bytes, want) in [
            ("\u{feff}a\u{feff}b", "a\u{feff}b"),
            ("a\0\0b", "a\0\0b"),
            ("\u{feff}", ""),
            ("", ""),
            ("no end", "no end"),
        ] {
            fs::write(&path, bytes).unwrap();
            let (text, source) = read_all(&path, "text").unwrap();
            assert_eq!((text.as_str(), source.bytes), (want, bytes.len()));
            assert_eq!(source.sha256, sha256(bytes));
        }
    }

    #[test]
    fn json_lines_are_documents() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.jsonl");
        fs::write(&path, "{\"text\": \"one\"}\n\n{\"text\": \"two\\n\", \"id\": 2}\n").unwrap();
        let (text, source) = read_all(&path, "text").unwrap();
        assert_eq!((text.as_str(), source.documents), ("one\n\ntwo\n", 2));
        assert_eq!(source.sha256, sha256(fs::read(&path).unwrap()));
        let error = format!("{:#}", read_all(&path, "body").err().unwrap());
        assert!(error.contains("line 1") && error.contains("--text-field"), "{error}");
        fs::write(&path, "{\"text\": \"one\"}\n{\"text\"").unwrap();
        let error = format!("{:#}", read_all(&path, "text").err().unwrap());
        assert!(error.contains("line 2"), "{error}");
        // Many, without an end of the last line, and lines longer than what is read at once.
        let many: String = (0..20_000).map(|i| format!("{{\"text\": \"{i}\"}}\r\n")).collect();
        let long = "x".repeat(3 * PART);
        fs::write(&path, format!("\u{feff}{many}{{\"text\": \"{long}\"}}")).unwrap();
        let (text, source) = read_all(&path, "text").unwrap();
        assert_eq!(source.documents, 20_001);
        assert!(text.starts_with("0\n\n1\n\n2") && text.ends_with(&format!("19999\n\n{long}")));
    }
}
