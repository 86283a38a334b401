//! Architectures: for each of llama.cpp's, which `model_type` of transformers it is, which metadata key is which config
//! key, and which tensor is which.
//!
//! An [`Arch`] is data, except for `more`, which adds what is more than a renaming. The config gets the keys that the
//! family of that `model_type` reads and no others, because the family refuses keys that it does not know.

mod classic;
mod deepseek;
mod encoder;
mod entry;
mod gemma;
mod glm;
mod llama;
mod moe;
mod olmo;
mod phi;
mod qwen;
mod t5;

pub(crate) use entry::Arch;

use super::{dims::Dims, held::Held, meta::Meta, parse::Header, rope::RopeTensors};
use crate::error::{LoadError, Result};
use entry::Reader;
use serde_json::{Map, Value as Json};
use std::collections::BTreeMap;

/// Every architecture that can be translated.
const ALL: [&[Arch]; 11] = [
    &llama::ARCHS,
    &qwen::ARCHS,
    &gemma::ARCHS,
    &phi::ARCHS,
    &olmo::ARCHS,
    &glm::ARCHS,
    &moe::ARCHS,
    &deepseek::ARCHS,
    &classic::ARCHS,
    &encoder::ARCHS,
    &t5::ARCHS,
];

impl Arch {
    /// The architecture that the metadata calls `name`, told from others of that name by a tensor.
    pub(crate) fn find(name: &str, header: &Header) -> Option<&'static Self> {
        let fits = |arch: &&Self| arch.name == name && arch.marked_by.is_none_or(|tensor| header.has(tensor));
        ALL.iter().flat_map(|archs| archs.iter()).find(fits)
    }

    /// All names, for messages.
    pub(crate) fn supported() -> String {
        let mut names: Vec<&str> = ALL.iter().flat_map(|archs| archs.iter()).map(|arch| arch.name).collect();
        names.sort_unstable();
        names.dedup();
        names.join(", ")
    }
}

/// The metadata as a checkpoint has it.
pub(crate) struct Translated {
    /// config.json.
    pub(crate) config: Json,
    /// Tensors that the file keeps as metadata.
    pub(crate) tensors: BTreeMap<String, Held>,
    /// Warnings for the user who loads the file.
    pub(crate) warnings: Vec<String>,
}

/// Translates the metadata.
pub(crate) fn config(
    meta: &Meta,
    arch: &Arch,
    dims: Dims,
    header: &Header,
    tensors: &RopeTensors,
) -> Result<Translated> {
    let mut r = Reader { meta, dims, tensors, header, config: Map::new(), warnings: Vec::new() };
    r.set("model_type", arch.model_type);
    r.set("vocab_size", vocab_size(meta, header)?);
    if arch.has_head() {
        r.set("tie_word_embeddings", !r.has("output.weight"));
    }
    for (key, hf) in [("bos", "bos_token_id"), ("eos", "eos_token_id"), ("padding", "pad_token_id")] {
        if let Some(id) = meta.global_u64(&format!("tokenizer.ggml.{key}_token_id"))? {
            r.set(hf, id);
        }
    }
    for key in arch.keys.iter().flat_map(|keys| keys.iter()) {
        r.copy(*key)?;
    }
    for (tensor, key) in arch.flags {
        let has = r.has(tensor);
        r.set(key, has);
    }
    if let Some(theta) = arch.theta {
        let rope = r.rope((dims.rotary, dims.head_dim), theta)?;
        r.set("rope_parameters", rope);
    }
    if let Some(causal) = meta.bool("attention.causal")?
        && arch.has_head()
        && !causal
    {
        r.set("is_causal", false);
    }
    (arch.more)(&mut r)?;
    let tensors = llama::from_metadata(&r)?;
    Ok(Translated { config: Json::Object(r.config), tensors, warnings: r.warnings })
}

/// The rows of the embedding table count; the metadata and the token list may be padded differently.
fn vocab_size(meta: &Meta, header: &Header) -> Result<u64> {
    match header.tensors.get("token_embd.weight") {
        Some(info) if info.dims.len() == 2 => Ok(info.dims[0] as u64),
        _ => Err(LoadError::tensor(meta.file(), "token_embd.weight", "missing, or not a matrix")),
    }
}
