//! GLM: half of each head rotates, gate and up are one tensor.

use super::{
    entry::{Arch, Reader},
    llama::{ENDS, HEAD_DIM, INNER, LATE_NORMS, LLAMA, MLP, NORMS, QK, QK_NORMS, RMS, SIZES, VO},
    moe::{CORRECTION, EXPERTS, MIXTURE, SHARED, gating, mixture},
};
use crate::{
    error::Result,
    gguf::names::{Name, layer},
};

const FUSED_MLP: [Name; 2] = [layer("ffn_up", "mlp.gate_up_proj"), layer("ffn_down", "mlp.down_proj")];

const GLM4_NORMS: [Name; 4] = [
    layer("attn_norm", "input_layernorm"),
    layer("post_attention_norm", "post_self_attn_layernorm"),
    layer("ffn_norm", "post_attention_layernorm"),
    layer("post_ffw_norm", "post_mlp_layernorm"),
];

const BIAS: [(&str, &str); 1] = [("attn_q.bias", "attention_bias")];

const GLM: Arch = Arch { keys: &[&SIZES, &INNER, &HEAD_DIM, &RMS], flags: &BIAS, ..LLAMA };

pub(super) const ARCHS: [Arch; 3] = [
    Arch { name: "chatglm", model_type: "glm", names: &[&ENDS, &NORMS, &QK, &VO, &FUSED_MLP], ..GLM },
    Arch { name: "glm4", model_type: "glm4", names: &[&ENDS, &GLM4_NORMS, &QK, &VO, &FUSED_MLP], ..GLM },
    Arch {
        name: "glm4moe",
        model_type: "glm4_moe",
        keys: &[&SIZES, &INNER, &HEAD_DIM, &RMS, &MIXTURE],
        flags: &[BIAS[0], ("attn_q_norm.weight", "use_qk_norm")],
        more: glm4moe,
        names: &[&ENDS, &LATE_NORMS, &QK, &QK_NORMS, &VO, &MLP, &EXPERTS, &SHARED, &CORRECTION],
        ..GLM
    },
];

fn glm4moe(r: &mut Reader) -> Result<()> {
    gating(r, &[0, 2], "GLM 4.5 routes by sigmoids")?;
    mixture(r)
}
