//! [`AttentionConfig`]: the shape and options of a layer, as data.

use crate::{Mask, position::Temperature};
use candle_core::{Result, bail};

/// The shape and options of one attention layer.
///
/// ```
/// use attn_core::AttentionConfig;
///
/// // Heads wider than hidden_size / heads; the scale of the scores follows.
/// let config = AttentionConfig::new(576, 8, 4).with_head_dim(128);
/// assert_eq!(config.scale(), 128f64.powf(-0.5));
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct AttentionConfig {
    /// Width of the layer's input and output.
    pub hidden_size: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads: `heads` for MHA, fewer for GQA, 1 for MQA.
    pub kv_heads: usize,
    head_dim: Option<usize>,
    v_head_dim: Option<usize>,
    scale: Option<f64>,
    /// Biases on the query, key and value projections.
    pub qkv_bias: bool,
    /// Bias on the output projection.
    pub out_bias: bool,
    /// `softcap * tanh(score / softcap)` (Gemma 2).
    pub softcap: Option<f64>,
    /// Clamps queries, keys and values to plus or minus this (MPT).
    pub qkv_clip: Option<f64>,
    /// Which keys a query sees; padding is added from the positions of each call.
    pub mask: Mask,
    /// RMS norm of every query and key head with this epsilon, before rotation (Qwen 3). Other norms:
    /// [`AttentionParts`](crate::AttentionParts).
    pub qk_norm_eps: Option<f64>,
    /// RMS norm of every value head with this epsilon and no weight (Gemma 4).
    pub v_norm_eps: Option<f64>,
    /// One learned logit per query head in the softmax's denominator (gpt-oss).
    pub sinks: bool,
    /// A sigmoid gate on what the heads give, before the output projection.
    pub output_gate: Option<GateWidth>,
    /// What queries are multiplied by, depending on their position.
    pub temperature: Option<Temperature>,
    /// The layer's number in its model, for encodings that treat layers differently.
    pub layer: Option<usize>,
}

/// What an output gate has a number for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GateWidth {
    /// Each lane of each head (Qwen 3 Next).
    Lanes,
    /// Each head.
    Heads,
}

impl AttentionConfig {
    /// Causal attention with `heads` query heads of `hidden_size / heads` lanes, which `kv_heads` key and value heads
    /// serve; no biases, scores scaled by `head_dim^-1/2`. Everything else has a `with_` method.
    ///
    /// Sizes that don't fit each other are refused when a layer is built.
    pub fn new(hidden_size: usize, heads: usize, kv_heads: usize) -> Self {
        Self {
            hidden_size,
            heads,
            kv_heads,
            head_dim: None,
            v_head_dim: None,
            scale: None,
            qkv_bias: false,
            out_bias: false,
            softcap: None,
            qkv_clip: None,
            mask: Mask::causal(),
            qk_norm_eps: None,
            v_norm_eps: None,
            sinks: false,
            output_gate: None,
            temperature: None,
            layer: None,
        }
    }

    /// Width of a query or key head: `hidden_size / heads` unless it was set.
    pub fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.heads.max(1))
    }

    /// Width of a value head: that of a key head unless it was set.
    pub fn v_head_dim(&self) -> usize {
        self.v_head_dim.unwrap_or(self.head_dim())
    }

    /// What the scores are multiplied by: `head_dim^-1/2` unless it was set.
    pub fn scale(&self) -> f64 {
        self.scale.unwrap_or_else(|| (self.head_dim() as f64).powf(-0.5))
    }

    /// Heads of this width; value heads and the scale follow unless they are set themselves.
    #[must_use]
    pub fn with_head_dim(mut self, head_dim: usize) -> Self {
        self.head_dim = Some(head_dim);
        self
    }

    /// Value heads of another width than the key heads.
    #[must_use]
    pub fn with_v_head_dim(mut self, v_head_dim: usize) -> Self {
        self.v_head_dim = Some(v_head_dim);
        self
    }

    /// Scores multiplied by this instead of `head_dim^-1/2`.
    #[must_use]
    pub fn with_scale(mut self, scale: f64) -> Self {
        self.scale = Some(scale);
        self
    }

    /// Biases on the query, key and value projections, and on the output projection.
    #[must_use]
    pub fn with_biases(mut self, qkv: bool, out: bool) -> Self {
        (self.qkv_bias, self.out_bias) = (qkv, out);
        self
    }

    /// See [`AttentionConfig::softcap`].
    #[must_use]
    pub fn with_softcap(mut self, softcap: Option<f64>) -> Self {
        self.softcap = softcap;
        self
    }

    /// See [`AttentionConfig::qkv_clip`].
    #[must_use]
    pub fn with_qkv_clip(mut self, clip: Option<f64>) -> Self {
        self.qkv_clip = clip;
        self
    }

    /// See [`AttentionConfig::mask`].
    #[must_use]
    pub fn with_mask(mut self, mask: Mask) -> Self {
        self.mask = mask;
        self
    }

    /// See [`AttentionConfig::qk_norm_eps`].
    #[must_use]
    pub fn with_qk_norm(mut self, eps: Option<f64>) -> Self {
        self.qk_norm_eps = eps;
        self
    }

    /// See [`AttentionConfig::v_norm_eps`].
    #[must_use]
    pub fn with_v_norm(mut self, eps: Option<f64>) -> Self {
        self.v_norm_eps = eps;
        self
    }

    /// See [`AttentionConfig::sinks`].
    #[must_use]
    pub fn with_sinks(mut self, sinks: bool) -> Self {
        self.sinks = sinks;
        self
    }

    /// See [`AttentionConfig::output_gate`].
    #[must_use]
    pub fn with_output_gate(mut self, gate: Option<GateWidth>) -> Self {
        self.output_gate = gate;
        self
    }

    /// See [`AttentionConfig::temperature`].
    #[must_use]
    pub fn with_temperature(mut self, temperature: Option<Temperature>) -> Self {
        self.temperature = temperature;
        self
    }

    /// See [`AttentionConfig::layer`].
    #[must_use]
    pub fn with_layer(mut self, layer: Option<usize>) -> Self {
        self.layer = layer;
        self
    }

    /// An error that says which sizes don't fit each other or which number makes no sense.
    pub(super) fn check(&self) -> Result<()> {
        let Self { hidden_size, heads, kv_heads, .. } = *self;
        if heads == 0 || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            bail!("attention: {heads} heads are not divisible by {kv_heads} kv heads")
        }
        if self.head_dim.is_none() && !hidden_size.is_multiple_of(heads) {
            bail!("attention: a width of {hidden_size} is not divisible by {heads} heads, and no head_dim is given")
        }
        if self.head_dim() == 0 || self.v_head_dim() == 0 {
            bail!("attention: heads of {} and {} lanes", self.head_dim(), self.v_head_dim())
        }
        if !self.scale().is_finite() {
            bail!("attention: scores cannot be scaled by {}", self.scale())
        }
        for (name, value) in [("softcap", self.softcap), ("qkv_clip", self.qkv_clip)] {
            if let Some(value) = value
                && !(value.is_finite() && value > 0.0)
            {
                bail!("attention: {name} must be a positive number, got {value}")
            }
        }
        match &self.temperature {
            Some(temperature) => temperature.check(),
            None => Ok(()),
        }
    }
}
