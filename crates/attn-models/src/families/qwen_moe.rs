//! Qwen 2 MoE (a shared expert with a gate) and Qwen 3 MoE (norms on query and key heads, no shared expert).

use super::dense::{Defaults, Dense};
use super::experts::{self, Experts};
use super::parts::{gated, layer_types, window};
use crate::config::Config;
use crate::spec::{ExpertWeights, LinearSpec, MlpSpec, ModelSpec, Routing, SharedSpec};
use attn_core::QkNormPlace;
use candle_core::Result;

const QWEN2: Defaults = Defaults {
    vocab_size: 151_936,
    hidden_size: 2048,
    intermediate_size: 5632,
    num_hidden_layers: 24,
    num_attention_heads: 16,
    num_key_value_heads: Some(16),
    max_position_embeddings: 32_768,
    ..Defaults::LLAMA
};

const QWEN3: Defaults =
    Defaults { intermediate_size: 6144, num_attention_heads: 32, num_key_value_heads: Some(4), ..QWEN2 };

/// Which layers have experts: every `decoder_sparse_step`-th but those listed.
struct Sparse {
    step: usize,
    dense: Vec<usize>,
}

impl Sparse {
    fn read(c: &Config) -> Result<Self> {
        let dense = c.list("mlp_only_layers", 0, |v| v.as_u64().map(|n| n as usize))?.unwrap_or_default();
        Ok(Self { step: c.size_opt("decoder_sparse_step")?.unwrap_or(1), dense })
    }

    fn layer(&self, i: usize, moe: &MlpSpec, dense: &Dense) -> MlpSpec {
        let sparse = !self.dense.contains(&i) && (i + 1).is_multiple_of(self.step);
        if sparse { moe.clone() } else { dense.gated_mlp(false) }
    }
}

fn read_moe(c: &Config, dense: &Dense, count: usize, top_k: usize, inner: usize) -> Result<MlpSpec> {
    let experts = Experts::read(c, ["num_experts", "num_local_experts"], count, ["num_experts_per_tok"; 2], top_k)?;
    let routing = Routing::softmax(c.flag("norm_topk_prob", false)?);
    let inner = experts::width(c, "moe_intermediate_size", inner)?;
    Ok(experts.moe(dense, "mlp.gate", routing, inner, ExpertWeights::separate("mlp.experts.")))
}

pub(super) fn qwen2(c: &Config) -> Result<ModelSpec> {
    let dense = Dense::read(c, &QWEN2)?;
    let rope = dense.rope(c)?;
    let bias = c.flag("qkv_bias", true)?;
    let slides = c.flag("use_sliding_window", false)?;
    let sliding = if slides { c.size_or_null("sliding_window", Some(4096))? } else { None };
    c.mark(&["sliding_window"]);
    let most = c.count_or("max_window_layers", 28)?;
    let default = |i: usize| match slides && !(i + 1).is_multiple_of(2) && i < most {
        true => "sliding_attention",
        false => "full_attention",
    };
    let kinds = layer_types(c, dense.common.layers, default)?;
    let hidden = dense.common.hidden_size;
    let inner = experts::width(c, "shared_expert_intermediate_size", 5632)?;
    let mut moe = read_moe(c, &dense, 60, 4, 1408)?;
    if let MlpSpec::Moe(moe) = &mut moe {
        moe.shared = Some(SharedSpec {
            mlp: gated("mlp.shared_expert.", hidden, inner, false, dense.act),
            gate: Some(LinearSpec::new("mlp.shared_expert_gate", hidden, 1)),
        });
    }
    let sparse = Sparse::read(c)?;
    let layers = dense.layers(|i| {
        let mut attention = dense.common.attention(false, rope.clone()).with_biases(bias, false);
        attention.mask = attention.mask.with_window(window(&kinds[i], sliding)?);
        Ok(dense.layer(i, attention, sparse.layer(i, &moe, &dense)))
    })?;
    Ok(dense.decoder("qwen2_moe", layers))
}

pub(super) fn qwen3(c: &Config) -> Result<ModelSpec> {
    let dense = Dense::read(c, &QWEN3)?;
    let rope = dense.rope(c)?;
    let bias = c.flag("attention_bias", false)?;
    let slides = c.flag("use_sliding_window", false)?;
    let sliding = if slides { c.size_or_null("sliding_window", Some(4096))? } else { None };
    c.mark(&["sliding_window", "max_window_layers"]);
    let moe = read_moe(c, &dense, 128, 8, 768)?;
    let sparse = Sparse::read(c)?;
    let layers = dense.layers(|i| {
        let mut attention = dense.common.attention(bias, rope.clone());
        let [q, k] = dense.head_norms(["q_norm", "k_norm"]);
        attention.qk_norm = Some((q, k, QkNormPlace::Heads));
        attention.mask = attention.mask.with_window(sliding);
        Ok(dense.layer(i, attention, sparse.layer(i, &moe, &dense)))
    })?;
    Ok(dense.decoder("qwen3_moe", layers))
}
