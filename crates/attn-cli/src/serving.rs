//! The same scaling elsewhere: the options of vLLM and llama.cpp that come to what `--rope-...` does here, or a word on
//! why there are none.

use attn_core::position::{Ramp, RopeConfig, RopeScaling, yarn_mscale};
use serde_json::{Map, Value, json};

/// vLLM's options. `parameters` is the `rope_parameters` of the exported config.
pub(crate) fn vllm(rope: &RopeConfig, parameters: &Map<String, Value>, model: &str, context: usize) -> String {
    let overrides = json!({"rope_parameters": parameters});
    let mut out = format!("vllm serve {model} --hf-overrides '{overrides}' --max-model-len {context}");
    if let RopeScaling::Dynamic { factor, original_max_position_embeddings: original } = rope.scaling {
        let length = (original as f64 * factor).round();
        out.push_str(&format!("\n# vLLM resolves dynamic scaling once, for {length} tokens, whatever the length"));
    }
    out
}

/// llama.cpp's options.
pub(crate) fn llama_cpp(rope: &RopeConfig, context: usize) -> String {
    let base = format!("--ctx-size {context} --rope-freq-base {}", rope.theta);
    let based = |theta: f64| format!("--ctx-size {context} --rope-scaling none --rope-freq-base {theta}");
    match &rope.scaling {
        RopeScaling::Default => format!("--rope-scaling none {base}"),
        RopeScaling::Linear { factor } => format!("--rope-scaling linear --rope-scale {factor} {base}"),
        RopeScaling::Ntk { factor } => based(rope.ntk_theta(*factor)),
        RopeScaling::Dynamic { factor, original_max_position_embeddings: original } => {
            let length = context.max(*original);
            let flags = based(rope.dynamic_theta(*factor, *original, length));
            format!("{flags}\n# llama.cpp has no dynamic scaling: this is its base at {length} tokens")
        }
        RopeScaling::Yarn { factor, original_max_position_embeddings: original, ramp, .. } => {
            let flags = yarn(*factor, *original, ramp, &base);
            let attention = rope.scaling.attention_factor(rope);
            let own = (attention / yarn_mscale(*factor, 1.0) - 1.0).abs() > 1e-9;
            format!("{flags}{}{}", warning(own, attention), ramp_warning(ramp))
        }
        RopeScaling::NtkByParts { factor, original_max_position_embeddings: original, ramp } => {
            let flags = yarn(*factor, *original, ramp, &base);
            format!("{flags}{}{}", warning(*factor > 1.0, 1.0), ramp_warning(ramp))
        }
        RopeScaling::LongRope { .. } | RopeScaling::Llama3 { .. } | RopeScaling::FreqFactors { .. } => {
            "# no options for it: its factors are tensors of the GGUF file; convert the exported folder with \
             convert_hf_to_gguf.py"
                .to_string()
        }
        RopeScaling::Proportional { .. } => "# no options for it: it belongs to the architecture".to_string(),
    }
}

fn yarn(factor: f64, original: usize, ramp: &Ramp, base: &str) -> String {
    let (fast, slow) = (ramp.beta_fast, ramp.beta_slow);
    format!(
        "--rope-scaling yarn --rope-scale {factor} --yarn-orig-ctx {original} --yarn-beta-fast {fast} \
         --yarn-beta-slow {slow} {base}"
    )
}

/// llama.cpp overwrites `--yarn-attn-factor` with its own (`llama_context`'s constructor).
fn warning(own: bool, attention: f64) -> String {
    if !own {
        return String::new();
    }
    format!("\n# not the same: llama.cpp computes its own attention factor, where this scaling has {attention}")
}

fn ramp_warning(ramp: &Ramp) -> &'static str {
    if ramp.truncate { "" } else { "\n# not the same: llama.cpp rounds the ramp's ends to whole dimensions" }
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
        assert!(ntk.starts_with("--ctx-size 8192 --rope-scaling none --rope-freq-base 20221.2"), "{ntk}");
        // Dynamic at twice the trained context: a factor of 2 * 2 - 1.
        let dynamic = flags("dynamic", &[]);
        let theta: f64 = dynamic.split("--rope-freq-base ").nth(1).unwrap().lines().next().unwrap().parse().unwrap();
        assert!(
            (theta - 10_000.0 * 3f64.powf(128.0 / 126.0)).abs() < 1e-6 && dynamic.contains("8192 tokens"),
            "{dynamic}"
        );
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
        let command = vllm(&rope, &rope.to_hf().unwrap(), "org/name", 8192);
        let quoted = command.split('\'').nth(1).unwrap();
        let value: Value = serde_json::from_str(quoted).unwrap();
        assert_eq!(value["rope_parameters"]["rope_type"], "yarn");
        assert!(command.ends_with("--max-model-len 8192"), "{command}");
    }
}
