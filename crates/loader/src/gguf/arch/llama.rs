//! Llama and its dense relatives.

use super::entry::{Arch, Key, Reader};
use crate::{
    error::Result,
    gguf::{
        held::{Held, Join},
        names::{How, Name, layer, top},
        parse::Value,
    },
};
use serde_json::json;
use std::collections::BTreeMap;

/// The embedding, the last norm and the head.
pub(super) const ENDS: [Name; 3] =
    [top("token_embd", "model.embed_tokens"), top("output_norm", "model.norm"), top("output", "lm_head")];
/// Queries and keys as they were.
pub(super) const QK: [Name; 2] = [layer("attn_q", "self_attn.q_proj"), layer("attn_k", "self_attn.k_proj")];
/// Queries and keys in the order of Meta's rotary layout.
pub(super) const ROTARY_QK: [Name; 2] =
    [layer("attn_q", "self_attn.q_proj").how(How::RotaryQ), layer("attn_k", "self_attn.k_proj").how(How::RotaryK)];
/// Values and output.
pub(super) const VO: [Name; 2] = [layer("attn_v", "self_attn.v_proj"), layer("attn_output", "self_attn.o_proj")];
/// Norms on query and key heads.
pub(super) const QK_NORMS: [Name; 2] =
    [layer("attn_q_norm", "self_attn.q_norm"), layer("attn_k_norm", "self_attn.k_norm")];
/// A norm before each branch.
pub(super) const NORMS: [Name; 2] =
    [layer("attn_norm", "input_layernorm"), layer("ffn_norm", "post_attention_layernorm")];
/// A norm after each branch.
pub(super) const POST_NORMS: [Name; 2] =
    [layer("post_attention_norm", "post_attention_layernorm"), layer("post_ffw_norm", "post_feedforward_layernorm")];
/// The norm before attention, and that before the feed-forward network under the name of one after attention.
pub(super) const LATE_NORMS: [Name; 2] =
    [layer("attn_norm", "input_layernorm"), layer("post_attention_norm", "post_attention_layernorm")];
/// The feed-forward network.
pub(super) const MLP: [Name; 3] =
    [layer("ffn_gate", "mlp.gate_proj"), layer("ffn_up", "mlp.up_proj"), layer("ffn_down", "mlp.down_proj")];
/// One without a gate.
pub(super) const PLAIN_MLP: [Name; 2] = [layer("ffn_up", "mlp.up_proj"), layer("ffn_down", "mlp.down_proj")];

/// What every decoder says.
pub(super) const SIZES: [Key; 5] = [
    Key::size("embedding_length", "hidden_size"),
    Key::size("context_length", "max_position_embeddings"),
    Key::layers("num_hidden_layers"),
    Key::heads("num_attention_heads"),
    Key::kv_heads("num_key_value_heads"),
];
pub(super) const INNER: [Key; 1] = [Key::inner("intermediate_size")];
pub(super) const HEAD_DIM: [Key; 1] = [Key::head_dim("head_dim")];
pub(super) const RMS: [Key; 1] = [Key::number("attention.layer_norm_rms_epsilon", "rms_norm_eps")];
pub(super) const LAYER_NORM: [Key; 1] = [Key::number("attention.layer_norm_epsilon", "layer_norm_eps")];

/// What the relatives change.
pub(super) const LLAMA: Arch = Arch {
    name: "llama",
    marked_by: None,
    model_type: "llama",
    layers: "model.layers.*.",
    keys: &[&SIZES, &INNER, &HEAD_DIM, &RMS],
    flags: &[],
    theta: Some(1e4),
    latent: false,
    more: nothing,
    names: &[&ENDS, &NORMS, &ROTARY_QK, &VO, &MLP],
};

pub(super) fn nothing(_: &mut Reader) -> Result<()> {
    Ok(())
}

/// Biases that a config tells of.
pub(super) const BIAS: [(&str, &str); 1] = [("attn_q.bias", "attention_bias")];
const BIASES: [(&str, &str); 2] = [BIAS[0], ("ffn_up.bias", "mlp_bias")];

