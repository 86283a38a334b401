//! MPT: ALiBi with a configurable steepest slope, fused projections, no biases.

use super::parts::{Common, plain, pre_norm};
use crate::activation::Activation;
use crate::config::Config;
use crate::spec::{FusedLayout, LinearSpec, ModelSpec, NormSpec, QkvSpec};
use attn_core::position::{AlibiConfig, PositionConfig};
use candle_core::{Result, bail};
use serde_json::{Value, json};

struct Attention {
    bias_max: f64,
    clip_qkv: Option<f64>,
    scale: Option<f64>,
}

fn attention(c: &Config) -> Result<Attention> {
    let Some(a) = c.child("attn_config")? else {
        return Ok(Attention { bias_max: 8.0, clip_qkv: None, scale: None });
    };
    if !a.flag("alibi", true)? {
        bail!("config.json: attn_config.alibi = false is not supported: transformers ignores it and uses ALiBi")
    }
    a.only("qk_ln", &json!(false))?;
    a.only("prefix_lm", &json!(false))?;
    a.only("attn_uses_sequence_id", &json!(false))?;
    a.only("attn_type", &json!("multihead_attention"))?;
    a.mark(&["attn_impl"]);
    let read = Attention {
        bias_max: a.positive_opt("alibi_bias_max")?.unwrap_or(8.0),
        // 0 counts as absent there
        clip_qkv: a.number_opt("clip_qkv")?.filter(|clip| *clip != 0.0),
        scale: a.positive_opt("softmax_scale")?,
    };
    a.finish()?;
    Ok(read)
}

pub(super) fn spec(c: &Config) -> Result<ModelSpec> {
    let common = Common::read_mha(c)?.divided()?;
    let hidden = common.hidden_size;
    let eps = c.eps("layer_norm_epsilon", 1e-5)?;
    c.only("no_bias", &Value::Bool(true))?;
    c.only("logit_scale", &Value::Null)?;
    c.only("embedding_fraction", &json!(1.0))?;
    // As in transformers: the feed-forward is 4 times the hidden size whatever expansion_ratio says, and learned_pos_emb
    // does nothing beside ALiBi.
    c.mark(&[
        "expansion_ratio",
        "learned_pos_emb",
        "norm_type",
        "init_device",
        "init_config",
        "emb_pdrop",
        "verbose",
        "tokenizer_name",
        "ffn_config",
        "fc_type",
    ]);
    let read = attention(c)?;
    let alibi = PositionConfig::Alibi(AlibiConfig { bias_max: read.bias_max, ..AlibiConfig::new(common.heads) });
    let norm = |name: &str| NormSpec::layer(name, hidden, eps).no_bias();
    let layers = (0..common.layers).map(|i| {
        let mut attention = common.attention(false, alibi.clone());
        attention.qkv =
            QkvSpec::Fused { qkv: LinearSpec::new("attn.Wqkv", hidden, 3 * hidden), layout: FusedLayout::Blocks };
        attention.out = LinearSpec::new("attn.out_proj", hidden, hidden);
        attention.qkv_clip = read.clip_qkv;
        attention.scale = read.scale.unwrap_or(attention.scale);
        let up = LinearSpec::new("ffn.up_proj", hidden, 4 * hidden);
        let mlp = plain(up, LinearSpec::new("ffn.down_proj", 4 * hidden, hidden), Activation::GeluErf);
        pre_norm(format!("blocks.{i}."), attention, mlp, ["norm_1", "norm_2"].map(norm))
    });
    let tied = c.flag("tie_word_embeddings", true)?;
    let mut spec = common.decoder("mpt", layers.collect(), norm("norm_f"), tied);
    spec.stack.embedding.tokens = "wte.weight".into();
    spec.prefixes = vec!["transformer.".into(), String::new()];
    Ok(spec)
}
