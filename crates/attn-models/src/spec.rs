//! A model as data: what its layers are made of and what their tensors are called.
//!
//! A family (`families/<name>.rs`) turns a Hugging Face `config.json` into a [`ModelSpec`]; one decoder builds and runs
//! any of them. Names are relative to the layer they belong to, as in the checkpoint.

mod attention;
mod mlp;
mod per_layer;

pub use attention::{AttentionSpec, FusedLayout, LatentSpec, MultiHeadSpec, QkvSpec};
pub use mlp::{
    BesideSpec, ExpertWeights, GateSpec, GateUpSpec, GroupLimit, GroupScore, MlpSpec, MoeSpec, PlainActivation,
    RouterNorm, RouterScores, Routing, SharedSpec,
};
pub use per_layer::{PerLayerInputsSpec, PerLayerSpec};

use crate::Architecture;
use attn_core::position::PositionConfig;
use attn_core::position::extend::LOG_N;
use attn_core::{Mask, NormKind, PositionOverride};
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
    /// Parts of the names of tensors that may be in the checkpoint and are deliberately not used.
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
    /// The table behind the encoding that all layers share: T5's biases, RoFormer's sines and cosines.
    pub layer_table: Option<TableSpec>,
    /// Inputs of their own for every layer.
    pub per_layer: Option<PerLayerInputsSpec>,
}

impl StackSpec {
    /// Embedding, layers and norm, without anything that layers share.
    pub fn new(embedding: EmbeddingSpec, layers: Vec<LayerSpec>, final_norm: Option<NormSpec>) -> Self {
        Self { embedding, layers, final_norm, layer_table: None, per_layer: None }
    }
}

/// The table of a learned position encoding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableSpec {
    /// Its tensor.
    pub name: String,
    /// What stands in where the checkpoint has no such tensor: sines in the first half of the columns and cosines in the
    /// second, as tensor2tensor writes them (Pegasus, RoFormer).
    pub or_sinusoids: bool,
}

impl TableSpec {
    /// A table that has to be in the checkpoint.
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), or_sinusoids: false }
    }

    /// With sinusoids where the checkpoint leaves the table out.
    #[must_use]
    pub fn or_sinusoids(mut self) -> Self {
        self.or_sinusoids = true;
        self
    }
}

/// Tokens to vectors.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbeddingSpec {
    /// `(vocab_size, width)`
    pub tokens: String,
    /// Width of the table: the hidden size, unless a projection follows.
    pub width: usize,
    /// From `width` to the hidden size.
    pub projection: Option<(LinearSpec, ProjectionPlace)>,
    /// Multiplies the embeddings.
    pub scale: f64,
    /// An absolute encoding added to the embeddings: learned or sinusoidal.
    pub position: PositionConfig,
    /// The learned table, if `position` has one.
    pub position_table: Option<TableSpec>,
    /// Table of segment embeddings, of which row 0 is added (BERT).
    pub token_types: Option<(String, usize)>,
    /// On the sum (BLOOM, BERT).
    pub norm: Option<NormSpec>,
}

/// When embeddings that are narrower than the residual stream are widened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProjectionPlace {
    /// Before positions are added (OPT).
    BeforePositions,
    /// After positions and norm (ELECTRA).
    AfterNorm,
}

/// Hidden states to logits.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadSpec {
    /// From the hidden size to the embedding's width, before the head (OPT).
    pub projection: Option<LinearSpec>,
    /// `(vocab_size, width)` of the embedding; the embedding's tensor if `None`.
    pub name: Option<String>,
    /// The embedding's too if the named tensor is not in the checkpoint (T5).
    pub or_tied: bool,
    /// A bias on the logits.
    pub bias: Option<HeadBias>,
    /// Multiplies the logits.
    pub scale: f64,
    /// `softcap * tanh(logits / softcap)`.
    pub softcap: Option<f64>,
}

/// A bias on the logits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadBias {
    /// Its tensor.
    pub name: String,
    /// The tensor's shape: `(vocab_size,)`, or `(1, vocab_size)` in BART.
    pub shape: Vec<usize>,
    /// Zeros if the checkpoint has no such tensor.
    pub optional: bool,
}

