//! Attention layers as data.

use super::{LinearSpec, NormSpec};
use attn_core::position::{PositionConfig, Temperature};
use attn_core::{Mask, QkNormPlace};

/// Self-attention of either kind.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant)] // one per layer: the size doesn't matter, a box in every pattern would
pub enum AttentionSpec {
    /// MHA, GQA, MQA.
    MultiHead(MultiHeadSpec),
    /// DeepSeek's MLA.
    Latent(LatentSpec),
}

impl From<MultiHeadSpec> for AttentionSpec {
    fn from(attention: MultiHeadSpec) -> Self {
        Self::MultiHead(attention)
    }
}

impl From<LatentSpec> for AttentionSpec {
    fn from(attention: LatentSpec) -> Self {
        Self::Latent(attention)
    }
}

impl AttentionSpec {
    /// The layer's position encoding.
    pub fn position(&self) -> &PositionConfig {
        match self {
            Self::MultiHead(a) => &a.position,
            Self::Latent(a) => &a.position,
        }
    }
}

/// Multi-head attention.
#[derive(Debug, Clone, PartialEq)]
pub struct MultiHeadSpec {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Multiplies the scores.
    pub scale: f64,
    /// On the scores.
    pub softcap: Option<f64>,
    /// Clamps queries, keys and values to plus or minus this (`clip_qkv` of MPT and OLMo).
    pub qkv_clip: Option<f64>,
    /// Causality, window, chunk.
    pub mask: Mask,
    /// Projections.
    pub qkv: QkvSpec,
    /// Output projection.
    pub out: LinearSpec,
    /// Norms on queries and keys.
    pub qk_norm: Option<(NormSpec, NormSpec, QkNormPlace)>,
    /// What queries are multiplied by, depending on their position, whatever the encoding.
    pub temperature: Option<Temperature>,
    /// Norm on each value head.
    pub v_norm: Option<NormSpec>,
    /// `(heads,)`: a logit per head in the softmax's denominator (gpt-oss).
    pub sinks: Option<String>,
    /// The layer whose keys and values this one reads instead of having its own (Gemma 4).
    pub source: Option<usize>,
    /// Position encoding.
    pub position: PositionConfig,
    /// Where the tensors are that the encoding learns in this layer, under the layer's prefix.
    pub position_prefix: Option<String>,
    /// Whether a rotary override from the command line applies: not to Gemma 3's local layers.
    pub overridable: bool,
}

impl MultiHeadSpec {
    /// Causal attention with scores scaled by `head_dim^-1/2` and nothing else.
    pub fn new(
        heads: usize,
        kv_heads: usize,
        head_dim: usize,
        qkv: QkvSpec,
        out: LinearSpec,
        position: PositionConfig,
    ) -> Self {
        Self {
            heads,
            kv_heads,
            head_dim,
            scale: (head_dim as f64).powf(-0.5),
            softcap: None,
            qkv_clip: None,
            mask: Mask::causal(),
            qkv,
            out,
            qk_norm: None,
            temperature: None,
            v_norm: None,
            sinks: None,
            source: None,
            position,
            position_prefix: None,
            overridable: true,
        }
    }

    /// With another mask.
    #[must_use]
    pub fn with_mask(mut self, mask: Mask) -> Self {
        self.mask = mask;
        self
    }

    /// With biases on queries, keys and values, and on the output.
    #[must_use]
    pub fn with_biases(mut self, qkv: bool, out: bool) -> Self {
        let inputs = match &mut self.qkv {
            QkvSpec::Separate { q, k, v } => vec![q, k, v],
            QkvSpec::Fused { qkv, .. } => vec![qkv],
            QkvSpec::Queries(q) => vec![q],
        };
        inputs.into_iter().for_each(|linear| linear.bias = qkv);
        self.out.bias = out;
        self
    }
}

/// Query, key and value projections.
#[derive(Debug, Clone, PartialEq)]
pub enum QkvSpec {
    /// One tensor each.
    Separate {
        /// Queries.
        q: LinearSpec,
        /// Keys.
        k: LinearSpec,
        /// Values.
        v: LinearSpec,
    },
    /// One tensor for all.
    Fused {
        /// The tensor.
        qkv: LinearSpec,
        /// The order of its rows.
        layout: FusedLayout,
    },
    /// Queries alone: the layer reads the keys and values of another one, see [`MultiHeadSpec::source`].
    Queries(LinearSpec),
}

/// How the rows of a fused projection are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FusedLayout {
    /// All queries, all keys, all values (GPT-2, Phi 3, MPT).
    Blocks,
    /// Per kv head: its queries, its key, its value (BLOOM, GPT-NeoX, Falcon).
    PerKvHead,
    /// So many equal parts, each with its share of the queries, then of the values, then of the keys (CodeGen, which was
    /// trained on as many devices).
    QueryValueKey {
        /// Number of parts.
        parts: usize,
    },
}

/// DeepSeek's latent attention.
#[derive(Debug, Clone, PartialEq)]
pub struct LatentSpec {
    /// Query heads.
    pub heads: usize,
    /// Width of the query latent; `None` projects straight from the hidden state.
    pub q_lora_rank: Option<usize>,
    /// Width of the key and value latent.
    pub kv_lora_rank: usize,
    /// Lanes without position.
    pub qk_nope_head_dim: usize,
    /// Lanes that rotate.
    pub qk_rope_head_dim: usize,
    /// Width of a value head.
    pub v_head_dim: usize,
    /// Biases on the `a` projections and the output.
    pub bias: bool,
    /// Position encoding of the rotating lanes.
    pub position: PositionConfig,
}

impl LatentSpec {
    /// The score scale: `(qk_nope_head_dim + qk_rope_head_dim)^-1/2`, times what the scaling of the position encoding asks for
    /// (YaRN's `mscale(factor, mscale_all_dim)^2`).
    pub fn scale(&self, position: &PositionConfig) -> f64 {
        let scale = ((self.qk_nope_head_dim + self.qk_rope_head_dim) as f64).powf(-0.5);
        match position {
            PositionConfig::Rope(rope) => scale * rope.scaling.latent_score_factor(),
            PositionConfig::Extended(config) => scale * config.rope.scaling.latent_score_factor(),
            _ => scale,
        }
    }
}
