//! Mixtral, Phi 3.5 MoE (layer norms, biases, experts chosen one after the other) and MiniMax M2 (norms over all query
//! and key heads, corrected sigmoid scores): one layout of experts, `block_sparse_moe.experts.N.w1` and so on.

use super::dense::{Defaults, Dense};
use super::experts::Experts;
use super::parts::{LLAMA_NORMS, pre_norm};
use super::rotary::{rope_dictionary, rope_of};
use crate::config::Config;
use crate::spec::{ExpertWeights, MlpSpec, ModelSpec, NormSpec, RouterScores, Routing};
use attn_core::QkNormPlace;
use attn_core::position::PositionConfig;
use candle_core::{Result, bail};

const MIXTRAL: Defaults = Defaults {
    intermediate_size: 14_336,
    num_key_value_heads: Some(8),
    max_position_embeddings: 131_072,
    eps: ("rms_norm_eps", 1e-5),
    rope_theta: 1_000_000.0,
    ..Defaults::LLAMA
};

const PHIMOE: Defaults = Defaults { vocab_size: 32_064, intermediate_size: 6400, ..MIXTRAL };

const MINIMAX_M2: Defaults = Defaults {
    vocab_size: 200_064,
    hidden_size: 3072,
    intermediate_size: 1536,
    num_hidden_layers: 62,
    num_attention_heads: 48,
    head_dim: Some(128),
    max_position_embeddings: 196_608,
    eps: ("rms_norm_eps", 1e-6),
    rope_theta: 5_000_000.0,
    ..MIXTRAL
};

fn read_experts(c: &Config, count: usize, top_k: usize) -> Result<Experts> {
    c.mark(&["router_jitter_noise", "input_jitter_noise"]); // noise of training, unless a family reads it
    Experts::read(c, ["num_local_experts", "num_experts"], count, ["num_experts_per_tok"; 2], top_k)
}

fn moe(dense: &Dense, experts: Experts, routing: Routing) -> MlpSpec {
    let weights =
        ExpertWeights::Separate { prefix: "block_sparse_moe.experts.".into(), names: ["w1", "w3", "w2"], bias: false };
    experts.moe(dense, "block_sparse_moe.gate", routing, dense.intermediate_size, weights)
}

pub(super) fn mixtral(c: &Config) -> Result<ModelSpec> {
    let dense = Dense::read(c, &MIXTRAL)?;
    let rope = dense.rope(c)?;
    let window = c.size_opt("sliding_window")?;
    let moe = moe(&dense, read_experts(c, 8, 2)?, Routing::softmax(true));
    let layers = dense.layers(|i| {
        let mut attention = dense.common.attention(false, rope.clone());
        attention.mask = attention.mask.with_window(window);
        Ok(dense.layer(i, attention, moe.clone()))
    })?;
    Ok(dense.decoder("mixtral", layers))
}

/// LongRoPE with a factor on cosines and sines for either side of the trained context. transformers computes with the
/// short divisors on both.
fn phimoe_rope(c: &Config, dense: &Dense) -> Result<PositionConfig> {
    let given = ["rope_scaling", "rope_parameters"].into_iter().find_map(|key| rope_dictionary(c, key));
    let kind = given.and_then(|d| d.get("rope_type").or(d.get("type"))).and_then(|kind| kind.as_str());
    match (given, kind) {
        (None, _) | (_, None | Some("default")) => dense.rope(c),
        (Some(given), Some("longrope" | "su")) => {
            let mut dictionary = given.clone();
            if let Some(short) = given.get("short_factor") {
                dictionary.insert("long_factor".into(), short.clone());
            }
            for key in ["short_mscale", "long_mscale"] {
                if !given.get(key).is_some_and(serde_json::Value::is_number) {
                    bail!("config.json: rope_parameters.{key} is missing, but phimoe needs it")
                }
            }
            rope_of(c, None, &dense.rope_defaults(), dictionary.into())
        }
        (_, Some(other)) => bail!("config.json: rope type {other} is not supported here, only longrope"),
    }
}

pub(super) fn phimoe(c: &Config) -> Result<ModelSpec> {
    let dense = Dense::read(c, &PHIMOE)?;
    let rope = phimoe_rope(c, &dense)?;
    let window = c.size_opt("sliding_window")?;
    let bias = c.flag("attention_bias", false)?;
    let experts = read_experts(c, 16, 2)?;
    if experts.top_k != 2 {
        bail!("config.json: num_experts_per_tok = {} is not supported, only 2", experts.top_k)
    }
    let jitter = c.number_or("router_jitter_noise", 0.01)?;
    let scores = RouterScores::SparseMixer { jitter };
    let moe = moe(&dense, experts, Routing { scores, ..Routing::softmax(false) });
    let layers = dense.layers(|i| {
        let mut attention = dense.common.attention(bias, rope.clone());
        attention.mask = attention.mask.with_window(window);
        Ok(pre_norm(format!("layers.{i}."), attention, moe.clone(), LLAMA_NORMS.map(|name| dense.layer_norm(name))))
    })?;
    let mut spec = dense.decoder_with("phimoe", layers, dense.layer_norm("norm"));
    if let (Some(head), true) = (&mut spec.head, c.flag("lm_head_bias", false)?) {
        head.bias = Some(super::parts::head_bias("lm_head.bias", dense.common.vocab_size));
    }
    Ok(spec)
}

pub(super) fn minimax_m2(c: &Config) -> Result<ModelSpec> {
    let dense = Dense::read(c, &MINIMAX_M2)?;
    c.mark(&["rotary_dim"]);
    let rope = dense.rope(c)?;
    let experts = read_experts(c, 256, 8)?;
    let routing = Routing {
        scores: RouterScores::Sigmoid,
        correction: Some(("block_sparse_moe.e_score_correction_bias".into(), vec![experts.count])),
        ..Routing::softmax(true)
    };
    let moe = moe(&dense, experts, routing);
    // What transformers leaves unread: it has one kind of attention, norm and router.
    c.mark(&[
        "attn_type_list",
        "qk_norm_type",
        "use_qk_norm",
        "scoring_func",
        "use_routing_bias",
        "shared_intermediate_size",
        "use_mtp",
        "num_mtp_modules",
        "mtp_transformer_layers",
    ]);
    let layers = dense.layers(|i| {
        let mut attention = dense.common.attention(false, rope.clone());
        let whole = |name: &str, heads: usize| NormSpec::rms(name, heads * dense.common.head_dim, dense.eps);
        let (q, k) = (whole("self_attn.q_norm", attention.heads), whole("self_attn.k_norm", attention.kv_heads));
        attention.qk_norm = Some((q, k, QkNormPlace::Whole));
        Ok(dense.layer(i, attention, moe.clone()))
    })?;
    Ok(dense.decoder("minimax_m2", layers))
}
