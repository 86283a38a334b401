//! Builders of good and bad files.
#![allow(dead_code, missing_docs, unreachable_pub)]

#[cfg(feature = "hub")]
#[path = "hub.rs"]
pub mod hub;

use candle_core::{DType, Device, Tensor};
use loader::{HubConfig, LoadOptions};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

/// A golden checkpoint of the repository.
pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models").join(name)
}

/// Options that never look at the environment or the network.
pub fn offline() -> LoadOptions {
    let mut hub = HubConfig::from_lookup(|_| None);
    hub.offline = true;
    hub.backoff = Duration::from_millis(1);
    LoadOptions { quiet: true, hub, ..LoadOptions::default() }
}

/// A safetensors file from a header and data.
pub fn safetensors(header: &Value, data: &[u8]) -> Vec<u8> {
    safetensors_text(&header.to_string(), data)
}

pub fn safetensors_text(header: &str, data: &[u8]) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(data);
    out
}

/// A small valid safetensors file: `a` (2, 2) and `b` (3).
pub fn two_tensors() -> Vec<u8> {
    let header = json!({
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        "b": {"dtype": "F32", "shape": [3], "data_offsets": [16, 28]},
    });
    let data: Vec<u8> = (0..7).flat_map(|i| (i as f32).to_le_bytes()).collect();
    safetensors(&header, &data)
}

pub fn values(t: &Tensor) -> Vec<f32> {
    t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Writes a folder with a config and the given files.
pub fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), br#"{"model_type": "llama", "vocab_size": 8}"#).unwrap();
    for (name, bytes) in files {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

/// A metadata value, as it is written.
#[derive(Clone)]
pub enum Meta {
    U32(u32),
    F32(f32),
    Bool(bool),
    Str(String),
    Strs(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    /// A type and the bytes after it.
    Raw(u32, Vec<u8>),
}

impl From<&str> for Meta {
    fn from(s: &str) -> Self {
        Meta::Str(s.to_string())
    }
}

pub fn string(s: &str) -> Vec<u8> {
    let mut out = (s.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(s.as_bytes());
    out
}

impl Meta {
    fn bytes(&self) -> Vec<u8> {
        let array = |tag: u32, n: usize, items: Vec<u8>| {
            let mut out = 9u32.to_le_bytes().to_vec();
            out.extend(tag.to_le_bytes());
            out.extend((n as u64).to_le_bytes());
            out.extend(items);
            out
        };
        let tagged = |tag: u32, bytes: Vec<u8>| [tag.to_le_bytes().to_vec(), bytes].concat();
        match self {
            Meta::U32(v) => tagged(4, v.to_le_bytes().to_vec()),
            Meta::F32(v) => tagged(6, v.to_le_bytes().to_vec()),
            Meta::Bool(v) => tagged(7, vec![u8::from(*v)]),
            Meta::Str(v) => tagged(8, string(v)),
            Meta::Strs(v) => array(8, v.len(), v.iter().flat_map(|s| string(s)).collect()),
            Meta::I32s(v) => array(5, v.len(), v.iter().flat_map(|x| x.to_le_bytes()).collect()),
            Meta::F32s(v) => array(6, v.len(), v.iter().flat_map(|x| x.to_le_bytes()).collect()),
            Meta::Raw(tag, bytes) => tagged(*tag, bytes.clone()),
        }
    }
}

/// A tensor to write: dimensions slowest first, a ggml type and its bytes.
#[derive(Clone)]
pub struct Data {
    pub dims: Vec<u64>,
    pub tag: u32,
    pub bytes: Vec<u8>,
    /// Where the table says the data is; `None` for where it is.
    pub offset: Option<u64>,
}

impl Data {
    pub fn f32(dims: &[usize], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self { dims: dims.iter().map(|&d| d as u64).collect(), tag: 0, bytes, offset: None }
    }
}

/// A GGUF file to write.
#[derive(Clone, Default)]
pub struct Gguf {
    pub meta: Vec<(String, Meta)>,
    pub tensors: Vec<(String, Data)>,
}

impl Gguf {
    pub fn set(&mut self, key: &str, value: impl Into<Meta>) -> &mut Self {
        let value = value.into();
        match self.meta.iter_mut().find(|(k, _)| k == key) {
            Some((_, old)) => *old = value,
            None => self.meta.push((key.to_string(), value)),
        }
        self
    }

    pub fn remove(&mut self, key: &str) -> &mut Self {
        self.meta.retain(|(k, _)| k != key);
        self
    }

    pub fn tensor(&mut self, name: &str, data: Data) -> &mut Self {
        self.tensors.push((name.to_string(), data));
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.meta.len() as u64).to_le_bytes());
        for (key, value) in &self.meta {
            out.extend(string(key));
            out.extend(value.bytes());
        }
        let mut offset = 0u64;
        for (name, data) in &self.tensors {
            out.extend(string(name));
            out.extend((data.dims.len() as u32).to_le_bytes());
            out.extend(data.dims.iter().rev().flat_map(|d| d.to_le_bytes()));
            out.extend(data.tag.to_le_bytes());
            out.extend(data.offset.unwrap_or(offset).to_le_bytes());
            offset = (offset + data.bytes.len() as u64).next_multiple_of(32);
        }
        for (_, data) in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(&data.bytes);
        }
        out
    }

    pub fn write(&self, dir: &Path) -> PathBuf {
        let path = dir.join("model.gguf");
        std::fs::write(&path, self.bytes()).unwrap();
        path
    }
}

/// The smallest Llama that opens.
pub fn tiny_llama() -> Gguf {
    let mut g = Gguf::default();
    g.set("general.architecture", "llama");
    for (key, value) in [
        ("block_count", 1),
        ("embedding_length", 8),
        ("feed_forward_length", 16),
        ("context_length", 32),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
    ] {
        g.set(&format!("llama.{key}"), Meta::U32(value));
    }
    g.set("llama.attention.layer_norm_rms_epsilon", Meta::F32(1e-5));
    let embed: Vec<f32> = (0..64).map(|i| i as f32).collect();
    g.tensor("token_embd.weight", Data::f32(&[8, 8], &embed));
    g
}

/// All tensors of a golden checkpoint, in f32.
pub fn golden_tensors(name: &str) -> BTreeMap<String, Tensor> {
    let all = candle_core::safetensors::load(golden(name).join("model.safetensors"), &Device::Cpu).unwrap();
    all.into_iter().map(|(k, t)| (k, t.to_dtype(DType::F32).unwrap())).collect()
}

pub fn golden_config(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden(name).join("config.json")).unwrap()).unwrap()
}
