//! Typed access to GGUF metadata, with errors that name the key.

use super::parse::{Header, Value};
use crate::error::{LoadError, Result};
use std::path::Path;

/// The metadata of one architecture: keys are looked up behind its prefix.
pub(crate) struct Meta<'a> {
    header: &'a Header,
    file: &'a Path,
    prefix: &'a str,
}

impl<'a> Meta<'a> {
    pub(crate) fn new(header: &'a Header, file: &'a Path, prefix: &'a str) -> Self {
        Self { header, file, prefix }
    }

    pub(crate) fn file(&self) -> &'a Path {
        self.file
    }

    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    /// An error about a key of this architecture.
    pub(crate) fn error(&self, key: &str, reason: impl Into<String>) -> LoadError {
        self.global_error(&self.full(key), reason)
    }

    /// An error about a key with its full name.
    pub(crate) fn global_error(&self, key: &str, reason: impl Into<String>) -> LoadError {
        LoadError::GgufKey { file: self.file.to_path_buf(), key: key.to_string(), reason: reason.into() }
    }

    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.header.metadata.get(&self.full(key))
    }

    pub(crate) fn global(&self, key: &str) -> Option<&'a Value> {
        self.header.metadata.get(key)
    }

    pub(crate) fn global_u64(&self, key: &str) -> Result<Option<u64>> {
        match self.global(key) {
            None => Ok(None),
            Some(&Value::Int(v)) if v >= 0 => Ok(Some(v as u64)),
            // Absent ids are written as -1 or as 2^32 - 1 and the like.
            Some(Value::Int(_) | Value::Big(_)) => Ok(None),
            Some(_) => Err(self.global_error(key, "expected an integer")),
        }
    }

    pub(crate) fn global_bool(&self, key: &str) -> Result<Option<bool>> {
        match self.global(key) {
            None => Ok(None),
            Some(&Value::Bool(v)) => Ok(Some(v)),
            Some(_) => Err(self.global_error(key, "expected true or false")),
        }
    }

    pub(crate) fn global_str(&self, key: &str) -> Result<Option<&'a str>> {
        match self.global(key) {
            None => Ok(None),
            Some(Value::Str(v)) => Ok(Some(v)),
            Some(_) => Err(self.global_error(key, "expected a string")),
        }
    }

    pub(crate) fn str(&self, key: &str) -> Result<Option<&'a str>> {
        self.global_str(&self.full(key))
    }

    pub(crate) fn u64(&self, key: &str) -> Result<Option<u64>> {
        match self.get(key) {
            None => Ok(None),
            Some(&Value::Int(v)) if (0..=1 << 40).contains(&v) => Ok(Some(v as u64)),
            Some(Value::Int(v)) => Err(self.error(key, format!("{v} is out of range"))),
            Some(_) => Err(self.error(key, "expected an integer")),
        }
    }

    pub(crate) fn required_u64(&self, key: &str) -> Result<u64> {
        self.u64(key)?.ok_or_else(|| self.error(key, "is missing"))
    }

    /// A number that may be given for every layer, if it is the same for all.
    pub(crate) fn uniform_u64(&self, key: &str) -> Result<Option<u64>> {
        match self.get(key) {
            Some(Value::Ints(v)) => match v.as_slice() {
                [first, rest @ ..] if *first >= 0 && rest.iter().all(|x| x == first) => Ok(Some(*first as u64)),
                _ => Err(self.error(key, "differs from layer to layer, which is not supported")),
            },
            _ => self.u64(key),
        }
    }

    pub(crate) fn f64(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(&Value::Float(v)) if v.is_finite() => Ok(Some(v)),
            Some(&Value::Int(v)) => Ok(Some(v as f64)),
            Some(_) => Err(self.error(key, "expected a finite number")),
        }
    }
}
