//! What an architecture is: its names, metadata keys and tensors as data, and a function for what is more than a renaming.

use crate::{
    error::Result,
    gguf::{
        dims::Dims,
        meta::Meta,
        names::Name,
        parse::{Header, Value},
        rope::{self, RopeTensors},
    },
};
use serde_json::{Map, Value as Json};

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

impl Arch {
    /// Whether it has an output projection, be it the embedding's.
    pub(super) fn has_head(&self) -> bool {
        self.rules().iter().any(|name| name.is_output())
    }

    /// How its tensors are named, in the order in which they are tried.
    pub(crate) fn rules(&self) -> Vec<&'static Name> {
        self.names.iter().flat_map(|names| names.iter()).collect()
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

/// What `more` reads from, and the config it adds to.
pub(crate) struct Reader<'a> {
    pub(crate) meta: &'a Meta<'a>,
    pub(crate) dims: Dims,
    pub(crate) tensors: &'a RopeTensors,
    pub(super) header: &'a Header,
    pub(crate) config: Map<String, Json>,
    /// Warnings for the user who loads the file.
    pub(crate) warnings: Vec<String>,
}

impl Reader<'_> {
    pub(crate) fn set(&mut self, key: &str, value: impl Into<Json>) {
        self.config.insert(key.to_string(), value.into());
    }

    /// Whether the file has a tensor; one of a layer may be in any (`attn_q.bias`).
    pub(crate) fn has(&self, name: &str) -> bool {
        self.header.has(name)
    }

    /// A dimension of a tensor that any layer has.
    pub(crate) fn width(&self, name: &str, axis: usize) -> Option<u64> {
        self.header.in_any_layer(name).and_then(|info| info.dims.get(axis)).map(|&d| d as u64)
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
