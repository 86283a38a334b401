//! gpt-oss: sinks in the softmax, windows on every other layer, YaRN without rounding, experts with clamped gates and
//! biases.

use super::dense::{Defaults, Dense};
use super::experts::Experts;
use super::parts::{layer_types, window};
use super::rotary::{rope, rope_dictionary, rope_of};
use crate::config::Config;
use crate::spec::{ExpertWeights, GateSpec, MlpSpec, ModelSpec, Routing};
use attn_core::position::PositionConfig;
use candle_core::Result;
use serde_json::json;

const DEFAULTS: Defaults = Defaults {
    vocab_size: 201_088,
    hidden_size: 2880,
    intermediate_size: 2880,
    num_hidden_layers: 36,
    num_attention_heads: 64,
    num_key_value_heads: Some(8),
    head_dim: Some(64),
    max_position_embeddings: 131_072,
    eps: ("rms_norm_eps", 1e-5),
    rope_theta: 150_000.0,
    ..Defaults::LLAMA
};

pub(super) fn spec(c: &Config) -> Result<ModelSpec> {
    let dense = Dense::read(c, &DEFAULTS)?;
    let rope = gpt_oss_rope(c, &dense)?;
    let bias = c.flag("attention_bias", true)?;
    let sliding = c.size_or_null("sliding_window", Some(128))?;
    let default = |i: usize| if i.is_multiple_of(2) { "sliding_attention" } else { "full_attention" };
    let kinds = layer_types(c, dense.common.layers, default)?;
    let moe = moe(c, &dense)?;
    c.mark(&["experts_per_token", "initial_context_length"]); // other programs' names
    let layers = dense.layers(|i| {
        let mut attention = dense.common.attention(bias, rope.clone());
        attention.mask = attention.mask.with_window(window(&kinds[i], sliding)?);
        attention.sinks = Some("self_attn.sinks".into());
        Ok(dense.layer(i, attention, moe.clone()))
    })?;
    Ok(dense.decoder("gpt_oss", layers))
}

fn moe(c: &Config, dense: &Dense) -> Result<MlpSpec> {
    let experts = Experts::read(c, ["num_local_experts", "num_experts"], 128, ["num_experts_per_tok"; 2], 4)?;
    let stacked = |name: &str| format!("mlp.experts.{name}");
    let weights = ExpertWeights::Stacked {
        gate_up: stacked("gate_up_proj"),
        down: stacked("down_proj"),
        transposed: true,
        interleaved: true,
        biases: Some([stacked("gate_up_proj_bias"), stacked("down_proj_bias")]),
    };
    let mut moe = experts.moe(dense, "mlp.router", Routing::softmax(true), dense.intermediate_size, weights);
    let alpha = c.number_or("swiglu_alpha", 1.702)?;
    let limit = c.positive_opt("swiglu_limit")?.unwrap_or(7.0);
    if let MlpSpec::Moe(moe) = &mut moe {
        moe.router.bias = true;
        moe.gate = GateSpec::ClampedSwiglu { alpha, limit };
    }
    Ok(moe)
}

/// Without a dictionary the class has one of its own.
fn gpt_oss_rope(c: &Config, dense: &Dense) -> Result<PositionConfig> {
    let defaults = dense.rope_defaults();
    if ["rope_scaling", "rope_parameters"].into_iter().any(|key| rope_dictionary(c, key).is_some()) {
        return rope(c, None, &defaults);
    }
    let own = json!({"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false,
        "original_max_position_embeddings": 4096});
    rope_of(c, None, &defaults, own)
}
