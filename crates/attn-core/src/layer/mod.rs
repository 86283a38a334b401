//! [`MultiHeadAttention`]: projections, optional norms on queries and keys, the position encoding, the cache and
//! [`attend`], in the order a token meets them.

mod call;
mod config;
mod parts;

pub use call::{Attended, ForwardOptions, KeyValues};
pub use config::{AttentionConfig, GateWidth};
pub use parts::{AttentionParts, Projections, QkNormPlace};

use crate::{
    AttendArgs, LayerCache, Mask, Norm, PositionEncoding, Positions, Scores, attend, ops,
    placing::{self, Base, Call, Placing},
    position::{Context, Temperature},
    profile,
};
use call::additive;
use candle_core::{DType, Module, Result, Tensor, bail};
use candle_nn::VarBuilder;
use std::sync::Arc;

/// Multi-head attention with a pluggable position encoding.
///
/// ```
/// use attn_core::{AttentionConfig, MultiHeadAttention, Positions, position::Nope};
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::{VarBuilder, VarMap};
/// use std::sync::Arc;
///
/// # fn main() -> candle_core::Result<()> {
/// let vars = VarMap::new();
/// let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
/// let config = AttentionConfig::new(64, 8, 2); // 8 query heads share 2 kv heads
/// let attention = MultiHeadAttention::new(&config, Arc::new(Nope::default()), vb)?;
/// let xs = Tensor::randn(0f32, 1f32, (1, 10, 64), &Device::Cpu)?;
/// let ys = attention.forward(&xs, &Positions::new(0..10), None)?;
/// assert_eq!(ys.dims(), [1, 10, 64]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct MultiHeadAttention {
    config: AttentionConfig,
    parts: AttentionParts,
    position: Arc<dyn PositionEncoding>,
}

impl MultiHeadAttention {
    /// Reads `q_proj`, `k_proj`, `v_proj`, `o_proj` (and `q_norm`, `k_norm`, `sinks`, `gate_proj` if configured) from
    /// `vb`, the names of Llama-style checkpoints. In a fresh `VarMap` they start as candle-nn's layers do.
    ///
    /// # Errors
    /// As [`from_parts`](Self::from_parts); tensors that are missing or of another shape.
    pub fn new(config: &AttentionConfig, position: Arc<dyn PositionEncoding>, vb: VarBuilder) -> Result<Self> {
        config.check()?;
        Self::from_parts(config.clone(), AttentionParts::load(config, &vb)?, position)
    }

    /// Assembles a layer from its parts, for checkpoints with other names or fused projections.
    ///
    /// # Errors
    /// Sizes in `config` that don't fit each other, and parts of another size than it asks for, by name.
    pub fn from_parts(
        config: AttentionConfig,
        parts: AttentionParts,
        position: Arc<dyn PositionEncoding>,
    ) -> Result<Self> {
        config.check()?;
        parts.check(&config)?;
        Ok(Self { config, parts, position })
    }

    /// The layer's configuration.
    pub fn config(&self) -> &AttentionConfig {
        &self.config
    }

    /// The layer's weights.
    pub fn parts(&self) -> &AttentionParts {
        &self.parts
    }

    /// The layer's position encoding.
    pub fn position(&self) -> &Arc<dyn PositionEncoding> {
        &self.position
    }

    /// The same weights under another position encoding.
    #[must_use]
    pub fn with_position(&self, position: Arc<dyn PositionEncoding>) -> Self {
        Self { position, ..self.clone() }
    }

    /// The same weights with another temperature of the queries: log-n scaling of a model that was trained without.
    ///
    /// # Errors
    /// A temperature that makes no sense.
    pub fn with_temperature(&self, temperature: Option<Temperature>) -> Result<Self> {
        Self::from_parts(self.config.clone().with_temperature(temperature), self.parts.clone(), self.position.clone())
    }

    /// An empty cache for this layer with room for `expected` tokens.
    pub fn new_cache(&self, expected: usize) -> LayerCache {
        LayerCache::new(&placing::reached(&self.config.mask, &*self.position), expected)
    }

    /// Self-attention of the tokens `xs`, `(b, t, hidden_size)`, at `positions`, over themselves and the tokens in
    /// `cache`, to which they are appended. Returns `(b, t, hidden_size)`. Gradients flow through everything.
    ///
    /// # Errors
    /// Positions that don't continue the cache or are past the end of the encoding; see also [`attend`].
    pub fn forward(&self, xs: &Tensor, positions: &Positions, cache: Option<&mut LayerCache>) -> Result<Tensor> {
        Ok(self.forward_sharing(xs, positions, cache)?.0)
    }

    /// [`forward`](Self::forward) with [`ForwardOptions`]: a mask given as a tensor, weights to look at.
    ///
    /// # Errors
    /// As [`forward`](Self::forward); a mask that doesn't broadcast.
    pub fn forward_with(
        &self,
        xs: &Tensor,
        positions: &Positions,
        cache: Option<&mut LayerCache>,
        options: &ForwardOptions,
    ) -> Result<Attended> {
        Ok(self.call(xs, positions, cache, None, options)?.0)
    }

