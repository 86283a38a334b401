//! The rotary encodings of a model, as configs and other programs' options express them.

use crate::serving;
use anyhow::{Result, bail, ensure};
use attn_core::position::RopeConfig;
use attn_models::spec::{AttentionSpec, ModelSpec};
use serde_json::{Map, Value};

/// The rotary encodings of a model, as far as a config has room for them.
pub(crate) struct Ropes {
    kinds: Kinds,
    /// Whether they are of DeepSeek's latent attention.
    latent: bool,
}

enum Kinds {
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
        let latent = spec.stack.layers.iter().any(|layer| matches!(layer.attention, AttentionSpec::Latent(_)));
        let alike = found.iter().all(|(_, rope)| rope == first);
        Ok(Self { kinds: if alike { Kinds::Alike(first.clone()) } else { Kinds::ByType(found) }, latent })
    }

    /// That of the layers which see everything.
    pub(crate) fn main(&self) -> &RopeConfig {
        match &self.kinds {
            Kinds::Alike(rope) => rope,
            Kinds::ByType(ropes) => &ropes[0].1,
        }
    }

    /// The `rope_parameters` of transformers 5: one dictionary, or one per type of layer where layers differ or the
    /// config has them by type already.
    ///
    /// # Errors
    /// A scaling that transformers has no name for.
    pub(crate) fn parameters(&self, config: &Value) -> Result<Map<String, Value>> {
        self.dictionary(config, &|rope| Ok(rope.to_hf()?))
    }

    /// A `rope_parameters` dictionary with the entries that `of` gives for each encoding.
    fn dictionary(
        &self,
        config: &Value,
        of: &dyn Fn(&RopeConfig) -> Result<Map<String, Value>>,
    ) -> Result<Map<String, Value>> {
        let entry = |rope: &RopeConfig| -> Result<Value> { Ok(Value::Object(of(rope)?)) };
        match &self.kinds {
            Kinds::ByType(ropes) => ropes.iter().map(|(kind, rope)| Ok(((*kind).to_string(), entry(rope)?))).collect(),
            Kinds::Alike(rope) => {
                let types = text_config(config).unwrap_or(config).get("rope_parameters").and_then(Value::as_object);
                let types = types.filter(|dict| dict.values().any(Value::is_object));
                match types {
                    None => of(rope),
                    Some(types) => types
                        .iter()
                        .filter(|(_, known)| known.is_object() || known.is_null())
                        .map(|(kind, known)| {
                            Ok((kind.clone(), if known.is_null() { Value::Null } else { entry(rope)? }))
                        })
                        .collect(),
                }
            }
        }
    }

    /// vLLM's options for a model with this config, which is served under the name `served`.
    pub(crate) fn vllm(&self, config: &Value, served: &str, length: usize) -> String {
        let inside = text_config(config).is_some().then_some("text_config");
        // DeepSeek's attention has keys of its own there.
        let of = |rope: &RopeConfig| match self.latent {
            true => Ok(rope.to_hf()?),
            false => serving::vllm_parameters(rope, length).map_err(anyhow::Error::msg),
        };
        match self.dictionary(config, &of) {
            Err(why) => serving::none(&why.to_string()),
            Ok(parameters) => match serving::differs_in_latent(&parameters).filter(|_| self.latent) {
                Some(why) => serving::none(why),
                None => serving::vllm(&parameters, inside, served, length),
            },
        }
    }

    /// llama.cpp's options.
    pub(crate) fn llama_cpp(&self, length: usize) -> String {
        match &self.kinds {
            Kinds::Alike(rope) if self.latent && !rope.scaling.is_none() => serving::none(
                "its YaRN also scales the scores, with numbers that llama.cpp reads from the file: convert the exported folder with \
                 convert_hf_to_gguf.py",
            ),
            Kinds::Alike(rope) => serving::llama_cpp(rope, length),
            Kinds::ByType(_) => serving::none(serving::LAYERS_DIFFER),
        }
    }
}

/// The config of the text model inside a multimodal one.
pub(crate) fn text_config(config: &Value) -> Option<&Value> {
    config.get("text_config").filter(|text| text.is_object())
}
