//! CodeGen: GPT-J with fused projections in the order of the devices that trained it.

use super::parts::{Common, activation, head_bias, plain, pre_norm};
use super::rotary::rope;
use crate::config::Config;
use crate::spec::{FusedLayout, LinearSpec, ModelSpec, NormSpec, QkvSpec};
use attn_core::position::{Layout, RopeDefaults};
use candle_core::{Result, bail};

/// Devices that the projections were split among.
const PARTS: usize = 4;

pub(super) fn spec(c: &Config) -> Result<ModelSpec> {
    let common = Common::read_mha(c)?.divided()?;
    let (hidden, d) = (common.hidden_size, common.head_dim);
    if !hidden.is_multiple_of(PARTS) {
        bail!("config.json: n_embd {hidden} is not divisible by the {PARTS} parts of CodeGen's projections")
    }
    let inner = c.size_opt("n_inner")?.unwrap_or(4 * hidden);
    let eps = c.eps("layer_norm_epsilon", 1e-5)?;
    let act = activation(c, "activation_function", "gelu_new")?;
    let defaults = RopeDefaults {
        partial_rotary_factor: c.size_opt("rotary_dim")?.unwrap_or(64) as f64 / d as f64,
        layout: Layout::Interleaved,
        max_position_embeddings: Some(common.max_positions),
        ..RopeDefaults::new(d)
    };
    let rope = rope(c, None, &defaults)?;
    let layers = (0..common.layers).map(|i| {
        let mut attention = common.attention(false, rope.clone());
        attention.qkv = QkvSpec::Fused {
            qkv: LinearSpec::new("attn.qkv_proj", hidden, 3 * hidden),
            layout: FusedLayout::QueryValueKey { parts: PARTS },
        };
        attention.out = LinearSpec::new("attn.out_proj", hidden, hidden);
        let linear = |name: &str, i, o| LinearSpec::new(name, i, o).bias(true);
        let mlp = plain(linear("mlp.fc_in", hidden, inner), linear("mlp.fc_out", inner, hidden), act);
        let norm = NormSpec::layer("ln_1", hidden, eps);
        let mut layer = pre_norm(format!("h.{i}."), attention, mlp, [norm.clone(), norm]);
        layer.wiring.mlp_norm = None;
        layer.wiring.parallel = true;
        layer
    });
    let tied = c.flag("tie_word_embeddings", false)?;
    let mut spec = common.decoder("codegen", layers.collect(), NormSpec::layer("ln_f", hidden, eps), tied);
    spec.stack.embedding.tokens = "wte.weight".into();
    spec.prefixes = vec!["transformer.".into(), String::new()];
    spec.unused.push(".attn.causal_mask".into()); // a buffer of older checkpoints
    if let Some(head) = &mut spec.head {
        head.bias = Some(head_bias("lm_head.bias", common.vocab_size));
    }
    Ok(spec)
}
