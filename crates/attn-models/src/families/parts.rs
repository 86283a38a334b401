//! What the configs of most families have in common, and the parts that their blocks are made of.

use crate::Architecture;
use crate::activation::Activation;
use crate::config::{Config, MAX_LISTED};
use crate::spec::{
    EmbeddingSpec, GateSpec, GateUpSpec, HeadBias, HeadSpec, LayerSpec, LinearSpec, MlpSpec, ModelSpec, MultiHeadSpec,
    NormSpec, PlainActivation, QkvSpec, StackSpec, Wiring,
};
use attn_core::Mask;
use attn_core::position::{NopeConfig, PositionConfig};
use candle_core::{Result, bail};
use serde_json::Value;

/// What nearly every decoder's config says.
pub(super) struct Common {
    pub(super) vocab_size: usize,
    pub(super) hidden_size: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) max_positions: usize,
    /// False for a decoder turned into an encoder (`is_causal: false`): every token sees all others.
    pub(super) causal: bool,
}

impl Common {
    /// Reads the keys of Llama-style configs, in any of the older spellings that `attribute_map`s know.
    pub(super) fn read(c: &Config) -> Result<Self> {
        let mut common = Self::read_mha(c)?;
        common.kv_heads = c.size_opt("num_key_value_heads")?.unwrap_or(common.heads);
        if !c.says("num_key_value_heads") && !common.heads.is_multiple_of(common.kv_heads) {
            // The class's number is for its own number of heads.
            common.kv_heads = common.heads;
        }
        if c.size_opt("head_dim")?.is_some() {
            common.head_dim = c.listed(&["head_dim"])?;
        } else if !common.hidden_size.is_multiple_of(common.heads) {
            bail!("config.json: hidden_size {} is not divisible by {} heads", common.hidden_size, common.heads)
        }
        if !common.heads.is_multiple_of(common.kv_heads) {
            let Self { heads, kv_heads, .. } = common;
            bail!("config.json: num_attention_heads {heads} is not divisible by num_key_value_heads {kv_heads}")
        }
        Ok(common)
    }

    /// As [`read`](Self::read), for families whose transformers code knows neither grouped heads nor a head width nor an
    /// `intermediate_size`: it ignores these keys if they are there, and so do we.
    pub(super) fn read_mha(c: &Config) -> Result<Self> {
        c.mark(&["intermediate_size", "num_key_value_heads", "head_dim"]);
        let hidden_size = c.size(&["hidden_size", "n_embd", "n_embed", "d_model"])?;
        let heads = c.listed(&["num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"])?;
        if hidden_size / heads > MAX_LISTED {
            bail!("config.json: hidden_size {hidden_size} among {heads} heads is more than any model has")
        }
        Ok(Self {
            vocab_size: c.size(&["vocab_size"])?,
            hidden_size,
            layers: c.listed(&["num_hidden_layers", "n_layer", "n_layers", "num_layers"])?,
            heads,
            kv_heads: heads,
            head_dim: hidden_size / heads,
            max_positions: c.size(&["max_position_embeddings", "n_positions", "max_seq_len"]).unwrap_or(2048),
            causal: c.flag("is_causal", true)?,
        })
    }

    /// Refuses heads that do not fill the hidden size, for families that have no `head_dim`.
    pub(super) fn divided(self) -> Result<Self> {
        match self.head_dim * self.heads == self.hidden_size {
            true => Ok(self),
            false => bail!("config.json: hidden size {} is not divisible by {} heads", self.hidden_size, self.heads),
        }
    }

    /// Separate projections under `self_attn.`, causal, with the given position encoding.
    pub(super) fn attention(&self, bias: bool, position: PositionConfig) -> MultiHeadSpec {
        let (hidden, d) = (self.hidden_size, self.head_dim);
        let linear = |name: &str, heads| LinearSpec::new(&format!("self_attn.{name}"), hidden, heads * d).bias(bias);
        let qkv = QkvSpec::Separate {
            q: linear("q_proj", self.heads),
            k: linear("k_proj", self.kv_heads),
            v: linear("v_proj", self.kv_heads),
        };
        let out = LinearSpec::new("self_attn.o_proj", self.heads * d, hidden).bias(bias);
        let mask = if self.causal { Mask::causal() } else { Mask::bidirectional() };
        MultiHeadSpec { mask, ..MultiHeadSpec::new(self.heads, self.kv_heads, d, qkv, out, position) }
    }

    /// `mlp.gate_proj`, `mlp.up_proj`, `mlp.down_proj`.
    pub(super) fn gated_mlp(&self, intermediate: usize, bias: bool, activation: Activation) -> MlpSpec {
        gated("mlp.", self.hidden_size, intermediate, bias, activation)
    }

