//! Architectures: for each of llama.cpp's, which `model_type` of transformers it is, which metadata key is which config
//! key, and which tensor is which.
//!
//! An [`Arch`] is data, except for `more`, which adds what is more than a renaming. The config gets the keys that the
//! family of that `model_type` reads and no others, because the family refuses keys that it does not know.

mod classic;
mod deepseek;
mod encoder;
mod gemma;
mod glm;
mod llama;
mod moe;
mod olmo;
mod phi;
mod qwen;
mod t5;

use super::{
    meta::Meta,
    names::Name,
    parse::{Header, Info, Value},
    rope,
    source::Held,
};
use crate::error::{LoadError, Result};
use serde_json::{Map, Value as Json};
use std::collections::BTreeMap;

/// One architecture of llama.cpp.
pub(crate) struct Arch {
    /// `general.architecture`.
    pub(crate) name: &'static str,
    /// A tensor that tells it from others that have the same name and come after it.
    pub(crate) marked_by: Option<&'static str>,
    /// `model_type` in transformers, unless `more` finds that it is another.
    pub(crate) model_type: &'static str,
    /// What the names of a layer's tensors begin with in Hugging Face checkpoints.
    pub(crate) layers: &'static str,
    /// Metadata keys as config keys.
    pub(crate) keys: &'static [&'static [Key]],
    /// Config keys that say whether there is a tensor.
    pub(crate) flags: &'static [(&'static str, &'static str)],
    /// The base of the rotary encoding if the file names none; `None` for other encodings.
    pub(crate) theta: Option<f64>,
    /// Whether attention is over a latent (DeepSeek), whose widths the metadata gives in another way.
    pub(crate) latent: bool,
    /// What the config says beyond that.
    pub(crate) more: fn(&mut Reader) -> Result<()>,
    /// The tensors.
    pub(crate) names: &'static [&'static [Name]],
}

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
    pub(crate) fn find(name: &str, header: &Header) -> Option<&'static Self> {
        let fits = |arch: &&Self| arch.name == name && arch.marked_by.is_none_or(|tensor| has(header, tensor));
        ALL.iter().flat_map(|archs| archs.iter()).find(fits)
    }

    /// All names, for messages.
    pub(crate) fn supported() -> String {
        let mut names: Vec<&str> = ALL.iter().flat_map(|archs| archs.iter()).map(|arch| arch.name).collect();
        names.sort_unstable();
        names.dedup();
        names.join(", ")
    }

    /// Whether it has an output projection, be it the embedding's.
    fn has_head(&self) -> bool {
        self.names.iter().flat_map(|names| names.iter()).any(Name::is_output)
    }
}

/// A metadata key that a config key comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key {
    gguf: &'static str,
    hf: &'static str,
    kind: Kind,
    needed: bool,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Size,
    Number,
    Flag,
    Layers,
    Heads,
    KvHeads,
    HeadDim,
    Inner,
}

impl Key {
    const fn new(kind: Kind, gguf: &'static str, hf: &'static str) -> Self {
        Self { gguf, hf, kind, needed: true }
    }

    /// An integer above 0; one per layer will do if they are all the same.
    pub(crate) const fn size(gguf: &'static str, hf: &'static str) -> Self {
        Self::new(Kind::Size, gguf, hf)
    }

    /// A number.
    pub(crate) const fn number(gguf: &'static str, hf: &'static str) -> Self {
        Self::new(Kind::Number, gguf, hf)
    }

    /// True or false.
    pub(crate) const fn flag(gguf: &'static str, hf: &'static str) -> Self {
        Self::new(Kind::Flag, gguf, hf)
    }

    /// The number of layers, without those that only predict further tokens in training.
    pub(crate) const fn layers(hf: &'static str) -> Self {
        Self::new(Kind::Layers, "block_count", hf)
    }

    /// The number of query heads.
    pub(crate) const fn heads(hf: &'static str) -> Self {
        Self::new(Kind::Heads, "attention.head_count", hf)
    }

    /// The number of key and value heads.
    pub(crate) const fn kv_heads(hf: &'static str) -> Self {
        Self::new(Kind::KvHeads, "attention.head_count_kv", hf)
    }

    /// The width of a head.
    pub(crate) const fn head_dim(hf: &'static str) -> Self {
        Self::new(Kind::HeadDim, "attention.key_length", hf)
    }

    /// The width inside the feed-forward network, as the tensors have it: converters write four times the width for
    /// some families whatever it is.
    pub(crate) const fn inner(hf: &'static str) -> Self {
        Self::new(Kind::Inner, "feed_forward_length", hf)
    }

