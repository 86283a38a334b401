//! Configs that make no sense: each gives one error that names the key, in bounded memory and time.
#![allow(missing_docs)]

use attn_models::families;
use serde_json::{Value, json};

fn llama() -> Value {
    json!({"model_type": "llama", "vocab_size": 8, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 16, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0})
}

fn refused(config: &Value, part: &str) {
    let error = families::spec(config).map(drop).expect_err(&config.to_string()).to_string();
    // Candle appends a backtrace if RUST_BACKTRACE is set.
    let first = error.lines().next().unwrap_or_default();
    assert!(first.contains(part), "{part}: {error}");
}

#[test]
fn values_that_no_model_has() {
    families::spec(&llama()).unwrap();
    let longrope = |long: Value, short: Value| {
        json!({"rope_type": "longrope", "long_factor": long, "short_factor": short, "factor": 2.0,
            "original_max_position_embeddings": 32})
    };
    let yarn = |key: &str, value: Value| {
        let mut scaling = json!({"rope_type": "yarn", "factor": 2.0});
        scaling[key] = value;
        scaling
    };
    for (key, value) in [
        // Mistyped.
        ("vocab_size", json!("8")),
        ("hidden_size", json!(16.5)),
        ("num_hidden_layers", json!([2])),
        ("rms_norm_eps", json!("small")),
        ("rope_theta", json!({})),
        ("tie_word_embeddings", json!("yes")),
        ("attention_bias", json!(3)),
        ("hidden_act", json!(1)),
        // Negative, zero.
        ("vocab_size", json!(-8)),
        ("num_hidden_layers", json!(0)),
        ("num_attention_heads", json!(-4)),
        ("num_key_value_heads", json!(0)),
        ("head_dim", json!(0)),
        ("intermediate_size", json!(-1)),
        ("rms_norm_eps", json!(-1e-5)),
        ("rope_theta", json!(0)),
        ("rope_theta", json!(-10000.0)),
        // Huge: each of these would be a list of that length.
        ("num_hidden_layers", json!(1u64 << 31)),
        ("num_hidden_layers", json!(u64::MAX)),
        ("num_attention_heads", json!(1u64 << 30)),
        ("head_dim", json!(1u64 << 31)),
        ("hidden_size", json!(1u64 << 31)),
        ("vocab_size", json!(1u64 << 40)),
        // Contradictory.
        ("num_key_value_heads", json!(3)),
        ("num_attention_heads", json!(5)),
        // Impossible scalings.
        ("rope_scaling", json!({"rope_type": "linear"})),
        ("rope_scaling", json!({"rope_type": "linear", "factor": "2"})),
        ("rope_scaling", json!({"rope_type": "linear", "factor": 0.0})),
        ("rope_scaling", json!({"rope_type": "linear", "factor": -2.0})),
        ("rope_scaling", json!({"rope_type": "spiral", "factor": 2.0})),
        ("rope_scaling", json!("linear")),
        ("rope_scaling", yarn("beta_fast", json!("32"))),
        ("rope_scaling", longrope(json!([1.0, 2.0, 3.0]), json!([1.0, 1.0]))),
        ("rope_scaling", longrope(json!([1.0, 2.0]), json!([1.0]))),
        ("rope_scaling", longrope(json!([1.0, "2"]), json!([1.0, 1.0]))),
        ("rope_scaling", longrope(json!([1.0, 0.0]), json!([1.0, 1.0]))),
        ("rope_scaling", longrope(json!(4.0), json!([1.0, 1.0]))),
    ] {
        let mut config = llama();
        config[key] = value;
        refused(&config, if key == "num_attention_heads" { "heads" } else { key });
    }
}

#[test]
fn keys_that_are_missing_are_named() {
    let mut config = llama();
    config.as_object_mut().unwrap().remove("model_type");
    refused(&config, "model_type");
    // A family without a class in transformers has no defaults for its sizes.
    for key in ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"] {
        let mut config = llama();
        config["model_type"] = json!("attn_decoder");
        config["position_encoding"] = json!("rope");
        families::spec(&config).unwrap();
        config.as_object_mut().unwrap().remove(key);
        refused(&config, key);
    }
}

#[test]
fn numbers_that_are_none_are_no_json() {
    for number in ["NaN", "Infinity", "-Infinity", "1e999"] {
        let text = llama().to_string().replace("10000.0", number);
        assert!(serde_json::from_str::<Value>(&text).is_err(), "{number}");
    }
}

#[test]
fn lists_of_the_wrong_length() {
    let mut config = llama();
    config["model_type"] = json!("qwen2");
    config["layer_types"] = json!(["full_attention"]);
    refused(&config, "layer_types");
    config["layer_types"] = json!(["full_attention", "spiral_attention"]);
    refused(&config, "spiral_attention");
}

fn root() -> std::path::PathBuf {
    std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models")
}

fn golden(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(root().join(name).join("config.json")).unwrap()).unwrap()
}

