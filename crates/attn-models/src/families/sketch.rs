//! The positions of a model whose family is not known, as far as they can be read: the keys that nearly all families
//! share describe its rotary encoding, and transformers' class of the model type, if it is known, gives the values of
//! absent keys.

use super::parts::{Common, layer_types, nope, pre_norm, window};
use super::rotary::rope;
use super::{classes::Class, known, spec_with};
use crate::config::{Config, Notes, UnknownKeys};
use crate::spec::{ModelSpec, NormSpec};
use attn_core::position::{PositionConfig, RopeDefaults};
use candle_core::{Result, bail};
use serde_json::Value;

/// The position encodings of a config by layer, for explaining it.
#[derive(Debug)]
pub struct Positions {
    /// The model; what isn't about positions counts only if everything of the config was understood.
    pub spec: ModelSpec,
    /// What is worth knowing of the config.
    pub notes: Notes,
    /// Why the layers are not known, if they aren't: the encodings then follow from keys that most families share.
    pub unread: Option<String>,
}

/// Reads the position encodings of a config of any family. Where its layers can't be understood, what the keys in Llama's
/// spelling say.
///
/// # Errors
/// An unknown key of a family that is known, under the rule for them; a config that says neither in Llama's words nor by a
/// class that is known how wide its heads are; a rope dictionary that is not understood.
pub fn positions(json: &Value, unknown: UnknownKeys) -> Result<Positions> {
    let error = match spec_with(json, unknown) {
        Ok((spec, notes)) => return Ok(Positions { spec, notes, unread: None }),
        Err(error) => error,
    };
    if spec_with(json, UnknownKeys::Collect).is_ok() {
        return Err(error);
    }
    match sketch(json) {
        Ok((spec, notes)) => {
            let unread = error.to_string().lines().next().map(String::from);
            Ok(Positions { spec, notes, unread })
        }
        // If the family is known, its own reason is the more helpful of the two.
        Err(_) if is_known(json) => Err(error),
        Err(sketched) => Err(sketched),
    }
}

fn is_known(json: &Value) -> bool {
    known().any(|name| Some(name) == json.get("model_type").and_then(Value::as_str))
}

/// Position encodings by layer of a config of any family, as far as keys in Llama's spelling say. The spec is for
/// explaining the model; it can't be loaded. Models whose class has no rotary encoding have no layers in it, and unknown
/// keys of a rope dictionary, which may belong to the family, are noted.
///
/// # Errors
/// A config that says neither in Llama's words nor by a class that is known how wide its heads are; a rope dictionary
/// that is not understood.
fn sketch(json: &Value) -> Result<(ModelSpec, Notes)> {
    let outer = Config::new(json)?;
    let family = outer.text_opt("model_type")?.unwrap_or("unknown").to_string();
    // The text model of a multimodal one.
    if let Some(text) = json.get("text_config").filter(|text| text.is_object()) {
        let (mut spec, notes) = sketch(text)?;
        spec.family = family;
        return Ok((spec, notes));
    }
    let c = Config::new(json)?.with_unknown(UnknownKeys::Collect).with_class(&family);
    let mut common = Common::read_mha(&c)?;
    // Latent attention rotates a part of each head, which has a width of its own.
    let width = c.size_opt("qk_rope_head_dim")?.map_or_else(|| c.size_opt("head_dim"), |width| Ok(Some(width)));
    common.head_dim = width?.unwrap_or(common.head_dim);
    let rotates = Class::of(&family).is_none_or(|class| class.reads("rope_parameters"));
    let layers = if rotates { layers(&c, &common)? } else { vec![] };
    let mut spec = common.decoder(&family, layers, NormSpec::rms("norm", common.hidden_size, 1e-6), false);
    spec.trained_context = spec.trained_context.filter(|_| c.get("max_position_embeddings").is_some());
    Ok((spec, c.notes()))
}

