//! The facts of an encoding in numbers, for people and for JSON.

use attn_core::position::{
    AlibiConfig, Layout, PositionConfig, RopeConfig, SinusoidalLayout, T5Config, Temperature, TrainedConfig,
};
use serde::Serialize;
use std::f64::consts::TAU;

/// The facts of one encoding; absent ones are left out of JSON.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Description {
    /// `nope`, `sinusoidal`, `learned`, `rope`, `rotary_table`, `alibi`, `sandwich`, `t5`, `xpos`, or the name of an encoding
    /// that is learned in every layer ([`TrainedConfig::name`]).
    pub kind: &'static str,
    /// The type of RoPE's scaling, as configs spell it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope_type: Option<&'static str>,
    /// Base of the frequencies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub theta: Option<f64>,
    /// `half` or `interleaved` (RoPE), `interleaved` or `concatenated` (sinusoidal).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layout: Option<&'static str>,
    /// Width of a head.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<usize>,
    /// Lanes that are rotated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotary_dim: Option<usize>,
    /// The declared context, or the end of a learned table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_position_embeddings: Option<usize>,
    /// The trained context of a scaling that depends on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original_max_position_embeddings: Option<usize>,
    /// The scaling's factor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub factor: Option<f64>,
    /// YaRN's fast boundary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta_fast: Option<f64>,
    /// YaRN's slow boundary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta_slow: Option<f64>,
    /// The sequence length that the frequencies below hold for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length: Option<usize>,
    /// The number by which cosines and sines are multiplied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attention_factor: Option<f64>,
    /// The frequency of each pair, in radians per position.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inv_freq: Vec<f64>,
    /// The wavelength of each pair, in positions per full turn; null for a pair that does not turn.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub wavelengths: Vec<Option<f64>>,
    /// ALiBi's slope of each head.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub slopes: Vec<f64>,
    /// T5's number of buckets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub buckets: Option<usize>,
    /// T5's distance of the last bucket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_distance: Option<usize>,
    /// T5: whether keys after the query have buckets of their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bidirectional: Option<bool>,
    /// The method that places near and far keys differently, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<&'static str>,
    /// Whether queries grow with the logarithm of their position.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_n: Option<bool>,
    /// Llama 4's positions per step of the query temperature.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub floor_scale: Option<f64>,
    /// Llama 4's growth of the query temperature.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attn_scale: Option<f64>,
}

/// The facts of an encoding for a sequence of `len` tokens; only length-dependent scalings depend on `len`.
pub fn describe(encoding: &PositionConfig, len: usize) -> Description {
    match encoding {
        PositionConfig::Nope(config) => {
            let (floor_scale, attn_scale) = match config.temperature {
                Some(Temperature::Steps { floor_scale, attn_scale, .. }) => (Some(floor_scale), Some(attn_scale)),
                _ => (None, None),
            };
            Description { kind: "nope", floor_scale, attn_scale, ..Default::default() }
        }
        PositionConfig::Sinusoidal(config) => {
            let inv_freq = config.inv_freq();
            Description {
                kind: "sinusoidal",
                theta: Some(config.base),
                layout: Some(match config.layout {
                    SinusoidalLayout::Interleaved => "interleaved",
                    SinusoidalLayout::Concatenated => "concatenated",
                }),
                wavelengths: wavelengths(&inv_freq),
                inv_freq,
                ..Default::default()
            }
        }
        PositionConfig::Learned(config) => Description {
            kind: "learned",
            max_position_embeddings: Some(config.rows.saturating_sub(config.offset)),
            ..Default::default()
        },
        PositionConfig::Rope(config) => rope(config, len),
        PositionConfig::RotaryTable(config) => Description {
            kind: "rotary_table",
            layout: Some("interleaved"),
            head_dim: Some(config.head_dim),
            rotary_dim: Some(config.head_dim),
            max_position_embeddings: Some(config.rows),
            ..Default::default()
        },
        PositionConfig::Extended(config) => {
            let method = config.method.map(|method| method.name());
            Description { method, log_n: config.log_n.map(|_| true), ..rope(&config.rope, len) }
        }
        PositionConfig::Alibi(config) => alibi(config),
        PositionConfig::Sandwich(config) => {
            let inv_freq = config.inv_freq();
            let wavelengths = wavelengths(&inv_freq);
            Description { kind: "sandwich", theta: Some(config.base), inv_freq, wavelengths, ..Default::default() }
        }
        PositionConfig::T5(config) => t5(config),
        PositionConfig::Xpos(config) => Description { kind: "xpos", ..rope(&config.rope, len) },
        PositionConfig::Trained(config) => trained(config, len),
    }
}

