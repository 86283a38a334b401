//! Cohere's Command R: interleaved rotation, layer norms without bias, parallel branches, scaled logits.

use super::parts::{Common, activation, pre_norm};
use super::rotary::rope;
use crate::config::Config;
use crate::spec::{ModelSpec, NormSpec};
use attn_core::QkNormPlace;
use attn_core::position::{Layout, RopeDefaults};
use candle_core::Result;

pub(super) fn spec(c: &Config) -> Result<ModelSpec> {
    let common = Common::read(c)?;
    let (hidden, d) = (common.hidden_size, common.head_dim);
    let intermediate = c.size(&["intermediate_size"])?;
    let eps = c.eps("layer_norm_eps", 1e-5)?;
    let act = activation(c, "hidden_act", "silu")?;
    let rope = rope(c, None, &RopeDefaults { layout: Layout::Interleaved, ..RopeDefaults::new(d) })?;
    let (bias, qk_norm) = (c.flag("attention_bias", false)?, c.flag("use_qk_norm", false)?);
    let layers = (0..common.layers).map(|i| {
        let mut attention = common.attention(bias, rope.clone());
        if qk_norm {
            let norm = |name, heads| NormSpec::layer(name, d, eps).no_bias().shape(&[heads, d]);
            let (q, k) = (norm("self_attn.q_norm", common.heads), norm("self_attn.k_norm", common.kv_heads));
            attention.qk_norm = Some((q, k, QkNormPlace::Heads));
        }
        let mlp = common.gated_mlp(intermediate, false, act);
        let norm = NormSpec::layer("input_layernorm", hidden, eps).no_bias();
        let mut layer = pre_norm(format!("layers.{i}."), attention, mlp, [norm.clone(), norm]);
        layer.wiring.mlp_norm = None;
        layer.wiring.parallel = true;
        layer
    });
    let norm = NormSpec::layer("norm", hidden, eps).no_bias();
    let mut spec = common.decoder("cohere", layers.collect(), norm, c.flag("tie_word_embeddings", true)?);
    if let Some(head) = &mut spec.head {
        head.scale = c.number_or("logit_scale", 0.0625)?;
    }
    Ok(spec)
}
