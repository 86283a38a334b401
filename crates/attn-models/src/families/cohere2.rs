//! Cohere's Command R7B and A: Command R with windows on most layers; those with full attention have no position
//! encoding.

use super::dense::{Defaults, Dense};
use super::parts::{layer_types, nope, pre_norm, window};
use crate::config::Config;
use crate::spec::{ModelSpec, NormSpec};
use attn_core::position::Layout;
use candle_core::Result;

const DEFAULTS: Defaults = Defaults {
    vocab_size: 256_000,
    hidden_size: 8192,
    intermediate_size: 22_528,
    num_hidden_layers: 40,
    num_attention_heads: 64,
    max_position_embeddings: 8192,
    eps: ("layer_norm_eps", 1e-5),
    layout: Layout::Interleaved,
    tie_word_embeddings: true,
    ..Defaults::LLAMA
};

pub(super) fn spec(c: &Config) -> Result<ModelSpec> {
    let dense = Dense::read(c, &DEFAULTS)?;
    let rope = dense.rope(c)?;
    let bias = c.flag("attention_bias", false)?;
    let sliding = c.size_or_null("sliding_window", Some(4096))?;
    let pattern = c.size_opt("sliding_window_pattern")?.unwrap_or(4);
    let default = |i: usize| if (i + 1).is_multiple_of(pattern) { "full_attention" } else { "sliding_attention" };
    let kinds = layer_types(c, dense.common.layers, default)?;
    // Says what the family does anyway; transformers reads none of it.
    c.mark(&[
        "layer_switch",
        "order_of_interleaved_layers",
        "position_embedding_type",
        "use_embedding_sharing",
        "use_gated_activation",
        "use_parallel_block",
        "use_parallel_embedding",
    ]);
    let norm = |name: &str| -> NormSpec { dense.layer_norm(name).no_bias() };
    let layers = dense.layers(|i| {
        let local = kinds[i] == "sliding_attention";
        let mut attention = dense.common.attention(bias, if local { rope.clone() } else { nope() });
        attention.mask = attention.mask.with_window(window(&kinds[i], sliding)?);
        let norms = [norm("input_layernorm"), norm("input_layernorm")];
        let mut layer = pre_norm(format!("layers.{i}."), attention, dense.gated_mlp(false), norms);
        layer.wiring.mlp_norm = None;
        layer.wiring.parallel = true;
        Ok(layer)
    })?;
    let mut spec = dense.decoder_with("cohere2", layers, norm("norm"));
    if let Some(head) = &mut spec.head {
        head.scale = c.number_or("logit_scale", 0.0625)?;
    }
    Ok(spec)
}
