//! Gemma 1, 2 and 3: norm weights stored minus one, scaled embeddings; later ones add norms after each branch, softcaps,
//! windows on most layers, and in Gemma 3 a second rotary base for those.

use super::parts::{Common, LLAMA_NORMS, layer_types, pre_norm, window};
use super::rotary::{llama_rope, rope_by_type};
use crate::activation::Activation;
use crate::config::Config;
use crate::spec::{LayerSpec, ModelSpec, MultiHeadSpec, NormSpec, Wiring};
use attn_core::QkNormPlace;
use attn_core::position::{PositionConfig, RopeDefaults};
use candle_core::Result;
use serde_json::Value;

fn read(c: &Config) -> Result<(Common, f64, Activation)> {
    c.only("use_bidirectional_attention", &Value::Bool(false))?;
    let common = Common::read(c)?;
    // Configs of the first release say `gelu` and mean the tanh approximation; `hidden_activation` wins.
    let legacy = c.text_opt("hidden_act")?.filter(|name| *name != "gelu");
    let name = c.text_opt("hidden_activation")?.or(legacy).unwrap_or("gelu_pytorch_tanh");
    Ok((common, c.eps("rms_norm_eps", 1e-6)?, crate::activation::parse("hidden_activation", name)?))
}

fn finish(c: &Config, common: &Common, family: &str, layers: Vec<LayerSpec>, eps: f64) -> Result<ModelSpec> {
    let tied = c.flag("tie_word_embeddings", true)?;
    let norm = NormSpec::rms("norm", common.hidden_size, eps).unit_offset();
    let mut spec = common.decoder(family, layers, norm, tied);
    spec.stack.embedding.scale = (common.hidden_size as f64).sqrt();
    Ok(spec)
}

pub(super) fn gemma(c: &Config) -> Result<ModelSpec> {
    let (common, eps, act) = read(c)?;
    let intermediate = c.size(&["intermediate_size"])?;
    let bias = c.flag("attention_bias", false)?;
    let rope = llama_rope(c, common.head_dim)?;
    let norms = LLAMA_NORMS.map(|name| NormSpec::rms(name, common.hidden_size, eps).unit_offset());
    let layers = (0..common.layers).map(|i| {
        let mlp = common.gated_mlp(intermediate, false, act);
        pre_norm(format!("layers.{i}."), common.attention(bias, rope.clone()), mlp, norms.clone())
    });
    finish(c, &common, "gemma", layers.collect(), eps)
}

/// A Gemma 2 or 3 layer: a norm before and after each branch.
fn sandwich(common: &Common, i: usize, attention: MultiHeadSpec, mlp: (usize, Activation), eps: f64) -> LayerSpec {
    let norm = |name: &str| NormSpec::rms(name, common.hidden_size, eps).unit_offset();
    let mlp = common.gated_mlp(mlp.0, false, mlp.1);
    let norms = [norm("input_layernorm"), norm("pre_feedforward_layernorm")];
    let layer = pre_norm(format!("layers.{i}."), attention, mlp, norms);
    let wiring = Wiring {
        attention_post_norm: Some(norm("post_attention_layernorm")),
        mlp_post_norm: Some(norm("post_feedforward_layernorm")),
        ..layer.wiring
    };
    LayerSpec { wiring, ..layer }
}

/// The score scale and softcaps that Gemma 2 and 3 share.
fn scores(c: &Config) -> Result<(f64, [Option<f64>; 2])> {
    let scalar = c.positive_opt("query_pre_attn_scalar")?.unwrap_or(256.0);
    let caps = [c.positive_opt("attn_logit_softcapping")?, c.positive_opt("final_logit_softcapping")?];
    Ok((scalar.powf(-0.5), caps))
}

pub(super) fn gemma2(c: &Config) -> Result<ModelSpec> {
    let rope = |c: &Config, d: usize, _: &str| llama_rope(c, d);
    windowed(c, "gemma2", 2, rope, |_| {})
}

/// Gemma 2 without the norms after the branches.
pub(super) fn vaultgemma(c: &Config) -> Result<ModelSpec> {
    let rope = |c: &Config, d: usize, _: &str| llama_rope(c, d);
    let mut spec = windowed(c, "vaultgemma", 2, rope, |_| {})?;
    for wiring in spec.stack.layers.iter_mut().map(|layer| &mut layer.wiring) {
        (wiring.attention_post_norm, wiring.mlp_post_norm) = (None, None);
    }
    Ok(spec)
}

pub(super) fn gemma3(c: &Config) -> Result<ModelSpec> {
    let eps = c.eps("rms_norm_eps", 1e-6)?;
    let pattern = c.size_opt("sliding_window_pattern")?.or(c.size_opt("_sliding_window_pattern")?).unwrap_or(6);
    let qk_norms = |attention: &mut MultiHeadSpec| {
        let norm = |name| NormSpec::rms(name, attention.head_dim, eps).unit_offset();
        attention.qk_norm = Some((norm("self_attn.q_norm"), norm("self_attn.k_norm"), QkNormPlace::Heads));
    };
    windowed(c, "gemma3", pattern, gemma3_rope, qk_norms)
}

/// Gemma 3's two rotary encodings: scaled with a large base on global layers, plain with a small one on local layers.
fn gemma3_rope(c: &Config, head_dim: usize, kind: &str) -> Result<PositionConfig> {
    let (global, local) = (c.positive_opt("rope_theta")?, c.positive_opt("rope_local_base_freq")?);
    let is_local = kind == "sliding_attention";
    let theta = if is_local { local.unwrap_or(10_000.0) } else { global.unwrap_or(1_000_000.0) };
    rope_by_type(c, kind, theta, !is_local, &RopeDefaults::new(head_dim))
}

fn windowed(
    c: &Config,
    family: &str,
    pattern: usize,
    rope_of: impl Fn(&Config, usize, &str) -> Result<PositionConfig>,
    adapt: impl Fn(&mut MultiHeadSpec),
) -> Result<ModelSpec> {
    let (common, eps, act) = read(c)?;
    let intermediate = c.size(&["intermediate_size"])?;
    let bias = c.flag("attention_bias", false)?;
    let (scale, [attention_cap, final_cap]) = scores(c)?;
    let sliding = c.size_opt("sliding_window")?;
    let default = |i: usize| if (i + 1).is_multiple_of(pattern) { "full_attention" } else { "sliding_attention" };
    let kinds = layer_types(c, common.layers, default)?;
    let layer = |i: usize| {
        let mut attention = common.attention(bias, rope_of(c, common.head_dim, &kinds[i])?);
        adapt(&mut attention);
        attention.scale = scale;
        attention.softcap = attention_cap;
        attention.mask = attention.mask.with_window(window(&kinds[i], sliding)?);
        attention.overridable = family != "gemma3" || kinds[i] == "full_attention";
        Ok(sandwich(&common, i, attention, (intermediate, act), eps))
    };
    let layers = (0..common.layers).map(layer).collect::<Result<Vec<_>>>()?;
    let mut spec = finish(c, &common, family, layers, eps)?;
    if let Some(head) = &mut spec.head {
        head.softcap = final_cap;
    }
    Ok(spec)
}
