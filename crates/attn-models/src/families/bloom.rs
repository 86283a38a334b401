//! BLOOM: ALiBi, fused projections per head, a norm on the embeddings.

use super::parts::{Common, LLAMA_NORMS, plain, pre_norm};
use crate::activation::Activation;
use crate::config::Config;
use crate::spec::{FusedLayout, LinearSpec, ModelSpec, NormSpec, QkvSpec};
use attn_core::position::{AlibiConfig, PositionConfig};
use candle_core::Result;
use serde_json::Value;

pub(super) fn spec(c: &Config) -> Result<ModelSpec> {
    let common = Common::read_mha(c)?.divided()?;
    let hidden = common.hidden_size;
    let eps = c.eps("layer_norm_epsilon", 1e-5)?;
    let after_norm = c.flag("apply_residual_connection_post_layernorm", false)?;
    c.only("slow_but_exact", &Value::Bool(false))?;
    c.mark(&[
        "seq_length",
        "attention_softmax_in_fp32",
        "bias_dropout_fusion",
        "masked_softmax_fusion",
        "offset_alibi",
        "skip_bias_add",
        "skip_bias_add_qkv",
        "n_inner",
        "unk_token_id",
    ]);
    let alibi = PositionConfig::Alibi(AlibiConfig::new(common.heads));
    let norm = |name: &str| NormSpec::layer(name, hidden, eps);
    let linear = |name: &str, i, o| LinearSpec::new(name, i, o).bias(true);
    let layers = (0..common.layers).map(|i| {
        let mut attention = common.attention(true, alibi.clone());
        attention.qkv = QkvSpec::Fused {
            qkv: linear("self_attention.query_key_value", hidden, 3 * hidden),
            layout: FusedLayout::PerKvHead,
        };
        attention.out = linear("self_attention.dense", hidden, hidden);
        let up = linear("mlp.dense_h_to_4h", hidden, 4 * hidden);
        let mlp = plain(up, linear("mlp.dense_4h_to_h", 4 * hidden, hidden), Activation::GeluTanh);
        let mut layer = pre_norm(format!("h.{i}."), attention, mlp, LLAMA_NORMS.map(norm));
        layer.wiring.residual_after_norm = after_norm;
        layer
    });
    let tied = c.flag("tie_word_embeddings", true)?;
    let mut spec = common.decoder("bloom", layers.collect(), norm("ln_f"), tied);
    spec.stack.embedding.tokens = "word_embeddings.weight".into();
    spec.stack.embedding.norm = Some(norm("word_embeddings_layernorm"));
    spec.prefixes = vec!["transformer.".into(), String::new()];
    spec.trained_context = c.size_opt("seq_length")?.or(Some(2048));
    Ok(spec)
}
