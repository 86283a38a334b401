//! GPT-BigCode (StarCoder 1, SantaCoder): GPT-2 with one key and value head for all queries, weights not transposed.

use super::parts::{Common, activation, plain, pre_norm};
use crate::config::Config;
use crate::spec::{FusedLayout, LinearSpec, ModelSpec, NormSpec, QkvSpec, TableSpec};
use attn_core::position::{LearnedConfig, PositionConfig};
use candle_core::Result;
use serde_json::Value;

pub(super) fn spec(c: &Config) -> Result<ModelSpec> {
    let mut common = Common::read_mha(c)?.divided()?;
    let (hidden, d) = (common.hidden_size, common.head_dim);
    let multi_query = c.flag("multi_query", true)?;
    common.kv_heads = if multi_query { 1 } else { common.heads };
    let inner = c.size_opt("n_inner")?.unwrap_or(4 * hidden);
    let eps = c.eps("layer_norm_epsilon", 1e-5)?;
    let act = activation(c, "activation_function", "gelu_pytorch_tanh")?;
    let scaled = c.flag("scale_attn_weights", true)?;
    c.only("add_cross_attention", &Value::Bool(false))?;
    // These concern only precision, and how the reference implementation ran.
    c.mark(&[
        "attention_softmax_in_fp32",
        "scale_attention_softmax_in_fp32",
        "inference_runner",
        "validate_runner_input",
        "pre_allocate_kv_cache",
        "max_batch_size",
        "max_sequence_length",
        "pad_key_length",
        "runner_max_sequence_length",
    ]);
    let rows = c.size_opt("n_positions")?.or(c.size_opt("max_position_embeddings")?).unwrap_or(1024);
    let norm = |name: &str| NormSpec::layer(name, hidden, eps);
    let linear = |name: &str, i, o| LinearSpec::new(name, i, o).bias(true);
    let layers = (0..common.layers).map(|i| {
        let mut attention = common.attention(true, super::parts::nope());
        attention.qkv = QkvSpec::Fused {
            qkv: linear("attn.c_attn", hidden, (common.heads + 2 * common.kv_heads) * d),
            layout: if multi_query { FusedLayout::Blocks } else { FusedLayout::PerKvHead },
        };
        attention.out = linear("attn.c_proj", hidden, hidden);
        attention.scale = if scaled { attention.scale } else { 1.0 };
        let mlp = plain(linear("mlp.c_fc", hidden, inner), linear("mlp.c_proj", inner, hidden), act);
        pre_norm(format!("h.{i}."), attention, mlp, ["ln_1", "ln_2"].map(norm))
    });
    let tied = c.flag("tie_word_embeddings", true)?;
    let mut spec = common.decoder("gpt_bigcode", layers.collect(), norm("ln_f"), tied);
    let embedding = &mut spec.stack.embedding;
    embedding.tokens = "wte.weight".into();
    embedding.position = PositionConfig::Learned(LearnedConfig { rows, hidden, offset: 0 });
    embedding.position_table = Some(TableSpec::new("wpe.weight"));
    spec.prefixes = vec!["transformer.".into(), String::new()];
    spec.trained_context = Some(rows);
    Ok(spec)
}