/// Options of one family or another that change the result and that nothing here computes.
#[test]
fn options_that_are_not_supported() {
    for (name, key, value) in [
        ("bart", "is_decoder", json!(true)),
        ("deepseek-v2", "mlp_bias", json!(true)),
        ("deepseek-v2", "n_group", json!(4)), // 6 experts
        ("deepseek-v2", "topk_method", json!("noaux_tc")),
        ("electra", "is_decoder", json!(true)),
        ("ernie4-5-moe", "moe_k", json!(6)), // of 5
        ("gpt-bigcode", "add_cross_attention", json!(true)),
        ("gpt-neo", "attention_types", json!([[["global", "spiral"], 1]])),
        ("gpt-neo", "attention_types", json!([[["global"], 1]])),
        ("gpt-neo", "attention_types", json!([[["global"], 1u64 << 60]])),
        ("gemma4", "num_kv_shared_layers", json!(3)), // leaves no layer with full attention
        ("gemma4", "num_kv_shared_layers", json!(4)),
        ("gemma4", "use_bidirectional_attention", json!("all")),
        ("gpt-oss", "layer_types", json!(["chunked_attention", "full_attention", "full_attention"])),
        ("hunyuan-dense", "rope_parameters", json!({"rope_type": "dynamic", "alpha": "50", "factor": 1.0})),
        ("mixtral", "num_experts_per_tok", json!(9)),
        (
            "olmo3-yarn",
            "layer_types",
            json!(["chunked_attention", "full_attention", "full_attention", "full_attention"]),
        ),
        (
            "modernbert",
            "layer_types",
            json!(["full_attention", "chunked_attention", "full_attention", "full_attention"]),
        ),
        ("phimoe-longrope", "num_experts_per_tok", json!(3)),
        ("roberta", "pad_token_id", json!(40)),
        ("roformer", "rotary_value", json!(true)),
        ("xglm", "pad_token_id", json!(5)),
    ] {
        let mut config = golden(name);
        config[key] = value;
        refused(&config, if key == "rope_parameters" { "factor" } else { key });
    }
}

#[test]
fn every_family_refuses_a_key_that_nobody_knows() {
    for folder in std::fs::read_dir(root()).unwrap() {
        let mut config = golden(&folder.unwrap().file_name().to_string_lossy());
        config["clever_trick"] = json!(2);
        refused(&config, "clever_trick");
    }
}

/// The counts of experts and of the layers of encoders and decoders are checked too.
#[test]
fn other_counts_that_are_lists() {
    for (name, key) in [
        ("deepseek-v3", "n_routed_experts"),
        ("deepseek-v3", "n_shared_experts"),
        ("llama4-irope", "num_local_experts"),
        ("t5", "num_layers"),
        ("t5", "num_decoder_layers"),
        ("t5", "num_heads"),
        ("t5", "d_kv"),
        ("bert", "num_hidden_layers"),
        ("bloom", "n_layer"),
        ("gpt2", "n_layer"),
        ("mpt", "n_layers"),
        ("mpt", "n_heads"),
        ("bart", "encoder_layers"),
        ("bart", "decoder_attention_heads"),
        ("codegen", "n_layer"),
        ("deepseek-v2", "n_routed_experts"),
        ("distilbert", "n_layers"),
        ("ernie4-5-moe", "moe_num_experts"),
        ("ernie4-5-moe", "moe_num_shared_experts"),
        ("glm4", "head_dim"),
        ("gpt-neo", "num_layers"),
        ("mixtral", "num_local_experts"),
        ("modernbert", "num_hidden_layers"),
        ("opt", "num_hidden_layers"),
        ("qwen2-moe", "num_experts"),
        ("xglm", "num_layers"),
    ] {
        let mut config = golden(name);
        families::spec(&config).unwrap();
        assert!(config[key].is_u64() || key == "num_decoder_layers" || key == "d_kv", "{name} has no {key}");
        config[key] = json!(1 << 30);
        refused(&config, key);
    }
}

/// A key that changes a result is refused by name for every value except those that mean the same as its absence.
#[test]
fn answers_of_no_and_nothing_are_answers() {
    for (model_type, key, value) in [
        ("bloom", "is_causal", json!(false)),
        ("mistral", "is_causal", json!(false)),
        ("t5", "is_causal", json!(false)),
        ("llama", "per_layer_config", json!({})),
        ("llama", "layer_types", json!([])),
        ("llama", "attention_chunk_size", json!(8)),
        ("gemma2", "use_bidirectional_attention", json!(true)),
        ("llama", "clever_trick", json!(false)),
    ] {
        refused(&json!({"model_type": model_type, key: value}), key);
    }
    for (model_type, key, value) in [
        ("llama", "is_causal", json!(true)),
        ("qwen2", "is_causal", json!(false)),
        ("llama", "layer_types", Value::Null),
        ("llama", "attention_bias", json!(false)),
        ("llama", "quantization_config", json!({"quant_method": "awq"})),
        ("phi3", "full_attn_mod", json!(1)),
        ("gemma2", "cache_implementation", json!("hybrid")),
    ] {
        families::spec(&json!({"model_type": model_type, key: value})).expect(key);
    }
}
