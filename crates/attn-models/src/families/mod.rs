//! One file per family: how its `config.json` reads and what its tensors are called. Adding one touches its own file and one
//! line of `FAMILIES`; its class's defaults come from `classes.json`.

mod apertus;
mod arcee;
mod bart;
mod bert;
mod bloom;
pub(crate) mod classes;
mod codegen;
mod cohere;
mod cohere2;
mod decoder;
mod deepseek;
mod dense;
mod dots1;
mod ernie;
mod exaone4;
mod experts;
mod falcon;
mod gemma;
mod gemma4;
mod glm;
mod gpt2;
mod gpt_bigcode;
mod gpt_neo;
mod gpt_neox;
mod gpt_oss;
mod gptj;
mod granite;
mod helium;
mod hunyuan;
mod jais2;
mod llama;
mod llama4;
mod ministral3;
mod mixtral;
mod modernbert;
mod mpt;
mod nemotron;
mod olmo;
mod olmo2;
mod opt;
mod parts;
mod persimmon;
mod phi;
mod phi3;
mod qwen;
mod qwen_moe;
mod roformer;
mod rotary;
mod seed_oss;
mod sketch;
mod smollm3;
mod stablelm;
mod starcoder2;
mod t5;
mod xglm;

pub use decoder::ENCODINGS;
pub use sketch::{Positions, positions};

use crate::config::{Config, Notes, UnknownKeys};
use crate::spec::{AttentionSpec, ModelSpec};
use attn_core::position::PositionConfig;
use candle_core::{Result, bail};
use serde_json::Value;

/// Reads a `config.json` of any family that is known.
///
/// # Errors
/// An unknown `model_type`, by name; a key that is missing, wrong, or not understood.
pub fn spec(json: &Value) -> Result<ModelSpec> {
    Ok(spec_with(json, UnknownKeys::Refuse)?.0)
}

/// [`spec`] under a rule for unknown keys; what is worth knowing of the config comes with the spec.
///
/// # Errors
/// As [`spec`].
pub fn spec_with(json: &Value, unknown: UnknownKeys) -> Result<(ModelSpec, Notes)> {
    let config = Config::new(json)?.with_unknown(unknown);
    let Some(model_type) = config.text_opt("model_type")? else { bail!("config.json: model_type is missing") };
    // Text models inside multimodal checkpoints have a config of their own.
    if matches!(model_type, "gemma3" | "gemma4" | "llama4" | "mistral3")
        && let Some(text) = json.get("text_config")
    {
        let (spec, notes) = spec_with(text, unknown)?;
        let inside = |lines: Vec<String>| lines.into_iter().map(|line| format!("text_config.{line}")).collect();
        let notes = Notes { unknown: inside(notes.unknown), ignored: inside(notes.ignored) };
        return Ok((multimodal(spec)?, notes));
    }
    let config = config.with_class(match model_type {
        "gemma3" => "gemma3_text",
        "RefinedWeb" | "RefinedWebModel" => "falcon",
        "camembert" | "xlm-roberta" => "roberta",
        other => other,
    });
    let Some((_, read)) = FAMILIES.iter().find(|(name, _)| *name == model_type) else {
        bail!(
            "config.json: model_type {model_type} is not supported; known: {}",
            known().collect::<Vec<_>>().join(", ")
        )
    };
    let spec = read(&config)?;
    check_bidirectional(&config, &spec)?;
    config.finish()?;
    Ok((spec, config.notes()))
}

/// Refuses `is_causal: false` where it means more than a mask without a future.
fn check_bidirectional(c: &Config, spec: &ModelSpec) -> Result<()> {
    if c.flag("is_causal", true)? {
        return Ok(());
    }
    if spec.head.is_some() {
        bail!("config.json: is_causal = false is not supported for {}", spec.family)
    }
    for layer in &spec.stack.layers {
        let plain = match &layer.attention {
            AttentionSpec::MultiHead(a) => {
                !a.mask.causal
                    && (a.mask.window, a.mask.chunk) == (None, None)
                    && !matches!(a.position, PositionConfig::Alibi(_) | PositionConfig::T5(_))
            }
            AttentionSpec::Latent(_) => false,
        };
        if !plain {
            bail!("config.json: is_causal = false is not supported for {} with these layers", spec.family)
        }
    }
    Ok(())
}

/// How the weights of a checkpoint are quantised, if its config says that they are.
pub fn quantization(json: &Value) -> Option<&Value> {
    let keys = ["quantization_config", "compression_config"];
    let places = [Some(json), json.get("text_config")];
    let found = places.into_iter().flatten().flat_map(|place| keys.iter().filter_map(|key| place.get(*key)));
    found.into_iter().find(|value| !value.is_null())
}

/// Turns a config into a spec.
type Read = fn(&Config) -> Result<ModelSpec>;

