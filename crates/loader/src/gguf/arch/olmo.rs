//! OLMo 1 to 3 and OLMoE.

use super::{
    entry::{Arch, Key, Reader},
    llama::{ENDS, INNER, LLAMA, MLP, NORMS, POST_NORMS, QK, QK_NORMS, RMS, ROTARY_QK, SIZES, VO},
    moe::EXPERTS,
};
use crate::error::Result;

const BIAS: [(&str, &str); 1] = [("attn_q.bias", "attention_bias")];

pub(super) const ARCHS: [Arch; 3] = [
    // Its norms have no weights and a fixed epsilon.
    Arch {
        name: "olmo",
        model_type: "olmo",
        keys: &[&SIZES, &INNER],
        flags: &BIAS,
        more: olmo,
        names: &[&ENDS, &ROTARY_QK, &VO, &MLP],
        ..LLAMA
    },
    Arch {
        name: "olmo2",
        model_type: "olmo2",
        keys: &[&SIZES, &INNER, &RMS],
        flags: &BIAS,
        more: olmo2,
        names: &[&ENDS, &POST_NORMS, &QK, &QK_NORMS, &VO, &MLP],
        ..LLAMA
    },
    Arch {
        name: "olmoe",
        model_type: "olmoe",
        keys: &[
            &SIZES,
            &INNER,
            &RMS,
            &[Key::size("expert_count", "num_experts"), Key::size("expert_used_count", "num_experts_per_tok")],
        ],
        flags: &BIAS,
        more: olmoe,
        names: &[&ENDS, &NORMS, &QK, &QK_NORMS, &VO, &EXPERTS],
        ..LLAMA
    },
];

fn olmo(r: &mut Reader) -> Result<()> {
    const EPS: f64 = 1e-5;
    let eps = r.meta.f64("attention.layer_norm_epsilon")?.unwrap_or(EPS);
    if eps != EPS {
        return Err(r.meta.error("attention.layer_norm_epsilon", format!("{eps}, but OLMo's is {EPS}")));
    }
    let clip = r.meta.f64("attention.clamp_kqv")?.filter(|&clip| clip > 0.0);
    r.set("clip_qkv", clip);
    Ok(())
}

/// OLMo 3 is an OLMo 2 with windows, and with scaling only where there is none.
fn olmo2(r: &mut Reader) -> Result<()> {
    let Some(window) = r.window()? else { return Ok(()) };
    r.set("model_type", "olmo3");
    r.set("sliding_window", window);
    r.layer_types(Some(window), 4)?;
    let full = r.config["rope_parameters"].clone();
    let theta = r.meta.f64("rope.freq_base_swa")?.map_or_else(|| full["rope_theta"].clone(), Into::into);
    let sliding = serde_json::json!({"rope_type": "default", "rope_theta": theta});
    r.set("rope_parameters", serde_json::json!({"full_attention": full, "sliding_attention": sliding}));
    Ok(())
}

fn olmoe(r: &mut Reader) -> Result<()> {
    r.size_or_width("expert_feed_forward_length", "intermediate_size", "ffn_gate_exps.weight", 1)?;
    r.set("norm_topk_prob", false);
    Ok(())
}
