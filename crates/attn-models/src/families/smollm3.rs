//! SmolLM 3: Llama in which some layers have no position encoding.

use super::parts::{Common, LLAMA_NORMS, activation, layer_types, nope, pre_norm, window};
use super::rotary::llama_rope;
use crate::config::Config;
use crate::spec::{ModelSpec, NormSpec};
use candle_core::Result;

pub(super) fn spec(c: &Config) -> Result<ModelSpec> {
    let common = Common::read(c)?;
    let eps = c.eps("rms_norm_eps", 1e-6)?;
    let intermediate = c.size(&["intermediate_size"])?;
    let act = activation(c, "hidden_act", "silu")?;
    let (bias, mlp_bias) = (c.flag("attention_bias", false)?, c.flag("mlp_bias", false)?);
    let uses_rope = rope_layers(c, common.layers)?;
    let use_window = c.flag("use_sliding_window", false)?;
    let sliding = c.size_opt("sliding_window")?.filter(|_| use_window);
    let default = |i: usize| if sliding.is_some() && !uses_rope[i] { "sliding_attention" } else { "full_attention" };
    let kinds = layer_types(c, common.layers, default)?;
    let rope = llama_rope(c, common.head_dim)?;
    let norm = |name: &str| NormSpec::rms(name, common.hidden_size, eps);
    let layer = |i: usize| {
        let mut attention = common.attention(bias, if uses_rope[i] { rope.clone() } else { nope() });
        let window = if use_window { window(&kinds[i], sliding)? } else { None };
        attention.mask = attention.mask.with_window(window);
        let mlp = common.gated_mlp(intermediate, mlp_bias, act);
        Ok(pre_norm(format!("layers.{i}."), attention, mlp, LLAMA_NORMS.map(norm)))
    };
    let layers = (0..common.layers).map(layer).collect::<Result<Vec<_>>>()?;
    Ok(common.decoder("smollm3", layers, norm("norm"), c.flag("tie_word_embeddings", true)?))
}

/// Which layers rotate: `no_rope_layers` holds a 1 for each that does, despite its name.
pub(super) fn rope_layers(c: &Config, layers: usize) -> Result<Vec<bool>> {
    let interval = c.size_opt("no_rope_layer_interval")?.unwrap_or(4);
    let bit = |v: &serde_json::Value| v.as_u64().filter(|n| *n <= 1).map(|n| n == 1);
    let empty = c.get("no_rope_layers").and_then(|v| v.as_array()).is_some_and(Vec::is_empty);
    let listed = if empty { None } else { c.list("no_rope_layers", layers, bit)? };
    Ok(listed.unwrap_or_else(|| (0..layers).map(|i| !(i + 1).is_multiple_of(interval)).collect()))
}