    /// The config goes without it if the file does.
    pub(crate) const fn optional(mut self) -> Self {
        self.needed = false;
        self
    }
}

/// The numbers that both the config and the tensors' translation need.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dims {
    pub(crate) layers: u64,
    /// Layers past them that only predict further tokens in training.
    pub(crate) extra_layers: u64,
    pub(crate) heads: u64,
    pub(crate) kv_heads: u64,
    /// The width of a head, and how much of it rotates.
    pub(crate) head_dim: u64,
    pub(crate) rotary: u64,
    pub(crate) context: u64,
    /// Of the architecture: see [`Arch::latent`].
    pub(crate) latent: bool,
}

/// More layers than any model has.
const MAX_LAYERS: u64 = 4096;

pub(crate) fn dims(meta: &Meta, arch: &Arch, header: &Header) -> Result<Dims> {
    let blocks = meta.required_u64("block_count")?;
    let hidden = meta.required_u64("embedding_length")?;
    let heads = meta.uniform_u64("attention.head_count")?;
    let heads = heads.ok_or_else(|| meta.error("attention.head_count", "is missing"))?;
    let kv_heads = meta.uniform_u64("attention.head_count_kv")?.unwrap_or(heads);
    let extra_layers = meta.u64("nextn_predict_layers")?.unwrap_or(0);
    let layers = blocks.saturating_sub(extra_layers);
    if layers == 0 || blocks > MAX_LAYERS {
        return Err(meta.error("block_count", format!("{layers} layers")));
    }
    let key_length = meta.uniform_u64("attention.key_length")?;
    if hidden == 0 || heads == 0 || (key_length.is_none() && !hidden.is_multiple_of(heads)) {
        return Err(meta.error("attention.head_count", format!("{heads} heads do not divide width {hidden}")));
    }
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(meta.error("attention.head_count_kv", format!("{heads} heads are not divisible by {kv_heads}")));
    }
    let stated = key_length.unwrap_or(hidden / heads);
    if !arch.latent && meta.uniform_u64("attention.value_length")?.is_some_and(|v| v != stated) {
        return Err(meta.error("attention.value_length", format!("differs from the key length {stated}")));
    }
    let mut rotary = meta.u64("rope.dimension_count")?.unwrap_or(stated);
    if stated == 0 || rotary == 0 || rotary > stated {
        return Err(meta.error("rope.dimension_count", format!("{rotary} of a head's {stated} dimensions")));
    }
    // Some converters leave the width of a head out though it is not what the others imply; they state the rotating part
    // as a share of what those imply.
    let mut head_dim = stated;
    if let (None, Some(q)) = (key_length, in_any_layer(header, "attn_q.weight"))
        && !arch.latent
        && (q.dims[0] as u64).is_multiple_of(heads)
    {
        head_dim = q.dims[0] as u64 / heads;
        rotary = rotary * head_dim / stated;
    }
    // And some write the number of query heads for that of key heads.
    let key_rows = in_any_layer(header, "attn_k.weight").map(|k| k.dims[0] as u64);
    let kv_heads = match key_rows.filter(|rows| !arch.latent && rows.is_multiple_of(head_dim)) {
        Some(rows) if rows / head_dim < kv_heads && heads.is_multiple_of(rows / head_dim) => rows / head_dim,
        _ => kv_heads,
    };
    let context = meta.required_u64("context_length")?;
    let latent = arch.latent;
    Ok(Dims { layers, extra_layers, heads, kv_heads, head_dim, rotary, context, latent })
}

/// The tensor of this name in the first layer that has it.
fn in_any_layer<'h>(header: &'h Header, name: &str) -> Option<&'h Info> {
    let found =
        |key: &str| key.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).map(|(_, rest)| rest == name);
    header.tensors.iter().find(|(key, _)| found(key) == Some(true)).map(|(_, info)| info)
}

/// Whether the file has a tensor, be it in a layer.
fn has(header: &Header, name: &str) -> bool {
    header.tensors.contains_key(name) || in_any_layer(header, name).is_some()
}

/// Rotary factors that are stored as tensors.
#[derive(Debug, Default)]
pub(crate) struct RopeTensors {
    pub(crate) freqs: Option<Vec<f32>>,
    pub(crate) long: Option<Vec<f32>>,
    pub(crate) short: Option<Vec<f32>>,
}

/// What `more` reads from, and the config it adds to.
pub(crate) struct Reader<'a> {
    pub(crate) meta: &'a Meta<'a>,
    pub(crate) dims: Dims,
    pub(crate) tensors: &'a RopeTensors,
    header: &'a Header,
    pub(crate) config: Map<String, Json>,
    /// Warnings for the user who loads the file.
    pub(crate) warnings: Vec<String>,
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

