//! StableLM: partial rotation, layer norms, optionally a layer norm of its own for every query and key head.

use super::parts::{Common, LLAMA_NORMS, activation, pre_norm};
use super::rotary::rope;
use crate::config::Config;
use crate::spec::{LinearSpec, ModelSpec, NormSpec, QkvSpec};
use attn_core::QkNormPlace;
use attn_core::position::RopeDefaults;
use candle_core::Result;

pub(super) fn spec(c: &Config) -> Result<ModelSpec> {
    let common = Common::read(c)?;
    let (hidden, d) = (common.hidden_size, common.head_dim);
    let intermediate = c.size(&["intermediate_size"])?;
    let eps = c.eps("layer_norm_eps", 1e-5)?;
    let act = activation(c, "hidden_act", "silu")?;
    let defaults = RopeDefaults { partial_rotary_factor: 0.25, ..RopeDefaults::new(d) };
    let rope = rope(c, None, &defaults)?;
    let (bias, qk_norm) = (c.flag("use_qkv_bias", false)?, c.flag("qk_layernorm", false)?);
    let parallel = c.flag("use_parallel_residual", false)?;
    let norm = |name: &str| NormSpec::layer(name, hidden, eps);
    let layers = (0..common.layers).map(|i| {
        let mut attention = common.attention(false, rope.clone());
        if let QkvSpec::Separate { q, k, v } = &mut attention.qkv {
            let with = |l: &LinearSpec| l.clone().bias(bias);
            (*q, *k, *v) = (with(q), with(k), with(v));
        }
        if qk_norm {
            let norm = |name, heads| NormSpec::layer(name, d, eps).no_bias().per_head(heads);
            let (q, k) = (norm("self_attn.q_layernorm", common.heads), norm("self_attn.k_layernorm", common.kv_heads));
            attention.qk_norm = Some((q, k, QkNormPlace::Heads));
        }
        let mlp = common.gated_mlp(intermediate, false, act);
        let mut layer = pre_norm(format!("layers.{i}."), attention, mlp, LLAMA_NORMS.map(norm));
        if parallel {
            layer.wiring.mlp_norm = None;
            layer.wiring.parallel = true;
        }
        layer
    });
    Ok(common.decoder("stablelm", layers.collect(), norm("norm"), c.flag("tie_word_embeddings", false)?))
}