    /// `model.embed_tokens`, `model.layers.N.`, `model.norm`, `lm_head`.
    pub(super) fn decoder(&self, family: &str, layers: Vec<LayerSpec>, final_norm: NormSpec, tied: bool) -> ModelSpec {
        // A model that sees all tokens has no next token to predict: it gives hidden states and no logits.
        let (architecture, head) = match self.causal {
            true => (Architecture::Decoder, Some(head(tied, "lm_head"))),
            false => (Architecture::Encoder, None),
        };
        let unused = tied || !self.causal;
        ModelSpec {
            family: family.into(),
            architecture,
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            trained_context: Some(trained_context(&layers).unwrap_or(self.max_positions)),
            stack: StackSpec::new(embedding("embed_tokens.weight", self.hidden_size), layers, Some(final_norm)),
            encoder: None,
            head,
            prefixes: vec!["model.".into(), String::new()],
            unused: if unused { vec!["lm_head.weight".into()] } else { Vec::new() },
        }
    }
}

/// The context a rotary scaling was given for, if a layer has one.
fn trained_context(layers: &[LayerSpec]) -> Option<usize> {
    layers.iter().find_map(|layer| match layer.attention.position() {
        PositionConfig::Rope(rope) => Some(rope.original_context()),
        _ => None,
    })
}

pub(super) fn gated(prefix: &str, hidden: usize, intermediate: usize, bias: bool, activation: Activation) -> MlpSpec {
    let linear = |name: &str, i, o| LinearSpec::new(&format!("{prefix}{name}"), i, o).bias(bias);
    MlpSpec::Gated {
        gate_up: GateUpSpec::Separate {
            gate: linear("gate_proj", hidden, intermediate),
            up: linear("up_proj", hidden, intermediate),
        },
        down: linear("down_proj", intermediate, hidden),
        gate: GateSpec::Activation(activation),
    }
}

pub(super) fn plain(up: LinearSpec, down: LinearSpec, activation: Activation) -> MlpSpec {
    MlpSpec::Plain { up, down, activation: PlainActivation::Fixed(activation) }
}

pub(super) fn embedding(name: &str, width: usize) -> EmbeddingSpec {
    EmbeddingSpec {
        tokens: name.into(),
        width,
        projection: None,
        scale: 1.0,
        position: nope(),
        position_table: None,
        token_types: None,
        norm: None,
    }
}

pub(super) fn head(tied: bool, name: &str) -> HeadSpec {
    HeadSpec {
        projection: None,
        name: (!tied).then(|| name.into()),
        or_tied: false,
        bias: None,
        scale: 1.0,
        softcap: None,
    }
}

/// A bias on the logits that has to be there.
pub(super) fn head_bias(name: &str, vocab: usize) -> HeadBias {
    HeadBias { name: name.into(), shape: vec![vocab], optional: false }
}

pub(super) fn nope() -> PositionConfig {
    PositionConfig::Nope(NopeConfig::default())
}

/// A block with a norm before attention and one before the feed-forward.
pub(super) fn pre_norm(prefix: String, attention: MultiHeadSpec, mlp: MlpSpec, norms: [NormSpec; 2]) -> LayerSpec {
    LayerSpec::new(prefix, attention, mlp, Wiring::pre_norm(norms))
}

/// The names of Llama's two norms.
pub(super) const LLAMA_NORMS: [&str; 2] = ["input_layernorm", "post_attention_layernorm"];

/// `config`'s activation.
pub(super) fn activation(c: &Config, key: &'static str, default: &'static str) -> Result<Activation> {
    crate::activation::parse(key, c.text_opt(key)?.unwrap_or(default))
}

/// The kind of every layer, `full_attention` if the config doesn't say.
pub(super) fn layer_types(c: &Config, layers: usize, default: impl Fn(usize) -> &'static str) -> Result<Vec<String>> {
    let known = |v: &Value| v.as_str().map(String::from);
    let types = c.list("layer_types", layers, known)?;
    let types = types.unwrap_or_else(|| (0..layers).map(|i| default(i).to_string()).collect());
    match types.iter().find(|t| !["full_attention", "sliding_attention", "chunked_attention"].contains(&t.as_str())) {
        Some(other) => bail!("config.json: layer_types: unknown kind {other}"),
        None => Ok(types),
    }
}

/// The window of a layer of the given kind.
pub(super) fn window(kind: &str, sliding_window: Option<usize>) -> Result<Option<usize>> {
    match (kind, sliding_window) {
        ("sliding_attention", None) => {
            bail!("config.json: sliding_window is missing, but layer_types has sliding layers")
        }
        ("sliding_attention", window) => Ok(window),
        ("full_attention", _) => Ok(None),
        (other, _) => bail!("config.json: layer_types: {other} is not supported here"),
    }
}
