//! dots.llm1: Qwen 3's attention with DeepSeek V3's experts.

use super::dense::{Defaults, Dense};
use super::experts::{DeepSeek, DeepSeekDefaults};
use super::parts::{layer_types, window};
use crate::config::Config;
use crate::spec::ModelSpec;
use attn_core::QkNormPlace;
use candle_core::Result;

const DEFAULTS: Defaults = Defaults {
    vocab_size: 152_064,
    hidden_size: 4608,
    intermediate_size: 10_944,
    num_hidden_layers: 62,
    num_key_value_heads: Some(32),
    ..Defaults::LLAMA
};

pub(super) fn spec(c: &Config) -> Result<ModelSpec> {
    let dense = Dense::read(c, &DEFAULTS)?;
    let rope = dense.rope(c)?;
    let bias = c.flag("attention_bias", false)?;
    let sliding = c.size_or_null("sliding_window", Some(4096))?;
    let first_sliding = c.count_or("max_window_layers", 62)?;
    let default = |i| if sliding.is_some() && i >= first_sliding { "sliding_attention" } else { "full_attention" };
    let kinds = layer_types(c, dense.common.layers, default)?;
    let defaults = DeepSeekDefaults {
        n_routed_experts: None,
        num_experts_per_tok: None,
        n_shared_experts: None,
        first_k_dense_replace: 0,
        moe_intermediate_size: 1408,
        routed_scaling_factor: 1.0,
        groups: Some([1, 1]),
    };
    let mlps = DeepSeek::sigmoid(c, &dense, &defaults, false)?;
    let layers = dense.layers(|i| {
        let mut attention = dense.common.attention(bias, rope.clone());
        let [q, k] = dense.head_norms(["q_norm", "k_norm"]);
        attention.qk_norm = Some((q, k, QkNormPlace::Heads));
        attention.mask = attention.mask.with_window(window(&kinds[i], sliding)?);
        Ok(dense.layer(i, attention, mlps.layer(i)))
    })?;
    Ok(dense.decoder("dots1", layers))
}
