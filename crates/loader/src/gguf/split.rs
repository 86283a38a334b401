//! A model over several files: `NAME-00001-of-00003.gguf` and so on, of which any may be given.
//!
//! The first holds the metadata; each has its number (`split.no`), the number of files (`split.count`) and tensors of its
//! own.

use super::parse::{self, Header, Value};
use crate::{
    blob::Blob,
    error::{LoadError, Result},
    regular,
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// More files than any model has.
const MAX_PARTS: u64 = 4096;

/// All the files of the model that `path` is a part of, in order.
///
/// # Errors
/// One of them is missing, by name.
pub(super) fn parts(path: &Path) -> Result<Vec<PathBuf>> {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let folder = path.parent().unwrap_or(Path::new(""));
    let names = part_names(&name);
    if let [_] = names.as_slice() {
        return Ok(vec![path.to_path_buf()]);
    }
    let count = names.len();
    let part = |file: String| {
        let path = folder.join(&file);
        if regular::exists(&path)? {
            return Ok(path);
        }
        let hint = format!("the model has {count} files, which must be in one folder");
        Err(LoadError::MissingFile { folder: folder.to_path_buf(), file, hint })
    };
    names.into_iter().map(part).collect()
}

/// The names of all the files of the model that `name` is a part of, in order; a name without a number is the only one.
pub(crate) fn part_names(name: &str) -> Vec<String> {
    match numbered(name) {
        Some((stem, count)) => (1..=count).map(|i| format!("{stem}-{i:05}-of-{count:05}.gguf")).collect(),
        None => vec![name.to_string()],
    }
}

/// What a part's name begins with, and how many parts there are.
fn numbered(name: &str) -> Option<(&str, u64)> {
    let rest = name.strip_suffix(".gguf")?;
    let (rest, count) = rest.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let digits = |text: &str| (text.len() == 5).then(|| text.parse::<u64>().ok()).flatten();
    let (number, count) = (digits(number)?, digits(count)?);
    (number >= 1 && number <= count && (2..=MAX_PARTS).contains(&count)).then_some((stem, count))
}

/// The headers of all parts as one.
///
/// # Errors
/// A part that is no part of this model, or not in its place.
pub(super) fn read_headers(blobs: &[Blob]) -> Result<Header> {
    let mut metadata = None;
    let mut tensors = BTreeMap::new();
    for (i, blob) in blobs.iter().enumerate() {
        let header = parse::read_header(blob)?;
        let number = |key: &str, absent: i64| match header.metadata.get(key) {
            None => Ok(absent),
            Some(&Value::Int(n)) => Ok(n),
            Some(_) => Err(parse::key_error(blob, key, "expected an integer")),
        };
        let count = number("split.count", 1)?.max(1);
        if count != blobs.len() as i64 {
            let reason = match blobs.len() {
                1 => {
                    format!("{count}: this is one of several files, whose names say so: NAME-00001-of-{count:05}.gguf")
                }
                n => format!("{count}, but the files' names say {n}"),
            };
            return Err(parse::key_error(blob, "split.count", reason));
        }
        let no = number("split.no", 0)?;
        if no != i as i64 {
            return Err(parse::key_error(blob, "split.no", format!("{no}, but the file's name says part {}", i + 1)));
        }
        for (name, mut info) in header.tensors {
            info.file = i;
            if tensors.insert(name.clone(), info).is_some() {
                return Err(LoadError::tensor(blob.path(), &name, "is in an earlier part too"));
            }
        }
        metadata.get_or_insert(header.metadata);
    }
    let metadata = metadata.unwrap_or_default();
    if let Some(&Value::Int(n)) = metadata.get("split.tensors.count")
        && n != tensors.len() as i64
        && blobs.len() > 1
    {
        let reason = format!("{n}, but the files hold {} tensors", tensors.len());
        return Err(parse::key_error(&blobs[0], "split.tensors.count", reason));
    }
    Ok(Header { metadata, tensors })
}

#[cfg(test)]
mod tests {
    use super::numbered;

    #[test]
    fn only_names_of_parts_are_numbered() {
        assert_eq!(numbered("a-b-00002-of-00003.gguf"), Some(("a-b", 3)));
        for name in
            ["a.gguf", "a-00004-of-00003.gguf", "a-00000-of-00003.gguf", "a-1-of-3.gguf", "a-00001-of-00001.gguf"]
        {
            assert_eq!(numbered(name), None, "{name}");
        }
    }
}
