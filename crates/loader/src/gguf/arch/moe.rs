//! Mixtures of experts that do not belong to a dense family, and the names that most of them share.

use super::{
    entry::{Arch, Key, Reader},
    llama::{
        ENDS, GRANITE_KEYS, HEAD_DIM, INNER, LLAMA, LOCAL, MIXTRAL, MLP, NORMS, QK, QK_NORMS, RMS, ROTARY_QK, SIZES,
        VO, granite,
    },
};
use crate::{
    error::Result,
    gguf::{
        held::Join,
        names::{How, Name, layer},
    },
};

/// A router and experts, each with its three products.
pub(super) const EXPERTS: [Name; 6] = [
    layer("ffn_gate_inp", "mlp.gate"),
    layer("ffn_gate_exps", "mlp.experts.#.gate_proj").how(How::Stacked),
    layer("ffn_up_exps", "mlp.experts.#.up_proj").how(How::Stacked),
    layer("ffn_down_exps", "mlp.experts.#.down_proj").how(How::Stacked),
    layer("ffn_gate_up_exps", "mlp.experts.#.gate_proj").how(How::StackedPart(0, 2)),
    layer("ffn_gate_up_exps", "mlp.experts.#.up_proj").how(How::StackedPart(1, 2)),
];

/// Experts that every token passes through.
pub(super) const SHARED: [Name; 3] = [
    layer("ffn_gate_shexp", "mlp.shared_experts.gate_proj"),
    layer("ffn_up_shexp", "mlp.shared_experts.up_proj"),
    layer("ffn_down_shexp", "mlp.shared_experts.down_proj"),
];

/// What DeepSeek's router adds to the scores for the choice alone.
pub(super) const CORRECTION: [Name; 1] = [layer("exp_probs_b.bias", "mlp.gate.e_score_correction_bias").exact()];

/// The sizes of DeepSeek's mixture and of those after it.
pub(super) const MIXTURE: [Key; 7] = [
    Key::size("expert_count", "n_routed_experts"),
    Key::size("expert_used_count", "num_experts_per_tok"),
    Key::size("expert_feed_forward_length", "moe_intermediate_size"),
    Key::size("expert_shared_count", "n_shared_experts"),
    Key::size("leading_dense_block_count", "first_k_dense_replace"),
    Key::size("expert_group_count", "n_group").optional(),
    Key::size("expert_group_used_count", "topk_group").optional(),
];

/// The weights of the chosen experts.
pub(super) fn mixture(r: &mut Reader) -> Result<()> {
    let norm = r.meta.bool("expert_weights_norm")?.unwrap_or(false);
    r.set("norm_topk_prob", norm);
    let scale = r.meta.f64("expert_weights_scale")?.filter(|&s| s != 0.0).unwrap_or(1.0);
    r.set("routed_scaling_factor", scale);
    Ok(())
}

/// Refuses a router that is none of `functions` (1 is a softmax, 2 a sigmoid).
pub(super) fn gating(r: &Reader, functions: &[u64], why: &str) -> Result<()> {
    r.only("expert_gating_func", functions, why)
}

const DOTS1: Arch = Arch {
    name: "dots1",
    model_type: "dots1",
    keys: &[&SIZES, &INNER, &HEAD_DIM, &RMS, &MIXTURE],
    flags: &[("attn_q.bias", "attention_bias")],
    more: dots1,
    names: &[&ENDS, &NORMS, &QK, &QK_NORMS, &VO, &MLP, &EXPERTS, &SHARED, &CORRECTION],
    ..LLAMA
};

pub(super) const ARCHS: [Arch; 5] = [
    DOTS1,
    Arch {
        name: "granitemoe",
        model_type: "granitemoe",
        keys: &[&SIZES, &INNER, &HEAD_DIM, &RMS, &LOCAL, &GRANITE_KEYS],
        flags: &[("attn_q.bias", "attention_bias")],
        more: granite,
        names: &[&ENDS, &NORMS, &ROTARY_QK, &VO, &GRANITE_NAMES],
        ..LLAMA
    },
    Arch {
        name: "minimax-m2",
        model_type: "minimax_m2",
        keys: &[&SIZES, &INNER, &HEAD_DIM, &RMS, &LOCAL],
        flags: &[],
        theta: Some(5e6),
        more: minimax,
        names: &[&ENDS, &NORMS, &QK, &QK_NORMS, &VO, &MIXTRAL, &MINIMAX_NAMES],
        ..LLAMA
    },
    Arch {
        name: "ernie4_5-moe",
        model_type: "ernie4_5_moe",
        keys: &[&SIZES, &INNER, &RMS, &ERNIE_KEYS],
        flags: &[("attn_q.bias", "use_bias")],
        theta: Some(5e5),
        more: ernie,
        names: &[&ENDS, &NORMS, &QK, &VO, &MLP, &EXPERTS, &SHARED, &ERNIE_NAMES],
        ..LLAMA
    },
    Arch {
        name: "phimoe",
        model_type: "phimoe",
        keys: &[&SIZES, &INNER, &RMS, &LOCAL],
        flags: &[("attn_q.bias", "attention_bias"), ("output.bias", "lm_head_bias")],
        more: phimoe,
        names: &[&ENDS, &NORMS, &QK, &VO, &MIXTRAL],
        ..LLAMA
    },
];

fn dots1(r: &mut Reader) -> Result<()> {
    gating(r, &[0, 2], "dots.llm1 routes by sigmoids")?;
    mixture(r)
}

const GRANITE_NAMES: [Name; 3] = [
    layer("ffn_gate_inp", "block_sparse_moe.router.layer"),
    layer("ffn_gate_exps", "block_sparse_moe.input_linear").how(How::Joined(Join::Rows, "ffn_up_exps")),
    layer("ffn_down_exps", "block_sparse_moe.output_linear"),
];

const MINIMAX_NAMES: [Name; 1] = [layer("exp_probs_b.bias", "block_sparse_moe.e_score_correction_bias").exact()];

fn minimax(r: &mut Reader) -> Result<()> {
    gating(r, &[0, 2], "MiniMax M2 routes by sigmoids")?;
    r.size_or_width("expert_feed_forward_length", "intermediate_size", "ffn_gate_exps.weight", 1)?;
    let rotary = r.dims.rotary;
    r.set("rotary_dim", rotary);
    Ok(())
}

const ERNIE_KEYS: [Key; 6] = [
    Key::size("expert_count", "moe_num_experts"),
    Key::size("expert_used_count", "moe_k"),
    Key::size("expert_feed_forward_length", "moe_intermediate_size"),
    Key::size("expert_shared_count", "moe_num_shared_experts").optional(),
    Key::size("leading_dense_block_count", "moe_layer_start_index"),
    Key::size("interleave_moe_layer_step", "moe_layer_interval").optional(),
];

const ERNIE_NAMES: [Name; 1] =
    [layer("exp_probs_b.bias", "mlp.moe_statics.e_score_correction_bias").how(How::Joined(Join::AsRow, "")).exact()];

/// The converter divides by the number of key heads for the width of the shared experts, which the tensors contradict.
fn ernie(r: &mut Reader) -> Result<()> {
    r.meta.get("expert_shared_feed_forward_length");
    let last = r.dims.layers - 1;
    r.set("moe_layer_end_index", last);
    Ok(())
}

fn phimoe(r: &mut Reader) -> Result<()> {
    r.set("sliding_window", r.window()?);
    Ok(())
}