/// Mixtral, which llama.cpp calls a Llama with experts.
pub(super) const MIXTRAL: [Name; 4] = [
    layer("ffn_gate_inp", "block_sparse_moe.gate"),
    layer("ffn_gate_exps", "block_sparse_moe.experts.#.w1").how(How::Stacked),
    layer("ffn_down_exps", "block_sparse_moe.experts.#.w2").how(How::Stacked),
    layer("ffn_up_exps", "block_sparse_moe.experts.#.w3").how(How::Stacked),
];

/// Its experts in the first files there were.
const MIXTRAL_APART: [Name; 3] = [
    layer("ffn_gate.#", "block_sparse_moe.experts.#.w1"),
    layer("ffn_down.#", "block_sparse_moe.experts.#.w2"),
    layer("ffn_up.#", "block_sparse_moe.experts.#.w3"),
];

const COHERE_NAMES: [Name; 1] = [layer("attn_norm", "input_layernorm")];
const COHERE_KEYS: [Key; 1] = [Key::number("logit_scale", "logit_scale")];

pub(super) const GRANITE_KEYS: [Key; 4] = [
    Key::number("attention.scale", "attention_multiplier").optional(),
    Key::number("embedding_scale", "embedding_multiplier").optional(),
    Key::number("residual_scale", "residual_multiplier").optional(),
    Key::number("logit_scale", "logits_scaling").optional(),
];

/// The sizes of a mixture whose experts are as wide as the dense network would be.
pub(super) const LOCAL: [Key; 2] =
    [Key::size("expert_count", "num_local_experts"), Key::size("expert_used_count", "num_experts_per_tok")];

