//! A config of the user's: what its positions do, and which factor a longer text needs.

use crate::within;
use anyhow::{Context, Result};
use attn_core::position::RopeConfig;
use attn_eval::explain::{Explained, explain};
use attn_models::config::UnknownKeys;
use attn_models::families::{self, Positions};
use attn_models::spec::ModelSpec;
use serde::Deserialize;
use serde_json::{Value, json};

/// Longest text that is explained.
const LONGEST: f64 = 4_194_304.0;

/// The contents of a config.json, and the length that is wanted.
#[derive(Debug, Deserialize)]
pub(crate) struct OwnConfig {
    name: String,
    text: String,
    /// `None`: as `attn explain` chooses it.
    length: Option<usize>,
}

impl OwnConfig {
    /// The document of `attn explain --json`, and for a rotary model that is asked for more than it was trained for, how to
    /// say so in its config and to llama.cpp.
    pub(crate) fn answer(&self) -> Result<Value> {
        if let Some(length) = self.length {
            within("the length", length as f64, 1.0..=LONGEST)?;
        }
        let config: Value = serde_json::from_str(&self.text).with_context(|| format!("{} is not JSON", self.name))?;
        let read = families::positions(&config, UnknownKeys::Collect);
        let Positions { spec, notes, unread } = read.with_context(|| format!("can't read {}", self.name))?;
        let explained = explain(&self.name, &spec, None, None, self.length)?;
        let explained = Explained { layers_known: unread.is_none(), ..explained };
        let factor = explained.trained_context.map(|trained| explained.length as f64 / trained as f64);
        let settings = match (main_rope(&spec), factor.filter(|factor| *factor > 1.0)) {
            (Some(rope), Some(factor)) => settings(&rope, factor, explained.length),
            _ => vec![],
        };
        Ok(json!({
            "explained": explained, "caveat": explained.caveat(), "unread": unread,
            "notes": notes.unknown.iter().map(|key| format!("unknown key {key}: ignored, so the figures may be wrong")).chain(notes.ignored).collect::<Vec<_>>(),
            "factor": factor, "settings": settings,
        }))
    }
}

/// The rotation of the first layer that can be stretched and sees everything, or of the first that rotates.
fn main_rope(spec: &ModelSpec) -> Option<RopeConfig> {
    let groups = spec.stack.encodings();
    let ropes = groups.iter().filter_map(|group| Some((group.config.rope()?, group.window, group.chunk)));
    let everywhere = ropes.clone().find(|(_, window, chunk)| window.is_none() && chunk.is_none());
    everywhere.or_else(|| ropes.clone().next()).map(|(rope, ..)| rope.clone())
}

/// The scalings that configs commonly ask for at this factor: `rope_parameters` of transformers and llama.cpp's options.
fn settings(rope: &RopeConfig, factor: f64, length: usize) -> Vec<Value> {
    let setting = |mode: &str| {
        let scaled = rope.for_mode(mode, factor).ok()?;
        let llama_cpp = scaled.scaling.to_llama_cpp(scaled.rotary());
        Some(json!({
            "mode": mode,
            "factor": scaled.scaling.factor(),
            "rope_parameters": scaled.to_hf().ok()?,
            "max_position_embeddings": scaled.extended_context(),
            "llama_cpp": llama_cpp.ok().map(|options| {
                format!("{} --ctx-size {length} --rope-freq-base {}", options.flags, options.theta)
            }),
        }))
    };
    ["yarn", "dynamic"].into_iter().filter_map(setting).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, length: Option<usize>) -> Result<Value> {
        let path = format!("{}/testdata/{name}/config.json", env!("CARGO_MANIFEST_DIR"));
        OwnConfig { name: name.into(), text: std::fs::read_to_string(path).unwrap(), length }.answer()
    }

    #[test]
    fn a_rotary_model_gets_a_factor_and_settings() {
        let answer = of("llama", None).unwrap();
        let trained = answer["explained"]["trained_context"].as_u64().unwrap();
        assert_eq!(answer["explained"]["length"].as_u64(), Some(4 * trained));
        assert_eq!(answer["factor"], 4.0);
        assert_eq!(answer["settings"][0]["rope_parameters"]["factor"], 4.0);
        assert_eq!(answer["settings"][0]["mode"], "yarn");
        assert!(of("llama", Some(8)).unwrap()["settings"].as_array().unwrap().is_empty());
    }

    #[test]
    fn other_encodings_are_explained_without_a_factor_to_set() {
        for name in ["bloom", "t5", "gpt2"] {
            let answer = of(name, None).unwrap();
            assert!(answer["settings"].as_array().unwrap().is_empty(), "{name}");
            assert!(!answer["explained"]["position"].as_array().unwrap().is_empty(), "{name}");
        }
    }

    #[test]
    fn what_is_no_config_is_refused_by_name() {
        let own = |text: &str| OwnConfig { name: "x.json".into(), text: text.into(), length: None };
        assert!(format!("{:#}", own("{").answer().unwrap_err()).contains("x.json is not JSON"));
        assert!(format!("{:#}", own("{\"a\": 1}").answer().unwrap_err()).contains("can't read x.json"));
    }
}
