//! Multi-head latent attention (DeepSeek V2 and V3, arXiv:2405.04434): keys and values of all heads are products of
//! one small latent per token, and one rotated key is shared by all heads.
//!
//! The cache holds just that: `kv_lora_rank + qk_rope_head_dim` numbers a token and layer, not the expanded heads. A
//! long block expands the latents into heads, as training does. A few tokens instead absorb the expansion into their
//! queries and outputs, so that decoding reads the cache as one shared kv head (MQA) and expands nothing.

use crate::{
    AttendArgs, LayerCache, Linear, Mask, Norm, PositionEncoding, Positions, Scores,
    attention::{KernelOptions, attend_stored, attend_stored_lse},
    placing::{self, Base, Beside, Call, Placing},
    position::{Context, Temperature},
    product,
    stored::Stored,
};
use candle_core::{D, Module, Result, Tensor, bail};
use std::sync::Arc;

/// Queries per block up to which the expansion is absorbed rather than carried out.
const ABSORB_UP_TO: usize = 8;

/// The shape of latent attention, in the names of transformers' config.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct LatentConfig {
    /// Width of the layer's input and output.
    pub hidden_size: usize,
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
    /// What queries are multiplied by, depending on their position.
    pub temperature: Option<Temperature>,
    /// The layer's number in its model, for encodings that treat layers differently.
    pub layer: Option<usize>,
}

impl LatentConfig {
    /// Causal attention of `heads` heads of `nope + rope` query and key lanes and `v` value lanes over latents of
    /// `kv_lora_rank` numbers, scores scaled by `(nope + rope)^-1/2`.
    pub fn new(hidden_size: usize, heads: usize, kv_lora_rank: usize, (nope, rope, v): (usize, usize, usize)) -> Self {
        Self {
            hidden_size,
            heads,
            kv_lora_rank,
            qk_nope_head_dim: nope,
            qk_rope_head_dim: rope,
            v_head_dim: v,
            scale: ((nope + rope) as f64).powf(-0.5),
            mask: Mask::causal(),
            temperature: None,
            layer: None,
        }
    }

    /// See [`LatentConfig::scale`].
    #[must_use]
    pub fn with_scale(mut self, scale: f64) -> Self {
        self.scale = scale;
        self
    }

    /// See [`LatentConfig::mask`].
    #[must_use]
    pub fn with_mask(mut self, mask: Mask) -> Self {
        self.mask = mask;
        self
    }

    /// See [`LatentConfig::temperature`].
    #[must_use]
    pub fn with_temperature(mut self, temperature: Option<Temperature>) -> Self {
        self.temperature = temperature;
        self
    }

    /// See [`LatentConfig::layer`].
    #[must_use]
    pub fn with_layer(mut self, layer: Option<usize>) -> Self {
        self.layer = layer;
        self
    }
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

impl LatentParts {
    fn check(&self, config: &LatentConfig) -> Result<()> {
        let LatentConfig { hidden_size: hidden, heads, kv_lora_rank: r, .. } = *config;
        let (dk, dr, dv) = (config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim);
        if let Some(temperature) = &config.temperature {
            temperature.check()?;
        }
        if heads == 0 || r == 0 || dk == 0 || dr == 0 || dv == 0 {
            bail!("latent attention: {config:?} has a size of 0")
        }
        let fits = |name: &str, linear: &Linear, rows: usize, columns: usize| match (linear.out_dim(), linear.in_dim())
        {
            (o, i) if (o, i) == (rows, columns) => Ok(()),
            (o, i) => bail!("latent attention: {name} is ({o}, {i}), not ({rows}, {columns})"),
        };
        match &self.q {
            QueryProjection::Full(q) => fits("q_proj", q, heads * (dk + dr), hidden)?,
            QueryProjection::LowRank { a, norm, b } => {
                fits("q_a_proj", a, a.out_dim(), hidden)?;
                fits("q_b_proj", b, heads * (dk + dr), a.out_dim())?;
                if !norm.fits(&[a.out_dim()]) {
                    bail!("latent attention: q_a_layernorm does not fit {} numbers", a.out_dim())
                }
            }
        }
        fits("kv_a_proj_with_mqa", &self.kv_a, r + dr, hidden)?;
        if !self.kv_a_norm.fits(&[r]) {
            bail!("latent attention: kv_a_layernorm does not fit a latent of {r} numbers")
        }
        if self.kv_b.dims() != [heads * (dk + dv), r] {
            bail!("latent attention: kv_b_proj is {:?}, not ({}, {r})", self.kv_b.dims(), heads * (dk + dv))
        }
        fits("o_proj", &self.out, hidden, heads * dv)
    }
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
    /// Assembles a layer; `position` places the `qk_rope_head_dim` lanes.
    ///
    /// # Errors
    /// Parts that are not of the configured shape, by name.
    pub fn new(config: LatentConfig, parts: LatentParts, position: Arc<dyn PositionEncoding>) -> Result<Self> {
        parts.check(&config)?;
        let LatentConfig { heads, kv_lora_rank, qk_nope_head_dim: dk, v_head_dim: dv, .. } = config;
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
        LayerCache::new(&placing::reached(&self.config.mask, &*self.position), expected)
    }

