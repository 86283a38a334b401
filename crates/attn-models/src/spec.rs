//! A model as data: what its layers are made of and what their tensors are called.
//!
//! A family (`families/<name>.rs`) turns a Hugging Face `config.json` into a [`ModelSpec`]; one decoder builds and runs
//! any of them. Names are relative to the layer they belong to, as in the checkpoint.

use crate::Architecture;
use crate::activation::Activation;
use attn_core::position::{PositionConfig, RopeConfig, RopeScaling};
use attn_core::{Mask, NormKind, QkNormPlace, RopeOverride};
use candle_core::{Result, bail};

/// A whole model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// `model_type` of the config.
    pub family: String,
    /// Decoder, encoder, or both.
    pub architecture: Architecture,
    /// Rows of the token embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Context the checkpoint was trained for.
    pub trained_context: Option<usize>,
    /// The decoder's layers, or the encoder's where there is no decoder.
    pub stack: StackSpec,
    /// The encoder of an encoder-decoder model.
    pub encoder: Option<StackSpec>,
    /// From hidden states to logits; `None` for encoders.
    pub head: Option<HeadSpec>,
    /// Prefixes of the tensor names, tried in order: checkpoints of the bare model lack the outer one.
    pub prefixes: Vec<String>,
    /// Parts of the names of tensors that may be in the checkpoint and are rightly not used.
    pub unused: Vec<String>,
}

/// Embedding, layers and final norm.
#[derive(Debug, Clone, PartialEq)]
pub struct StackSpec {
    /// Tokens to vectors.
    pub embedding: EmbeddingSpec,
    /// From first to last.
    pub layers: Vec<LayerSpec>,
    /// After the last layer.
    pub final_norm: Option<NormSpec>,
    /// Name of the T5 bias table that all layers share.
    pub relative_table: Option<String>,
}

/// Tokens to vectors.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbeddingSpec {
    /// `(vocab_size, hidden_size)`
    pub tokens: String,
    /// Multiplies the embeddings.
    pub scale: f64,
    /// An absolute encoding added to the embeddings: learned or sinusoidal.
    pub position: PositionConfig,
    /// The learned table, if `position` has one.
    pub position_table: Option<String>,
    /// Table of segment embeddings, of which row 0 is added (BERT).
    pub token_types: Option<(String, usize)>,
    /// On the sum (BLOOM, BERT).
    pub norm: Option<NormSpec>,
}

/// Hidden states to logits.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadSpec {
    /// `(vocab_size, hidden_size)`; the embedding's if `None`.
    pub name: Option<String>,
    /// The embedding's too if the named tensor is not in the checkpoint (T5).
    pub or_tied: bool,
    /// A bias on the logits.
    pub bias: bool,
    /// Multiplies the logits.
    pub scale: f64,
    /// `softcap * tanh(logits / softcap)`.
    pub softcap: Option<f64>,
}

/// One block.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerSpec {
    /// Prefix of the layer's tensors, with the dot.
    pub prefix: String,
    /// Self-attention.
    pub attention: AttentionSpec,
    /// Attention to the encoder, with the norm before it.
    pub cross: Option<(MultiHeadSpec, NormSpec)>,
    /// Feed-forward.
    pub mlp: MlpSpec,
    /// How norms and residuals connect them.
    pub wiring: Wiring,
}

/// Norms and residuals of a block.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Wiring {
    /// Before attention.
    pub attention_norm: Option<NormSpec>,
    /// On attention's output, before it joins the residual (Gemma 2, OLMo 2).
    pub attention_post_norm: Option<NormSpec>,
    /// On the residual after attention joined it (BERT).
    pub attention_out_norm: Option<NormSpec>,
    /// Before the feed-forward; in a parallel block `None` means it shares attention's.
    pub mlp_norm: Option<NormSpec>,
    /// On the feed-forward's output, before it joins the residual.
    pub mlp_post_norm: Option<NormSpec>,
    /// On the residual after the feed-forward joined it.
    pub mlp_out_norm: Option<NormSpec>,
    /// Attention and feed-forward both start from the block's input (GPT-J, Phi, Cohere).
    pub parallel: bool,
    /// Multiplies both outputs before they join the residual (Granite); `None` is 1.
    pub residual_multiplier: Option<f64>,
    /// The residual is taken after the norm rather than before (BLOOM's `apply_residual_connection_post_layernorm`).
    pub residual_after_norm: bool,
}

