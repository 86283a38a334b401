//! Golden checkpoints as llama.cpp's own converter writes them, in f32, against what transformers computes with the
//! originals: the same checks as for their safetensors.
//!
//! The converter leaves some settings out, and llama.cpp has those of the published models built in, which a small random
//! model has no reason to share; and it drops Gemma's output projection, which the published ones share with the
//! embedding. Such a setting or tensor is taken from the original, by name; everything else has to come from the file.

mod common;

use attn_models::{Model, Options};
use candle_core::{DType, Device};
use common::{Golden, checks, root};
use loader::{Checkpoint, LoadOptions};
use std::{path::PathBuf, sync::Arc};

fn folder() -> PathBuf {
    root().join("../gguf")
}

fn check(name: &str, lost: &[&str]) {
    let options = LoadOptions { quiet: true, ..LoadOptions::default() };
    let path = folder().join(format!("{name}.gguf"));
    let checkpoint = Checkpoint::open(&path.to_string_lossy(), &options).unwrap_or_else(|e| panic!("{e}"));
    assert!(checkpoint.warnings.is_empty(), "{name}: {:?}", checkpoint.warnings);
    let original = root().join(name);
    let (mut config, mut weights) = (checkpoint.config, checkpoint.weights);
    if !lost.is_empty() {
        let text = std::fs::read_to_string(original.join("config.json")).unwrap();
        let own: serde_json::Value = serde_json::from_str(&text).unwrap();
        let mut tensors = candle_core::safetensors::load(original.join("model.safetensors"), &Device::Cpu).unwrap();
        tensors.retain(|tensor, _| lost.contains(&tensor.as_str()));
        for key in lost.iter().filter(|key| !tensors.contains_key(**key)) {
            assert_ne!(config.get(*key), Some(&own[*key]), "{name}: {key} is not lost");
            config[*key] = own[*key].clone();
        }
        if !tensors.is_empty() {
            for tensor in weights.names() {
                let read = weights.load(&tensor, DType::F32, &Device::Cpu).unwrap();
                assert!(tensors.insert(tensor, read).is_none(), "{name}: it is not lost");
            }
            weights = Arc::new(tensors);
        }
    }
    let model = Model::load(&config, weights, &Options::default());
    let model = model.unwrap_or_else(|e| panic!("{name}: {e}\n{config:#}"));
    let expected = candle_core::safetensors::load(original.join("expected.safetensors"), &Device::Cpu).unwrap();
    checks::check(name, &Golden { model, expected });
}

macro_rules! golden {
    ($($test:ident: $name:literal, $lost:tt,)*) => {
        $(#[test] fn $test() { check($name, &$lost); })*

        #[test]
        fn every_file_has_a_test() {
            let mut found: Vec<String> = std::fs::read_dir(folder()).unwrap()
                .map(|e| e.unwrap().file_name().into_string().unwrap().replace(".gguf", "")).collect();
            found.sort();
            let mut tested = vec![$($name.to_string()),*];
            tested.sort();
            assert_eq!(found, tested);
        }
    };
}

golden! {
    apertus: "apertus", [],
    arcee_yarn: "arcee-yarn", [],
    bert: "bert", [],
    bloom: "bloom", [],
    cohere_qk: "cohere-qk", [],
    deepseek_v2: "deepseek-v2", [],
    deepseek_v3: "deepseek-v3", [],
    distilbert: "distilbert", [],
    dots1: "dots1", [],
    ernie4_5: "ernie4-5", [],
    ernie4_5_moe: "ernie4-5-moe", [],
    exaone4: "exaone4", [],
    falcon_new: "falcon-new", [],
    gemma: "gemma", ["tie_word_embeddings", "lm_head.weight"],
    gemma2: "gemma2", ["query_pre_attn_scalar", "tie_word_embeddings", "lm_head.weight"],
    glm: "glm", [],
    glm4: "glm4", [],
    glm4_moe: "glm4-moe", [],
    gpt_bigcode: "gpt-bigcode", [],
    gpt_oss: "gpt-oss", [],
    gpt2: "gpt2", [],
    granite: "granite", [],
    granitemoe: "granitemoe", [],
    jais2: "jais2", [],
    llama: "llama", [],
    llama_linear: "llama-linear", [],
    llama_yarn: "llama-yarn", [],
    llama3: "llama3", [],
    llama4_irope: "llama4-irope", ["attention_chunk_size", "floor_scale"],
    minimax_m2: "minimax-m2", [],
    ministral3: "ministral3", [],
    mixtral: "mixtral", [],
    modernbert: "modernbert", [],
    nemotron: "nemotron", [],
    olmo_clip: "olmo-clip", [],
    olmo2: "olmo2", [],
    olmo3_yarn: "olmo3-yarn", [],
    olmoe: "olmoe", ["clip_qkv"],
    phi: "phi", [],
    phi3_longrope: "phi3-longrope", [],
    phi3_window: "phi3-window", [],
    qwen2: "qwen2", [],
    qwen2_moe: "qwen2-moe", [],
    qwen2_yarn: "qwen2-yarn", [],
    qwen3: "qwen3", [],
    qwen3_moe_yarn: "qwen3-moe-yarn", [],
    roberta: "roberta", [],
    seed_oss: "seed-oss", [],
    smollm3_nope: "smollm3-nope", ["no_rope_layers"],
    stablelm: "stablelm", [],
    starcoder2: "starcoder2", ["sliding_window"],
    t5: "t5", ["relative_attention_max_distance"],
}
