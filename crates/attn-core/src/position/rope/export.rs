//! A rotary encoding in the words of a Hugging Face `config.json`: the way back from [`RopeConfig::from_hf`].
//!
//! Each scheme says what it is called there. transformers knows neither static NTK-aware scaling nor NTK-by-parts nor
//! NTK-RoPE-mixed under these names, but all three are special cases of what it knows: a larger base, YaRN without its attention
//! factor, and LongRoPE with the same divisors at every length.

use super::config::RopeConfig;
use super::scaling::Dict;
use crate::position::frequencies::Frequencies;
use candle_core::Result;
use serde_json::json;

impl RopeConfig {
    /// The `rope_parameters` of transformers 5, base included. transformers 4 takes the same dictionary as
    /// `rope_scaling`, with the base beside it and nothing at all for the type `default`.
    ///
    /// `partial_rotary_factor` is part of it where only a share of a head turns.
    ///
    /// # Errors
    /// Proportional encodings, which belong to an architecture rather than to a config.
    pub fn to_hf(&self) -> Result<Dict> {
        let hf = self.scaling.to_hf(self.rotary())?;
        let mut dict = Dict::new();
        dict.insert("rope_theta".into(), json!(hf.theta));
        if self.rotary_dim != self.head_dim {
            dict.insert("partial_rotary_factor".into(), json!(self.rotary_dim as f64 / self.head_dim as f64));
        }
        dict.extend(hf.keys);
        dict.insert("rope_type".into(), json!(hf.rope_type));
        Ok(dict)
    }

    /// The `max_position_embeddings` of a config with this scaling: the trained context times the factor, and the
    /// trained context itself for dynamic scaling, which starts from it.
    pub fn extended_context(&self) -> usize {
        self.scaling.extended(self.original_context())
    }

    /// Whether two encodings turn every head alike at every length, up to rounding in the last digits.
    pub fn same_frequencies(&self, other: &Self) -> bool {
        let close = |a: f64, b: f64| a == b || (a / b - 1.0).abs() < 1e-12;
        let equal = |a: &Frequencies, b: &Frequencies| {
            let each = a.inv_freq.iter().zip(&b.inv_freq).all(|(a, b)| close(*a, *b));
            each && a.inv_freq.len() == b.inv_freq.len() && close(a.attention_factor, b.attention_factor)
        };
        let shape = |c: &Self| (c.head_dim, c.rotary_dim, c.layout);
        let original = self.original_context();
        let lengths = [1, original, original + 1, 2 * original, 7 * original];
        shape(self) == shape(other) && lengths.iter().all(|&n| equal(&self.frequencies(n), &other.frequencies(n)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::rope::scaling::named;
    use crate::position::{RopeDefaults, RopeOverride};
    use serde_json::Value;

    fn pair(key: &str, value: &str) -> (String, String) {
        (key.to_string(), value.to_string())
    }

    #[test]
    fn what_is_written_reads_back_as_the_same_encoding_in_either_spelling() {
        let base = RopeConfig { max_position_embeddings: 4096, ..RopeConfig::new(16, 10_000.0) };
        let ones = ["1.5"; 8].join(",");
        let longrope = vec![pair("short_factor", &ones), pair("long_factor", &ones.replace("1.5", "2.5"))];
        let default = named().filter(|scheme| scheme.any_checkpoint).map(|scheme| (scheme.name, vec![]));
        let further = [
            ("ntk-by-parts", vec![pair("beta_fast", "16")]),
            ("ntk-mixed", vec![pair("exponent", "0.75")]),
            ("yarn", vec![pair("truncate", "false"), pair("attention_factor", "1.05")]),
            ("longrope", longrope),
        ];
        for (kind, params) in default.chain(further) {
            let scaling = Some(kind.to_string());
            let factor = (kind != "default").then_some(3.0);
            let change = RopeOverride { scaling, factor, params, theta: Some(5e5), ..RopeOverride::default() };
            let config = base.with_override(&change).unwrap();
            let new = config.to_hf().unwrap();
            let max = config.extended_context();
            assert_eq!(max, if ["default", "dynamic"].contains(&kind) { 4096 } else { 12288 }, "{kind}");
            let v5 = json!({"max_position_embeddings": max, "rope_parameters": new});
            let mut old = new.clone();
            let theta = old.remove("rope_theta").unwrap();
            let old = if old["rope_type"] == "default" { Value::Null } else { Value::Object(old) };
            let v4 = json!({"max_position_embeddings": max, "rope_theta": theta, "rope_scaling": old});
            for file in [v5, v4] {
                let read = RopeConfig::from_hf(&file, None, &RopeDefaults::new(16)).unwrap().unwrap();
                // Static NTK's own base, trained context and all: only the frequencies have to be the same.
                assert!(config.same_frequencies(&read), "{kind}: {file}");
            }
        }
    }

    #[test]
    fn different_encodings_are_told_apart() {
        let base = RopeConfig::new(16, 10_000.0);
        assert!(!base.same_frequencies(&base.for_mode("yarn", 2.0).unwrap()));
        let (yarn, parts) = (base.for_mode("yarn", 2.0).unwrap(), base.for_mode("ntk-by-parts", 2.0).unwrap());
        assert!(!yarn.same_frequencies(&parts));
    }

    #[test]
    fn a_share_of_the_head_is_written() {
        let config = RopeConfig { rotary_dim: 4, ..RopeConfig::new(16, 10_000.0) };
        assert_eq!(config.to_hf().unwrap()["partial_rotary_factor"], 0.25);
    }
}
