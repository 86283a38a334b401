//! Parsers of files as functions of bytes, for the targets in `fuzz/`; compiled for them alone.

use crate::{blob::Blob, checkpoint::Origin, gguf, options::LoadOptions, safetensors};
use attn_models::config::UnknownKeys;
use candle_core::{DType, Device};
use std::path::Path;

/// A GGUF file: everything that opening it reads, then every tensor, then its tokenizer on a short text.
pub fn gguf(bytes: &[u8]) {
    let blob = Blob::memory("fuzz.gguf", bytes.to_vec().into());
    let origin = Origin { model: "fuzz".into(), commit: None, files: Vec::new() };
    let options = LoadOptions { keep_quantized: true, unknown_keys: UnknownKeys::Collect, ..LoadOptions::default() };
    let Ok(checkpoint) = gguf::read(vec![blob], origin, &options) else { return };
    for name in checkpoint.weights.names() {
        let _ = checkpoint.weights.load(&name, DType::F32, &Device::Cpu);
        let _ = checkpoint.weights.quantized(&name, &Device::Cpu);
    }
    if let Ok(ids) = checkpoint.require_tokenizer().and_then(|t| t.encode("Hello, w\u{f6}rld 12", true)) {
        let _ = checkpoint.require_tokenizer().and_then(|t| t.decode(&ids, false));
    }
}

/// The index of a sharded checkpoint.
pub fn safetensors_index(bytes: &[u8]) {
    if let Ok(map) = safetensors::parse_index(Path::new("fuzz.json"), bytes) {
        assert!(map.values().all(|shard| !shard.starts_with('/') && shard.split('/').all(|part| part != "..")));
    }
}

/// What a hub answers: its list of files, and, line by line, where it redirects to.
#[cfg(feature = "hub")]
pub fn hub(bytes: &[u8]) {
    crate::hub::fuzz(bytes);
}
