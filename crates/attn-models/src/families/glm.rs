//! GLM 4: interleaved rotation of half the lanes, biases on queries, keys and values, gate and up in one tensor; GLM 4
//! 0414 adds a norm after each branch, GLM 4.5 has separate projections, half-split rotation and experts.

use super::dense::{Defaults, Dense};
use super::experts::{DeepSeek, DeepSeekDefaults};
use crate::config::Config;
use crate::spec::{GateSpec, GateUpSpec, LinearSpec, MlpSpec, ModelSpec, NormSpec};
use attn_core::QkNormPlace;
use attn_core::position::Layout;
use candle_core::Result;

const DENSE: Defaults = Defaults {
    vocab_size: 151_552,
    intermediate_size: 13_696,
    num_hidden_layers: 40,
    num_key_value_heads: Some(2),
    head_dim: Some(128),
    max_position_embeddings: 131_072,
    eps: ("rms_norm_eps", 1.562_5e-7),
    partial_rotary_factor: 0.5,
    layout: Layout::Interleaved,
    ..Defaults::LLAMA
};

const MOE: Defaults = Defaults {
    intermediate_size: 10_944,
    num_hidden_layers: 46,
    num_attention_heads: 96,
    num_key_value_heads: Some(8),
    head_dim: None,
    eps: ("rms_norm_eps", 1e-5),
    layout: Layout::Half,
    ..DENSE
};

pub(super) fn glm(c: &Config) -> Result<ModelSpec> {
    dense(c, "glm", None)
}

pub(super) fn glm4(c: &Config) -> Result<ModelSpec> {
    dense(c, "glm4", Some(["post_self_attn_layernorm", "post_mlp_layernorm"]))
}

fn dense(c: &Config, family: &str, post_norms: Option<[&str; 2]>) -> Result<ModelSpec> {
    let dense = Dense::read(c, &DENSE)?;
    let rope = dense.rope(c)?;
    let bias = c.flag("attention_bias", true)?;
    let (hidden, inner) = (dense.common.hidden_size, dense.intermediate_size);
    let layers = dense.layers(|i| {
        let attention = dense.common.attention(false, rope.clone()).with_biases(bias, false);
        let mlp = MlpSpec::Gated {
            gate_up: GateUpSpec::Fused(LinearSpec::new("mlp.gate_up_proj", hidden, 2 * inner)),
            down: LinearSpec::new("mlp.down_proj", inner, hidden),
            gate: GateSpec::Activation(dense.act),
        };
        let mut layer = dense.layer(i, attention, mlp);
        if let Some([attention, mlp]) = post_norms {
            layer.wiring.attention_post_norm = Some(dense.rms(attention));
            layer.wiring.mlp_post_norm = Some(dense.rms(mlp));
        }
        Ok(layer)
    })?;
    Ok(dense.decoder(family, layers))
}

pub(super) fn moe(c: &Config) -> Result<ModelSpec> {
    let dense = Dense::read(c, &MOE)?;
    let rope = dense.rope(c)?;
    let (bias, qk_norm) = (c.flag("attention_bias", false)?, c.flag("use_qk_norm", false)?);
    let defaults = DeepSeekDefaults {
        n_routed_experts: Some(128),
        num_experts_per_tok: Some(8),
        n_shared_experts: Some(1),
        first_k_dense_replace: 1,
        moe_intermediate_size: 1408,
        routed_scaling_factor: 1.0,
        groups: Some([1, 1]),
    };
    c.mark(&["num_mtp_layers", "num_nextn_predict_layers"]);
    let mlps = DeepSeek::sigmoid(c, &dense, &defaults, true)?;
    let layers = dense.layers(|i| {
        let mut attention = dense.common.attention(false, rope.clone()).with_biases(bias, false);
        if qk_norm {
            let [q, k]: [NormSpec; 2] = dense.head_norms(["q_norm", "k_norm"]);
            attention.qk_norm = Some((q, k, QkNormPlace::Heads));
        }
        Ok(dense.layer(i, attention, mlps.layer(i)))
    })?;
    let mut spec = dense.decoder("glm4_moe", layers);
    // Layers past the last predict further tokens in training.
    spec.unused.push(format!("layers.{}.", dense.common.layers));
    Ok(spec)
}
