//! Helium: Llama with interleaved rotation.

use super::dense::{Defaults, Dense};
use crate::config::Config;
use crate::spec::ModelSpec;
use attn_core::position::Layout;
use candle_core::Result;

const DEFAULTS: Defaults = Defaults {
    vocab_size: 48_000,
    hidden_size: 2560,
    intermediate_size: 7040,
    num_hidden_layers: 24,
    num_attention_heads: 20,
    num_key_value_heads: Some(20),
    head_dim: Some(128),
    max_position_embeddings: 4096,
    eps: ("rms_norm_eps", 1e-8),
    rope_theta: 100_000.0,
    layout: Layout::Interleaved,
    ..Defaults::LLAMA
};

pub(super) fn spec(c: &Config) -> Result<ModelSpec> {
    let dense = Dense::read(c, &DEFAULTS)?;
    let rope = dense.rope(c)?;
    let (bias, mlp_bias) = (c.flag("attention_bias", false)?, c.flag("mlp_bias", false)?);
    let layers = dense.layers(|i| {
        let attention = dense.common.attention(false, rope.clone()).with_biases(bias, false);
        Ok(dense.layer(i, attention, dense.gated_mlp(mlp_bias)))
    })?;
    Ok(dense.decoder("helium", layers))
}
