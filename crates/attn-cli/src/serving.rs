//! The same scaling in other programs: the options of vLLM and llama.cpp that compute the same as `--rope-...` here, or
//! the reason why there are none. Options that compute something else are not written.

use attn_core::position::RopeConfig;
use serde_json::{Map, Value, json};

/// Why llama.cpp has no options for models like Gemma 3.
pub(crate) const LAYERS_DIFFER: &str = "they apply to all layers, but this model's layers rotate in two ways: \
                                        convert the exported folder with convert_hf_to_gguf.py";

/// What is printed instead of options if there are none that compute the same.
pub(crate) fn none(why: &str) -> String {
    format!("# no equivalent options: {why}")
}

/// vLLM's options. `parameters` is the `rope_parameters` that it needs, which is `inside` another config where that is one of
/// several models.
pub(crate) fn vllm(parameters: &Map<String, Value>, inside: Option<&str>, model: &str, context: usize) -> String {
    let overrides = json!({"rope_parameters": parameters});
    let overrides = inside.map_or(overrides.clone(), |key| json!({key: overrides}));
    format!("vllm serve {model} --hf-overrides '{overrides}' --max-model-len {context}")
}

/// The `rope_parameters` of an encoding under which vLLM computes the same for up to `context` tokens.
///
/// # Errors
/// vLLM can't compute the same; the error says why.
pub(crate) fn vllm_parameters(rope: &RopeConfig, context: usize) -> Result<Map<String, Value>, String> {
    let more = rope.scaling.to_vllm(rope.rotary(), context)?;
    let mut keys = rope.to_hf().map_err(|why| why.to_string())?;
    keys.extend(more);
    Ok(keys)
}

/// Why vLLM computes something else of these `rope_parameters` in DeepSeek's latent attention, where it has a YaRN of its
/// own; `None` if it does not.
pub(crate) fn differs_in_latent(parameters: &Map<String, Value>) -> Option<&'static str> {
    if parameters.get("rope_type").is_none_or(|kind| kind != "yarn") {
        return None;
    }
    let number = |key: &str| parameters.get(key).and_then(Value::as_f64).filter(|x| *x != 0.0);
    let plain = matches!((number("mscale"), number("mscale_all_dim")), (Some(_), Some(_)) | (None, None));
    if parameters.contains_key("attention_factor") {
        Some("vLLM's YaRN for latent attention ignores attention_factor")
    } else if parameters.get("truncate").is_some_and(|truncate| truncate == false) {
        Some("vLLM's YaRN for latent attention rounds the ramp's ends to whole dimensions")
    } else if !plain {
        Some("vLLM's YaRN for latent attention uses mscale or mscale_all_dim even without the other")
    } else {
        None
    }
}