/// Self-attention of either kind.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant)] // one per layer: the size doesn't matter, a box in every pattern would
pub enum AttentionSpec {
    /// MHA, GQA, MQA.
    MultiHead(MultiHeadSpec),
    /// DeepSeek's MLA.
    Latent(LatentSpec),
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
    /// Clamps queries, keys and values to plus or minus this (MPT's `clip_qkv`).
    pub qkv_clip: Option<f64>,
    /// Causality, window, chunk.
    pub mask: Mask,
    /// Projections.
    pub qkv: QkvSpec,
    /// Output projection.
    pub out: LinearSpec,
    /// Norms on queries and keys.
    pub qk_norm: Option<(NormSpec, NormSpec, QkNormPlace)>,
    /// Position encoding.
    pub position: PositionConfig,
    /// Whether a rotary override from the command line applies: not to Gemma 3's local layers.
    pub overridable: bool,
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
}

/// How the rows of a fused projection are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FusedLayout {
    /// All queries, all keys, all values (GPT-2, Phi 3, MPT).
    Blocks,
    /// Per kv head: its queries, its key, its value (BLOOM, GPT-NeoX, Falcon).
    PerKvHead,
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

/// A matrix product.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearSpec {
    /// Name without `.weight`.
    pub name: String,
    /// Input width.
    pub in_dim: usize,
    /// Output width.
    pub out_dim: usize,
    /// Has a `.bias`.
    pub bias: bool,
    /// Stored as `(in, out)` (GPT-2's Conv1D).
    pub transposed: bool,
}

impl LatentSpec {
    /// The score scale: `(qk_nope_head_dim + qk_rope_head_dim)^-1/2`, times YaRN's `mscale(factor, mscale_all_dim)^2`
    /// where the position encoding has one.
    pub fn scale(&self, position: &PositionConfig) -> f64 {
        let scale = ((self.qk_nope_head_dim + self.qk_rope_head_dim) as f64).powf(-0.5);
        let PositionConfig::Rope(RopeConfig { scaling: RopeScaling::Yarn { factor, mscale_all_dim, .. }, .. }) =
            position
        else {
            return scale;
        };
        match mscale_all_dim {
            Some(m) if *m != 0.0 && *factor > 1.0 => scale * (0.1 * m * factor.ln() + 1.0).powi(2),
            _ => scale,
        }
    }
}

impl ModelSpec {
    /// The same model with its rotary layers under another setting. Layers that never stretch (Gemma 3's local ones)
    /// keep theirs.
    ///
    /// # Errors
    /// No rotary layer, by the name of the family; parameters that don't fit.
    pub fn with_rope(&self, rope: &RopeOverride) -> Result<Self> {
        let mut spec = self.clone();
        if *rope == RopeOverride::default() {
            return Ok(spec);
        }
        let mut changed = false;
        let stacks = std::iter::once(&mut spec.stack).chain(spec.encoder.as_mut());
        for attention in stacks.flat_map(|s| &mut s.layers).map(|l| &mut l.attention) {
            let position = match attention {
                AttentionSpec::MultiHead(a) if a.overridable => &mut a.position,
                AttentionSpec::Latent(a) => &mut a.position,
                AttentionSpec::MultiHead(_) => continue,
            };
            if let PositionConfig::Rope(config) = position {
                *config = config.with_override(rope)?;
                changed = true;
            }
        }
        if !changed {
            bail!("{} has no rotary position encoding: rope options do not apply to it", self.family)
        }
        Ok(spec)
    }
}

impl LinearSpec {
    /// A product without bias, stored `(out, in)`.
    pub fn new(name: &str, in_dim: usize, out_dim: usize) -> Self {
        Self { name: name.into(), in_dim, out_dim, bias: false, transposed: false }
    }

    /// With a bias, if `bias`.
    #[must_use]
    pub fn bias(mut self, bias: bool) -> Self {
        self.bias = bias;
        self
    }

    /// Stored as `(in, out)`.
    #[must_use]
    pub fn transposed(mut self) -> Self {
        self.transposed = true;
        self
    }
}

