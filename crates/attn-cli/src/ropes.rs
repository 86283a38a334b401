//! The rotary encodings of a model as configs and other programs' options say them.

use crate::serving;
use anyhow::{Result, bail, ensure};
use attn_core::position::RopeConfig;
use attn_models::spec::{AttentionSpec, ModelSpec};
use serde_json::{Map, Value};

/// The rotary encodings of a model, as far as a config has room for them.
pub(crate) enum Ropes {
    /// One for all layers that have any.
    Alike(RopeConfig),
    /// One per type of layer, the full ones first.
    ByType(Vec<(&'static str, RopeConfig)>),
}

impl Ropes {
    /// Those of a model called `name`.
    ///
    /// # Errors
    /// None, or several on layers of one type.
    pub(crate) fn of(spec: &ModelSpec, name: &str) -> Result<Self> {
        let mut found: Vec<(&'static str, RopeConfig)> = vec![];
        for layer in &spec.stack.layers {
            let Some(rope) = layer.attention.position().rope() else { continue };
            let windowed = matches!(&layer.attention, AttentionSpec::MultiHead(a) if a.mask.window.is_some());
            let kind = if windowed { "sliding_attention" } else { "full_attention" };
            match found.iter().find(|(known, _)| *known == kind) {
                Some((_, known)) => {
                    ensure!(known == rope, "{name} has several rotary encodings on layers of type {kind}");
                }
                None => found.push((kind, rope.clone())),
            }
        }
        found.sort_by_key(|(kind, _)| *kind);
        let Some((_, first)) = found.first() else { bail!("{name} has no rotary position encoding to export") };
        match found.iter().all(|(_, rope)| rope == first) {
            true => Ok(Self::Alike(first.clone())),
            false => Ok(Self::ByType(found)),
        }
    }

    /// That of the layers which see everything.
    pub(crate) fn main(&self) -> &RopeConfig {
        match self {
            Self::Alike(rope) => rope,
            Self::ByType(ropes) => &ropes[0].1,
        }
    }

    /// The `rope_parameters` of transformers 5: one dictionary, or one per type of layer where layers differ or the
    /// config has them by type already.
    ///
    /// # Errors
    /// A scaling that transformers has no name for.
    pub(crate) fn parameters(&self, config: &Value) -> Result<Map<String, Value>> {
        let of = |rope: &RopeConfig| -> Result<Value> { Ok(Value::Object(rope.to_hf()?)) };
        match self {
            Self::ByType(ropes) => ropes.iter().map(|(kind, rope)| Ok(((*kind).to_string(), of(rope)?))).collect(),
            Self::Alike(rope) => {
                let types = text_config(config).unwrap_or(config).get("rope_parameters").and_then(Value::as_object);
                let types = types.filter(|dict| dict.values().any(Value::is_object));
                match types {
                    None => Ok(rope.to_hf()?),
                    Some(types) => types
                        .iter()
                        .filter(|(_, entry)| entry.is_object() || entry.is_null())
                        .map(|(kind, entry)| Ok((kind.clone(), if entry.is_null() { Value::Null } else { of(rope)? })))
                        .collect(),
                }
            }
        }
    }

    /// vLLM's options for a model with this config, which is served under the name `served`.
    pub(crate) fn vllm(&self, config: &Value, parameters: &Map<String, Value>, served: &str, length: usize) -> String {
        let inside = text_config(config).is_some().then_some("text_config");
        serving::vllm(self.main(), parameters, inside, served, length)
    }

    /// llama.cpp's options.
    pub(crate) fn llama_cpp(&self, length: usize) -> String {
        match self {
            Self::Alike(rope) => serving::llama_cpp(rope, length),
            Self::ByType(_) => serving::LAYERS_DIFFER.to_string(),
        }
    }
}

/// The config of the text model inside a multimodal one.
pub(crate) fn text_config(config: &Value) -> Option<&Value> {
    config.get("text_config").filter(|text| text.is_object())
}
