//! Qwen 2 and 3, dense and with experts. What Qwen 2 has biases on is part of the family and in no config.

use super::{
    entry::{Arch, Key, Reader},
    llama::{ENDS, HEAD_DIM, INNER, LLAMA, MLP, NORMS, QK, QK_NORMS, RMS, SIZES, VO},
    moe::EXPERTS,
};
use crate::{
    error::Result,
    gguf::names::{Name, layer},
};
use serde_json::json;

const QWEN: Arch = Arch { keys: &[&SIZES, &INNER, &RMS], names: &[&ENDS, &NORMS, &QK, &VO, &MLP], ..LLAMA };

/// The expert that every token passes through, and its gate.
const SHARED: [Name; 4] = [
    layer("ffn_gate_shexp", "mlp.shared_expert.gate_proj"),
    layer("ffn_up_shexp", "mlp.shared_expert.up_proj"),
    layer("ffn_down_shexp", "mlp.shared_expert.down_proj"),
    layer("ffn_gate_inp_shexp", "mlp.shared_expert_gate"),
];

pub(super) const ARCHS: [Arch; 4] = [
    Arch { name: "qwen2", model_type: "qwen2", ..QWEN },
    Arch {
        name: "qwen3",
        model_type: "qwen3",
        keys: &[&SIZES, &INNER, &HEAD_DIM, &RMS],
        flags: &[("attn_q.bias", "attention_bias")],
        theta: Some(1e6),
        names: &[&ENDS, &NORMS, &QK, &QK_NORMS, &VO, &MLP],
        ..QWEN
    },
    Arch {
        name: "qwen2moe",
        model_type: "qwen2_moe",
        keys: &[&SIZES, &INNER, &RMS, &[Key::size("expert_count", "num_experts"), USED]],
        more: qwen2moe,
        names: &[&ENDS, &NORMS, &QK, &VO, &EXPERTS, &SHARED],
        ..QWEN
    },
    Arch {
        name: "qwen3moe",
        model_type: "qwen3_moe",
        keys: &[&SIZES, &INNER, &HEAD_DIM, &RMS, &[Key::size("expert_count", "num_local_experts"), USED]],
        flags: &[("attn_q.bias", "attention_bias")],
        theta: Some(1e6),
        more: qwen3moe,
        names: &[&ENDS, &NORMS, &QK, &QK_NORMS, &VO, &EXPERTS],
        ..QWEN
    },
];

const USED: Key = Key::size("expert_used_count", "num_experts_per_tok");

/// llama.cpp normalises the weights of the chosen experts in Qwen 3 and not in Qwen 2, as the published configs do.
fn experts(r: &mut Reader, norm: bool) -> Result<()> {
    r.size_or_width("expert_feed_forward_length", "moe_intermediate_size", "ffn_gate_exps.weight", 1)?;
    r.set("norm_topk_prob", norm);
    r.set("decoder_sparse_step", 1);
    r.set("mlp_only_layers", json!([]));
    Ok(())
}

fn qwen2moe(r: &mut Reader) -> Result<()> {
    let (key, hf) = ("expert_shared_feed_forward_length", "shared_expert_intermediate_size");
    r.size_or_width(key, hf, "ffn_gate_shexp.weight", 0)?;
    experts(r, false)
}

fn qwen3moe(r: &mut Reader) -> Result<()> {
    experts(r, true)
}
