//! GPT-2: learned absolute positions, weights stored transposed.

use super::parts::{Common, activation, plain, pre_norm};
use crate::config::Config;
use crate::spec::{FusedLayout, LinearSpec, ModelSpec, NormSpec, QkvSpec, TableSpec};
use attn_core::position::{LearnedConfig, PositionConfig};
use candle_core::Result;
use serde_json::Value;

pub(super) fn spec(c: &Config) -> Result<ModelSpec> {
    let common = Common::read_mha(c)?.divided()?;
    let hidden = common.hidden_size;
    let inner = c.size_opt("n_inner")?.unwrap_or(4 * hidden);
    let eps = c.eps("layer_norm_epsilon", 1e-5)?;
    let act = activation(c, "activation_function", "gelu_new")?;
    let scaled = c.flag("scale_attn_weights", true)?;
    let by_layer = c.flag("scale_attn_by_inverse_layer_idx", false)?;
    c.only("add_cross_attention", &Value::Bool(false))?;
    c.mark(&["reorder_and_upcast_attn"]); // concerns only precision: scores are always computed in f32 here
    let rows = c.size(&["n_positions", "max_position_embeddings"]).unwrap_or(1024);
    let norm = |name: &str| NormSpec::layer(name, hidden, eps);
    let conv = |name: &str, i, o| LinearSpec::new(name, i, o).bias(true).transposed();
    let layers = (0..common.layers).map(|i| {
        let mut attention = common.attention(true, super::parts::nope());
        attention.qkv = QkvSpec::Fused { qkv: conv("attn.c_attn", hidden, 3 * hidden), layout: FusedLayout::Blocks };
        attention.out = conv("attn.c_proj", hidden, hidden);
        attention.scale = if scaled { attention.scale } else { 1.0 } / if by_layer { (i + 1) as f64 } else { 1.0 };
        let mlp = plain(conv("mlp.c_fc", hidden, inner), conv("mlp.c_proj", inner, hidden), act);
        pre_norm(format!("h.{i}."), attention, mlp, ["ln_1", "ln_2"].map(norm))
    });
    let tied = c.flag("tie_word_embeddings", true)?;
    let mut spec = common.decoder("gpt2", layers.collect(), norm("ln_f"), tied);
    let embedding = &mut spec.stack.embedding;
    embedding.tokens = "wte.weight".into();
    embedding.position = PositionConfig::Learned(LearnedConfig { rows, hidden, offset: 0 });
    embedding.position_table = Some(TableSpec::new("wpe.weight"));
    spec.prefixes = vec!["transformer.".into(), String::new()];
    spec.trained_context = Some(rows);
    Ok(spec)
}
