//! Phi 1 to 4.

use super::{
    entry::{Arch, Key, Reader},
    llama::{ENDS, INNER, LAYER_NORM, LLAMA, NORMS, QK, RMS, SIZES},
};
use crate::{
    error::Result,
    gguf::names::{How, Name, Part, layer, top},
};

const PHI2_NAMES: [Name; 11] = [
    top("token_embd", "model.embed_tokens"),
    top("output_norm", "model.final_layernorm"),
    top("output", "lm_head"),
    layer("attn_norm", "input_layernorm"),
    // Older files have them in one.
    layer("attn_qkv", "self_attn.q_proj").how(How::Fused(Part::Q)),
    layer("attn_qkv", "self_attn.k_proj").how(How::Fused(Part::K)),
    layer("attn_qkv", "self_attn.v_proj").how(How::Fused(Part::V)),
    layer("attn_v", "self_attn.v_proj"),
    layer("attn_output", "self_attn.dense"),
    layer("ffn_up", "mlp.fc1"),
    layer("ffn_down", "mlp.fc2"),
];

const PHI3_NAMES: [Name; 4] = [
    layer("attn_qkv", "self_attn.qkv_proj"),
    layer("attn_output", "self_attn.o_proj"),
    layer("ffn_up", "mlp.gate_up_proj"),
    layer("ffn_down", "mlp.down_proj"),
];

pub(super) const ARCHS: [Arch; 2] = [
    Arch { name: "phi2", model_type: "phi", keys: &[&SIZES, &INNER, &LAYER_NORM], names: &[&PHI2_NAMES, &QK], ..LLAMA },
    Arch {
        name: "phi3",
        model_type: "phi3",
        keys: &[&SIZES, &INNER, &[Key::head_dim("head_dim")], &RMS],
        more: phi3,
        names: &[&ENDS, &NORMS, &PHI3_NAMES],
        ..LLAMA
    },
];

/// The original context at the top, which is where its code looks.
fn phi3(r: &mut Reader) -> Result<()> {
    let window = r.window()?;
    r.set("sliding_window", window);
    let original = r.meta.u64("rope.scaling.original_context_length")?.unwrap_or(r.dims.context);
    r.set("original_max_position_embeddings", original);
    Ok(())
}
