//! How configs say what the rotary encoding is.

use super::parts::nope;
use crate::config::Config;
use attn_core::position::rope::scaling::FreqFactors;
use attn_core::position::{PositionConfig, RopeConfig, RopeDefaults};
use candle_core::{Result, bail};
use serde_json::Value;

/// Keys that the rotary encoding is read from.
const ROPE_KEYS: &[&str] = &[
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "partial_rotary_factor",
    "original_max_position_embeddings",
    "rotary_emb_base",
    "rotary_pct",
    "rope_pct",
    "rope_freq_factors",
];

/// The rotary encoding of a config; `None` layers have NoPE.
pub(super) fn rope(c: &Config, layer_type: Option<&str>, defaults: &RopeDefaults) -> Result<PositionConfig> {
    c.mark(ROPE_KEYS);
    rope_in(c, c.root(), layer_type, defaults)
}

/// The rotary encoding with another dictionary in place of the config's, for families that read it in a way of their own.
pub(super) fn rope_of(
    c: &Config,
    layer_type: Option<&str>,
    defaults: &RopeDefaults,
    dictionary: Value,
) -> Result<PositionConfig> {
    c.mark(ROPE_KEYS);
    let mut root = c.root().clone();
    if let Some(map) = root.as_object_mut() {
        map.remove("rope_scaling");
        map.insert("rope_parameters".into(), dictionary);
    }
    rope_in(c, &root, layer_type, defaults)
}

/// The rotary encoding of layers of the type `kind` in families whose types have a dictionary each: that under
/// `rope_parameters`, with the keys of the older `rope_scaling` put over it if that is theirs. As in transformers, what
/// lies beside the dictionaries has no effect.
pub(super) fn rope_by_type(
    c: &Config,
    kind: &str,
    theta: f64,
    scaled: bool,
    defaults: &RopeDefaults,
) -> Result<PositionConfig> {
    let own = rope_dictionary(c, "rope_parameters").and_then(|d| d.get(kind)?.as_object());
    let mut dictionary = own.cloned().unwrap_or_default();
    dictionary.extend(rope_dictionary(c, "rope_scaling").filter(|_| scaled).cloned().unwrap_or_default());
    dictionary.entry("rope_theta").or_insert_with(|| theta.into());
    rope_of(c, None, defaults, dictionary.into())
}

/// Full-width, half-split rotation.
pub(super) fn llama_rope(c: &Config, head_dim: usize) -> Result<PositionConfig> {
    rope(c, None, &RopeDefaults::new(head_dim))
}

/// The dictionary under `key`, unless it is absent, null or empty.
pub(super) fn rope_dictionary<'a>(c: &Config<'a>, key: &str) -> Option<&'a serde_json::Map<String, Value>> {
    c.root().get(key)?.as_object().filter(|d| !d.is_empty())
}

fn rope_in(c: &Config, root: &Value, layer_type: Option<&str>, defaults: &RopeDefaults) -> Result<PositionConfig> {
    let reading = RopeConfig::read_hf(root, layer_type, &of_class(c, defaults))
        .map_err(|e| candle_core::Error::Msg(format!("config.json: {e}")))?;
    reading.unknown.iter().try_for_each(|key| c.unknown_key(key))?;
    reading.ignored.iter().for_each(|line| c.ignored_key(line));
    let Some(mut config) = reading.config else { return Ok(nope()) };
    if let Some(factors) = c.list("rope_freq_factors", 0, serde_json::Value::as_f64)? {
        // A GGUF file's rope_freqs.weight: Llama 3's and LongRoPE's scaling, worked out beforehand.
        if !config.scaling.is_none() {
            bail!("config.json: rope_freq_factors beside rope type {}", config.scaling.name())
        }
        config.scaling = FreqFactors { factors }.into();
        config.validate()?;
    }
    Ok(PositionConfig::Rope(config))
}

/// What the family's class says of its rotary encoding, where `defaults` are those that nearly all families share.
fn of_class(c: &Config, defaults: &RopeDefaults) -> RopeDefaults {
    let mut defaults = defaults.clone();
    let usual = RopeDefaults::new(defaults.head_dim);
    let number = |key: &str| c.class_default(key).and_then(Value::as_f64);
    if let Some(theta) = number("rope_theta").filter(|_| defaults.theta == usual.theta) {
        defaults.theta = theta;
    }
    if let Some(share) = number("partial_rotary_factor").filter(|_| defaults.partial_rotary_factor == 1.0) {
        defaults.partial_rotary_factor = share;
    }
    let size = |key: &str| number(key).map(|n| n as usize);
    defaults.max_position_embeddings = defaults.max_position_embeddings.or(size("max_position_embeddings"));
    defaults.original_max_position_embeddings = size("original_max_position_embeddings");
    defaults.parameters = c.class_default("rope_parameters").and_then(Value::as_object).cloned();
    defaults
}
