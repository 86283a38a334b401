//! GGUF files: one file with metadata, tokenizer and weights, as llama.cpp writes it.
//!
//! llama.cpp's converter renames tensors, reorders the rows of Llama's q and k for its own rotary layout, adds one to
//! Gemma's norms and spells the config its own way. Here all of that is undone, so that a model sees the checkpoint it
//! would have seen in safetensors.

mod arch;
mod meta;
mod names;
mod parse;
mod pre;
mod source;
mod tokenizer;

use crate::{
    blob::Blob,
    chat::ChatTemplate,
    checkpoint::{Checkpoint, GenerationDefaults, LoadOptions, Origin, OriginFile},
    convert,
    deferred::Deferred,
    error::{LoadError, Result},
};
use arch::{Arch, RopeTensors};
use candle_core::{DType, Device, quantized::GgmlDType};
use meta::Meta;
use parse::Header;
use std::{io::Read, path::Path, sync::Arc};

/// Whether `path` should be read as GGUF: by its name or by its first bytes.
pub(crate) fn is_gguf(path: &Path) -> bool {
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
        return true;
    }
    let mut magic = [0; 4];
    std::fs::File::open(path).and_then(|mut f| f.read_exact(&mut magic)).is_ok() && magic == *b"GGUF"
}

/// Opens the GGUF file at `path`; `model` and `commit` are for its origin.
pub(crate) fn open(path: &Path, model: &str, commit: Option<String>, options: &LoadOptions) -> Result<Checkpoint> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let files = vec![OriginFile::on_disk(folder, path.to_path_buf())?];
    let origin = Origin { model: model.to_string(), commit, files };
    read(Blob::open(path, options.mmap)?, origin, options.keep_quantized)
}

/// Reads the checkpoint in `blob`.
pub(crate) fn read(blob: Blob, origin: Origin, keep_quantized: bool) -> Result<Checkpoint> {
    let path = &blob.path().to_path_buf();
    let header = parse::read_header(&blob)?;
    let name = Meta::new(&header, path, "general").str("architecture")?;
    let name = name.ok_or_else(|| parse::key_error(&blob, "general.architecture", "is missing"))?;
    let arch = Arch::parse(name).ok_or_else(|| LoadError::Architecture {
        file: path.to_path_buf(),
        architecture: name.to_string(),
        supported: Arch::supported(),
    })?;
    let meta = Meta::new(&header, path, arch.name());
    if meta.global_u64("split.count")?.is_some_and(|n| n > 1) {
        let reason = "the model is split over several files; join them with llama.cpp's `llama-gguf-split --merge`";
        return Err(parse::key_error(&blob, "split.count", reason));
    }
    let dims = arch::dims(&meta)?;
    let rope = rope_tensors(&blob, &header, dims.rotary)?;
    let config = arch::config(&meta, arch, dims, &header, rope)?;
    let tokenizer = tokenizer::build(&meta, config["vocab_size"].as_u64().unwrap_or(0) as usize)?;
    let chat_template = match meta.global_str("tokenizer.chat_template")? {
        Some(source) => Some(ChatTemplate::new(source).map_err(|e| e.in_file(path))?),
        None => None,
    };
    let generation = match &tokenizer {
        Some(t) => GenerationDefaults { bos_id: t.bos_id, eos_ids: t.eos_ids.clone() },
        None => GenerationDefaults::default(),
    };
    let heads = (dims.heads as usize, dims.kv_heads as usize);
    let tokenizer = tokenizer.map(Deferred::ready);
    let weights = source::GgufSource::new(blob, header, arch, heads, keep_quantized)?;
    Ok(Checkpoint { config, weights: Arc::new(weights), tokenizer, chat_template, generation, origin })
}

/// Reads the small tensors that hold rotary factors.
fn rope_tensors(blob: &Blob, header: &Header, rotary: u64) -> Result<RopeTensors> {
    let read = |name: &str| -> Result<Option<Vec<f32>>> {
        let Some(info) = header.tensors.get(name) else { return Ok(None) };
        let err = |reason: String| LoadError::tensor(blob.path(), name, reason);
        if info.dtype != GgmlDType::F32 || info.dims != [(rotary / 2) as usize] {
            return Err(err(format!("expected {} numbers in F32, found {:?}", rotary / 2, info.dims)));
        }
        let piece = [(blob, info.bytes.clone())];
        let tensor = convert::read_tensor(&piece, DType::F32, &info.dims, DType::F32, &Device::Cpu)?;
        tensor.and_then(|t| t.to_vec1()).map(Some).map_err(|e| err(e.to_string()))
    };
    Ok(RopeTensors {
        freqs: read("rope_freqs.weight")?,
        long: read("rope_factors_long.weight")?,
        short: read("rope_factors_short.weight")?,
    })
}