/// Attention to the encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct CrossSpec {
    /// The layer.
    pub attention: MultiHeadSpec,
    /// Its norm.
    pub norm: NormSpec,
    /// The norm is on the residual after attention joined it (BART), rather than before attention.
    pub norm_after: bool,
}

/// One block.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerSpec {
    /// Prefix of the layer's tensors, with the dot.
    pub prefix: String,
    /// Self-attention.
    pub attention: AttentionSpec,
    /// Attention to the encoder.
    pub cross: Option<CrossSpec>,
    /// Feed-forward.
    pub mlp: MlpSpec,
    /// How norms and residuals connect them.
    pub wiring: Wiring,
    /// Experts beside the feed-forward.
    pub beside: Option<BesideSpec>,
    /// How the layer takes in its share of the stack's [`PerLayerInputsSpec`].
    pub per_layer: Option<PerLayerSpec>,
    /// A number that multiplies what leaves the layer, `(1,)`; 1 if the checkpoint has no such tensor (Gemma 4).
    pub scalar: Option<String>,
}

impl LayerSpec {
    /// Self-attention and a feed-forward network.
    pub fn new(prefix: String, attention: impl Into<AttentionSpec>, mlp: MlpSpec, wiring: Wiring) -> Self {
        Self {
            prefix,
            attention: attention.into(),
            cross: None,
            mlp,
            wiring,
            beside: None,
            per_layer: None,
            scalar: None,
        }
    }
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

impl Wiring {
    /// A norm before attention and one before the feed-forward.
    pub fn pre_norm([attention, mlp]: [NormSpec; 2]) -> Self {
        Self { attention_norm: Some(attention), mlp_norm: Some(mlp), ..Self::default() }
    }

    /// A norm on the residual after attention joined it, and one after the feed-forward did.
    pub fn post_norm([attention, mlp]: [NormSpec; 2]) -> Self {
        Self { attention_out_norm: Some(attention), mlp_out_norm: Some(mlp), ..Self::default() }
    }
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

impl ModelSpec {
    /// The same model with its rotary layers under another setting. Layers that never stretch (Gemma 3's local ones)
    /// keep theirs.
    ///
    /// # Errors
    /// No rotary layer, by the name of the family; parameters that don't fit; a method that places near and far keys
    /// differently, or log-n scaling, on a model that has layers without rotation which see everything; a method on layers whose
    /// blocks it can't share.
    pub fn with_positions(&self, change: &PositionOverride) -> Result<Self> {
        let mut spec = self.clone();
        if change.is_none() {
            return Ok(spec);
        }
        let asked = change.extend.method.map(|method| method.name).or(change.extend.log_n.then_some(LOG_N));
        let (mut changed, mut unlimited) = (false, None);
        let stacks = std::iter::once(&mut spec.stack).chain(spec.encoder.as_mut());
        for (i, attention) in stacks.flat_map(|s| &mut s.layers).map(|l| &mut l.attention).enumerate() {
            let (position, mask) = match attention {
                AttentionSpec::MultiHead(a) if a.overridable => (&mut a.position, a.mask.clone()),
                AttentionSpec::Latent(a) => (&mut a.position, Mask::causal()),
                AttentionSpec::MultiHead(a) => {
                    unlimited = unlimited.or(a.mask.reach().is_none().then_some(i));
                    continue;
                }
            };
            let Some(over) = position.with_override(change)? else {
                unlimited = unlimited.or(mask.reach().is_none().then_some(i));
                continue;
            };
            if let PositionConfig::Extended(config) = &over {
                for part in config.build()?.parts() {
                    if let Err(error) = mask.intersect(&part.region) {
                        let asked = asked.unwrap_or_default();
                        bail!("{}: {asked} can't be applied to layer {i}: {error}", self.family)
                    }
                }
            }
            *position = over;
            changed = true;
        }
        if !changed && change.only_unscales() {
            return Ok(spec);
        }
        if !changed {
            bail!("{} has no rotary position encoding: rope options do not apply to it", self.family)
        }
        if let (Some(asked), Some(layer)) = (asked, unlimited) {
            bail!(
                "{}: {asked} is for layers that rotate, and layer {layer} of this model sees everything without rotation",
                self.family
            )
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
