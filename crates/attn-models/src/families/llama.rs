//! Llama 1 to 3.x and Mistral.

use super::parts::{Common, LLAMA_NORMS, activation, pre_norm};
use super::rotary::llama_rope;
use crate::config::Config;
use crate::spec::{ModelSpec, NormSpec};
use candle_core::Result;

pub(super) fn llama(c: &Config) -> Result<ModelSpec> {
    dense(c, "llama", c.flag("attention_bias", false)?, c.flag("mlp_bias", false)?, None)
}

/// Llama with a sliding window on every layer.
pub(super) fn mistral(c: &Config) -> Result<ModelSpec> {
    dense(c, "mistral", false, false, c.size_opt("sliding_window")?)
}

fn dense(c: &Config, family: &str, bias: bool, mlp_bias: bool, window: Option<usize>) -> Result<ModelSpec> {
    let common = Common::read(c)?;
    let eps = c.eps("rms_norm_eps", 1e-6)?;
    let intermediate = c.size(&["intermediate_size"])?;
    let act = activation(c, "hidden_act", "silu")?;
    let rope = llama_rope(c, common.head_dim)?;
    let norm = |name: &str| NormSpec::rms(name, common.hidden_size, eps);
    let layers = (0..common.layers).map(|i| {
        let mut attention = common.attention(bias, rope.clone());
        attention.mask = attention.mask.with_window(window);
        let mlp = common.gated_mlp(intermediate, mlp_bias, act);
        pre_norm(format!("layers.{i}."), attention, mlp, LLAMA_NORMS.map(norm))
    });
    Ok(common.decoder(family, layers.collect(), norm("norm"), c.flag("tie_word_embeddings", false)?))
}
