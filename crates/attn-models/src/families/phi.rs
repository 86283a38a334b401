//! Phi 1 and 2: partial rotation, attention and feed-forward in parallel from one layer norm, biases everywhere.

use super::parts::{Common, activation, plain, pre_norm};
use super::rotary::rope;
use crate::config::Config;
use crate::spec::{LinearSpec, ModelSpec, NormSpec};
use attn_core::QkNormPlace;
use attn_core::position::RopeDefaults;
use candle_core::Result;

pub(super) fn spec(c: &Config) -> Result<ModelSpec> {
    let common = Common::read(c)?;
    let (hidden, d) = (common.hidden_size, common.head_dim);
    let intermediate = c.size_opt("intermediate_size")?.or(c.size_opt("n_inner")?).unwrap_or(4 * hidden);
    let eps = c.eps("layer_norm_eps", 1e-5)?;
    let act = activation(c, "hidden_act", "gelu_new")?;
    let defaults = RopeDefaults { partial_rotary_factor: 0.5, ..RopeDefaults::new(d) };
    let rope = rope(c, None, &defaults)?;
    let qk_norm = c.flag("qk_layernorm", false)?;
    let layers = (0..common.layers).map(|i| {
        let mut attention = common.attention(true, rope.clone());
        attention.out = LinearSpec::new("self_attn.dense", common.heads * d, hidden).bias(true);
        if qk_norm {
            let norm = |name| NormSpec::layer(name, d, eps);
            let place = QkNormPlace::Heads;
            attention.qk_norm = Some((norm("self_attn.q_layernorm"), norm("self_attn.k_layernorm"), place));
        }
        let linear = |name: &str, i, o| LinearSpec::new(name, i, o).bias(true);
        let mlp = plain(linear("mlp.fc1", hidden, intermediate), linear("mlp.fc2", intermediate, hidden), act);
        let norm = NormSpec::layer("input_layernorm", hidden, eps);
        let mut layer = pre_norm(format!("layers.{i}."), attention, mlp, [norm.clone(), norm]);
        layer.wiring.mlp_norm = None;
        layer.wiring.parallel = true;
        layer
    });
    let norm = NormSpec::layer("final_layernorm", hidden, eps);
    let mut spec = common.decoder("phi", layers.collect(), norm, c.flag("tie_word_embeddings", false)?);
    if let Some(head) = &mut spec.head {
        head.bias = Some(super::parts::head_bias("lm_head.bias", common.vocab_size));
    }
    Ok(spec)
}
