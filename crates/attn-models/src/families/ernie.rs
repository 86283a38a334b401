//! ERNIE 4.5: Llama with interleaved rotation; the larger ones with experts chosen by a corrected softmax and experts
//! that every token passes through.

use super::dense::{Defaults, Dense};
use super::experts::{self, Experts};
use super::parts::gated;
use crate::config::Config;
use crate::spec::{ExpertWeights, ModelSpec, Routing};
use attn_core::position::Layout;
use candle_core::Result;

const DENSE: Defaults = Defaults {
    vocab_size: 103_424,
    hidden_size: 1024,
    intermediate_size: 3072,
    num_hidden_layers: 18,
    num_attention_heads: 16,
    num_key_value_heads: Some(2),
    head_dim: Some(128),
    max_position_embeddings: 131_072,
    eps: ("rms_norm_eps", 1e-5),
    rope_theta: 500_000.0,
    layout: Layout::Interleaved,
    tie_word_embeddings: true,
    ..Defaults::LLAMA
};

const MOE: Defaults = Defaults {
    hidden_size: 2560,
    intermediate_size: 12_288,
    num_hidden_layers: 28,
    num_attention_heads: 20,
    num_key_value_heads: Some(4),
    head_dim: None,
    ..DENSE
};

pub(super) fn dense(c: &Config) -> Result<ModelSpec> {
    let dense = Dense::read(c, &DENSE)?;
    let rope = dense.rope(c)?;
    let bias = c.flag("use_bias", false)?;
    let layers =
        dense.layers(|i| Ok(dense.layer(i, dense.common.attention(bias, rope.clone()), dense.gated_mlp(bias))))?;
    Ok(dense.decoder("ernie4_5", layers))
}

pub(super) fn moe(c: &Config) -> Result<ModelSpec> {
    let dense = Dense::read(c, &MOE)?;
    let rope = dense.rope(c)?;
    let bias = c.flag("use_bias", false)?;
    let experts = Experts::read(c, ["moe_num_experts", "num_experts"], 64, ["moe_k", "num_experts_per_tok"], 6)?;
    let inner = experts::width(c, "moe_intermediate_size", 1536)?;
    let last = dense.common.layers as i64 - 1;
    let end = match c.get("moe_layer_end_index").map(|v| v.as_i64()) {
        None | Some(Some(-1)) => last,
        Some(_) => c.count_or("moe_layer_end_index", 0)? as i64,
    };
    let (start, interval) = (c.count_or("moe_layer_start_index", 1)?, c.size_opt("moe_layer_interval")?.unwrap_or(1));
    let routing = Routing {
        correction: Some(("mlp.moe_statics.e_score_correction_bias".into(), vec![1, experts.count])),
        normalise: Some(c.positive_opt("moe_norm_min")?.unwrap_or(1e-12)),
        ..Routing::softmax(true)
    };
    let weights =
        ExpertWeights::Separate { prefix: "mlp.experts.".into(), names: ["gate_proj", "up_proj", "down_proj"], bias };
    let mut moe = experts.moe(&dense, "mlp.gate", routing, inner, weights);
    let shared = experts::count(c, "moe_num_shared_experts", 2)?;
    if shared > 0 {
        let mlp = gated("mlp.shared_experts.", dense.common.hidden_size, inner * shared, bias, dense.act);
        moe = experts::with_shared(moe, mlp);
    }
    let layers = dense.layers(|i| {
        let sparse = (i + 1).is_multiple_of(interval) && i >= start && i as i64 <= end;
        let mlp = if sparse { moe.clone() } else { dense.gated_mlp(bias) };
        Ok(dense.layer(i, dense.common.attention(bias, rope.clone()), mlp))
    })?;
    let mut spec = dense.decoder("ernie4_5_moe", layers);
    spec.unused.push("mtp_".into()); // layers that predict further tokens in training
    Ok(spec)
}