/// The families by `model_type`.
const FAMILIES: &[(&str, Read)] = &[
    ("apertus", apertus::spec),
    ("arcee", arcee::spec),
    ("attn_decoder", decoder::spec),
    ("bart", bart::bart),
    ("bert", bert::bert),
    ("bloom", bloom::spec),
    ("camembert", bert::roberta),
    ("codegen", codegen::spec),
    ("cohere", cohere::spec),
    ("cohere2", cohere2::spec),
    ("deepseek_v2", deepseek::v2),
    ("deepseek_v3", deepseek::v3),
    ("distilbert", bert::distilbert),
    ("dots1", dots1::spec),
    ("electra", bert::electra),
    ("ernie4_5", ernie::dense),
    ("ernie4_5_moe", ernie::moe),
    ("exaone4", exaone4::spec),
    ("falcon", falcon::spec),
    ("gemma", gemma::gemma),
    ("gemma2", gemma::gemma2),
    ("gemma3", gemma::gemma3),
    ("gemma3_text", gemma::gemma3),
    ("gemma4_text", gemma4::spec),
    ("glm", glm::glm),
    ("glm4", glm::glm4),
    ("glm4_moe", glm::moe),
    ("gpt2", gpt2::spec),
    ("gpt_bigcode", gpt_bigcode::spec),
    ("gpt_neo", gpt_neo::spec),
    ("gpt_neox", gpt_neox::spec),
    ("gpt_oss", gpt_oss::spec),
    ("gptj", gptj::spec),
    ("granite", granite::spec),
    ("granitemoe", granite::moe),
    ("helium", helium::spec),
    ("hunyuan_v1_dense", hunyuan::spec),
    ("jais2", jais2::spec),
    ("llama", llama::llama),
    ("llama4_text", llama4::spec),
    ("minimax_m2", mixtral::minimax_m2),
    ("ministral3", ministral3::spec),
    ("mistral", llama::mistral),
    ("mixtral", mixtral::mixtral),
    ("modernbert", modernbert::spec),
    ("mpt", mpt::spec),
    ("nemotron", nemotron::spec),
    ("olmo", olmo::olmo),
    ("olmo2", olmo2::spec),
    ("olmo3", olmo::olmo3),
    ("olmoe", olmo::olmoe),
    ("opt", opt::spec),
    ("pegasus", bart::pegasus),
    ("persimmon", persimmon::spec),
    ("phi", phi::spec),
    ("phi3", phi3::spec),
    ("phimoe", mixtral::phimoe),
    ("qwen2", qwen::qwen2),
    ("qwen2_moe", qwen_moe::qwen2),
    ("qwen3", qwen::qwen3),
    ("qwen3_moe", qwen_moe::qwen3),
    ("RefinedWeb", falcon::spec),
    ("RefinedWebModel", falcon::spec),
    ("roberta", bert::roberta),
    ("roformer", roformer::spec),
    ("seed_oss", seed_oss::spec),
    ("smollm3", smollm3::spec),
    ("stablelm", stablelm::spec),
    ("starcoder2", starcoder2::spec),
    ("t5", t5::spec),
    ("vaultgemma", gemma::vaultgemma),
    ("xglm", xglm::spec),
    ("xlm-roberta", bert::roberta),
];

/// The `model_type`s that [`spec`] reads.
pub fn known() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|(name, _)| *name)
}

