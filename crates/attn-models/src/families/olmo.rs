//! OLMo 1 (norms without parameters, clamped queries, keys and values), OLMo 3 (OLMo 2 with windows on most layers, which
//! keep their plain rotation when the others' is stretched) and OLMoE.

use super::dense::{Defaults, Dense};
use super::experts::Experts;
use super::parts::{LLAMA_NORMS, layer_types, pre_norm, window};
use super::rotary::rope_by_type;
use crate::config::Config;
use crate::spec::{ExpertWeights, ModelSpec, MultiHeadSpec, NormSpec, Routing};
use attn_core::position::PositionConfig;
use attn_core::{NormKind, QkNormPlace};
use candle_core::Result;

const OLMO: Defaults = Defaults { vocab_size: 50_304, ..Defaults::LLAMA };

const OLMO3: Defaults = Defaults { eps: ("rms_norm_eps", 1e-5), rope_theta: 500_000.0, ..OLMO };

const OLMOE: Defaults = Defaults {
    hidden_size: 2048,
    intermediate_size: 2048,
    num_hidden_layers: 16,
    num_attention_heads: 16,
    max_position_embeddings: 4096,
    eps: ("rms_norm_eps", 1e-5),
    ..OLMO
};

pub(super) fn olmo(c: &Config) -> Result<ModelSpec> {
    let dense = Dense::read(c, &OLMO)?;
    let rope = dense.rope(c)?;
    let (bias, clip) = (c.flag("attention_bias", false)?, c.positive_opt("clip_qkv")?);
    let norm = NormSpec { name: None, kind: NormKind::Layer, ..dense.rms("") };
    let norm = NormSpec { eps: 1e-5, ..norm };
    let layers = dense.layers(|i| {
        let mut attention = dense.common.attention(bias, rope.clone());
        attention.qkv_clip = clip;
        Ok(pre_norm(format!("layers.{i}."), attention, dense.gated_mlp(false), LLAMA_NORMS.map(|_| norm.clone())))
    })?;
    Ok(dense.decoder_with("olmo", layers, norm.clone()))
}

pub(super) fn olmo3(c: &Config) -> Result<ModelSpec> {
    let dense = Dense::read(c, &OLMO3)?;
    let bias = c.flag("attention_bias", false)?;
    let sliding = c.size_or_null("sliding_window", Some(4096))?;
    let default = |i: usize| if (i + 1).is_multiple_of(4) { "full_attention" } else { "sliding_attention" };
    let kinds = layer_types(c, dense.common.layers, default)?;
    let layers = dense.layers(|i| {
        let mut attention = dense.common.attention(bias, olmo3_rope(c, &dense, &kinds[i])?);
        whole_norms(&mut attention, &dense);
        attention.mask = attention.mask.with_window(window(&kinds[i], sliding)?);
        attention.overridable = kinds[i] == "full_attention";
        Ok(dense.post_norm(i, attention, dense.gated_mlp(false)))
    })?;
    Ok(dense.decoder("olmo3", layers))
}

/// A scaling in the older spelling, and a base beside it, apply only to layers with full attention.
fn olmo3_rope(c: &Config, dense: &Dense, kind: &str) -> Result<PositionConfig> {
    let full = kind == "full_attention";
    let theta = if full { c.positive_opt("rope_theta")?.unwrap_or(500_000.0) } else { 500_000.0 };
    rope_by_type(c, kind, theta, full, &dense.rope_defaults())
}

pub(super) fn olmoe(c: &Config) -> Result<ModelSpec> {
    let dense = Dense::read(c, &OLMOE)?;
    let rope = dense.rope(c)?;
    let (bias, clip) = (c.flag("attention_bias", false)?, c.positive_opt("clip_qkv")?);
    let experts = Experts::read(c, ["num_experts", "num_local_experts"], 64, ["num_experts_per_tok"; 2], 8)?;
    let routing = Routing::softmax(c.flag("norm_topk_prob", false)?);
    let weights = ExpertWeights::separate("mlp.experts.");
    let moe = experts.moe(&dense, "mlp.gate", routing, dense.intermediate_size, weights);
    let layers = dense.layers(|i| {
        let mut attention = dense.common.attention(bias, rope.clone());
        whole_norms(&mut attention, &dense);
        attention.qkv_clip = clip;
        Ok(dense.layer(i, attention, moe.clone()))
    })?;
    Ok(dense.decoder("olmoe", layers))
}

/// Norms over all query and all key heads at once.
fn whole_norms(attention: &mut MultiHeadSpec, dense: &Dense) {
    let whole = |name: &str, heads: usize| NormSpec::rms(name, heads * attention.head_dim, dense.eps);
    let (q, k) = (whole("self_attn.q_norm", attention.heads), whole("self_attn.k_norm", attention.kv_heads));
    attention.qk_norm = Some((q, k, QkNormPlace::Whole));
}
