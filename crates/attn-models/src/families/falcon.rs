//! Falcon: ALiBi (with its slopes and biases rounded to bf16, as it was trained) or RoPE; multi-query or grouped; parallel
//! branches with one norm, two, or none of it.

use super::parts::{Common, LLAMA_NORMS, activation, plain, pre_norm};
use super::rotary::llama_rope;
use crate::config::Config;
use crate::spec::{FusedLayout, LinearSpec, ModelSpec, NormSpec, QkvSpec};
use attn_core::position::{AlibiConfig, PositionConfig};
use candle_core::{Result, bail};

pub(super) fn spec(c: &Config) -> Result<ModelSpec> {
    let mut common = Common::read_mha(c)?.divided()?;
    let new_arch = c.flag("new_decoder_architecture", false)?;
    let multi_query = c.flag("multi_query", true)?;
    let groups = c.size_opt("num_kv_heads")?.or(c.size_opt("n_head_kv")?);
    common.kv_heads = match (new_arch, multi_query) {
        (true, _) => groups.unwrap_or(common.heads),
        (false, true) => 1,
        (false, false) => common.heads,
    };
    let (hidden, d) = (common.hidden_size, common.head_dim);
    if !common.heads.is_multiple_of(common.kv_heads) || d * common.heads != hidden {
        bail!("config.json: num_kv_heads {} does not divide {} heads of {hidden}", common.kv_heads, common.heads)
    }
    let eps = c.eps("layer_norm_epsilon", 1e-5)?;
    let act = activation(c, "activation", "gelu")?;
    let bias = c.flag("bias", false)?;
    let parallel = new_arch || c.flag("parallel_attn", true)?;
    c.mark(&["parallel_attn"]);
    let inner = c.size_opt("ffn_hidden_size")?.unwrap_or(4 * hidden);
    let norms = c.size_opt("num_ln_in_parallel_attn")?.unwrap_or(if new_arch { 2 } else { 1 });
    let rope = llama_rope(c, d)?;
    let position = match c.flag("alibi", false)? {
        true => PositionConfig::Alibi(AlibiConfig::falcon(common.heads, d)),
        false => rope,
    };
    let norm = |name: &str| NormSpec::layer(name, hidden, eps);
    let layers = (0..common.layers).map(|i| {
        let mut attention = common.attention(bias, position.clone());
        attention.qkv = QkvSpec::Fused {
            qkv: LinearSpec::new("self_attention.query_key_value", hidden, (common.heads + 2 * common.kv_heads) * d)
                .bias(bias),
            layout: FusedLayout::PerKvHead,
        };
        attention.out = LinearSpec::new("self_attention.dense", hidden, hidden).bias(bias);
        let linear = |name: &str, i, o| LinearSpec::new(name, i, o).bias(bias);
        let up = linear("mlp.dense_h_to_4h", hidden, inner);
        let mlp = plain(up, linear("mlp.dense_4h_to_h", inner, hidden), act);
        let two_norms = new_arch && norms == 2;
        let names = if two_norms { ["ln_attn", "ln_mlp"] } else { LLAMA_NORMS };
        let mut layer = pre_norm(format!("h.{i}."), attention, mlp, names.map(norm));
        layer.wiring.parallel = parallel;
        if parallel && !two_norms {
            layer.wiring.mlp_norm = None;
        }
        layer
    });
    let tied = c.flag("tie_word_embeddings", true)?;
    let mut spec = common.decoder("falcon", layers.collect(), norm("ln_f"), tied);
    spec.stack.embedding.tokens = "word_embeddings.weight".into();
    spec.prefixes = vec!["transformer.".into(), String::new()];
    Ok(spec)
}