/// A norm.
#[derive(Debug, Clone, PartialEq)]
pub struct NormSpec {
    /// Name without `.weight`; `None` for a norm without parameters.
    pub name: Option<String>,
    /// Shape of the weight.
    pub shape: Vec<usize>,
    /// RMS or layer norm.
    pub kind: NormKind,
    /// Inside the square root.
    pub eps: f64,
    /// Has a `.bias`.
    pub bias: bool,
    /// The weight is stored minus one (Gemma).
    pub unit_offset: bool,
    /// The rows of the weight are tensors of their own, `norms.{row}.weight` (StableLM).
    pub split_rows: bool,
}

impl NormSpec {
    /// An RMS norm.
    pub fn rms(name: &str, size: usize, eps: f64) -> Self {
        let (name, shape) = (Some(name.into()), vec![size]);
        Self { name, shape, kind: NormKind::Rms, eps, bias: false, unit_offset: false, split_rows: false }
    }

    /// A layer norm with bias.
    pub fn layer(name: &str, size: usize, eps: f64) -> Self {
        Self { kind: NormKind::Layer, bias: true, ..Self::rms(name, size, eps) }
    }

    /// Without a bias.
    #[must_use]
    pub fn no_bias(mut self) -> Self {
        self.bias = false;
        self
    }

    /// With a weight of another shape, such as one row per head.
    #[must_use]
    pub fn shape(mut self, shape: &[usize]) -> Self {
        self.shape = shape.to_vec();
        self
    }

    /// With one weight per head, each a tensor of its own.
    #[must_use]
    pub fn per_head(mut self, heads: usize) -> Self {
        self.shape.insert(0, heads);
        self.split_rows = true;
        self
    }

    /// With the weight stored minus one.
    #[must_use]
    pub fn unit_offset(mut self) -> Self {
        self.unit_offset = true;
        self
    }
}

/// A feed-forward network.
#[derive(Debug, Clone, PartialEq)]
pub enum MlpSpec {
    /// `down(act(gate x) * up x)`
    Gated {
        /// Gate and up: two tensors, or one with gate's rows first.
        gate_up: GateUpSpec,
        /// Back to the hidden size.
        down: LinearSpec,
        /// On the gate.
        activation: Activation,
    },
    /// `down(act(up x))`
    Plain {
        /// To the intermediate size.
        up: LinearSpec,
        /// Back to the hidden size.
        down: LinearSpec,
        /// Between them.
        activation: Activation,
    },
    /// A router and experts.
    Moe(Box<MoeSpec>),
}

/// The first half of a gated network.
#[derive(Debug, Clone, PartialEq)]
pub enum GateUpSpec {
    /// One tensor each.
    Separate {
        /// Gate.
        gate: LinearSpec,
        /// Up.
        up: LinearSpec,
    },
    /// One tensor, gate's rows first.
    Fused(LinearSpec),
}

/// A mixture of experts.
#[derive(Debug, Clone, PartialEq)]
pub struct MoeSpec {
    /// Router weight, `(experts, hidden)`, without `.weight`.
    pub router: String,
    /// How tokens choose.
    pub routing: Routing,
    /// Number of experts.
    pub experts: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Width of the input and output.
    pub hidden_size: usize,
    /// Width inside an expert.
    pub intermediate_size: usize,
    /// Where the experts' weights are.
    pub names: ExpertNames,
    /// On the gate.
    pub activation: Activation,
    /// An expert that every token passes through.
    pub shared: Option<MlpSpec>,
}

/// How tokens choose experts.
#[derive(Debug, Clone, PartialEq)]
pub enum Routing {
    /// DeepSeek V3: sigmoid scores, a learned correction for the choice alone, groups limited first.
    GroupedSigmoid {
        /// Groups the experts are divided into.
        groups: usize,
        /// Groups kept.
        top_groups: usize,
        /// Weights divided by their sum.
        normalise: bool,
        /// Multiplies the weights.
        scale: f64,
        /// Name of the correction, `(experts,)`.
        correction: String,
    },
    /// Llama 4: the top logits' sigmoid scales the expert's input.
    SigmoidInput,
}

/// Where experts' weights are.
#[derive(Debug, Clone, PartialEq)]
pub enum ExpertNames {
    /// `{prefix}{i}.gate_proj.weight` and so on.
    Separate {
        /// Up to the expert's number.
        prefix: String,
    },
    /// Two tensors for all: `(e, hidden, 2 * inter)` and `(e, inter, hidden)`.
    Stacked {
        /// Gate and up.
        gate_up: String,
        /// Down.
        down: String,
    },
}