    /// [`forward`](Self::forward), and the keys and values it attended to, for layers that
    /// [read them too](Self::forward_shared).
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_sharing(
        &self,
        xs: &Tensor,
        positions: &Positions,
        cache: Option<&mut LayerCache>,
    ) -> Result<(Tensor, KeyValues)> {
        let (attended, keys) = self.call(xs, positions, cache, None, &ForwardOptions::default())?;
        Ok((attended.out, keys))
    }

    /// Self-attention of a layer that reads the keys and values of another one (Gemma 3n, Gemma 4): those that it
    /// [gave](Self::forward_sharing) for the same tokens. Both layers need the same position encoding, mask and head
    /// widths, and the one that reads needs no cache.
    ///
    /// # Errors
    /// Keys and values of another shape, or that don't end with the tokens `xs`.
    pub fn forward_shared(&self, xs: &Tensor, positions: &Positions, keys: &KeyValues) -> Result<Tensor> {
        Ok(self.call(xs, positions, None, Some(keys), &ForwardOptions::default())?.0.out)
    }

    /// One call, with keys and values of its own or with those `shared` by another layer.
    fn call(
        &self,
        xs: &Tensor,
        positions: &Positions,
        mut cache: Option<&mut LayerCache>,
        shared: Option<&KeyValues>,
        options: &ForwardOptions,
    ) -> Result<(Attended, KeyValues)> {
        let AttentionConfig { layer, mask, .. } = &self.config;
        let placing = Placing::new(&*self.position, xs, positions, *layer, mask)?;
        let (q, keys) = match shared {
            Some(keys) => {
                keys.check(positions)?;
                (self.queries(xs)?, keys.clone())
            }
            None => {
                let (q, k, v) = self.project(xs)?;
                let k = self.normed(k, self.parts.k_norm.as_ref())?;
                let place = |at: &Context| self.turned(self.position.keys(&k, at)?, self.parts.k_norm.as_ref());
                (q, KeyValues { held: placing.keep(place, Some(v), cache.as_deref_mut())? })
            }
        };
        let q = self.normed(q, self.parts.q_norm.as_ref())?;
        let place = |at: &Context| {
            let q = self.turned(self.position.queries(&q, at)?, self.parts.q_norm.as_ref())?;
            match &self.config.temperature {
                Some(temperature) => temperature.apply(&q, positions),
                None => Ok(q),
            }
        };
        let additive = options.mask.map(additive).transpose()?;
        let base = Base { scores: self.scores()?, additive: additive.as_ref(), weights: options.weights, whole: true };
        let (heads, weights) = placing.run(&keys.held, &base, place, |call: &Call| keys.attend(call), cache)?;
        Ok((Attended { out: self.merge(xs, &heads)?, weights }, keys))
    }

    /// What the configuration says about scores.
    fn scores(&self) -> Result<Scores> {
        let sinks = self.parts.sinks.as_ref().map(|sinks| match sinks.dtype() {
            DType::F64 => Ok(sinks.clone()),
            _ => sinks.to_dtype(DType::F32),
        });
        Ok(Scores::new(self.config.scale()).with_softcap(self.config.softcap).with_sinks(sinks.transpose()?))
    }

    /// Keys and values of a sequence to attend to from another one, `(b, s, hidden_size)`: what cross-attention of an
    /// encoder-decoder caches once. Position encodings do not apply.
    pub fn memory(&self, xs: &Tensor) -> Result<(Tensor, Tensor)> {
        match &self.parts.projections {
            Projections::Separate { k, v, .. } => {
                let k = self.heads(&k.forward(xs)?, self.config.head_dim())?;
                Ok((k, self.heads(&v.forward(xs)?, self.config.v_head_dim())?))
            }
            _ => bail!("attention: cross-attention needs separate projections"),
        }
    }

    /// Cross-attention of `xs`, `(b, t, hidden_size)`, to what [`memory`](Self::memory) returned; `keys` are the real
    /// tokens of each row of the memory.
    pub fn forward_memory(&self, xs: &Tensor, memory: &(Tensor, Tensor), mask: Mask) -> Result<Tensor> {
        let Projections::Separate { q, .. } = &self.parts.projections else {
            bail!("attention: cross-attention needs separate projections")
        };
        let q = self.heads(&q.forward(xs)?, self.config.head_dim())?;
        let args = AttendArgs::new(self.scores()?).with_mask(mask);
        self.merge(xs, &attend(&q, &memory.0, &memory.1, &args)?)
    }

    /// `(b, t, n * d)` to `(b, n, t, d)`.
    fn heads(&self, xs: &Tensor, d: usize) -> Result<Tensor> {
        match self.config.qkv_clip.filter(|_| !self.clips_after_norm()) {
            Some(clip) => ops::split_heads(&xs.clamp(-clip, clip)?, xs.dim(2)? / d),
            None => ops::split_heads(xs, xs.dim(2)? / d),
        }
    }

