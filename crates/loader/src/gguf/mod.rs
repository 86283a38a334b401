//! GGUF files: metadata, tokenizer and weights in one file, or several, as llama.cpp writes them.
//!
//! llama.cpp's converter renames tensors, reorders the rows of Llama's q and k for its own rotary layout, adds one to
//! Gemma's norms, stacks experts and spells the config its own way. Here all of that is undone, so that a model sees the
//! checkpoint it would have seen in safetensors. What nothing reads is refused by name, as an unknown key of a
//! config.json is: it may well change the result.

mod arch;
mod blocks;
mod dims;
mod held;
mod meta;
mod names;
mod parse;
mod rope;
mod source;
mod split;
mod tokenizer;

use crate::{
    blob::Blob,
    chat::ChatTemplate,
    checkpoint::{Checkpoint, GenerationDefaults, Origin, OriginFile},
    convert,
    deferred::Deferred,
    error::{LoadError, Result},
    options::LoadOptions,
    regular,
};
use arch::Arch;
use attn_models::BlockFormat;
use attn_models::config::UnknownKeys;
use candle_core::{DType, Device, quantized::GgmlDType};
use dims::Dims;
use held::Held;
use meta::Meta;
use parse::Header;
use rope::RopeTensors;
#[cfg(feature = "hub")]
pub(crate) use split::part_names;
use std::{collections::BTreeMap, io::Read, path::Path, sync::Arc};

/// Whether `path` should be read as GGUF: by its name or by its first bytes.
pub(crate) fn is_gguf(path: &Path) -> bool {
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
        return true;
    }
    let mut magic = [0; 4];
    regular::open(path).is_ok_and(|mut file| file.read_exact(&mut magic).is_ok()) && magic == *b"GGUF"
}

/// Opens the GGUF file at `path`, and the other parts if it is one of several; `model` and `commit` are for its origin.
pub(crate) fn open(path: &Path, model: &str, commit: Option<String>, options: &LoadOptions) -> Result<Checkpoint> {
    let paths = split::parts(path)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let files = paths.iter().map(|p| OriginFile::on_disk(folder, p.clone())).collect::<Result<_>>()?;
    let origin = Origin { model: model.to_string(), commit, files };
    let blobs = paths.iter().map(|p| Blob::open(p, options.mmap)).collect::<Result<_>>()?;
    read(blobs, origin, options)
}

/// Reads the checkpoint in `blobs`, the parts of one model in order.
pub(crate) fn read(blobs: Vec<Blob>, origin: Origin, options: &LoadOptions) -> Result<Checkpoint> {
    let header = split::read_headers(&blobs)?;
    let blob = &blobs[0];
    let path = &blob.path().to_path_buf();
    let name = Meta::new(&header, path, "general").str("architecture")?;
    let name = name.ok_or_else(|| parse::key_error(blob, "general.architecture", "is missing"))?;
    let arch = Arch::find(name, &header).ok_or_else(|| LoadError::Architecture {
        file: path.to_path_buf(),
        architecture: name.to_string(),
        supported: Arch::supported(),
    })?;
    let meta = Meta::new(&header, path, arch.name);
    let dims = Dims::read(&meta, &header, arch.latent)?;
    let rope = rope_tensors(&blobs, &header, dims.rotary)?;
    let arch::Translated { config, tensors: numbers, mut warnings } = arch::config(&meta, arch, dims, &header, &rope)?;
    let mut tensors = translate(arch, &dims, &header, &meta, options.unknown_keys, &mut warnings)?;
    tensors.extend(numbers);
    let vocab_size = config["vocab_size"].as_u64().unwrap_or(0) as usize;
    let tokenizer = tokenizer::build(&meta, vocab_size, &mut warnings);
    let chat_template = meta.global_str("tokenizer.chat_template")?.map(|text| ChatTemplate::new(text).in_file(path));
    let generation = match &tokenizer {
        Ok(Some(t)) => GenerationDefaults { bos_id: t.bos_id, eos_ids: t.eos_ids.clone() },
        _ => GenerationDefaults::default(),
    };
    let tokenizer = match tokenizer {
        Ok(tokenizer) => tokenizer.map(Deferred::ready),
        Err(reason) => Some(Deferred::failed(reason)),
    };
    let quantization = quantization(&meta, &header)?;
    let weights = Arc::new(source::GgufSource::new(blobs, tensors, options.keep_quantized));
    Ok(Checkpoint { config, weights, tokenizer, chat_template, generation, quantization, warnings, origin })
}

