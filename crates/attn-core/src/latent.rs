//! Multi-head latent attention (DeepSeek V2 and V3, arXiv:2405.04434): keys and values of all heads are products of
//! one small latent per token, and one rotated key is shared by all heads.
//!
//! The cache holds just that: `kv_lora_rank + qk_rope_head_dim` numbers a token and layer, not the expanded heads. A
//! long block expands the latents into heads, as training does. A few tokens instead absorb the expansion into their
//! queries and outputs, so that decoding reads the cache as one shared kv head (MQA) and expands nothing.

use crate::{AttendArgs, LayerCache, Linear, Mask, Norm, PositionEncoding, Positions, Scores, attend, product};
use candle_core::{D, Module, Result, Tensor, bail};
use std::sync::Arc;

/// Queries per block up to which the expansion is absorbed rather than carried out.
const ABSORB_UP_TO: usize = 8;

/// The shape of latent attention, in the names of transformers' config.
#[derive(Debug, Clone, PartialEq)]
pub struct LatentConfig {
    /// Query heads, each with its own key and value expansion.
    pub heads: usize,
    /// Width of the latent.
    pub kv_lora_rank: usize,
    /// Lanes of a head without position.
    pub qk_nope_head_dim: usize,
    /// Lanes of a head that rotate; the key's are shared by all heads.
    pub qk_rope_head_dim: usize,
    /// Width of a value head.
    pub v_head_dim: usize,
    /// Multiplies the scores: `(qk_nope_head_dim + qk_rope_head_dim)^-1/2`, times YaRN's mscale squared.
    pub scale: f64,
    /// Which keys a query sees.
    pub mask: Mask,
}

/// How queries are made.
#[derive(Debug, Clone)]
pub enum QueryProjection {
    /// Straight from the hidden state.
    Full(Linear),
    /// Through a latent of their own with a norm: `q_a_proj`, `q_a_layernorm`, `q_b_proj`.
    LowRank {
        /// Down to `q_lora_rank`.
        a: Linear,
        /// On the query latent.
        norm: Norm,
        /// Up to all heads.
        b: Linear,
    },
}

/// The parts of a latent attention layer.
#[derive(Debug, Clone)]
pub struct LatentParts {
    /// Queries, `heads * (qk_nope_head_dim + qk_rope_head_dim)` wide.
    pub q: QueryProjection,
    /// `kv_a_proj_with_mqa`: latent and shared rope key.
    pub kv_a: Linear,
    /// On the latent.
    pub kv_a_norm: Norm,
    /// `kv_b_proj.weight`, `(heads * (qk_nope_head_dim + v_head_dim), kv_lora_rank)`.
    pub kv_b: Tensor,
    /// `(hidden_size, heads * v_head_dim)`.
    pub out: Linear,
}

/// A latent attention layer.
#[derive(Debug, Clone)]
pub struct LatentAttention {
    config: LatentConfig,
    parts: LatentParts,
    /// `(heads, qk_nope_head_dim, kv_lora_rank)`
    expand_k: Tensor,
    /// `(heads, v_head_dim, kv_lora_rank)`
    expand_v: Tensor,
    position: Arc<dyn PositionEncoding>,
}

impl LatentAttention {
    /// Assembles a layer; `position` rotates the `qk_rope_head_dim` lanes.
    ///
    /// # Errors
    /// A `kv_b` that is not of the configured shape.
    pub fn new(config: LatentConfig, parts: LatentParts, position: Arc<dyn PositionEncoding>) -> Result<Self> {
        let LatentConfig { heads, kv_lora_rank, qk_nope_head_dim: dk, v_head_dim: dv, .. } = config;
        if parts.kv_b.dims() != [heads * (dk + dv), kv_lora_rank] {
            bail!("latent attention: kv_b_proj is {:?}, not ({}, {kv_lora_rank})", parts.kv_b.dims(), heads * (dk + dv))
        }
        let kv_b = parts.kv_b.reshape((heads, dk + dv, kv_lora_rank))?;
        let (expand_k, expand_v) = (kv_b.narrow(1, 0, dk)?.contiguous()?, kv_b.narrow(1, dk, dv)?.contiguous()?);
        Ok(Self { config, parts, expand_k, expand_v, position })
    }

    /// The layer's position encoding.
    pub fn position(&self) -> &Arc<dyn PositionEncoding> {
        &self.position
    }

    /// The layer's configuration.
    pub fn config(&self) -> &LatentConfig {
        &self.config
    }

    /// The same weights under another position encoding and score scale (YaRN's mscale is part of it).
    #[must_use]
    pub fn with_position(&self, position: Arc<dyn PositionEncoding>, scale: f64) -> Self {
        let mut layer = Self { position, ..self.clone() };
        layer.config.scale = scale;
        layer
    }

    /// An empty cache for this layer with room for `expected` tokens.
    pub fn new_cache(&self, expected: usize) -> LayerCache {
        LayerCache::new(&self.config.mask, expected)
    }