/// llama.cpp's options.
pub(crate) fn llama_cpp(rope: &RopeConfig, context: usize) -> String {
    match rope.scaling.to_llama_cpp(rope.rotary()) {
        Err(why) => none(&why),
        Ok(options) => format!("{} --ctx-size {context} --rope-freq-base {}", options.flags, options.theta),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use attn_core::RopeOverride;

    fn rope(kind: &str, params: &[(&str, &str)]) -> RopeConfig {
        let base = RopeConfig { max_position_embeddings: 4096, ..RopeConfig::new(128, 10_000.0) };
        let change = RopeOverride {
            scaling: Some(kind.into()),
            factor: (!matches!(kind, "none" | "longrope")).then_some(2.0),
            params: params.iter().map(|(key, value)| ((*key).to_string(), (*value).to_string())).collect(),
            ..RopeOverride::default()
        };
        base.with_override(&change).unwrap()
    }

    #[test]
    fn llama_cpp_flags() {
        let flags = |kind: &str, params: &[(&str, &str)]| llama_cpp(&rope(kind, params), 8192);
        assert_eq!(flags("linear", &[]), "--rope-scaling linear --rope-scale 2 --ctx-size 8192 --rope-freq-base 10000");
        // The published base of static NTK at factor 2 and width 128.
        let ntk = flags("ntk", &[]);
        assert!(ntk.starts_with("--rope-scaling none --ctx-size 8192 --rope-freq-base 20221.2"), "{ntk}");
        let yarn = flags("yarn", &[]);
        assert!(yarn.contains("--yarn-orig-ctx 4096 --yarn-beta-fast 32 --yarn-beta-slow 1") && !yarn.contains('#'));
        for (kind, params, why) in [
            ("dynamic", &[][..], "grows with the length"),
            ("yarn", &[("attention_factor", "1.2")], "1.069315, but this scaling has 1.2"),
            ("yarn", &[("truncate", "false")], "whole dimensions"),
            ("ntk-by-parts", &[], "1.069315, but this scaling has 1.0"),
            ("llama3", &[], "convert_hf_to_gguf.py"),
            ("ntk-mixed", &[], "convert_hf_to_gguf.py"),
        ] {
            let none = flags(kind, params);
            assert!(
                none.starts_with("# no equivalent options") && none.contains(why) && !none.contains("--rope"),
                "{none}"
            );
        }
    }

    #[test]
    fn vllm_overrides_are_json_a_shell_can_take() {
        let command = vllm(&vllm_parameters(&rope("yarn", &[]), 8192).unwrap(), None, "org/name", 8192);
        let quoted = command.split('\'').nth(1).unwrap();
        let value: Value = serde_json::from_str(quoted).unwrap();
        let parameters = value["rope_parameters"].as_object().unwrap();
        assert_eq!(parameters["rope_type"], "yarn");
        assert!(!parameters.contains_key("attn_factor") && !parameters.contains_key("attention_factor"), "{command}");
        assert!(command.ends_with("--max-model-len 8192"), "{command}");
    }

    /// vLLM's YaRN multiplies cos and sin by `attention_factor`, or, where its version does not know that key, by
    /// `attn_factor (0.1 ln(factor) + 1)`: both have to give the intended factor.
    #[test]
    fn an_attention_factor_reaches_every_version_of_vllm() {
        let both = [("mscale", "0.7"), ("mscale_all_dim", "0.5")];
        for (rope, wanted) in [
            (rope("ntk-by-parts", &[]), 1.0),
            (rope("yarn", &[("attention_factor", "1.2")]), 1.2),
            (rope("yarn", &both), (0.07 * 2f64.ln() + 1.0) / (0.05 * 2f64.ln() + 1.0)),
        ] {
            let keys = vllm_parameters(&rope, 8192).unwrap();
            let number = |key: &str| keys[key].as_f64().unwrap();
            assert!((number("attention_factor") - wanted).abs() < 1e-12, "{keys:?}");
            assert!((number("attn_factor") * (0.1 * 2f64.ln() + 1.0) - wanted).abs() < 1e-12, "{keys:?}");
            assert_eq!(rope.frequencies(1).attention_factor, wanted);
        }
    }

    #[test]
    fn what_vllm_computes_otherwise_is_said() {
        let why = |rope: &RopeConfig, context| vllm_parameters(rope, context).unwrap_err();
        assert!(why(&rope("dynamic", &[]), 8192).contains("one base for all lengths"));
        let ones = ["1.5"; 64].join(",");
        let long = rope("longrope", &[("short_factor", &ones), ("long_factor", &ones), ("attention_factor", "1.3")]);
        assert!(why(&long, 8192).contains("above 4096"), "{}", why(&long, 8192));
        // Its divisors are the same for short and long texts.
        let mixed = vllm_parameters(&rope("ntk-mixed", &[]), 8192).unwrap();
        assert_eq!((&mixed["rope_type"], &mixed["long_mscale"]), (&json!("longrope"), &json!(1.0)));
        assert_eq!(mixed["short_factor"], mixed["long_factor"]);
        let short = vllm_parameters(&long, 4096).unwrap();
        assert_eq!((&short["short_mscale"], &short["long_mscale"]), (&json!(1.3), &json!(1.3)));
        let latent = |more: Value| {
            let mut keys = json!({"rope_type": "yarn", "factor": 40.0}).as_object().unwrap().clone();
            keys.extend(more.as_object().unwrap().clone());
            differs_in_latent(&keys)
        };
        assert_eq!(latent(json!({"mscale": 0.7, "mscale_all_dim": 0.5})), None);
        assert_eq!(latent(json!({})), None);
        for more in [json!({"attention_factor": 1.0}), json!({"truncate": false}), json!({"mscale": 0.7})] {
            assert!(latent(more).is_some());
        }
    }
}
