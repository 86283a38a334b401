//! Arcee: Llama with squared ReLUs and no gate.

use super::dense::{Defaults, Dense};
use crate::config::Config;
use crate::spec::ModelSpec;
use candle_core::Result;

const DEFAULTS: Defaults = Defaults {
    hidden_size: 2560,
    intermediate_size: 18_432,
    max_position_embeddings: 4096,
    eps: ("rms_norm_eps", 1e-5),
    hidden_act: "relu2",
    ..Defaults::LLAMA
};

pub(super) fn spec(c: &Config) -> Result<ModelSpec> {
    let dense = Dense::read(c, &DEFAULTS)?;
    let rope = dense.rope(c)?;
    let (bias, mlp_bias) = (c.flag("attention_bias", false)?, c.flag("mlp_bias", false)?);
    let layers = dense.layers(|i| {
        let attention = dense.common.attention(bias, rope.clone());
        Ok(dense.layer(i, attention, dense.plain_mlp(["up_proj", "down_proj"], mlp_bias)))
    })?;
    Ok(dense.decoder("arcee", layers))
}
