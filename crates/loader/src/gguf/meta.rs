//! Typed access to GGUF metadata, with errors that name the key.

use super::parse::{Header, Value};
use crate::error::{LoadError, Result};
use std::{cell::RefCell, collections::BTreeSet, path::Path};

/// Namespaces whose keys never change what a forward pass computes: what the file is called, how it was made, how it is
/// split, and what its tokenizer is, which is read apart.
const HARMLESS_SPACES: [&str; 8] =
    ["general.", "tokenizer.", "quantize.", "split.", "imatrix.", "mradermacher.", "unsloth.", "lmstudio."];

/// Keys of an architecture that never change it either: sizes told elsewhere too, what a classifier or an embedding model
/// does with hidden states, how axes of an image share rotary lanes, and the order that weights had before.
const HARMLESS: [&str; 8] = [
    "vocab_size",
    "pooling_type",
    "classifier.pooling_type",
    "classifier.output_labels",
    "rope.scaling.finetuned",
    "rope.dimension_sections",
    "tensor_data_layout",
    "decoder_start_token_id",
];

/// Keys for which 0 says that there is no such thing.
const NONE_IF_ZERO: [&str; 13] = [
    "expert_count",
    "expert_used_count",
    "expert_shared_count",
    "expert_group_count",
    "expert_group_used_count",
    "expert_feed_forward_length",
    "nextn_predict_layers",
    "n_deepstack_layers",
    "attention.sliding_window",
    "attention.clamp_kqv",
    "attention.max_alibi_bias",
    "attn_logit_softcapping",
    "final_logit_softcapping",
];

/// The metadata of one architecture: keys are looked up behind its prefix, and remembered.
pub(crate) struct Meta<'a> {
    header: &'a Header,
    file: &'a Path,
    prefix: &'a str,
    read: RefCell<BTreeSet<String>>,
}

impl<'a> Meta<'a> {
    pub(crate) fn new(header: &'a Header, file: &'a Path, prefix: &'a str) -> Self {
        Self { header, file, prefix, read: RefCell::default() }
    }

    /// The keys that nothing read and that are not known to be harmless, sorted.
    pub(crate) fn unread(&self) -> Vec<String> {
        let read = self.read.borrow();
        let harmless = |key: &str, value: &Value| {
            let own = key.strip_prefix(self.prefix).and_then(|rest| rest.strip_prefix('.'));
            let zero = matches!(value, Value::Int(0)) || matches!(value, Value::Float(x) if *x == 0.0);
            match own {
                Some(own) => HARMLESS.contains(&own) || (zero && NONE_IF_ZERO.contains(&own)),
                None => HARMLESS_SPACES.iter().any(|space| key.starts_with(space)),
            }
        };
        let keys = self.header.metadata.iter().filter(|(key, value)| !read.contains(*key) && !harmless(key, value));
        let mut keys: Vec<String> = keys.map(|(key, _)| key.clone()).collect();
        keys.sort();
        keys
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
        self.global(&self.full(key))
    }

    /// A key with its full name.
    pub(crate) fn global(&self, key: &str) -> Option<&'a Value> {
        self.read.borrow_mut().insert(key.to_string());
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

    pub(crate) fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.global_bool(&self.full(key))
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
            Some(Value::Ints(v)) => match v.get(0) {
                Some(first) if first >= 0 && v.iter().all(|x| x == first) => Ok(Some(first as u64)),
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
