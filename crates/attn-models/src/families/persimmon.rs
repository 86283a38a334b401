//! Persimmon: fused projections per head, layer norms on query and key heads, partial rotation, biases everywhere.

use super::dense::{Defaults, Dense};
use super::parts::{LLAMA_NORMS, pre_norm};
use crate::config::Config;
use crate::spec::{FusedLayout, LinearSpec, ModelSpec, NormSpec, QkvSpec};
use attn_core::QkNormPlace;
use candle_core::Result;

const DEFAULTS: Defaults = Defaults {
    vocab_size: 262_144,
    intermediate_size: 16_384,
    num_hidden_layers: 36,
    num_attention_heads: 64,
    plain_heads: true,
    max_position_embeddings: 16_384,
    eps: ("layer_norm_eps", 1e-5),
    hidden_act: "relu2",
    partial_rotary_factor: 0.5,
    ..Defaults::LLAMA
};

pub(super) fn spec(c: &Config) -> Result<ModelSpec> {
    let dense = Dense::read(c, &DEFAULTS)?;
    let (hidden, d) = (dense.common.hidden_size, dense.common.head_dim);
    let rope = dense.rope(c)?;
    let qk_norm = c.flag("qk_layernorm", true)?;
    let layers = dense.layers(|i| {
        let mut attention = dense.common.attention(true, rope.clone());
        attention.qkv = QkvSpec::Fused {
            qkv: LinearSpec::new("self_attn.query_key_value", hidden, 3 * hidden).bias(true),
            layout: FusedLayout::PerKvHead,
        };
        attention.out = LinearSpec::new("self_attn.dense", hidden, hidden).bias(true);
        if qk_norm {
            let norm = |name| NormSpec::layer(name, d, dense.eps);
            let (q, k) = (norm("self_attn.q_layernorm"), norm("self_attn.k_layernorm"));
            attention.qk_norm = Some((q, k, QkNormPlace::Heads));
        }
        let mlp = dense.plain_mlp(["dense_h_to_4h", "dense_4h_to_h"], true);
        Ok(pre_norm(format!("layers.{i}."), attention, mlp, LLAMA_NORMS.map(|name| dense.layer_norm(name))))
    })?;
    Ok(dense.decoder_with("persimmon", layers, dense.layer_norm("final_layernorm")))
}
