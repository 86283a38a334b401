//! Phi 3 and 4 mini: Llama with fused projections and LongRoPE.

use super::parts::{Common, LLAMA_NORMS, activation, pre_norm};
use super::rotary::llama_rope;
use crate::config::Config;
use crate::spec::{FusedLayout, GateSpec, GateUpSpec, LinearSpec, MlpSpec, ModelSpec, NormSpec, QkvSpec};
use attn_core::position::{PositionConfig, RopeScaling};
use candle_core::{Result, bail};

pub(super) fn spec(c: &Config) -> Result<ModelSpec> {
    let common = Common::read(c)?;
    let (hidden, d) = (common.hidden_size, common.head_dim);
    let intermediate = c.size(&["intermediate_size"])?;
    let eps = c.eps("rms_norm_eps", 1e-5)?;
    let activation = activation(c, "hidden_act", "silu")?;
    let window = c.size_opt("sliding_window")?;
    let rope = llama_rope(c, d)?;
    if let PositionConfig::Rope(rope) = &rope
        && !matches!(rope.scaling, RopeScaling::Unscaled(_) | RopeScaling::LongRope(_) | RopeScaling::FreqFactors(_))
    {
        bail!("config.json: rope type {} is not supported for phi3, only longrope", rope.scaling.name())
    }
    let norm = |name: &str| NormSpec::rms(name, hidden, eps);
    let layers = (0..common.layers).map(|i| {
        let mut attention = common.attention(false, rope.clone());
        let rows = (common.heads + 2 * common.kv_heads) * d;
        attention.qkv =
            QkvSpec::Fused { qkv: LinearSpec::new("self_attn.qkv_proj", hidden, rows), layout: FusedLayout::Blocks };
        attention.mask = attention.mask.with_window(window);
        let mlp = MlpSpec::Gated {
            gate_up: GateUpSpec::Fused(LinearSpec::new("mlp.gate_up_proj", hidden, 2 * intermediate)),
            down: LinearSpec::new("mlp.down_proj", intermediate, hidden),
            gate: GateSpec::Activation(activation),
        };
        pre_norm(format!("layers.{i}."), attention, mlp, LLAMA_NORMS.map(norm))
    });
    Ok(common.decoder("phi3", layers.collect(), norm("norm"), c.flag("tie_word_embeddings", false)?))
}
