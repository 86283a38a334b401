//! GPT-NeoX and Pythia: partial rotation, fused projections per head, usually parallel branches with a norm each.

use super::parts::{Common, LLAMA_NORMS, activation, head, plain, pre_norm};
use super::rotary::rope;
use crate::config::Config;
use crate::spec::{FusedLayout, LinearSpec, ModelSpec, NormSpec, QkvSpec};
use attn_core::position::RopeDefaults;
use candle_core::Result;

pub(super) fn spec(c: &Config) -> Result<ModelSpec> {
    let common = Common::read_mha(c)?.divided()?;
    let (hidden, d) = (common.hidden_size, common.head_dim);
    let intermediate = c.size(&["intermediate_size"])?;
    let eps = c.eps("layer_norm_eps", 1e-5)?;
    let act = activation(c, "hidden_act", "gelu")?;
    let bias = c.flag("attention_bias", true)?;
    let parallel = c.flag("use_parallel_residual", true)?;
    let defaults = RopeDefaults {
        theta: c.positive_opt("rotary_emb_base")?.unwrap_or(10_000.0),
        partial_rotary_factor: c.positive_opt("rotary_pct")?.unwrap_or(0.25),
        ..RopeDefaults::new(d)
    };
    let rope = rope(c, None, &defaults)?;
    let norm = |name: &str| NormSpec::layer(name, hidden, eps);
    let layers = (0..common.layers).map(|i| {
        let mut attention = common.attention(bias, rope.clone());
        attention.qkv = QkvSpec::Fused {
            qkv: LinearSpec::new("attention.query_key_value", hidden, 3 * hidden).bias(bias),
            layout: FusedLayout::PerKvHead,
        };
        attention.out = LinearSpec::new("attention.dense", hidden, hidden).bias(bias);
        let linear = |name: &str, i, o| LinearSpec::new(name, i, o).bias(true);
        let up = linear("mlp.dense_h_to_4h", hidden, intermediate);
        let mlp = plain(up, linear("mlp.dense_4h_to_h", intermediate, hidden), act);
        let mut layer = pre_norm(format!("layers.{i}."), attention, mlp, LLAMA_NORMS.map(norm));
        layer.wiring.parallel = parallel;
        layer
    });
    let tied = c.flag("tie_word_embeddings", false)?;
    let mut spec = common.decoder("gpt_neox", layers.collect(), norm("final_layer_norm"), tied);
    spec.stack.embedding.tokens = "embed_in.weight".into();
    spec.prefixes = vec!["gpt_neox.".into(), String::new()];
    spec.head = Some(head(tied, "embed_out"));
    Ok(spec)
}
