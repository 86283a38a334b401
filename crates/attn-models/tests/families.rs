//! What families make of configs that leave keys out, or hold some that change nothing.
#![allow(missing_docs)]

use attn_core::position::extend::{ExtendOverride, LOG_N, METHODS, method};
use attn_core::position::rope::scaling::{Linear, Llama3};
use attn_core::position::{PositionConfig, RopeConfig, RopeScaling};
use attn_core::{PositionOverride, RopeOverride};
use attn_models::families;
use attn_models::spec::{AttentionSpec, ModelSpec, MultiHeadSpec};
use serde_json::{Value, json};

fn golden(name: &str) -> Value {
    let path = format!("{}/../../tests/golden/models/{name}/config.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// A config that says nothing but its sizes.
fn sparse(model_type: &str) -> Value {
    json!({"model_type": model_type, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8,
        "vocab_size": 64})
}

fn spec(config: &Value) -> ModelSpec {
    families::spec(config).unwrap_or_else(|e| panic!("{config}: {e}"))
}

fn attention(spec: &ModelSpec, layer: usize) -> &MultiHeadSpec {
    match &spec.stack.layers[layer].attention {
        AttentionSpec::MultiHead(attention) => attention,
        AttentionSpec::Latent(_) => panic!("latent attention"),
    }
}

fn rope(spec: &ModelSpec, layer: usize) -> &RopeConfig {
    match spec.stack.layers[layer].attention.position() {
        PositionConfig::Rope(rope) => rope,
        other => panic!("no rope but {other:?}"),
    }
}

/// Heads, widths, bases and ties as transformers' configuration classes have them.
#[test]
fn absent_keys_take_the_family_s_own_defaults() {
    for (model_type, kv_heads, head_dim, rotary_dim, theta, tied) in [
        ("apertus", 8, 8, 8, 12e6, false),
        ("arcee", 8, 8, 8, 1e4, false),
        ("cohere2", 8, 8, 8, 1e4, true),
        ("ernie4_5", 2, 128, 128, 5e5, true),
        ("ernie4_5_moe", 4, 8, 8, 5e5, true),
        ("glm", 2, 128, 64, 1e4, false),
        ("glm4_moe", 8, 8, 4, 1e4, false),
        ("hunyuan_v1_dense", 8, 8, 8, 1e4, false),
        ("jais2", 8, 8, 8, 1e4, false),
        ("minimax_m2", 8, 128, 128, 5e6, false),
        ("mixtral", 8, 8, 8, 1e6, false),
        ("nemotron", 8, 8, 4, 1e4, false),
        ("olmo3", 8, 8, 8, 5e5, false),
        ("persimmon", 8, 8, 4, 1e4, false),
        ("phimoe", 8, 8, 8, 1e6, false),
        ("qwen3_moe", 4, 8, 8, 1e4, false),
        ("seed_oss", 8, 128, 128, 1e4, false),
        ("starcoder2", 2, 8, 8, 1e4, true),
    ] {
        let spec = spec(&sparse(model_type));
        let (attention, rope) = (attention(&spec, 0), rope(&spec, 0));
        let got = (attention.kv_heads, attention.head_dim, rope.rotary_dim, rope.theta);
        assert_eq!(got, (kv_heads, head_dim, rotary_dim, theta), "{model_type}");
        let head = spec.head.as_ref().unwrap();
        assert_eq!(head.name.is_none() || head.or_tied, tied, "{model_type}");
    }
}

#[test]
fn null_asks_for_the_computed_width() {
    let mut config = sparse("glm");
    config["head_dim"] = Value::Null;
    config["num_key_value_heads"] = Value::Null;
    let spec = spec(&config);
    assert_eq!((attention(&spec, 0).head_dim, attention(&spec, 0).kv_heads), (8, 8));
}

/// Some classes have a scaling of their own, which a `rope_theta` beside it doesn't reach.
#[test]
fn classes_with_a_scaling_of_their_own() {
    let mut config = sparse("apertus");
    config["rope_theta"] = json!(5.0);
    let apertus = spec(&config);
    let RopeScaling::Llama3(Llama3 { factor, .. }) = rope(&apertus, 0).scaling else { panic!("no llama3") };
    assert_eq!((factor, rope(&apertus, 0).theta), (8.0, 12e6));
    config["rope_scaling"] = json!({"rope_type": "linear", "factor": 2.0});
    let scaled = spec(&config);
    assert_eq!(
        (&rope(&scaled, 0).scaling, rope(&scaled, 0).theta),
        (&RopeScaling::Linear(Linear { factor: 2.0 }), 5.0)
    );
}

#[test]
fn keys_that_transformers_does_not_read() {
    for (name, key, value) in [
        ("codegen", "num_key_value_heads", json!(3)),
        ("cohere2", "use_parallel_block", json!(true)),
        ("deepseek-v2", "norm_topk_prob", json!(true)),
        ("distilbert", "sinusoidal_pos_embds", json!(true)),
        ("minimax-m2", "use_mtp", json!(true)),
        ("mixtral", "router_jitter_noise", json!(0.3)),
        ("opt", "layerdrop", json!(0.1)),
        ("pegasus", "normalize_before", json!(true)),
        ("persimmon", "num_key_value_heads", json!(3)),
        ("seed-oss", "residual_dropout", json!(0.5)),
    ] {
        let mut config = golden(name);
        let before = spec(&config);
        config[key] = value;
        assert_eq!(spec(&config), before, "{name}: {key}");
    }
}

/// Layers whose rotation the checkpoint never stretches keep it under an override.
#[test]
fn an_override_leaves_local_rotations_alone() {
    let linear = RopeOverride { scaling: Some("linear".into()), factor: Some(2.0), ..RopeOverride::default() };
    let linear = PositionOverride::from(linear);
    for (name, local, global) in [("olmo3-yarn", 0, 3), ("modernbert", 1, 0)] {
        let before = spec(&golden(name));
        let after = before.with_positions(&linear).unwrap();
        assert_eq!(rope(&after, local), rope(&before, local), "{name}");
        assert_ne!(rope(&after, global), rope(&before, global), "{name}");
    }
    // If only windowed layers rotate, their rotation is the model's.
    let before = spec(&golden("exaone4"));
    assert_ne!(rope(&before.with_positions(&linear).unwrap(), 0), rope(&before, 0));
    assert!(spec(&golden("opt")).with_positions(&linear).unwrap_err().to_string().contains("opt"));
}

/// Layers without rotation that see everything would still see everything under a window, and have no distances that a
/// method could change. A setting for the whole model is therefore refused if it would apply to only some of its
/// layers. A scaling of the frequencies is allowed: layers without frequencies stay as they are, as in transformers.
#[test]
fn methods_are_refused_by_name_where_layers_see_everything_without_rotation() {
    let linear = RopeOverride { scaling: Some("linear".into()), factor: Some(2.0), ..RopeOverride::default() };
    // The layer that rotates, and the first that doesn't.
    for (name, rotates, still) in [("smollm3-nope", 0, 2), ("llama4-irope", 0, 3), ("cohere2", 0, 3), ("exaone4", 0, 3)]
    {
        let before = spec(&golden(name));
        let is_nope = |i: usize| matches!(before.stack.layers[i].attention.position(), PositionConfig::Nope(_));
        assert!(is_nope(still) && !is_nope(rotates) && attention(&before, still).mask.reach().is_none(), "{name}");
        for asked in METHODS.iter().map(|method| method.name).chain([LOG_N]) {
            let log_n = asked == LOG_N;
            // The golden models were trained for few tokens, which not every method can stretch eight times.
            let extend =
                ExtendOverride { method: method(asked), log_n, longest: Some(24), ..ExtendOverride::default() };
            let change = PositionOverride { extend, ..PositionOverride::default() };
            let error = before.with_positions(&change).map(drop).expect_err(asked).to_string();
            // Blocks over blocks are named first: Llama 4's layers that rotate see chunks.
            let why = if error.contains("at once") { "layer 0: mask".into() } else { format!("layer {still} of this") };
            assert!(error.contains(&format!(": {asked} ")) && error.contains(&why), "{name}: {error}");
        }
        let after = before.with_positions(&PositionOverride::from(linear.clone())).unwrap();
        assert_ne!(rope(&after, rotates), rope(&before, rotates), "{name}");
        assert_eq!(after.stack.layers[still].attention.position(), before.stack.layers[still].attention.position());
    }
}

/// Qwen2.5-1M: dual chunk attention over the rotation, trained to the length that its own dictionary names.
#[test]
fn dual_chunk_attention_is_honoured() {
    let mut config = sparse("qwen2");
    config["max_position_embeddings"] = json!(1_010_000);
    config["dual_chunk_attention_config"] =
        json!({"chunk_size": 40, "local_size": 8, "original_max_position_embeddings": 48});
    let read = spec(&config);
    let PositionConfig::Extended(extended) = read.stack.layers[1].attention.position() else { panic!("plain rope") };
    let method = extended.method.expect("a method");
    assert_eq!((method.to_string().as_str(), read.trained_context), ("dual-chunk:chunk=40:local=8", Some(48)));
    assert!(method.is_plain(32) && !method.is_plain(33), "one chunk is plain rotation");
    config["dual_chunk_attention_config"] = Value::Null;
    assert_eq!(rope(&spec(&config), 0).max_position_embeddings, 1_010_000);
    for (wrong, part) in [
        (json!({"chunk_size": 8, "local_size": 8}), "local_size of 8"),
        (json!({"chunk_size": 8, "local_size": 2, "stride": 3}), "dual_chunk_attention_config.stride"),
        (json!({"chunk_size": 8}), "local_size"),
    ] {
        config["dual_chunk_attention_config"] = wrong;
        let message = families::spec(&config).expect_err(part).to_string();
        assert!(message.contains(part), "{message}");
    }
}
