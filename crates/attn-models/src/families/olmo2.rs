//! OLMo 2: no norm before a branch, one after it, and norms over all query and all key heads at once.

use super::parts::{Common, activation};
use super::rotary::llama_rope;
use crate::config::Config;
use crate::spec::{LayerSpec, ModelSpec, NormSpec, Wiring};
use attn_core::QkNormPlace;
use candle_core::Result;

pub(super) fn spec(c: &Config) -> Result<ModelSpec> {
    let common = Common::read(c)?;
    let eps = c.eps("rms_norm_eps", 1e-5)?;
    let intermediate = c.size(&["intermediate_size"])?;
    let act = activation(c, "hidden_act", "silu")?;
    let bias = c.flag("attention_bias", false)?;
    let rope = llama_rope(c, common.head_dim)?;
    let norm = |name: &str| NormSpec::rms(name, common.hidden_size, eps);
    let layers = (0..common.layers).map(|i| {
        let mut attention = common.attention(bias, rope.clone());
        let whole = |name: &str, heads: usize| NormSpec::rms(name, heads * common.head_dim, eps);
        let (q, k) = (whole("self_attn.q_norm", common.heads), whole("self_attn.k_norm", common.kv_heads));
        attention.qk_norm = Some((q, k, QkNormPlace::Whole));
        let wiring = Wiring {
            attention_post_norm: Some(norm("post_attention_layernorm")),
            mlp_post_norm: Some(norm("post_feedforward_layernorm")),
            ..Wiring::default()
        };
        LayerSpec::new(format!("layers.{i}."), attention, common.gated_mlp(intermediate, false, act), wiring)
    });
    Ok(common.decoder("olmo2", layers.collect(), norm("norm"), c.flag("tie_word_embeddings", false)?))
}
