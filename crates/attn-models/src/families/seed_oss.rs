//! Seed-OSS: Llama with a switch for the output's bias of its own.

use super::dense::{Defaults, Dense};
use crate::config::Config;
use crate::spec::ModelSpec;
use candle_core::Result;

const DEFAULTS: Defaults = Defaults {
    vocab_size: 155_136,
    intermediate_size: 27_648,
    num_hidden_layers: 64,
    num_attention_heads: 80,
    num_key_value_heads: Some(8),
    head_dim: Some(128),
    max_position_embeddings: 524_288,
    ..Defaults::LLAMA
};

pub(super) fn spec(c: &Config) -> Result<ModelSpec> {
    let dense = Dense::read(c, &DEFAULTS)?;
    let rope = dense.rope(c)?;
    let (bias, out_bias) = (c.flag("attention_bias", true)?, c.flag("attention_out_bias", false)?);
    let mlp_bias = c.flag("mlp_bias", false)?;
    c.mark(&["residual_dropout"]);
    let layers = dense.layers(|i| {
        let attention = dense.common.attention(false, rope.clone()).with_biases(bias, out_bias);
        Ok(dense.layer(i, attention, dense.gated_mlp(mlp_bias)))
    })?;
    Ok(dense.decoder("seed_oss", layers))
}
