//! The sizes that both the config and the tensors of a GGUF file are translated with.

use super::{meta::Meta, parse::Header};
use crate::error::Result;

/// More layers than any model has.
const MAX_LAYERS: u64 = 4096;

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
    /// Whether attention is over a latent (DeepSeek).
    pub(crate) latent: bool,
}

impl Dims {
    /// Reads them from the metadata and, where that is known to be wrong or incomplete, from the tensors' shapes.
    ///
    /// # Errors
    /// A size is missing, or sizes contradict each other.
    pub(crate) fn read(meta: &Meta, header: &Header, latent: bool) -> Result<Self> {
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
        if !latent && meta.uniform_u64("attention.value_length")?.is_some_and(|v| v != stated) {
            return Err(meta.error("attention.value_length", format!("differs from the key length {stated}")));
        }
        let mut rotary = meta.u64("rope.dimension_count")?.unwrap_or(stated);
        if stated == 0 || rotary == 0 || rotary > stated {
            return Err(meta.error("rope.dimension_count", format!("{rotary} of a head's {stated} dimensions")));
        }
        // Some converters leave the width of a head out though it is not what the others imply; they state the rotating part
        // as a share of what those imply.
        let mut head_dim = stated;
        if let (None, Some(q)) = (key_length, header.in_any_layer("attn_q.weight"))
            && !latent
            && (q.dims[0] as u64).is_multiple_of(heads)
        {
            head_dim = q.dims[0] as u64 / heads;
            rotary = rotary * head_dim / stated;
        }
        // And some write the number of query heads for that of key heads.
        let key_rows = header.in_any_layer("attn_k.weight").map(|k| k.dims[0] as u64);
        let kv_heads = match key_rows.filter(|rows| !latent && rows.is_multiple_of(head_dim)) {
            Some(rows) if rows / head_dim < kv_heads && heads.is_multiple_of(rows / head_dim) => rows / head_dim,
            _ => kv_heads,
        };
        let context = meta.required_u64("context_length")?;
        Ok(Self { layers, extra_layers, heads, kv_heads, head_dim, rotary, context, latent })
    }
}
