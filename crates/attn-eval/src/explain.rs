//! What a model's position encodings do, group of layers by group of layers: the document behind `attn explain`.
//!
//! It needs a model's spec and, where a bias is learned, that one table; the other weights are never read.

use crate::encoding::{Description, Effects, describe, effects::effects};
use crate::error::{Result, Within};
use attn_core::position::PositionConfig;
use attn_models::TensorSource;
use attn_models::encodings::{EncodingGroup, Place};
use attn_models::spec::{ModelSpec, StackSpec};
use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use serde::Serialize;

/// The value of the key `format`.
const FORMAT: &str = "attn-explain/1";
/// The default length as a multiple of the trained context.
const DEFAULT_TIMES: usize = 4;
/// The default length if the trained context is not known.
const DEFAULT_LENGTH: usize = 2048;

/// The encodings of a model and what follows from them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explained {
    /// Version of this document's layout; keys may be added under the same one.
    pub format: &'static str,
    /// What reports call the model.
    pub model: String,
    /// Its family.
    pub family: String,
    /// Whether this project knows the layers of the family. Otherwise everything here follows from keys that most families share.
    pub layers_known: bool,
    /// The context it was trained for, if that is known.
    pub trained_context: Option<usize>,
    /// The length that everything is explained for.
    pub length: usize,
    /// The encodings, each once.
    pub position: Vec<ExplainedGroup>,
}

impl Explained {
    /// A limitation of the whole explanation, if there is one.
    pub fn caveat(&self) -> Option<&'static str> {
        match (self.layers_known, self.position.is_empty()) {
            (true, _) => None,
            (false, false) => Some(
                "This program does not know the layers of this family. It explains the config keys that most families share, \
                 and can't show layers that differ without such a key.",
            ),
            (false, true) => {
                Some("This program does not know the layers of this family, and its config has no rotary encoding.")
            }
        }
    }
}

/// One encoding and the layers that use it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExplainedGroup {
    /// `decoder` or `encoder`.
    pub stack: &'static str,
    /// The layers' numbers.
    pub layers: Vec<usize>,
    /// `attention` or `embeddings`.
    pub on: &'static str,
    /// The largest number of keys that a query sees.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sliding_window: Option<usize>,
    /// Tokens per chunk that these layers attend within.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunk: Option<usize>,
    /// The encoding.
    pub encoding: Description,
    /// What follows from it.
    pub effects: Effects,
}

/// Explains the encodings of `spec` for sequences of `length` tokens; by default the length that a configured scaling was
/// made for, else four times the trained context. `trained` replaces the context that the config declares. Without
/// `weights`, effects that depend on learned numbers are left out.
///
/// # Errors
/// An encoding can't be built, or a learned table can't be read.
pub fn explain(
    name: &str,
    spec: &ModelSpec,
    weights: Option<&dyn TensorSource>,
    trained: Option<usize>,
    length: Option<usize>,
) -> Result<Explained> {
    let trained = trained.or(spec.trained_context);
    let length = length.unwrap_or_else(|| default_length(spec, trained));
    let main = if spec.architecture == attn_models::Architecture::Encoder { "encoder" } else { "decoder" };
    let mut position = vec![];
    for (stack_name, stack) in std::iter::once((main, &spec.stack)).chain(spec.encoder.iter().map(|e| ("encoder", e))) {
        let table = match weights {
            Some(weights) => {
                spec.relative_table(stack, weights).within(|| "reading the table of the relative bias".into())?
            }
            None => None,
        };
        for group in stack.encodings() {
            let vb = table.as_ref().map(|table| {
                let named = std::iter::once(("weight".to_string(), table.clone())).collect();
                VarBuilder::from_tensors(named, DType::F32, &Device::Cpu)
            });
            position.push(explain_group(stack_name, group, vb, trained, length)?);
        }
    }
    Ok(Explained {
        format: FORMAT,
        model: name.into(),
        family: spec.family.clone(),
        layers_known: true,
        trained_context: trained,
        length,
        position,
    })
}

fn explain_group(
    stack: &'static str,
    group: EncodingGroup,
    vb: Option<VarBuilder>,
    trained: Option<usize>,
    length: usize,
) -> Result<ExplainedGroup> {
    let length = match group.config {
        // A learned table has an end.
        PositionConfig::Learned(config) => length.min(config.rows.saturating_sub(config.offset)),
        PositionConfig::RotaryTable(config) => length.min(config.rows),
        _ => length,
    };
    Ok(ExplainedGroup {
        stack,
        on: match group.place {
            Place::Embeddings => "embeddings",
            Place::Attention => "attention",
        },
        sliding_window: group.window,
        chunk: group.chunk,
        encoding: describe(group.config, length),
        effects: effects(group.config, vb, trained, length)?,
        layers: group.layers,
    })
}

fn default_length(spec: &ModelSpec, trained: Option<usize>) -> usize {
    let configured = |stack: &StackSpec| {
        let ropes = stack.encodings().into_iter().filter_map(|group| group.config.rope());
        let stretched = ropes.filter(|rope| rope.max_position_embeddings > rope.original_context());
        let declared = stretched.map(|rope| rope.max_position_embeddings);
        declared.max()
    };
    configured(&spec.stack).or(trained.map(|n| n * DEFAULT_TIMES)).unwrap_or(DEFAULT_LENGTH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn golden(name: &str) -> Value {
        let path = format!("{}/testdata/models/{name}/config.json", env!("CARGO_MANIFEST_DIR"));
        serde_json::from_str(&std::fs::read_to_string(&path).expect(&path)).expect("golden data is JSON")
    }

    fn of(config: &Value) -> Explained {
        let spec = attn_models::families::spec(config).unwrap();
        explain("m", &spec, None, None, None).unwrap()
    }

    #[test]
    fn the_default_length_is_what_the_scaling_was_made_for() {
        let mut config = golden("llama");
        let trained = of(&config).trained_context.unwrap();
        assert_eq!(of(&config).length, 4 * trained);
        config["max_position_embeddings"] = json!(512);
        config["rope_parameters"] = json!({
            "rope_type": "yarn", "rope_theta": 1e4, "factor": 16.0, "original_max_position_embeddings": 32
        });
        let explained = of(&config);
        assert_eq!((explained.trained_context, explained.length), (Some(32), 512));
        let rope = explained.position[0].effects.rope.as_ref().unwrap();
        assert_eq!(rope.scalings[0].name, "configured");
        assert_eq!(rope.scalings[0].divided_by, rope.scalings.iter().find(|s| s.name == "yarn").unwrap().divided_by);
    }
}