    /// True if queries, keys and values are clamped after the norm that sees all heads as one (OLMoE), rather than as
    /// they leave the projections.
    fn clips_after_norm(&self) -> bool {
        self.parts.qk_norm_place == QkNormPlace::Whole && self.parts.q_norm.is_some()
    }

    /// Clamped here if [it was not before](Self::clips_after_norm).
    fn clip_late(&self, xs: Tensor) -> Result<Tensor> {
        match self.config.qkv_clip.filter(|_| self.clips_after_norm()) {
            Some(clip) => xs.clamp(-clip, clip),
            None => Ok(xs),
        }
    }

    /// Queries, keys and normed values, not yet placed.
    fn project(&self, xs: &Tensor) -> Result<(Tensor, Tensor, Tensor)> {
        let (heads, kv_heads) = (self.config.heads, self.config.kv_heads);
        let (d, dv) = (self.config.head_dim(), self.config.v_head_dim());
        let (q, k, v) = match &self.parts.projections {
            Projections::Separate { q, k, v } => {
                (self.heads(&q.forward(xs)?, d)?, self.heads(&k.forward(xs)?, d)?, self.heads(&v.forward(xs)?, dv)?)
            }
            Projections::Fused(qkv) if d == dv => {
                let all = self.heads(&qkv.forward(xs)?, d)?;
                let cut = |start, n| all.narrow(1, start, n);
                (cut(0, heads)?, cut(heads, kv_heads)?, cut(heads + kv_heads, kv_heads)?)
            }
            Projections::Fused(qkv) => {
                let all = qkv.forward(xs)?;
                let cut = |start, n, d| self.heads(&all.narrow(2, start, n * d)?, d);
                (cut(0, heads, d)?, cut(heads * d, kv_heads, d)?, cut((heads + kv_heads) * d, kv_heads, dv)?)
            }
            Projections::Queries(_) => {
                bail!("attention: this layer has no keys of its own, it reads those of another layer")
            }
        };
        let v = match &self.parts.v_norm {
            Some(norm) => norm_heads(norm, &v)?,
            None => v,
        };
        Ok((q, k, self.clip_late(v)?))
    }

    /// The queries only, before the encoding has placed them.
    fn queries(&self, xs: &Tensor) -> Result<Tensor> {
        match &self.parts.projections {
            Projections::Queries(q) | Projections::Separate { q, .. } => {
                self.heads(&q.forward(xs)?, self.config.head_dim())
            }
            Projections::Fused(_) => Ok(self.project(xs)?.0),
        }
    }

    /// Queries or keys `(b, h, t, d)` through their norm, if it comes before rotation.
    fn normed(&self, xs: Tensor, norm: Option<&Norm>) -> Result<Tensor> {
        match (norm, self.parts.qk_norm_place) {
            (None, _) | (_, QkNormPlace::AfterRotation) => Ok(xs),
            (Some(norm), QkNormPlace::Heads) => norm_heads(norm, &xs),
            (Some(norm), QkNormPlace::Whole) => {
                let flat = xs.transpose(1, 2)?.flatten_from(2)?;
                ops::split_heads(&self.clip_late(norm.forward(&flat)?)?, xs.dim(1)?)
            }
        }
    }

    /// Rotated queries or keys through their norm, if it comes after rotation.
    fn turned(&self, xs: Tensor, norm: Option<&Norm>) -> Result<Tensor> {
        match (norm, self.parts.qk_norm_place) {
            (Some(norm), QkNormPlace::AfterRotation) => norm.forward(&xs),
            _ => Ok(xs),
        }
    }

    /// `(b, h, t, dv)` to `(b, t, h * dv)`, gated if the layer has a gate, and through the output projection.
    fn merge(&self, xs: &Tensor, heads: &Tensor) -> Result<Tensor> {
        let merged = ops::merge_heads(heads)?;
        let Some(gate) = &self.parts.output_gate else { return self.parts.out.forward(&merged) };
        let gate = gate.forward(xs)?;
        let _scope = profile::scope(profile::Op::ElementWise);
        let gate = candle_nn::ops::sigmoid(&gate)?;
        let gated = match gate.dim(2)? == merged.dim(2)? {
            true => (merged * gate)?,
            false => {
                let (b, t, h) = gate.dims3()?;
                merged.reshape((b, t, h, ()))?.broadcast_mul(&gate.unsqueeze(3)?)?.flatten_from(2)?
            }
        };
        self.parts.out.forward(&gated)
    }
}

/// A norm on each head of `(b, h, t, d)`; its weight may differ by head, `(h, d)`.
fn norm_heads(norm: &Norm, xs: &Tensor) -> Result<Tensor> {
    norm.forward(&xs.transpose(1, 2)?.contiguous()?)?.transpose(1, 2)
}

#[cfg(test)]
mod tests;
