//! Qwen 2 (biases on queries, keys and values) and Qwen 3 (norms on query and key heads instead).

use super::parts::{Common, LLAMA_NORMS, activation, layer_types, pre_norm, window};
use super::rotary::llama_rope;
use crate::config::Config;
use crate::spec::{LinearSpec, ModelSpec, MultiHeadSpec, NormSpec, QkvSpec};
use attn_core::QkNormPlace;
use attn_core::position::PositionConfig;
use attn_core::position::extend::{DualChunkConfig, ExtendConfig, ExtendedConfig};
use candle_core::{Result, bail};

pub(super) fn qwen2(c: &Config) -> Result<ModelSpec> {
    let set_bias = |attention: &mut MultiHeadSpec| {
        if let QkvSpec::Separate { q, k, v } = &mut attention.qkv {
            let with_bias = |l: &LinearSpec| l.clone().bias(true);
            (*q, *k, *v) = (with_bias(q), with_bias(k), with_bias(v));
        }
    };
    qwen(c, "qwen2", set_bias)
}

pub(super) fn qwen3(c: &Config) -> Result<ModelSpec> {
    let eps = c.eps("rms_norm_eps", 1e-6)?;
    let add_norms = |attention: &mut MultiHeadSpec| {
        let norm = |name| NormSpec::rms(name, attention.head_dim, eps);
        attention.qk_norm = Some((norm("self_attn.q_norm"), norm("self_attn.k_norm"), QkNormPlace::Heads));
    };
    qwen(c, "qwen3", add_norms)
}

fn qwen(c: &Config, family: &str, adapt: impl Fn(&mut MultiHeadSpec)) -> Result<ModelSpec> {
    let common = Common::read(c)?;
    let eps = c.eps("rms_norm_eps", 1e-6)?;
    let intermediate = c.size(&["intermediate_size"])?;
    let act = activation(c, "hidden_act", "silu")?;
    let bias = family == "qwen3" && c.flag("attention_bias", false)?;
    let sliding = if c.flag("use_sliding_window", false)? { c.size_opt("sliding_window")? } else { None };
    c.mark(&["sliding_window"]);
    let first_sliding = c.count_or("max_window_layers", 28)?;
    let default = |i| if sliding.is_some() && i >= first_sliding { "sliding_attention" } else { "full_attention" };
    let kinds = layer_types(c, common.layers, default)?;
    let rope = llama_rope(c, common.head_dim)?;
    let chunked = dual_chunk(c)?;
    let norm = |name: &str| NormSpec::rms(name, common.hidden_size, eps);
    let layer = |i: usize| {
        let mut attention = common.attention(bias, rope.clone());
        adapt(&mut attention);
        // Without use_sliding_window transformers ignores the window even on layers marked as sliding.
        let window = if sliding.is_some() { window(&kinds[i], sliding)? } else { None };
        attention.mask = attention.mask.with_window(window);
        if let (Some((method, _)), PositionConfig::Rope(rope)) = (chunked, attention.position.clone()) {
            attention.position = PositionConfig::Extended(ExtendedConfig { rope, method: Some(method), log_n: None });
        }
        let mlp = common.gated_mlp(intermediate, false, act);
        Ok(pre_norm(format!("layers.{i}."), attention, mlp, LLAMA_NORMS.map(norm)))
    };
    let layers = (0..common.layers).map(layer).collect::<Result<Vec<_>>>()?;
    let mut spec = common.decoder(family, layers, norm("norm"), c.flag("tie_word_embeddings", false)?);
    if let Some((_, Some(trained))) = chunked {
        spec.trained_context = Some(trained);
    }
    Ok(spec)
}

/// The `dual_chunk_attention_config` of Qwen2.5-1M, and the context that the model was trained for. vLLM computes the
/// same; transformers ignores the key, which makes no difference within the first chunk.
fn dual_chunk(c: &Config) -> Result<Option<(ExtendConfig, Option<usize>)>> {
    if c.is_null("dual_chunk_attention_config") {
        return Ok(None);
    }
    let Some(inner) = c.child("dual_chunk_attention_config")? else { return Ok(None) };
    let (chunk, local) = (inner.size(&["chunk_size"])?, inner.size(&["local_size"])?);
    let trained = inner.size_opt("original_max_position_embeddings")?;
    inner.finish()?;
    if local >= chunk {
        bail!(
            "config.json: dual_chunk_attention_config: a local_size of {local} leaves nothing of a chunk_size of {chunk}"
        )
    }
    Ok(Some((ExtendConfig::DualChunk(DualChunkConfig { chunk, local }), trained)))
}
