//! What Llama-like decoders have in common, read with a family's own defaults: an absent key means what transformers'
//! configuration class of the family says, which differs from family to family.

use super::parts::{Common, LLAMA_NORMS, pre_norm};
use super::rotary::rope;
use crate::activation::Activation;
use crate::config::{Config, MAX_LISTED};
use crate::spec::{LayerSpec, LinearSpec, MlpSpec, ModelSpec, MultiHeadSpec, NormSpec, Wiring};
use attn_core::position::{Layout, PositionConfig, RopeDefaults};
use candle_core::{Result, bail};

/// The defaults of a family's configuration class for keys that `config.json` leaves out, under transformers' names.
#[derive(Debug, Clone, Copy)]
pub(super) struct Defaults {
    pub(super) vocab_size: usize,
    pub(super) hidden_size: usize,
    pub(super) intermediate_size: usize,
    pub(super) num_hidden_layers: usize,
    pub(super) num_attention_heads: usize,
    /// `None`: as many as query heads.
    pub(super) num_key_value_heads: Option<usize>,
    /// The family has neither grouped heads nor a head width of its own, and ignores the keys.
    pub(super) plain_heads: bool,
    /// `None`: the hidden size divided among the heads.
    pub(super) head_dim: Option<usize>,
    pub(super) max_position_embeddings: usize,
    /// The key of the norms' epsilon, and its value.
    pub(super) eps: (&'static str, f64),
    pub(super) hidden_act: &'static str,
    pub(super) rope_theta: f64,
    pub(super) partial_rotary_factor: f64,
    /// Which lanes rotate together; no config says so.
    pub(super) layout: Layout,
    pub(super) tie_word_embeddings: bool,
}

impl Defaults {
    /// Llama's.
    pub(super) const LLAMA: Self = Self {
        vocab_size: 32_000,
        hidden_size: 4096,
        intermediate_size: 11_008,
        num_hidden_layers: 32,
        num_attention_heads: 32,
        num_key_value_heads: None,
        plain_heads: false,
        head_dim: None,
        max_position_embeddings: 2048,
        eps: ("rms_norm_eps", 1e-6),
        hidden_act: "silu",
        rope_theta: 10_000.0,
        partial_rotary_factor: 1.0,
        layout: Layout::Half,
        tie_word_embeddings: false,
    };
}

/// A Llama-like config, read.
pub(super) struct Dense {
    pub(super) common: Common,
    pub(super) intermediate_size: usize,
    pub(super) eps: f64,
    pub(super) act: Activation,
    tied: bool,
    defaults: Defaults,
}

impl Dense {
    pub(super) fn read(c: &Config, defaults: &Defaults) -> Result<Self> {
        Self::read_with(c, defaults, super::parts::activation(c, "hidden_act", defaults.hidden_act)?)
    }

    /// With an activation that the family has read itself.
    pub(super) fn read_with(c: &Config, defaults: &Defaults, act: Activation) -> Result<Self> {
        let size = |key, default| Ok::<_, candle_core::Error>(c.size_opt(key)?.unwrap_or(default));
        let count = |key, default| match size(key, default)? {
            n if n > MAX_LISTED => c.listed(&[key]),
            n => Ok(n),
        };
        let hidden_size = size("hidden_size", defaults.hidden_size)?;
        let heads = count("num_attention_heads", defaults.num_attention_heads)?;
        let (kv_heads, head_dim) = match defaults.plain_heads {
            true => {
                c.mark(&["num_key_value_heads", "head_dim"]);
                (heads, hidden_size / heads)
            }
            false => {
                // null asks for the computed value, whatever the class has.
                let unless_null = |key: &str, default: Option<usize>| default.filter(|_| !c.is_null(key));
                let kv_heads = unless_null("num_key_value_heads", defaults.num_key_value_heads).unwrap_or(heads);
                let head_dim = unless_null("head_dim", defaults.head_dim).unwrap_or(hidden_size / heads);
                let kv_heads = count("num_key_value_heads", kv_heads)?;
                // The class's number is for its own number of heads.
                let fits = c.says("num_key_value_heads") || heads.is_multiple_of(kv_heads);
                (if fits { kv_heads } else { heads }, count("head_dim", head_dim)?)
            }
        };
        let given = c.get("head_dim").is_some() || defaults.head_dim.is_some();
        if (defaults.plain_heads || !given) && !hidden_size.is_multiple_of(heads) {
            bail!("config.json: hidden_size {hidden_size} is not divisible by {heads} heads")
        }
        if !heads.is_multiple_of(kv_heads) {
            bail!("config.json: num_attention_heads {heads} is not divisible by num_key_value_heads {kv_heads}")
        }
        let common = Common {
            vocab_size: size("vocab_size", defaults.vocab_size)?,
            hidden_size,
            layers: count("num_hidden_layers", defaults.num_hidden_layers)?,
            heads,
            kv_heads,
            head_dim,
            max_positions: size("max_position_embeddings", defaults.max_position_embeddings)?,
            causal: c.flag("is_causal", true)?,
        };
        Ok(Self {
            common,
            intermediate_size: size("intermediate_size", defaults.intermediate_size)?,
            eps: c.eps(defaults.eps.0, defaults.eps.1)?,
            act,
            tied: c.flag("tie_word_embeddings", defaults.tie_word_embeddings)?,
            defaults: *defaults,
        })
    }