fn multimodal(mut spec: ModelSpec) -> Result<ModelSpec> {
    spec.prefixes = ["model.language_model.", "language_model.model.", "model."].map(String::from).to_vec();
    let others = ["vision_", "multi_modal_projector", "embed_vision", "embed_audio", "audio_tower"];
    spec.unused.extend(others.map(String::from));
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Architecture;
    use attn_core::position::RopeConfig;
    use serde_json::json;

    fn llama(extra: &[(&str, Value)]) -> Result<ModelSpec> {
        let mut config = json!({"model_type": "llama", "vocab_size": 8, "hidden_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "intermediate_size": 16});
        for (key, value) in extra {
            config[key] = value.clone();
        }
        spec(&config)
    }

    #[test]
    fn frequency_factors_of_a_gguf_file_take_effect() {
        let spec = llama(&[("rope_freq_factors", json!([1.0, 2.0, 4.0, 8.0]))]).unwrap();
        let PositionConfig::Rope(rope) = spec.stack.layers[0].attention.position() else { panic!("no rope") };
        let plain = RopeConfig { scaling: Default::default(), ..rope.clone() };
        let (scaled, plain) = (rope.frequencies(1).inv_freq, plain.frequencies(1).inv_freq);
        let factors: Vec<f64> = plain.iter().zip(&scaled).map(|(p, s)| (p / s).round()).collect();
        assert_eq!(factors, [1.0, 2.0, 4.0, 8.0]);
        assert!(llama(&[("rope_freq_factors", json!([1.0]))]).is_err(), "a list of the wrong length");
        let both = [
            ("rope_freq_factors", json!([1.0, 2.0, 4.0, 8.0])),
            ("rope_scaling", json!({"type": "linear", "factor": 2.0})),
        ];
        assert!(llama(&both).unwrap_err().to_string().contains("rope_freq_factors"));
    }

    #[test]
    fn absent_keys_have_the_values_of_the_family() {
        let of = |model_type: &str| spec(&json!({"model_type": model_type})).expect(model_type);
        let rope = |model: &ModelSpec| match model.stack.layers[0].attention.position() {
            PositionConfig::Rope(rope) => rope.clone(),
            other => panic!("{other:?}"),
        };
        let (llama, mistral) = (of("llama"), of("mistral"));
        assert_eq!((llama.vocab_size, llama.stack.layers.len(), llama.trained_context), (32000, 32, Some(2048)));
        let AttentionSpec::MultiHead(attention) = &mistral.stack.layers[0].attention else { panic!("latent") };
        assert_eq!((attention.heads, attention.kv_heads, attention.mask.window), (32, 8, Some(4096)));
        assert_eq!(mistral.trained_context, Some(131_072));
        for (model_type, theta, context) in
            [("cohere", 5e5, 8192), ("smollm3", 2e6, 32768), ("llama4_text", 5e5, 131_072), ("gemma", 1e4, 8192)]
        {
            let model = of(model_type);
            assert_eq!((rope(&model).theta, model.trained_context), (theta, Some(context)), "{model_type}");
        }
        assert_eq!((rope(&of("phi")).rotary_dim, rope(&of("stablelm")).rotary_dim), (32, 20));
        assert_eq!((rope(&of("gpt_neox")).rotary_dim, rope(&of("gptj")).rotary_dim), (24, 64));
        // Null is no window where an absent key is one.
        let none = spec(&json!({"model_type": "mistral", "sliding_window": null})).unwrap();
        let AttentionSpec::MultiHead(attention) = &none.stack.layers[0].attention else { panic!("latent") };
        assert_eq!(attention.mask.window, None);
        // This project's own family has no class in transformers, so missing keys have no defaults.
        let ours = spec(&json!({"model_type": "attn_decoder", "hidden_size": 8})).unwrap_err().to_string();
        assert!(ours.contains("is missing"), "{ours}");
    }

    #[test]
    fn a_decoder_without_causality_is_an_encoder() {
        let encoder = llama(&[("is_causal", json!(false))]).unwrap();
        assert_eq!((encoder.architecture, encoder.head.is_none()), (Architecture::Encoder, true));
        let AttentionSpec::MultiHead(attention) = &encoder.stack.layers[0].attention else { panic!("latent") };
        assert!(!attention.mask.causal);
        for value in [json!(true), Value::Null] {
            assert_eq!(llama(&[("is_causal", value)]).unwrap().architecture, Architecture::Decoder);
        }
    }

    #[test]
    fn keys_of_a_rope_dictionary_are_refused_or_noted() {
        let read = |dict: Value, unknown| {
            let json = json!({"model_type": "llama", "rope_scaling": dict});
            spec_with(&json, unknown).map(|(_, notes)| notes)
        };
        let yarn = read(json!({"type": "yarn", "factor": 4.0, "attn_factor": 0.9}), UnknownKeys::Refuse).unwrap();
        assert!(yarn.unknown.is_empty() && yarn.ignored[0].contains("attn_factor"), "{yarn:?}");
        let zeta = json!({"type": "yarn", "factor": 4.0, "zeta": 0.9});
        assert!(read(zeta.clone(), UnknownKeys::Refuse).unwrap_err().to_string().contains("--allow-unknown"));
        assert!(read(zeta, UnknownKeys::Collect).unwrap().unknown[0].contains("zeta"));
    }

    #[test]
    fn refuses_by_name() {
        let error = |extra: &[(&str, Value)]| llama(extra).unwrap_err().to_string();
        assert!(error(&[("model_type", json!("mamba"))]).contains("model_type mamba is not supported"));
        assert!(error(&[("num_key_value_heads", json!(3))]).contains("num_key_value_heads 3"));
        assert!(error(&[("hidden_act", json!("maxout"))]).contains("unknown activation `maxout`"));
        assert!(error(&[("num_hidden_layers", json!(0))]).contains("num_hidden_layers"));
        assert!(error(&[("rope_scaling", json!({"type": "magic", "factor": 2.0}))]).contains("magic"));
        assert!(error(&[("is_causal", json!(false)), ("model_type", json!("bloom"))]).contains("is_causal"));
        assert!(error(&[("sliding_window", json!(8))]).contains("sliding_window"));
        assert!(error(&[("rope_scaling", json!({"type": "linear", "factor": 2.0, "zeta": 1}))]).contains("zeta"));
    }
}