pub(super) const ARCHS: [Arch; 20] = [
    Arch {
        marked_by: Some("ffn_gate_inp.weight"),
        model_type: "mixtral",
        keys: &[&SIZES, &INNER, &HEAD_DIM, &RMS, &LOCAL],
        more: mixtral,
        names: &[&ENDS, &NORMS, &ROTARY_QK, &VO, &MIXTRAL, &MIXTRAL_APART],
        ..LLAMA
    },
    Arch { flags: &BIASES, ..LLAMA },
    Arch { name: "mistral3", model_type: "ministral3", more: mistral3, ..LLAMA },
    Arch {
        name: "arcee",
        model_type: "arcee",
        flags: &BIASES,
        more: relu2,
        names: &[&ENDS, &NORMS, &ROTARY_QK, &VO, &PLAIN_MLP],
        ..LLAMA
    },
    Arch {
        name: "jais2",
        model_type: "jais2",
        keys: &[&SIZES, &INNER, &HEAD_DIM, &LAYER_NORM],
        flags: &BIASES,
        more: relu2,
        names: &[&ENDS, &NORMS, &QK, &VO, &PLAIN_MLP],
        ..LLAMA
    },
    Arch { name: "smollm3", model_type: "smollm3", flags: &BIASES, theta: Some(2e6), more: smollm3, ..LLAMA },
    Arch {
        name: "granite",
        model_type: "granite",
        keys: &[&SIZES, &INNER, &HEAD_DIM, &RMS, &GRANITE_KEYS],
        flags: &BIASES,
        more: granite,
        ..LLAMA
    },
    Arch {
        name: "apertus",
        model_type: "apertus",
        flags: &BIAS,
        more: xielu,
        names: &[&ENDS, &APERTUS_NORMS, &QK, &QK_NORMS, &VO, &PLAIN_MLP],
        ..LLAMA
    },
    Arch {
        name: "nemotron",
        model_type: "nemotron",
        keys: &[&SIZES, &INNER, &HEAD_DIM, &[Key::number("attention.layer_norm_epsilon", "norm_eps")]],
        flags: &BIASES,
        more: nemotron,
        names: &[&NEMOTRON_NAMES, &QK, &VO, &PLAIN_MLP],
        ..LLAMA
    },
    Arch {
        name: "seed_oss",
        model_type: "seed_oss",
        flags: &[("attn_q.bias", "attention_bias"), ("attn_output.bias", "attention_out_bias"), BIASES[1]],
        theta: Some(1e7),
        names: &[&ENDS, &LATE_NORMS, &QK, &VO, &MLP],
        ..LLAMA
    },
    Arch {
        name: "ernie4_5",
        model_type: "ernie4_5",
        flags: &[("attn_q.bias", "use_bias")],
        theta: Some(5e5),
        names: &[&ENDS, &NORMS, &QK, &VO, &MLP],
        ..LLAMA
    },
    Arch {
        name: "exaone4",
        model_type: "exaone4",
        theta: Some(1e6),
        more: exaone4,
        names: &[&ENDS, &POST_NORMS, &QK, &QK_NORMS, &VO, &MLP],
        ..LLAMA
    },
    Arch {
        name: "hunyuan-dense",
        model_type: "hunyuan_v1_dense",
        flags: &BIAS,
        more: hunyuan,
        names: &[&ENDS, &NORMS, &QK, &HUNYUAN_NORMS, &VO, &MLP],
        ..LLAMA
    },
    Arch {
        name: "helium",
        model_type: "helium",
        flags: &BIASES,
        theta: Some(1e5),
        names: &[&ENDS, &NORMS, &QK, &VO, &MLP],
        ..LLAMA
    },
    Arch {
        name: "stablelm",
        model_type: "stablelm",
        keys: &[&SIZES, &INNER, &LAYER_NORM, &[Key::flag("use_parallel_residual", "use_parallel_residual").optional()]],
        flags: &[("attn_q.bias", "use_qkv_bias"), ("attn_q_norm.weight", "qk_layernorm")],
        names: &[&ENDS, &NORMS, &QK, &STABLELM_NORMS, &VO, &MLP],
        ..LLAMA
    },
    Arch {
        name: "starcoder2",
        model_type: "starcoder2",
        keys: &[&SIZES, &INNER, &[Key::number("attention.layer_norm_epsilon", "norm_epsilon")]],
        flags: &[("attn_q.bias", "use_bias")],
        more: starcoder2,
        names: &[&ENDS, &NORMS, &QK, &VO, &[layer("ffn_up", "mlp.c_fc"), layer("ffn_down", "mlp.c_proj")]],
        ..LLAMA
    },
    Arch {
        name: "command-r",
        model_type: "cohere",
        keys: &[&SIZES, &INNER, &LAYER_NORM, &COHERE_KEYS],
        flags: &[("attn_q.bias", "attention_bias"), ("attn_q_norm.weight", "use_qk_norm")],
        names: &[&ENDS, &COHERE_NAMES, &QK, &QK_NORMS, &VO, &MLP],
        ..LLAMA
    },
    Arch {
        name: "cohere2",
        model_type: "cohere2",
        keys: &[&SIZES, &INNER, &HEAD_DIM, &LAYER_NORM, &COHERE_KEYS],
        more: cohere2,
        names: &[&ENDS, &COHERE_NAMES, &QK, &VO, &MLP],
        ..LLAMA
    },
    Arch {
        name: "llama4",
        model_type: "llama4_text",
        keys: &[&SIZES, &HEAD_DIM, &RMS, &LLAMA4_KEYS],
        flags: &BIAS,
        theta: Some(5e5),
        more: llama4,
        names: &[&ENDS, &NORMS, &QK, &VO, &LLAMA4_NAMES],
        ..LLAMA
    },
    Arch {
        name: "gpt-oss",
        model_type: "gpt_oss",
        keys: &[&SIZES, &HEAD_DIM, &RMS, &GPT_OSS_KEYS],
        theta: Some(15e4),
        more: gpt_oss,
        names: &[&ENDS, &LATE_NORMS, &QK, &VO, &GPT_OSS_NAMES],
        ..LLAMA
    },
];

fn mixtral(r: &mut Reader) -> Result<()> {
    r.set("sliding_window", serde_json::Value::Null);
    Ok(())
}

/// Mistral 3 proper is a Mistral; Ministral 3's queries grow with the position.
fn mistral3(r: &mut Reader) -> Result<()> {
    match r.meta.f64("attention.temperature_scale")?.filter(|&beta| beta != 0.0) {
        Some(beta) => r.set_rope("llama_4_scaling_beta", beta),
        None => r.set("model_type", "mistral"),
    }
    r.set("sliding_window", serde_json::Value::Null);
    Ok(())
}

fn relu2(r: &mut Reader) -> Result<()> {
    r.set("hidden_act", "relu2");
    Ok(())
}

/// Every fourth layer has no position encoding; the file does not say so, and llama.cpp takes it for granted.
fn smollm3(r: &mut Reader) -> Result<()> {
    r.set("no_rope_layer_interval", 4);
    Ok(())
}

