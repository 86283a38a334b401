//! [`MultiHeadAttention`]: projections, optional norms on queries and keys, the position encoding, the cache and
//! [`attend`], in the order a token meets them.

use crate::{
    AttendArgs, LayerCache, Linear, Mask, Norm, PositionEncoding, Positions, ScoreBias, Scores, attend,
    attention::{KernelOptions, attend_with},
    ops,
};
use candle_core::{Module, Result, Tensor, bail};
use candle_nn::VarBuilder;
use std::sync::Arc;

/// The shape and options of one attention layer.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionConfig {
    /// Width of the layer's input and output.
    pub hidden_size: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads: `heads` for MHA, fewer for GQA, 1 for MQA.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Biases on the query, key and value projections.
    pub qkv_bias: bool,
    /// Bias on the output projection.
    pub out_bias: bool,
    /// Multiplies the scores; `head_dim^-1/2` unless the model says otherwise.
    pub scale: f64,
    /// `softcap * tanh(score / softcap)`.
    pub softcap: Option<f64>,
    /// Clamps queries, keys and values to plus or minus this (MPT).
    pub qkv_clip: Option<f64>,
    /// Which keys a query sees; padding is added from the positions of each call.
    pub mask: Mask,
    /// RMS norm of every query and key head with this epsilon, before rotation (Qwen 3). Other norms: [`QkNorm`].
    pub qk_norm_eps: Option<f64>,
}

impl AttentionConfig {
    /// Causal attention with `heads` heads of `hidden_size / heads` lanes, no biases, scores scaled by
    /// `head_dim^-1/2`.
    pub fn new(hidden_size: usize, heads: usize, kv_heads: usize) -> Self {
        let head_dim = hidden_size / heads.max(1);
        Self {
            hidden_size,
            heads,
            kv_heads,
            head_dim,
            qkv_bias: false,
            out_bias: false,
            scale: (head_dim as f64).powf(-0.5),
            softcap: None,
            qkv_clip: None,
            mask: Mask::causal(),
            qk_norm_eps: None,
        }
    }

    fn check(&self) -> Result<()> {
        if self.heads == 0 || self.kv_heads == 0 || self.head_dim == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            bail!("attention: {} heads do not divide among {} kv heads", self.heads, self.kv_heads)
        }
        Ok(())
    }
}

/// Queries, keys and values: three products, or one over their rows stacked in that order.
#[derive(Debug, Clone)]
pub enum Projections {
    /// A product each.
    Separate {
        /// `(heads * head_dim, hidden_size)`
        q: Linear,
        /// `(kv_heads * head_dim, hidden_size)`
        k: Linear,
        /// `(kv_heads * head_dim, hidden_size)`
        v: Linear,
    },
    /// One product with `((heads + 2 kv_heads) * head_dim, hidden_size)`.
    Fused(Linear),
}

/// Norms on queries and keys.
#[derive(Debug, Clone)]
pub struct QkNorm {
    /// On the queries.
    pub q: Norm,
    /// On the keys.
    pub k: Norm,
    /// What the norm sees and when.
    pub place: QkNormPlace,
}

/// What a norm on queries and keys sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNormPlace {
    /// Each head of `(b, t, h, d)`, before rotation: Qwen 3, Gemma 3, StableLM.
    Heads,
    /// All heads as one vector `(b, t, h * d)`, before rotation: OLMo 2.
    Whole,
    /// Each head, after rotation: Llama 4.
    AfterRotation,
}

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
    projections: Projections,
    qk_norm: Option<QkNorm>,
    out: Linear,
    position: Arc<dyn PositionEncoding>,
}

impl MultiHeadAttention {
    /// Reads `q_proj`, `k_proj`, `v_proj`, `o_proj` (and `q_norm`, `k_norm` if configured) from `vb`, the names of
    /// Llama-style checkpoints.
    pub fn new(config: &AttentionConfig, position: Arc<dyn PositionEncoding>, vb: VarBuilder) -> Result<Self> {
        let (hidden, d) = (config.hidden_size, config.head_dim);
        let load = |name: &str, rows: usize| Linear::load(hidden, rows, config.qkv_bias, &vb.pp(name));
        let projections = Projections::Separate {
            q: load("q_proj", config.heads * d)?,
            k: load("k_proj", config.kv_heads * d)?,
            v: load("v_proj", config.kv_heads * d)?,
        };
        let out = Linear::load(config.heads * d, hidden, config.out_bias, &vb.pp("o_proj"))?;
        let norm = |eps| -> Result<QkNorm> {
            let (q, k) = (Norm::rms(d, eps, &vb.pp("q_norm"))?, Norm::rms(d, eps, &vb.pp("k_norm"))?);
            Ok(QkNorm { q, k, place: QkNormPlace::Heads })
        };
        let qk_norm = config.qk_norm_eps.map(norm).transpose()?;
        Self::from_parts(config.clone(), projections, qk_norm, out, position)
    }

    /// Assembles a layer from its parts, for checkpoints with other names or fused projections.
    ///
    /// # Errors
    /// Query heads that do not divide among the kv heads.
    pub fn from_parts(
        config: AttentionConfig,
        projections: Projections,
        qk_norm: Option<QkNorm>,
        out: Linear,
        position: Arc<dyn PositionEncoding>,
    ) -> Result<Self> {
        config.check()?;
        Ok(Self { config, projections, qk_norm, out, position })
    }