fn rope(config: &RopeConfig, len: usize) -> Description {
    let frequencies = config.frequencies(len);
    let values = config.scaling.values();
    let value = |key: &str| values.get(key).and_then(serde_json::Value::as_f64);
    Description {
        kind: "rope",
        rope_type: Some(config.scaling.name()),
        theta: Some(config.theta),
        layout: Some(match config.layout {
            Layout::Half => "half",
            Layout::Interleaved => "interleaved",
        }),
        head_dim: Some(config.head_dim),
        rotary_dim: Some(config.rotary_dim),
        max_position_embeddings: Some(config.max_position_embeddings),
        original_max_position_embeddings: config.scaling.original_max_position_embeddings(),
        factor: config.scaling.factor(),
        beta_fast: value("beta_fast"),
        beta_slow: value("beta_slow"),
        length: Some(len),
        attention_factor: Some(frequencies.attention_factor),
        wavelengths: wavelengths(&frequencies.inv_freq),
        inv_freq: frequencies.inv_freq,
        ..Default::default()
    }
}

fn wavelengths(inv_freq: &[f64]) -> Vec<Option<f64>> {
    inv_freq.iter().map(|&f| (f > 0.0).then_some(TAU / f)).collect()
}

fn alibi(config: &AlibiConfig) -> Description {
    let slopes = config.slopes().iter().map(|s| s * config.scale).collect();
    Description { kind: "alibi", slopes, ..Default::default() }
}

/// The learned numbers are in the weights; this describes what the config says.
fn trained(config: &TrainedConfig, len: usize) -> Description {
    let kind = config.name();
    match config {
        TrainedConfig::Frequencies { rope: config } | TrainedConfig::Ssmax { rope: config, .. } => {
            Description { kind, ..rope(config, len) }
        }
        TrainedConfig::Shaw { head_dim, max_distance } => {
            Description { kind, head_dim: Some(*head_dim), max_distance: Some(*max_distance), ..Default::default() }
        }
        TrainedConfig::Kerple { .. }
        | TrainedConfig::Fire { .. }
        | TrainedConfig::Fox { .. }
        | TrainedConfig::Cope { .. } => Description { kind, ..Default::default() },
    }
}

fn t5(config: &T5Config) -> Description {
    Description {
        kind: "t5",
        buckets: Some(config.buckets),
        max_distance: Some(config.max_distance),
        bidirectional: Some(config.bidirectional),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_apply_is_left_out() {
        let rope = describe(&PositionConfig::Rope(RopeConfig::new(8, 1e4)), 1);
        assert_eq!((rope.kind, rope.rope_type, rope.inv_freq.len()), ("rope", Some("default"), 4));
        assert_eq!((rope.beta_fast, rope.factor), (None, None));
        let json = serde_json::to_value(describe(&PositionConfig::Alibi(AlibiConfig::new(2)), 1)).unwrap();
        assert_eq!(json, serde_json::json!({"kind": "alibi", "slopes": [0.0625, 0.00390625]}));
    }

    #[test]
    fn the_ramp_of_either_scheme_that_has_one_is_said() {
        let base = RopeConfig::new(8, 1e4);
        for mode in ["yarn", "ntk-by-parts"] {
            let said = describe(&PositionConfig::Rope(base.for_mode(mode, 4.0).unwrap()), 1);
            assert_eq!((said.beta_fast, said.beta_slow, said.factor), (Some(32.0), Some(1.0), Some(4.0)), "{mode}");
        }
    }
}