/// Granite's converter says with `rope.scaling.finetuned` whether there is a rotary encoding.
pub(super) fn granite(r: &mut Reader) -> Result<()> {
    match r.meta.bool("rope.scaling.finetuned")? {
        Some(false) => {
            Err(r.meta.error("rope.scaling.finetuned", "a Granite without rotary encoding is not supported"))
        }
        _ => Ok(()),
    }
}

const APERTUS_NORMS: [Name; 2] =
    [layer("attn_norm", "attention_layernorm"), layer("ffn_norm", "feedforward_layernorm")];

/// The parameters of its activation, which are tensors in the original.
fn xielu(r: &mut Reader) -> Result<()> {
    r.set("hidden_act", "xielu");
    for key in XIELU {
        per_layer(r, key)?;
    }
    Ok(())
}

const XIELU: [&str; 4] = ["alpha_n", "alpha_p", "beta", "eps"];

fn per_layer(r: &Reader, key: &str) -> Result<Vec<f32>> {
    let (key, layers) = (format!("xielu.{key}"), r.dims.layers as usize);
    match r.meta.global(&key) {
        Some(Value::Floats(values)) if values.len() == layers => Ok(values.clone()),
        Some(&Value::Float(value)) => Ok(vec![value as f32; layers]),
        _ => Err(r.meta.global_error(&key, format!("expected {layers} numbers"))),
    }
}

/// Tensors of the original that the file keeps as metadata.
pub(in crate::gguf) fn from_metadata(r: &Reader) -> Result<BTreeMap<String, Held>> {
    let mut tensors = BTreeMap::new();
    if r.config.get("model_type").is_some_and(|kind| kind == "apertus") {
        for key in XIELU {
            let shape = if key.starts_with("alpha") { vec![1] } else { vec![] };
            for (i, value) in per_layer(r, key)?.into_iter().enumerate() {
                let name = format!("model.layers.{i}.mlp.act_fn.{key}");
                tensors.insert(name, Held::Numbers(vec![value], shape.clone()));
            }
        }
    }
    Ok(tensors)
}

/// Norms whose weights are stored minus one in the original.
const NEMOTRON_NAMES: [Name; 5] = [
    top("token_embd", "model.embed_tokens"),
    top("output_norm", "model.norm").how(How::PlusOne),
    top("output", "lm_head"),
    layer("attn_norm", "input_layernorm").how(How::PlusOne),
    layer("ffn_norm", "post_attention_layernorm").how(How::PlusOne),
];

fn nemotron(r: &mut Reader) -> Result<()> {
    r.meta.get("attention.layer_norm_rms_epsilon"); // written beside the other, of the same value
    relu2(r)
}

/// Only the 32B slides, and there the layers without a window have no position encoding.
fn exaone4(r: &mut Reader) -> Result<()> {
    let window = r.window()?;
    r.set("sliding_window", window);
    r.layer_types(window, 4)?;
    Ok(())
}

const HUNYUAN_NORMS: [Name; 2] =
    [layer("attn_q_norm", "self_attn.query_layernorm"), layer("attn_k_norm", "self_attn.key_layernorm")];

/// NTK-aware scaling by a given alpha at every length.
fn hunyuan(r: &mut Reader) -> Result<()> {
    if let Some(alpha) = r.meta.f64("rope.scaling.alpha")?.filter(|&alpha| alpha > 0.0) {
        let theta = r.config["rope_parameters"]["rope_theta"].clone();
        r.set("rope_parameters", json!({"rope_type": "dynamic", "alpha": alpha, "factor": 1.0, "rope_theta": theta}));
    }
    Ok(())
}

const STABLELM_NORMS: [Name; 2] = [
    layer("attn_q_norm", "self_attn.q_layernorm.norms.#").how(How::Stacked),
    layer("attn_k_norm", "self_attn.k_layernorm.norms.#").how(How::Stacked),
];

/// The window of every published size, which no file records.
const STARCODER2_WINDOW: u64 = 4096;

fn starcoder2(r: &mut Reader) -> Result<()> {
    r.set("hidden_act", "gelu_pytorch_tanh");
    let stated = r.window()?;
    r.set("sliding_window", stated.unwrap_or(STARCODER2_WINDOW));
    if stated.is_none() && r.dims.context > STARCODER2_WINDOW {
        r.warnings.push(format!(
            "the file does not record StarCoder 2's attention window; that of the published models, {STARCODER2_WINDOW}, \
             is taken"
        ));
    }
    Ok(())
}