fn layers(c: &Config, common: &Common) -> Result<Vec<crate::spec::LayerSpec>> {
    let defaults =
        RopeDefaults { max_position_embeddings: Some(common.max_positions), ..RopeDefaults::new(common.head_dim) };
    let nested =
        |key: &str| c.root().get(key).and_then(Value::as_object).is_some_and(|d| d.values().any(Value::is_object));
    let by_type = ["rope_scaling", "rope_parameters"].into_iter().any(nested);
    let kinds = layer_types(c, common.layers, |_| "full_attention")?;
    let sliding = c.size_opt("sliding_window")?;
    // Rotary and other layers take turns in some families: their lists say so.
    let rotates = c.list("no_rope_layers", common.layers, |v| v.as_u64().map(|n| n != 0))?;
    let layer = |i: usize| {
        let position = match &rotates {
            Some(rotates) if !rotates[i] => nope(),
            _ => rope(c, by_type.then_some(kinds[i].as_str()), &defaults)?,
        };
        let mut attention = common.attention(false, position);
        attention.mask = attention.mask.with_window(window(&kinds[i], sliding)?);
        let norm = |name: &str| NormSpec::rms(name, common.hidden_size, 1e-6);
        let mlp = common.gated_mlp(common.hidden_size, false, crate::activation::Activation::Silu);
        Ok(pre_norm(format!("layers.{i}."), attention, mlp, super::parts::LLAMA_NORMS.map(norm)))
    };
    let layers = (0..common.layers).map(layer).collect::<Result<Vec<_>>>()?;
    if layers.iter().all(|layer| matches!(layer.attention.position(), PositionConfig::Nope(_))) {
        bail!("config.json: none of the layers has a position encoding that is known")
    }
    Ok(layers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ropes(json: Value) -> Vec<attn_core::RopeConfig> {
        let (spec, _) = sketch(&json).expect("says enough");
        let positions = spec.stack.layers.iter().map(|layer| layer.attention.position().clone());
        positions
            .filter_map(|position| match position {
                PositionConfig::Rope(rope) => Some(rope),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn keys_in_llamas_spelling_suffice() {
        let config = |extra: Value| {
            let mut json = json!({"model_type": "unheard_of", "hidden_size": 64, "num_attention_heads": 4,
                "num_hidden_layers": 2, "vocab_size": 8, "max_position_embeddings": 128, "own_trick": true});
            json.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            json
        };
        let plain = ropes(config(json!({"rope_theta": 5e5})));
        assert_eq!((plain.len(), plain[0].theta, plain[0].rotary_dim), (2, 5e5, 16));
        let yarn = json!({"rope_scaling": {"type": "yarn", "factor": 4.0}, "head_dim": 32});
        assert_eq!((ropes(config(yarn.clone()))[0].scaling.name(), ropes(config(yarn))[0].head_dim), ("yarn", 32));
        let typed = json!({"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8,
            "rope_parameters": {"sliding_attention": {"rope_theta": 7.0}, "full_attention": {"rope_theta": 9.0}}});
        let thetas: Vec<f64> = ropes(config(typed)).iter().map(|rope| rope.theta).collect();
        assert_eq!(thetas, [7.0, 9.0]);
        let inside = json!({"model_type": "seeing", "text_config": config(json!({}))});
        assert_eq!(sketch(&inside).unwrap().0.family, "seeing");
        let strange = config(json!({"rope_scaling": {"type": "spiral", "factor": 2.0}}));
        assert!(sketch(&strange).unwrap_err().to_string().contains("spiral"));
        let silent = json!({"model_type": "unheard_of"});
        assert!(sketch(&silent).unwrap_err().to_string().contains("hidden_size"));
    }

    /// Positions can be explained where the layers can't be run, but no key is passed over for that.
    #[test]
    fn layers_that_are_not_understood_leave_positions_to_explain() {
        let read = |extra: Value| {
            let mut json = json!({"model_type": "llama", "rope_theta": 7e3});
            json.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            positions(&json, UnknownKeys::Refuse)
        };
        assert!(read(json!({})).unwrap().unread.is_none());
        let odd = read(json!({"hidden_act": "maxout"})).unwrap();
        assert!(odd.unread.unwrap().contains("maxout"));
        let error = |extra: Value| read(extra).unwrap_err().to_string();
        assert!(error(json!({"clever_trick": 1})).contains("clever_trick"));
        assert!(error(json!({"rope_scaling": {"type": "spiral"}})).contains("spiral"));
        assert!(error(json!({"hidden_size": -1})).contains("hidden_size"));
    }

    #[test]
    fn a_class_says_the_rest() {
        let gpt_oss = ropes(json!({"model_type": "gpt_oss"}));
        assert_eq!((gpt_oss[0].scaling.name(), gpt_oss[0].theta, gpt_oss[0].head_dim), ("yarn", 150_000.0, 64));
        assert_eq!(ropes(json!({"model_type": "deepseek_v2"}))[0].head_dim, 64);
        let opt = json!({"model_type": "opt", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2});
        assert!(sketch(&opt).unwrap().0.stack.layers.is_empty(), "not a rotary family");
    }
}
