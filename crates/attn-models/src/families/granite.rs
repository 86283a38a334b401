//! Granite: Llama with four multipliers.

use super::{Common, LLAMA_NORMS, activation, llama_rope, pre_norm};
use crate::config::Config;
use crate::spec::{ModelSpec, NormSpec};
use candle_core::Result;

pub(super) fn spec(c: &Config) -> Result<ModelSpec> {
    let common = Common::read(c)?;
    let eps = c.eps("rms_norm_eps", 1e-6)?;
    let intermediate = c.size(&["intermediate_size"])?;
    let act = activation(c, "hidden_act", "silu")?;
    let (bias, mlp_bias) = (c.flag("attention_bias", false)?, c.flag("mlp_bias", false)?);
    let rope = llama_rope(c, common.head_dim)?;
    let scale = c.number_or("attention_multiplier", 1.0)?;
    let residual = c.number_or("residual_multiplier", 1.0)?;
    let norm = |name: &str| NormSpec::rms(name, common.hidden_size, eps);
    let layers = (0..common.layers).map(|i| {
        let mut attention = common.attention(bias, rope.clone());
        attention.scale = scale;
        let mlp = common.gated_mlp(intermediate, mlp_bias, act);
        let mut layer = pre_norm(format!("layers.{i}."), attention, mlp, LLAMA_NORMS.map(norm));
        layer.wiring.residual_multiplier = Some(residual);
        layer
    });
    let tied = c.flag("tie_word_embeddings", false)?;
    let mut spec = common.decoder("granite", layers.collect(), norm("norm"), tied);
    spec.stack.embedding.scale = c.number_or("embedding_multiplier", 1.0)?;
    if let Some(head) = &mut spec.head {
        head.scale = 1.0 / c.positive_opt("logits_scaling")?.unwrap_or(1.0);
    }
    Ok(spec)
}