fn cohere2(r: &mut Reader) -> Result<()> {
    let window = r.window()?;
    r.set("sliding_window", window);
    r.layer_types(window, 4)
}

const LLAMA4_KEYS: [Key; 5] = [
    Key::size("expert_count", "num_local_experts"),
    Key::size("expert_used_count", "num_experts_per_tok"),
    Key::size("expert_feed_forward_length", "intermediate_size"),
    Key::size("feed_forward_length", "intermediate_size_mlp"),
    Key::size("interleave_moe_layer_step", "interleave_moe_layer_step"),
];

const LLAMA4_NAMES: [Name; 9] = [
    layer("ffn_gate", "feed_forward.gate_proj"),
    layer("ffn_up", "feed_forward.up_proj"),
    layer("ffn_down", "feed_forward.down_proj"),
    layer("ffn_gate_inp", "feed_forward.router"),
    layer("ffn_gate_exps.weight", "feed_forward.experts.gate_up_proj")
        .how(How::Joined(Join::Columns, "ffn_up_exps.weight"))
        .exact(),
    layer("ffn_down_exps.weight", "feed_forward.experts.down_proj").how(How::Joined(Join::Turned, "")).exact(),
    layer("ffn_gate_shexp", "feed_forward.shared_expert.gate_proj"),
    layer("ffn_up_shexp", "feed_forward.shared_expert.up_proj"),
    layer("ffn_down_shexp", "feed_forward.shared_expert.down_proj"),
];

/// Chunks, layers without positions and the temperature there are not recorded: llama.cpp has those of the published
/// models built in.
fn llama4(r: &mut Reader) -> Result<()> {
    /// Of the published models only Maverick, with this many experts, has no norms on queries and keys.
    const WITHOUT_QK_NORM: u64 = 128;
    let layers = r.dims.layers as usize;
    let chunked = r.meta.u64("attention.sliding_window")? != Some(0);
    let experts = r.meta.uniform_u64("expert_count")?;
    r.set("use_qk_norm", experts != Some(WITHOUT_QK_NORM));
    if chunked {
        r.set("attention_chunk_size", 8192);
        r.set("floor_scale", 8192);
        r.set("attn_scale", 0.1);
        r.set("no_rope_layer_interval", 4);
    } else {
        r.set("layer_types", vec!["full_attention"; layers]);
        r.set("no_rope_layers", vec![1; layers]);
    }
    Ok(())
}

const GPT_OSS_KEYS: [Key; 3] = [
    Key::size("expert_count", "num_local_experts"),
    Key::size("expert_used_count", "num_experts_per_tok"),
    Key::size("expert_feed_forward_length", "intermediate_size"),
];

const GPT_OSS_NAMES: [Name; 6] = [
    layer("attn_sinks.weight", "self_attn.sinks").exact(),
    layer("ffn_gate_inp", "mlp.router"),
    layer("ffn_gate_exps.weight", "mlp.experts.gate_up_proj")
        .how(How::Joined(Join::ColumnsInTurn, "ffn_up_exps.weight"))
        .exact(),
    layer("ffn_gate_exps.bias", "mlp.experts.gate_up_proj_bias")
        .how(How::Joined(Join::BiasesInTurn, "ffn_up_exps.bias"))
        .exact(),
    layer("ffn_down_exps.weight", "mlp.experts.down_proj").how(How::Joined(Join::Turned, "")).exact(),
    layer("ffn_down_exps.bias", "mlp.experts.down_proj_bias").exact(),
];

/// YaRN over boundaries that are not rounded, which no file records; every other layer slides.
fn gpt_oss(r: &mut Reader) -> Result<()> {
    r.meta.get("feed_forward_length");
    r.only("expert_gating_func", &[0, 1, 3], "gpt-oss takes the softmax of the chosen experts")?;
    if r.config["rope_parameters"]["rope_type"] == "yarn" {
        r.set_rope("truncate", false);
    }
    let window = r.window()?;
    r.set("sliding_window", window);
    r.layer_types(window, 2)
}