    /// The layer's configuration.
    pub fn config(&self) -> &AttentionConfig {
        &self.config
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
    pub fn forward(&self, xs: &Tensor, positions: &Positions, mut cache: Option<&mut LayerCache>) -> Result<Tensor> {
        if xs.dim(1)? != positions.len() || cache.as_ref().is_some_and(|c| c.len() != positions.slots().start) {
            bail!(
                "attention: {} tokens at slots {:?} do not continue a cache of {} tokens",
                xs.dim(1)?,
                positions.slots(),
                cache.map_or(positions.slots().start, |c| c.len())
            )
        }
        let (q, k, v) = self.project(xs)?;
        let q = self.position.temper(&self.place(&q, positions, |n| &n.q)?, positions)?;
        let k = self.place(&k, positions, |n| &n.k)?;
        let resolution = self.position.resolve(positions.length());
        let ([k, v], k_start) = match &mut cache {
            Some(cache) => cache.append([&k, &v], resolution)?,
            None => ([k, v], positions.slots().start),
        };
        let keys = k_start..k_start + k.dim(2)?;
        let bias = self.position.bias(positions.slots(), keys.clone())?;
        // A linear bias is what far keys can be left out under.
        let key_norms = match (&bias, cache) {
            (ScoreBias::Linear { .. }, Some(cache)) if k.device().is_cpu() => cache.key_norms(keys.len())?,
            _ => None,
        };
        let scores = Scores::new(self.config.scale).with_softcap(self.config.softcap).with_bias(bias);
        let args = AttendArgs::new(scores)
            .with_mask(self.config.mask.clone().with_keys(positions.keys()))
            .with_slots(positions.slots().start, k_start);
        let options = KernelOptions { key_norms, ..KernelOptions::default() };
        self.merge(&attend_with(&q, &k, &v, &args, &options)?)
    }

    /// Keys and values of a sequence to attend to from another one, `(b, s, hidden_size)`: what cross-attention of an
    /// encoder-decoder caches once. Position encodings do not apply.
    pub fn memory(&self, xs: &Tensor) -> Result<(Tensor, Tensor)> {
        match &self.projections {
            Projections::Separate { k, v, .. } => Ok((self.heads(&k.forward(xs)?)?, self.heads(&v.forward(xs)?)?)),
            Projections::Fused(_) => bail!("attention: cross-attention needs separate projections"),
        }
    }

    /// Cross-attention of `xs`, `(b, t, hidden_size)`, to what [`memory`](Self::memory) returned; `keys` are the real
    /// tokens of each row of the memory.
    pub fn forward_memory(&self, xs: &Tensor, memory: &(Tensor, Tensor), mask: Mask) -> Result<Tensor> {
        let Projections::Separate { q, .. } = &self.projections else {
            bail!("attention: cross-attention needs separate projections")
        };
        let q = self.heads(&q.forward(xs)?)?;
        let scores = Scores::new(self.config.scale).with_softcap(self.config.softcap);
        let args = AttendArgs::new(scores).with_mask(mask);
        self.merge(&attend(&q, &memory.0, &memory.1, &args)?)
    }

    /// `(b, t, n * d)` to `(b, n, t, d)`.
    fn heads(&self, xs: &Tensor) -> Result<Tensor> {
        let xs = match self.config.qkv_clip {
            Some(clip) => &xs.clamp(-clip, clip)?,
            None => xs,
        };
        ops::split_heads(xs, xs.dim(2)? / self.config.head_dim)
    }

    fn project(&self, xs: &Tensor) -> Result<(Tensor, Tensor, Tensor)> {
        let AttentionConfig { heads, kv_heads, .. } = self.config;
        match &self.projections {
            Projections::Separate { q, k, v } => {
                Ok((self.heads(&q.forward(xs)?)?, self.heads(&k.forward(xs)?)?, self.heads(&v.forward(xs)?)?))
            }
            Projections::Fused(qkv) => {
                let all = self.heads(&qkv.forward(xs)?)?;
                Ok((
                    all.narrow(1, 0, heads)?,
                    all.narrow(1, heads, kv_heads)?,
                    all.narrow(1, heads + kv_heads, kv_heads)?,
                ))
            }
        }
    }

    /// Norm and rotation of queries or keys, in the model's order.
    fn place(&self, xs: &Tensor, positions: &Positions, norm: impl Fn(&QkNorm) -> &Norm) -> Result<Tensor> {
        let Some(qk_norm) = &self.qk_norm else { return self.position.rotate(xs, positions) };
        match qk_norm.place {
            QkNormPlace::AfterRotation => norm(qk_norm).forward(&self.position.rotate(xs, positions)?),
            QkNormPlace::Heads => {
                let normed = norm(qk_norm).forward(&xs.transpose(1, 2)?.contiguous()?)?;
                self.position.rotate(&normed.transpose(1, 2)?, positions)
            }
            QkNormPlace::Whole => {
                let flat = xs.transpose(1, 2)?.flatten_from(2)?;
                self.position.rotate(&self.heads(&norm(qk_norm).forward(&flat)?)?, positions)
            }
        }
    }

    /// `(b, h, t, d)` to `(b, t, h * d)` and through the output projection.
    fn merge(&self, heads: &Tensor) -> Result<Tensor> {
        self.out.forward(&ops::merge_heads(heads)?)
    }
}