/// The tensors under Hugging Face names; metadata and tensors that nothing reads are an error or a warning.
fn translate(
    arch: &Arch,
    dims: &Dims,
    header: &Header,
    meta: &Meta,
    unknown: UnknownKeys,
    warnings: &mut Vec<String>,
) -> Result<BTreeMap<String, Held>> {
    let names::Translated { tensors, unread } =
        names::translate(&arch.rules(), arch.layers, dims, header, meta.file())?;
    let keys = meta.unread();
    const WAY_OUT: &str = "if it does not, pass --allow-unknown-config-keys";
    match unknown {
        UnknownKeys::Refuse => {
            if let Some(key) = keys.first() {
                let reason = format!("is not known to this program and may change the result; {WAY_OUT}");
                return Err(meta.global_error(key, reason));
            }
            if let Some(tensor) = unread.first() {
                let reason =
                    format!("no {} model is known to have it, so the result may be wrong; {WAY_OUT}", arch.name);
                return Err(LoadError::tensor(meta.file(), tensor, reason));
            }
        }
        UnknownKeys::Collect => {
            for (what, names) in [("metadata keys", keys), ("tensors", unread)] {
                if !names.is_empty() {
                    let names = names.join(", ");
                    warnings.push(format!("unknown {what} are ignored, so the result may be wrong: {names}"));
                }
            }
        }
    }
    Ok(tensors)
}

/// What llama.cpp calls the mix of formats, and the formats found: `Q4_K_M (Q4_K, Q6_K, F32)`, the most bytes first.
fn quantization(meta: &Meta, header: &Header) -> Result<Option<String>> {
    let mut bytes: BTreeMap<&str, u64> = BTreeMap::new();
    for info in header.tensors.values() {
        *bytes.entry(info.format.name()).or_default() += info.bytes.end - info.bytes.start;
    }
    let mut formats: Vec<(&str, u64)> = bytes.into_iter().collect();
    formats.sort_by_key(|&(name, bytes)| (std::cmp::Reverse(bytes), name));
    let formats: Vec<&str> = formats.into_iter().map(|(name, _)| name).collect();
    // Bit 10 says that the type was guessed.
    let kind = meta.global_u64("general.file_type")?.and_then(|n| blocks::file_type(n & !1024));
    Ok(match (kind, formats.as_slice()) {
        (Some(kind), [only]) if *only == kind => Some(kind.to_string()),
        (Some(kind), _) => Some(format!("{kind} ({})", formats.join(", "))),
        (None, []) => None,
        (None, _) => Some(formats.join(", ")),
    })
}

/// Reads the small tensors that hold rotary factors.
fn rope_tensors(blobs: &[Blob], header: &Header, rotary: u64) -> Result<RopeTensors> {
    let read = |name: &str| -> Result<Option<Vec<f32>>> {
        let Some(info) = header.tensors.get(name) else { return Ok(None) };
        let blob = &blobs[info.file];
        let err = |reason: String| LoadError::tensor(blob.path(), name, reason);
        if info.format != BlockFormat::Candle(GgmlDType::F32) || info.dims != [(rotary / 2) as usize] {
            return Err(err(format!("expected {} numbers in F32, found {:?}", rotary / 2, info.dims)));
        }
        let piece = [(blob, info.bytes.clone())];
        let tensor = convert::read_tensor(&piece, DType::F32, &info.dims, DType::F32, &Device::Cpu)?;
        let values = tensor.and_then(|t| t.to_vec1::<f32>()).map_err(|e| err(e.to_string()))?;
        match values.iter().find(|x| !(x.is_finite() && **x > 0.0)) {
            Some(x) => Err(err(format!("{x} can't divide a frequency"))),
            None => Ok(Some(values)),
        }
    };
    let [freqs, long, short] = rope::TENSORS;
    Ok(RopeTensors { freqs: read(freqs)?, long: read(long)?, short: read(short)? })
}
