//! [`MultiHeadAttention`]: projections, optional norms on queries and keys, the position encoding, the cache and
//! [`attend`], in the order a token meets them.

mod config;
mod keys;
mod parts;

pub use config::{AttentionConfig, GateWidth};
pub use keys::KeyValues;
pub use parts::{AttentionParts, Projections, QkNormPlace};

use crate::{
    AttendArgs, LayerCache, Mask, Norm, PositionEncoding, Positions, ScoreBias, Scores, attend,
    attention::{KernelOptions, attend_with},
    ops,
    position::Temperature,
    profile,
};
use candle_core::{Module, Result, Tensor, bail};
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
        LayerCache::new(&self.config.mask, expected)
    }

    /// Self-attention of the tokens `xs`, `(b, t, hidden_size)`, at `positions`, over themselves and the tokens in
    /// `cache`, to which they are appended. Returns `(b, t, hidden_size)`.
    ///
    /// Without a cache gradients flow through everything.
    ///
    /// # Errors
    /// Positions that don't continue the cache; see also [`attend`].
    pub fn forward(&self, xs: &Tensor, positions: &Positions, cache: Option<&mut LayerCache>) -> Result<Tensor> {
        Ok(self.forward_sharing(xs, positions, cache)?.0)
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
        mut cache: Option<&mut LayerCache>,
    ) -> Result<(Tensor, KeyValues)> {
        if xs.dim(1)? != positions.len() || cache.as_ref().is_some_and(|c| c.len() != positions.slots().start) {
            bail!(
                "attention: {} tokens at slots {:?} do not continue a cache of {} tokens",
                xs.dim(1)?,
                positions.slots(),
                cache.map_or(positions.slots().start, |c| c.len())
            )
        }
        let (q, k, v) = self.project(xs)?;
        let k = self.place(&k, positions, self.parts.k_norm.as_ref())?;
        let resolution = self.position.resolve(positions.length());
        let ([k, v], start) = match &mut cache {
            Some(cache) => cache.append([&k, &v], resolution)?,
            None => ([k, v], positions.slots().start),
        };
        let keys = KeyValues { k, v, start };
        Ok((self.attend(xs, &q, positions, &keys, cache)?, keys))
    }

    /// Self-attention of a layer that reads the keys and values of another one (Gemma 3n, Gemma 4): those that it
    /// [gave](Self::forward_sharing) for the same tokens. Both layers need the same position encoding, mask and head
    /// widths.
    ///
    /// # Errors
    /// Keys and values of another shape, or that don't end with the tokens `xs`.
    pub fn forward_shared(&self, xs: &Tensor, positions: &Positions, keys: &KeyValues) -> Result<Tensor> {
        let end = keys.start + keys.k.dim(2)?;
        if xs.dim(1)? != positions.len() || end != positions.slots().end {
            bail!(
                "attention: shared keys end at slot {end}, {} tokens at slots {:?} read them",
                xs.dim(1)?,
                positions.slots()
            )
        }
        let q = match &self.parts.projections {
            Projections::Queries(q) | Projections::Separate { q, .. } => {
                self.heads(&q.forward(xs)?, self.config.head_dim())?
            }
            Projections::Fused(_) => self.project(xs)?.0,
        };
        self.attend(xs, &q, positions, keys, None)
    }

    /// From unplaced queries to the layer's output. `cache` is the one that holds `keys`.
    fn attend(
        &self,
        xs: &Tensor,
        q: &Tensor,
        positions: &Positions,
        keys: &KeyValues,
        cache: Option<&mut LayerCache>,
    ) -> Result<Tensor> {
        let q = self.position.temper(&self.place(q, positions, self.parts.q_norm.as_ref())?, positions)?;
        let q = match &self.config.temperature {
            Some(temperature) => temperature.apply(&q, positions)?,
            None => q,
        };
        let slots = keys.start..keys.start + keys.k.dim(2)?;
        let bias = self.position.bias(positions.slots(), slots.clone())?;
        // A linear bias is what far keys can be left out under.
        let key_norms = match (&bias, cache) {
            (ScoreBias::Linear { .. }, Some(cache)) if keys.k.device().is_cpu() => cache.key_norms(slots.len())?,
            _ => None,
        };
        let mask = self.config.mask.clone().with_keys(positions.keys());
        let args = AttendArgs::new(self.scores().with_bias(bias))
            .with_mask(mask)
            .with_slots(positions.slots().start, keys.start);
        let options = KernelOptions { key_norms, ..KernelOptions::default() };
        self.merge(xs, &attend_with(&q, &keys.k, &keys.v, &args, &options)?)
    }

    /// What the configuration says about scores.
    fn scores(&self) -> Scores {
        Scores::new(self.config.scale()).with_softcap(self.config.softcap).with_sinks(self.parts.sinks.clone())
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
        let args = AttendArgs::new(self.scores()).with_mask(mask);
        self.merge(xs, &attend(&q, &memory.0, &memory.1, &args)?)
    }

    /// `(b, t, n * d)` to `(b, n, t, d)`.
    fn heads(&self, xs: &Tensor, d: usize) -> Result<Tensor> {
        let xs = match self.config.qkv_clip {
            Some(clip) => &xs.clamp(-clip, clip)?,
            None => xs,
        };
        ops::split_heads(xs, xs.dim(2)? / d)
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
        Ok((q, k, v))
    }

    /// Norm and rotation of queries or keys, in the model's order.
    fn place(&self, xs: &Tensor, positions: &Positions, norm: Option<&Norm>) -> Result<Tensor> {
        let Some(norm) = norm else { return self.position.rotate(xs, positions) };
        match self.parts.qk_norm_place {
            QkNormPlace::AfterRotation => norm.forward(&self.position.rotate(xs, positions)?),
            QkNormPlace::Heads => self.position.rotate(&norm_heads(norm, xs)?, positions),
            QkNormPlace::Whole => {
                let flat = xs.transpose(1, 2)?.flatten_from(2)?;
                let heads = ops::split_heads(&norm.forward(&flat)?, xs.dim(1)?)?;
                self.position.rotate(&heads, positions)
            }
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
