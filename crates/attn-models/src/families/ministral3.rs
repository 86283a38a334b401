//! Ministral 3: Mistral with YaRN and a temperature of the queries that grows with the position.

use super::dense::{Defaults, Dense};
use super::rotary::{rope_dictionary, rope_of};
use crate::config::Config;
use crate::spec::ModelSpec;
use attn_core::position::{PositionConfig, Temperature};
use candle_core::{Result, bail};
use serde_json::{Map, Value, json};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 131_072,
    intermediate_size: 14_336,
    num_hidden_layers: 34,
    num_key_value_heads: Some(8),
    head_dim: Some(128),
    max_position_embeddings: 262_144,
    eps: ("rms_norm_eps", 1e-5),
    ..Defaults::LLAMA
};

pub(super) fn spec(c: &Config) -> Result<ModelSpec> {
    let dense = Dense::read(c, &DEFAULTS)?;
    let (rope, temperature) = tempered_rope(c, &dense)?;
    let window = c.size_opt("sliding_window")?;
    let layers = dense.layers(|i| {
        let mut attention = dense.common.attention(false, rope.clone());
        attention.mask = attention.mask.with_window(window);
        attention.temperature = Some(temperature);
        Ok(dense.layer(i, attention, dense.gated_mlp(false)))
    })?;
    Ok(dense.decoder("ministral3", layers))
}

/// The rotary encoding, and the temperature that stands in the same dictionary.
fn tempered_rope(c: &Config, dense: &Dense) -> Result<(PositionConfig, Temperature)> {
    let given = ["rope_scaling", "rope_parameters"].into_iter().find_map(|key| rope_dictionary(c, key));
    let mut dictionary = match given {
        Some(dictionary) => dictionary.clone(),
        None => class_default(),
    };
    let number = |key: &str| match dictionary.get(key).and_then(Value::as_f64) {
        Some(n) => Ok(n),
        None => bail!("config.json: rope_parameters.{key} is missing, but Ministral 3 needs it"),
    };
    let attn_scale = number("llama_4_scaling_beta")?;
    let floor_scale = number("original_max_position_embeddings")?;
    // These two keys do not belong to the rotation.
    dictionary.remove("llama_4_scaling_beta");
    dictionary.remove("max_position_embeddings");
    let rope = rope_of(c, None, &dense.rope_defaults(), dictionary.into())?;
    Ok((rope, Temperature::Steps { floor_scale, attn_scale, offset: 0.0 }))
}

/// What the configuration class has where there is no dictionary.
fn class_default() -> Map<String, Value> {
    let dictionary = json!({"rope_type": "yarn", "rope_theta": 1_000_000.0, "factor": 16.0,
        "original_max_position_embeddings": 16_384, "beta_fast": 32.0, "beta_slow": 1.0, "mscale_all_dim": 1.0,
        "mscale": 1.0, "llama_4_scaling_beta": 0.1});
    dictionary.as_object().cloned().unwrap_or_default()
}
