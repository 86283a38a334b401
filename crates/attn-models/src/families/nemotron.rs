//! Nemotron: partial rotation, squared ReLUs without a gate, layer norms whose weights are stored minus one.

use super::dense::{Defaults, Dense};
use super::parts::{LLAMA_NORMS, pre_norm};
use crate::config::Config;
use crate::spec::ModelSpec;
use candle_core::Result;

const DEFAULTS: Defaults = Defaults {
    vocab_size: 256_000,
    hidden_size: 6144,
    intermediate_size: 24_576,
    num_attention_heads: 48,
    max_position_embeddings: 4096,
    eps: ("norm_eps", 1e-5),
    hidden_act: "relu2",
    partial_rotary_factor: 0.5,
    ..Defaults::LLAMA
};

pub(super) fn spec(c: &Config) -> Result<ModelSpec> {
    let dense = Dense::read(c, &DEFAULTS)?;
    let rope = dense.rope(c)?;
    let (bias, mlp_bias) = (c.flag("attention_bias", false)?, c.flag("mlp_bias", false)?);
    let norm = |name: &str| dense.layer_norm(name).unit_offset();
    let layers = dense.layers(|i| {
        let attention = dense.common.attention(bias, rope.clone());
        let mlp = dense.plain_mlp(["up_proj", "down_proj"], mlp_bias);
        Ok(pre_norm(format!("layers.{i}."), attention, mlp, LLAMA_NORMS.map(norm)))
    })?;
    Ok(dense.decoder_with("nemotron", layers, norm("norm")))
}