    /// What the rotary encoding falls back on.
    pub(super) fn rope_defaults(&self) -> RopeDefaults {
        RopeDefaults {
            theta: self.defaults.rope_theta,
            partial_rotary_factor: self.defaults.partial_rotary_factor,
            layout: self.defaults.layout,
            max_position_embeddings: Some(self.common.max_positions),
            ..RopeDefaults::new(self.common.head_dim)
        }
    }

    /// The rotary encoding that all layers share.
    pub(super) fn rope(&self, c: &Config) -> Result<PositionConfig> {
        rope(c, None, &self.rope_defaults())
    }

    /// An RMS norm over the hidden size.
    pub(super) fn rms(&self, name: &str) -> NormSpec {
        NormSpec::rms(name, self.common.hidden_size, self.eps)
    }

    /// A layer norm over the hidden size.
    pub(super) fn layer_norm(&self, name: &str) -> NormSpec {
        NormSpec::layer(name, self.common.hidden_size, self.eps)
    }

    /// RMS norms of every query and key head.
    pub(super) fn head_norms(&self, [q, k]: [&str; 2]) -> [NormSpec; 2] {
        [q, k].map(|name| NormSpec::rms(&format!("self_attn.{name}"), self.common.head_dim, self.eps))
    }

    /// `mlp.gate_proj`, `mlp.up_proj`, `mlp.down_proj`.
    pub(super) fn gated_mlp(&self, bias: bool) -> MlpSpec {
        self.common.gated_mlp(self.intermediate_size, bias, self.act)
    }

    /// `mlp.{up}` and `mlp.{down}`, without a gate.
    pub(super) fn plain_mlp(&self, [up, down]: [&str; 2], bias: bool) -> MlpSpec {
        let (hidden, inner) = (self.common.hidden_size, self.intermediate_size);
        let linear = |name: &str, i, o| LinearSpec::new(&format!("mlp.{name}"), i, o).bias(bias);
        super::parts::plain(linear(up, hidden, inner), linear(down, inner, hidden), self.act)
    }

    /// Layer `i` with Llama's two RMS norms.
    pub(super) fn layer(&self, i: usize, attention: MultiHeadSpec, mlp: MlpSpec) -> LayerSpec {
        pre_norm(format!("layers.{i}."), attention, mlp, LLAMA_NORMS.map(|name| self.rms(name)))
    }

    /// Layer `i` with a norm after each branch instead of before (OLMo 2).
    pub(super) fn post_norm(&self, i: usize, attention: MultiHeadSpec, mlp: MlpSpec) -> LayerSpec {
        let wiring = Wiring {
            attention_post_norm: Some(self.rms("post_attention_layernorm")),
            mlp_post_norm: Some(self.rms("post_feedforward_layernorm")),
            ..Wiring::default()
        };
        LayerSpec { wiring, ..self.layer(i, attention, mlp) }
    }

    /// Every layer, each from its number.
    pub(super) fn layers(&self, layer: impl Fn(usize) -> Result<LayerSpec>) -> Result<Vec<LayerSpec>> {
        (0..self.common.layers).map(layer).collect()
    }

    /// The whole decoder, with `norm` after the last layer.
    pub(super) fn decoder(&self, family: &str, layers: Vec<LayerSpec>) -> ModelSpec {
        self.common.decoder(family, layers, self.rms("norm"), self.tied)
    }

    /// The whole decoder with another norm after the last layer.
    pub(super) fn decoder_with(&self, family: &str, layers: Vec<LayerSpec>, norm: NormSpec) -> ModelSpec {
        self.common.decoder(family, layers, norm, self.tied)
    }
}
