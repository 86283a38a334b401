//! Every golden model: logits in one prefill and token by token, and greedy continuations, against transformers.

mod common;

use candle_core::Device;
use common::{Golden, checks, difference, load, root};

fn check(name: &str) {
    checks::check(name, &load(name).unwrap_or_else(|e| panic!("{name}: {e}")));
}

macro_rules! golden {
    ($($test:ident: $name:literal,)*) => {
        $(#[test] fn $test() { check($name); })*

        #[test]
        fn every_golden_model_has_a_test() {
            let mut found: Vec<String> = std::fs::read_dir(root()).unwrap()
                .map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            found.sort();
            let mut tested = vec![$($name.to_string()),*];
            tested.sort();
            assert_eq!(found, tested);
        }
    };
}

/// The same model saved as two shards with an index gives the same logits.
#[test]
fn shards_equal_one_file() {
    for name in ["llama", "gpt2", "deepseek-v3", "t5"] {
        let golden = load(name).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let tensors =
            candle_core::safetensors::load(root().join(name).join("model.safetensors"), &Device::Cpu).unwrap();
        let mut names: Vec<_> = tensors.keys().cloned().collect();
        names.sort();
        let mut map = serde_json::Map::new();
        for (i, part) in names.chunks(names.len().div_ceil(2)).enumerate() {
            let file = format!("model-{:05}-of-00002.safetensors", i + 1);
            let shard = part.iter().map(|n| (n.clone(), tensors[n].clone())).collect();
            candle_core::safetensors::save(&shard, dir.path().join(&file)).unwrap();
            map.extend(part.iter().map(|n| (n.clone(), file.clone().into())));
        }
        let index = serde_json::json!({"metadata": {}, "weight_map": map}).to_string();
        std::fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
        std::fs::copy(root().join(name).join("config.json"), dir.path().join("config.json")).unwrap();
        let sharded = Golden { model: common::open(dir.path()).unwrap(), expected: golden.expected.clone() };
        assert_eq!(difference(&checks::in_blocks(&sharded, 100), &checks::in_blocks(&golden, 100)), 0.0, "{name}");
    }
}

golden! {
    apertus: "apertus",
    arcee_yarn: "arcee-yarn",
    bart: "bart",
    bert: "bert",
    bert_3: "bert-3",
    bloom: "bloom",
    bloom_3: "bloom-3",
    bloom_6_heads: "bloom-6-heads",
    codegen: "codegen",
    cohere_interleaved: "cohere-interleaved",
    cohere_qk: "cohere-qk",
    cohere2: "cohere2",
    deepseek_noq: "deepseek-noq",
    deepseek_v2: "deepseek-v2",
    deepseek_v3: "deepseek-v3",
    distilbert: "distilbert",
    dots1: "dots1",
    electra: "electra",
    ernie4_5: "ernie4-5",
    ernie4_5_moe: "ernie4-5-moe",
    exaone4: "exaone4",
    falcon_alibi: "falcon-alibi",
    falcon_alibi_12: "falcon-alibi-12",
    falcon_new: "falcon-new",
    gemma: "gemma",
    gemma2: "gemma2",
    gemma2_v4: "gemma2-v4",
    gemma3: "gemma3",
    gemma3_default: "gemma3-default",
    gemma4: "gemma4",
    glm: "glm",
    glm4: "glm4",
    glm4_moe: "glm4-moe",
    gpt_bigcode: "gpt-bigcode",
    gpt_neo: "gpt-neo",
    gpt_neox: "gpt-neox",
    gpt_oss: "gpt-oss",
    gpt2: "gpt2",
    gpt2_scale: "gpt2-scale",
    gptj_full: "gptj-full",
    gptj_interleaved: "gptj-interleaved",
    granite: "granite",
    granite_bias: "granite-bias",
    granitemoe: "granitemoe",
    helium: "helium",
    hunyuan_dense: "hunyuan-dense",
    jais2: "jais2",
    llama: "llama",
    llama_dynamic: "llama-dynamic",
    llama_head_dim: "llama-head-dim",
    llama_linear: "llama-linear",
    llama_longrope: "llama-longrope",
    llama_mqa: "llama-mqa",
    llama_v4_config: "llama-v4-config",
    llama_yarn: "llama-yarn",
    llama3: "llama3",
    llama4_irope: "llama4-irope",
    llama4_moe_all: "llama4-moe-all",
    minimax_m2: "minimax-m2",
    ministral3: "ministral3",
    mistral_mqa: "mistral-mqa",
    mistral_window: "mistral-window",
    mixtral: "mixtral",
    modernbert: "modernbert",
    mpt: "mpt",
    mpt_6: "mpt-6",
    nemotron: "nemotron",
    neox_seq: "neox-seq",
    olmo_clip: "olmo-clip",
    olmo2: "olmo2",
    olmo2_mha: "olmo2-mha",
    olmo3_yarn: "olmo3-yarn",
    olmoe: "olmoe",
    opt: "opt",
    pegasus: "pegasus",
    persimmon: "persimmon",
    phi: "phi",
    phi_qk: "phi-qk",
    phi3_longrope: "phi3-longrope",
    phi3_window: "phi3-window",
    phimoe_longrope: "phimoe-longrope",
    qwen2: "qwen2",
    qwen2_moe: "qwen2-moe",
    qwen2_window: "qwen2-window",
    qwen2_yarn: "qwen2-yarn",
    qwen3: "qwen3",
    qwen3_moe_yarn: "qwen3-moe-yarn",
    roberta: "roberta",
    roformer: "roformer",
    seed_oss: "seed-oss",
    smollm3_nope: "smollm3-nope",
    smollm3_win: "smollm3-win",
    stablelm: "stablelm",
    stablelm_qk: "stablelm-qk",
    starcoder2: "starcoder2",
    t5: "t5",
    t5_plain: "t5-plain",
    vaultgemma: "vaultgemma",
    xglm: "xglm",
}