impl Reader<'_> {
    pub(crate) fn set(&mut self, key: &str, value: impl Into<Json>) {
        self.config.insert(key.to_string(), value.into());
    }

    /// Whether the file has a tensor; one of a layer may be in any (`attn_q.bias`).
    pub(crate) fn has(&self, name: &str) -> bool {
        has(self.header, name)
    }

    /// A dimension of a tensor that any layer has.
    pub(crate) fn width(&self, name: &str, axis: usize) -> Option<u64> {
        in_any_layer(self.header, name).and_then(|info| info.dims.get(axis)).map(|&d| d as u64)
    }

    /// The rows of a tensor outside the layers.
    pub(crate) fn rows(&self, name: &str) -> Option<u64> {
        self.header.tensors.get(name).and_then(|info| info.dims.first()).map(|&rows| rows as u64)
    }

    /// Copies a key.
    pub(crate) fn copy(&mut self, key: Key) -> Result<()> {
        let Key { gguf, hf, .. } = key;
        let value: Option<Json> = match key.kind {
            Kind::Size => self.meta.uniform_u64(gguf)?.map(Into::into),
            Kind::Number => self.meta.f64(gguf)?.map(Into::into),
            Kind::Flag => self.meta.bool(gguf)?.map(Into::into),
            Kind::Layers => Some(self.dims.layers.into()),
            Kind::Heads => Some(self.dims.heads.into()),
            Kind::KvHeads => Some(self.dims.kv_heads.into()),
            Kind::HeadDim => Some(self.dims.head_dim.into()),
            Kind::Inner => {
                let stated = self.meta.uniform_u64(gguf)?;
                self.width("ffn_down.weight", 1).or(stated).map(Into::into)
            }
        };
        match value {
            Some(value) => self.set(hf, value),
            None if key.needed => return Err(self.meta.error(gguf, "is missing")),
            None => {}
        }
        Ok(())
    }

    /// A size that the metadata gives, or else a tensor.
    pub(crate) fn size_or_width(&mut self, gguf: &str, hf: &str, tensor: &str, axis: usize) -> Result<()> {
        let size = self.meta.uniform_u64(gguf)?.or(self.width(tensor, axis));
        let size = size.ok_or_else(|| self.meta.error(gguf, "is missing"))?;
        self.set(hf, size);
        Ok(())
    }

    /// The rotary encoding of heads of which so many of so many dimensions rotate.
    pub(crate) fn rope(&self, widths: (u64, u64), theta: f64) -> Result<Map<String, Json>> {
        rope::parameters(self.meta, &self.dims, widths, theta, self.tensors)
    }

    /// A key of the rope parameters that are there already.
    pub(crate) fn set_rope(&mut self, key: &str, value: impl Into<Json>) {
        if let Some(Json::Object(rope)) = self.config.get_mut("rope_parameters") {
            rope.insert(key.to_string(), value.into());
        }
    }

    /// Refuses a key unless it is absent or one of `values`.
    pub(crate) fn only(&self, key: &str, values: &[u64], why: &str) -> Result<()> {
        match self.meta.u64(key)? {
            Some(v) if !values.contains(&v) => Err(self.meta.error(key, format!("{v} is not supported: {why}"))),
            _ => Ok(()),
        }
    }

    /// The window of those layers that have one.
    pub(crate) fn window(&self) -> Result<Option<u64>> {
        Ok(self.meta.u64("attention.sliding_window")?.filter(|&w| w > 0))
    }

    /// Which layers have a window: as the file says, else all but every `n`-th, or none without a window.
    pub(crate) fn layer_types(&mut self, window: Option<u64>, n: u64) -> Result<()> {
        const KEY: &str = "attention.sliding_window_pattern";
        let every = |n: u64| (1..=self.dims.layers).map(|i| !i.is_multiple_of(n)).collect::<Vec<_>>();
        let sliding: Vec<bool> = match self.meta.get(KEY) {
            Some(Value::Bools(pattern)) if pattern.len() as u64 == self.dims.layers => pattern.clone(),
            Some(&Value::Int(n)) if n > 0 => every(n as u64),
            Some(_) => return Err(self.meta.error(KEY, "expected a flag for every layer")),
            None => every(n),
        };
        let kind = |s: &bool| if *s && window.is_some() { "sliding_attention" } else { "full_attention" };
        self.set("layer_types", sliding.iter().map(kind).collect::<Vec<_>>());
        Ok(())
    }
}
