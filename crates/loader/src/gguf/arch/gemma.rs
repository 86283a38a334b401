//! Gemma 1 to 3: the converter adds one to the weights of all norms. None has an output projection of its own.

use super::{
    entry::{Arch, Reader},
    llama::{HEAD_DIM, INNER, LLAMA, MLP, QK, RMS, SIZES, VO},
};
use crate::{
    error::Result,
    gguf::names::{How, Name, layer, top},
};
use serde_json::{Value as Json, json};

const ENDS: [Name; 3] = [
    top("token_embd", "model.embed_tokens"),
    top("output_norm", "model.norm").how(How::PlusOne),
    top("output", "lm_head"),
];

const NORMS: [Name; 2] = [
    layer("attn_norm", "input_layernorm").how(How::PlusOne),
    layer("ffn_norm", "post_attention_layernorm").how(How::PlusOne),
];

/// A norm before and one after each branch.
const SANDWICH: [Name; 4] = [
    layer("attn_norm", "input_layernorm").how(How::PlusOne),
    layer("post_attention_norm", "post_attention_layernorm").how(How::PlusOne),
    layer("ffn_norm", "pre_feedforward_layernorm").how(How::PlusOne),
    layer("post_ffw_norm", "post_feedforward_layernorm").how(How::PlusOne),
];

const QK_NORMS: [Name; 2] = [
    layer("attn_q_norm", "self_attn.q_norm").how(How::PlusOne),
    layer("attn_k_norm", "self_attn.k_norm").how(How::PlusOne),
];

const GEMMA: Arch = Arch { keys: &[&SIZES, &INNER, &HEAD_DIM, &RMS], more: gemma, ..LLAMA };

pub(super) const ARCHS: [Arch; 3] = [
    Arch { name: "gemma", model_type: "gemma", names: &[&ENDS, &NORMS, &QK, &VO, &MLP], ..GEMMA },
    Arch { name: "gemma2", model_type: "gemma2", more: gemma2, names: &[&ENDS, &SANDWICH, &QK, &VO, &MLP], ..GEMMA },
    Arch {
        name: "gemma3",
        model_type: "gemma3_text",
        theta: Some(1e6),
        more: gemma3,
        names: &[&ENDS, &SANDWICH, &QK, &QK_NORMS, &VO, &MLP],
        ..GEMMA
    },
];

fn gemma(r: &mut Reader) -> Result<()> {
    r.set("hidden_activation", "gelu_pytorch_tanh");
    Ok(())
}

/// Only the largest of each generation, told by its layers, scales scores by the width per head instead of the head's own.
fn scores(r: &mut Reader, largest: u64) {
    let d = r.dims;
    let hidden = r.config.get("hidden_size").and_then(Json::as_u64).unwrap_or(0);
    r.set("query_pre_attn_scalar", if d.layers == largest { hidden / d.heads } else { d.head_dim });
}

fn caps(r: &mut Reader) -> Result<()> {
    for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
        let cap = r.meta.f64(key)?.filter(|&cap| cap > 0.0);
        r.set(key, cap);
    }
    Ok(())
}

fn gemma2(r: &mut Reader) -> Result<()> {
    gemma(r)?;
    scores(r, 46);
    caps(r)?;
    let window = r.window()?.unwrap_or(4096);
    r.set("sliding_window", window);
    r.layer_types(Some(window), 2)
}

/// Five windowed layers to one global, each kind with its own theta; scaling is for the global ones only.
fn gemma3(r: &mut Reader) -> Result<()> {
    gemma(r)?;
    scores(r, 62);
    caps(r)?;
    let window = r.window()?;
    r.set("sliding_window", window);
    r.layer_types(window, 6)?;
    let local = r.meta.f64("rope.freq_base_swa")?.unwrap_or(1e4);
    let local = json!({"rope_type": "default", "rope_theta": local});
    let global = r.config["rope_parameters"].clone();
    r.set("rope_parameters", json!({"full_attention": global, "sliding_attention": local}));
    Ok(())
}