    /// As [`MultiHeadAttention::forward`](crate::MultiHeadAttention::forward).
    pub fn forward(&self, xs: &Tensor, positions: &Positions, cache: Option<&mut LayerCache>) -> Result<Tensor> {
        let (q_nope, q_rope) = self.queries(xs, positions)?;
        let kv = self.latents(xs, positions)?;
        let (kv, k_start) = match cache {
            Some(cache) => {
                let ([kv], k_start) = cache.append([&kv], self.position.resolve(positions.length()))?;
                (kv, k_start)
            }
            None => (kv, positions.slots().start),
        };
        let bias = self.position.bias(positions.slots(), k_start..k_start + kv.dim(2)?)?;
        let args = AttendArgs::new(Scores::new(self.config.scale).with_bias(bias))
            .with_mask(self.config.mask.clone().with_keys(positions.keys()))
            .with_slots(positions.slots().start, k_start);
        let out = if positions.len() <= ABSORB_UP_TO {
            self.absorbed(&q_nope, &q_rope, &kv, &args)?
        } else {
            self.expanded(&q_nope, &q_rope, &kv, &args)?
        };
        self.parts.out.forward(&out.transpose(1, 2)?.flatten_from(2)?)
    }

    /// `(b, h, t, qk_nope_head_dim)` and the rotated `(b, h, t, qk_rope_head_dim)`.
    fn queries(&self, xs: &Tensor, positions: &Positions) -> Result<(Tensor, Tensor)> {
        let LatentConfig { heads, qk_nope_head_dim: dk, qk_rope_head_dim: dr, .. } = self.config;
        let q = match &self.parts.q {
            QueryProjection::Full(q) => q.forward(xs)?,
            QueryProjection::LowRank { a, norm, b } => b.forward(&norm.forward(&a.forward(xs)?)?)?,
        };
        let (b, t, _) = q.dims3()?;
        let q = q.reshape((b, t, heads, dk + dr))?.transpose(1, 2)?;
        Ok((q.narrow(3, 0, dk)?, self.position.rotate(&q.narrow(3, dk, dr)?, positions)?))
    }

    /// The latent, normed, beside the rotated shared key: `(b, 1, t, kv_lora_rank + qk_rope_head_dim)`.
    fn latents(&self, xs: &Tensor, positions: &Positions) -> Result<Tensor> {
        let LatentConfig { kv_lora_rank: r, qk_rope_head_dim: dr, .. } = self.config;
        let kv = self.parts.kv_a.forward(xs)?;
        let latent = self.parts.kv_a_norm.forward(&kv.narrow(2, 0, r)?.contiguous()?)?.unsqueeze(1)?;
        let key = self.position.rotate(&kv.narrow(2, r, dr)?.unsqueeze(1)?, positions)?;
        Tensor::cat(&[&latent, &key], D::Minus1)
    }

    /// Scores straight against the latents: `q W_k` per head, then one shared kv head of `kv_lora_rank` values.
    fn absorbed(&self, q_nope: &Tensor, q_rope: &Tensor, kv: &Tensor, args: &AttendArgs) -> Result<Tensor> {
        let q = per_head(q_nope, &self.expand_k)?;
        let q = Tensor::cat(&[&q, q_rope], D::Minus1)?;
        let out = attend(&q, kv, &kv.narrow(3, 0, self.config.kv_lora_rank)?, args)?;
        per_head(&out, &self.expand_v.transpose(1, 2)?.contiguous()?)
    }

    /// Every head's keys and values written out.
    fn expanded(&self, q_nope: &Tensor, q_rope: &Tensor, kv: &Tensor, args: &AttendArgs) -> Result<Tensor> {
        let LatentConfig { heads, kv_lora_rank: r, qk_rope_head_dim: dr, .. } = self.config;
        let (b, _, s, _) = kv.dims4()?;
        let latent = kv.narrow(3, 0, r)?;
        let k = per_head(&latent, &self.expand_k.transpose(1, 2)?.contiguous()?)?;
        let k_rope = kv.narrow(3, r, dr)?.expand((b, heads, s, dr))?;
        let k = Tensor::cat(&[&k, &k_rope.contiguous()?], D::Minus1)?;
        let v = per_head(&latent, &self.expand_v.transpose(1, 2)?.contiguous()?)?;
        attend(&Tensor::cat(&[q_nope, q_rope], D::Minus1)?, &k, &v, args)
    }
}

/// `(b, h or 1, t, m)` times one matrix per head, `(h, m, n)`: `(b, h, t, n)`.
fn per_head(xs: &Tensor, weights: &Tensor) -> Result<Tensor> {
    let (b, _, t, m) = xs.dims4()?;
    let (h, _, n) = weights.dims3()?;
    let xs = xs.expand((b, h, t, m))?.transpose(0, 1)?.contiguous()?.reshape((h, b * t, m))?;
    product::matmul(&xs, weights)?.reshape((h, b, t, n))?.transpose(0, 1)
}
