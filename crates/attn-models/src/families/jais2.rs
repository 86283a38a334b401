//! Jais 2: Llama with layer norms, and squared ReLUs without a gate.

use super::dense::{Defaults, Dense};
use super::parts::{LLAMA_NORMS, pre_norm};
use crate::config::Config;
use crate::spec::ModelSpec;
use candle_core::Result;

const DEFAULTS: Defaults = Defaults { eps: ("layer_norm_eps", 1e-5), ..Defaults::LLAMA };

pub(super) fn spec(c: &Config) -> Result<ModelSpec> {
    let dense = Dense::read(c, &DEFAULTS)?;
    let rope = dense.rope(c)?;
    let (bias, mlp_bias) = (c.flag("attention_bias", true)?, c.flag("mlp_bias", true)?);
    let layers = dense.layers(|i| {
        let attention = dense.common.attention(bias, rope.clone());
        let mlp = dense.plain_mlp(["up_proj", "down_proj"], mlp_bias);
        Ok(pre_norm(format!("layers.{i}."), attention, mlp, LLAMA_NORMS.map(|name| dense.layer_norm(name))))
    })?;
    Ok(dense.decoder_with("jais2", layers, dense.layer_norm("norm")))
}
