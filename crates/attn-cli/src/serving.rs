//! The same scaling elsewhere: the options of vLLM and llama.cpp that come to what `--rope-...` does here, or a word on
//! why there are none.

use attn_core::position::RopeConfig;
use serde_json::{Map, Value, json};

/// Why llama.cpp has no options for models like Gemma 3.
pub(crate) const LAYERS_DIFFER: &str = "# no options come to the same: they are for all layers alike, and this model's \
                                        layers rotate in two ways: convert the exported folder with \
                                        convert_hf_to_gguf.py";

/// vLLM's options. `parameters` is the `rope_parameters` of the exported config, which is `inside` another where that is
/// one of several models.
pub(crate) fn vllm(
    rope: &RopeConfig,
    parameters: &Map<String, Value>,
    inside: Option<&str>,
    model: &str,
    context: usize,
) -> String {
    if let Some(why) = rope.scaling.differs_in_vllm() {
        return format!("# no options come to the same: {why}");
    }
    let overrides = json!({"rope_parameters": parameters});
    let overrides = inside.map_or(overrides.clone(), |key| json!({key: overrides}));
    format!("vllm serve {model} --hf-overrides '{overrides}' --max-model-len {context}")
}

/// llama.cpp's options.
pub(crate) fn llama_cpp(rope: &RopeConfig, context: usize) -> String {
    match rope.scaling.to_llama_cpp(rope.rotary()) {
        Err(why) => format!("# no options come to the same: {why}"),
        Ok(options) => {
            let differs: String = options.differs.iter().map(|what| format!("\n# not the same: {what}")).collect();
            format!("{} --ctx-size {context} --rope-freq-base {}{differs}", options.flags, options.theta)
        }
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
            factor: (kind != "none").then_some(2.0),
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
        assert!(flags("dynamic", &[]).starts_with("# no options"));
        let yarn = flags("yarn", &[]);
        assert!(yarn.contains("--yarn-orig-ctx 4096 --yarn-beta-fast 32 --yarn-beta-slow 1") && !yarn.contains('#'));
        assert!(flags("yarn", &[("attention_factor", "1.2")]).contains("# not the same"));
        assert!(flags("yarn", &[("truncate", "false")]).contains("whole dimensions"));
        assert!(flags("ntk-by-parts", &[]).contains("# not the same"));
        assert!(flags("llama3", &[]).contains("convert_hf_to_gguf.py"));
    }

    #[test]
    fn vllm_overrides_are_json_a_shell_can_take() {
        let rope = rope("yarn", &[]);
        let command = vllm(&rope, &rope.to_hf().unwrap(), None, "org/name", 8192);
        let quoted = command.split('\'').nth(1).unwrap();
        let value: Value = serde_json::from_str(quoted).unwrap();
        assert_eq!(value["rope_parameters"]["rope_type"], "yarn");
        assert!(command.ends_with("--max-model-len 8192"), "{command}");
        let dynamic = super::vllm(&self::rope("dynamic", &[]), &Map::new(), None, "org/name", 8192);
        assert!(dynamic.starts_with("# no options") && dynamic.contains("vLLM"), "{dynamic}");
    }
}