    /// As [`MultiHeadAttention::forward`](crate::MultiHeadAttention::forward).
    pub fn forward(&self, xs: &Tensor, positions: &Positions, cache: Option<&mut LayerCache>) -> Result<Tensor> {
        let LatentConfig { layer, mask, .. } = &self.config;
        let placing = Placing::new(&*self.position, xs, positions, *layer, mask)?;
        let (q_nope, q_rope) = self.queries(xs, positions)?;
        let (latent, key) = self.latents(xs)?;
        let place = |at: &Context| Tensor::cat(&[&latent, &self.position.keys(&key, at)?], D::Minus1);
        let held = placing.keep(place, None, cache)?;
        let base = Base { scores: Scores::new(self.config.scale), additive: None, weights: false, whole: false };
        let attend = |call: &Call| {
            let kv = &held.copies[call.copy];
            match positions.len() <= ABSORB_UP_TO {
                true => self.absorbed(&q_nope, call, kv),
                false => self.expanded(&q_nope, call, kv),
            }
        };
        // Bounds on the norms of the latents are not bounds on those of the keys.
        let (out, _) = placing.run(&held, &base, |at| self.position.queries(&q_rope, at), attend, None)?;
        self.parts.out.forward(&out.transpose(1, 2)?.flatten_from(2)?)
    }

    /// `(b, h, t, qk_nope_head_dim)` and `(b, h, t, qk_rope_head_dim)`, not yet placed.
    fn queries(&self, xs: &Tensor, positions: &Positions) -> Result<(Tensor, Tensor)> {
        let LatentConfig { heads, qk_nope_head_dim: dk, qk_rope_head_dim: dr, .. } = self.config;
        let q = match &self.parts.q {
            QueryProjection::Full(q) => q.forward(xs)?,
            QueryProjection::LowRank { a, norm, b } => b.forward(&norm.forward(&a.forward(xs)?)?)?,
        };
        let (b, t, _) = q.dims3()?;
        let mut q = q.reshape((b, t, heads, dk + dr))?.transpose(1, 2)?;
        if let Some(temperature) = &self.config.temperature {
            q = temperature.apply(&q, positions)?;
        }
        Ok((q.narrow(3, 0, dk)?, q.narrow(3, dk, dr)?))
    }

    /// The latent, normed, `(b, 1, t, kv_lora_rank)`, and the shared key, not yet placed, `(b, 1, t, qk_rope_head_dim)`.
    fn latents(&self, xs: &Tensor) -> Result<(Tensor, Tensor)> {
        let LatentConfig { kv_lora_rank: r, qk_rope_head_dim: dr, .. } = self.config;
        let kv = self.parts.kv_a.forward(xs)?;
        let latent = self.parts.kv_a_norm.forward(&kv.narrow(2, 0, r)?.contiguous()?)?.unsqueeze(1)?;
        Ok((latent, kv.narrow(2, r, dr)?.unsqueeze(1)?))
    }

    /// Scores straight against the latents: `q W_k` per head, then one shared kv head of `kv_lora_rank` values.
    fn absorbed(&self, q_nope: &Tensor, call: &Call, kv: &Stored) -> Result<(Tensor, Option<Tensor>)> {
        let q = per_head(q_nope, &self.expand_k)?;
        let q = Tensor::cat(&[&q, call.q], D::Minus1)?;
        let (out, lse) = one(&q, kv, &kv.first_numbers(self.config.kv_lora_rank)?, call)?;
        Ok((per_head(&out, &self.expand_v.transpose(1, 2)?.contiguous()?)?, lse))
    }

    /// Every head's keys and values written out.
    fn expanded(&self, q_nope: &Tensor, call: &Call, kv: &Stored) -> Result<(Tensor, Option<Tensor>)> {
        let LatentConfig { heads, kv_lora_rank: r, qk_rope_head_dim: dr, .. } = self.config;
        let (b, _, s, _) = kv.dims4()?;
        let kv = kv.to_dtype(q_nope.dtype())?;
        let latent = kv.narrow(3, 0, r)?;
        let k = per_head(&latent, &self.expand_k.transpose(1, 2)?.contiguous()?)?;
        let k_rope = kv.narrow(3, r, dr)?.expand((b, heads, s, dr))?;
        let k = Tensor::cat(&[&k, &k_rope.contiguous()?], D::Minus1)?;
        let v = per_head(&latent, &self.expand_v.transpose(1, 2)?.contiguous()?)?;
        one(&Tensor::cat(&[q_nope, call.q], D::Minus1)?, &(&k).into(), &(&v).into(), call)
    }
}

/// One call of attention, with the log-sum-exp if it is wanted.
fn one(q: &Tensor, k: &Stored, v: &Stored, call: &Call) -> Result<(Tensor, Option<Tensor>)> {
    let args: &AttendArgs = &call.args;
    match call.beside {
        Beside::Lse => attend_stored_lse(q, k, v, args).map(|(out, lse)| (out, Some(lse))),
        _ => Ok((attend_stored(q, k, v, args, &KernelOptions::default())?, None)),
    }
}

/// `(b, h or 1, t, m)` times one matrix per head, `(h, m, n)`: `(b, h, t, n)`.
fn per_head(xs: &Tensor, weights: &Tensor) -> Result<Tensor> {
    let (b, _, t, m) = xs.dims4()?;
    let (h, _, n) = weights.dims3()?;
    let xs = xs.expand((b, h, t, m))?.transpose(0, 1)?.contiguous()?.reshape((h, b * t, m))?;
    product::matmul(&xs, weights)?.reshape((h, b, t, n))?.transpose(0, 1)
}
