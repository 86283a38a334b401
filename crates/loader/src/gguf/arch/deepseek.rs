//! DeepSeek 2 and 3: llama.cpp keeps keys and values as one latent and splits what unpacks it in two.

use super::{
    entry::{Arch, Key, Reader},
    llama::{ENDS, INNER, LLAMA, MLP, NORMS, RMS, SIZES},
    moe::{CORRECTION, EXPERTS, MIXTURE, SHARED, gating, mixture},
};
use crate::{
    error::Result,
    gguf::{
        held::Join,
        names::{How, Name, layer},
    },
};

const NAMES: [Name; 9] = [
    layer("attn_q", "self_attn.q_proj"),
    layer("attn_q_a", "self_attn.q_a_proj"),
    layer("attn_q_a_norm", "self_attn.q_a_layernorm"),
    layer("attn_q_b", "self_attn.q_b_proj"),
    layer("attn_kv_a_mqa", "self_attn.kv_a_proj_with_mqa"),
    layer("attn_kv_a_norm", "self_attn.kv_a_layernorm"),
    layer("attn_kv_b", "self_attn.kv_b_proj"),
    layer("attn_k_b", "self_attn.kv_b_proj").how(How::Joined(Join::LatentKv, "attn_v_b")),
    layer("attn_output", "self_attn.o_proj"),
];

const V2: Arch = Arch {
    name: "deepseek2",
    model_type: "deepseek_v2",
    keys: &[
        &SIZES,
        &INNER,
        &RMS,
        &MIXTURE,
        &[Key::size("attention.kv_lora_rank", "kv_lora_rank"), Key::size("rope.dimension_count", "qk_rope_head_dim")],
    ],
    theta: None,
    latent: true,
    more: v2,
    names: &[&ENDS, &NORMS, &NAMES, &MLP, &EXPERTS, &SHARED],
    ..LLAMA
};

pub(super) const ARCHS: [Arch; 2] = [
    Arch {
        marked_by: Some("exp_probs_b.bias"),
        model_type: "deepseek_v3",
        more: v3,
        names: &[&ENDS, &NORMS, &NAMES, &MLP, &EXPERTS, &SHARED, &CORRECTION],
        ..V2
    },
    V2,
];

fn both(r: &mut Reader) -> Result<()> {
    let (heads, rotary) = (r.dims.heads, r.dims.rotary);
    r.set("num_key_value_heads", heads);
    // Files from before the latent was kept have the widths of heads under the plain names.
    let width = |mla: &str, plain: &str| -> Result<u64> {
        let width = r.meta.u64(mla)?.or(r.meta.u64(plain)?);
        width.ok_or_else(|| r.meta.error(mla, "is missing"))
    };
    let key = width("attention.key_length_mla", "attention.key_length")?;
    let value = width("attention.value_length_mla", "attention.value_length")?;
    let nope = key.checked_sub(rotary).filter(|&n| n > 0);
    let nope = nope.ok_or_else(|| r.meta.error("rope.dimension_count", format!("{rotary} of a key's {key}")))?;
    r.set("qk_nope_head_dim", nope);
    r.set("v_head_dim", value);
    let rank = r.meta.u64("attention.q_lora_rank")?.filter(|&rank| rank > 0);
    r.set("q_lora_rank", rank);
    let rope = r.rope((rotary, rotary), 1e4)?;
    r.set("rope_parameters", rope);
    mixture(r)
}

fn v2(r: &mut Reader) -> Result<()> {
    gating(r, &[0, 1], "DeepSeek V2 routes by a softmax")?;
    let groups = r.meta.u64("expert_group_count")?.is_some_and(|n| n > 1);
    r.set("topk_method", if groups { "group_limited_greedy" } else { "greedy" });
    both(r)
}

fn v3(r: &mut Reader) -> Result<()> {
    gating(r, &[0, 2], "DeepSeek V3 routes by sigmoids")?;
    both(r)
}
