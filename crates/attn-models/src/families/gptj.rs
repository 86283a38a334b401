//! GPT-J: interleaved rotation of the first lanes, parallel branches, a bias on the logits.

use super::parts::{Common, activation, plain, pre_norm};
use crate::config::Config;
use crate::spec::{LinearSpec, ModelSpec, NormSpec, QkvSpec};
use attn_core::position::{Layout, PositionConfig, RopeConfig};
use candle_core::Result;

pub(super) fn spec(c: &Config) -> Result<ModelSpec> {
    let common = Common::read_mha(c)?.divided()?;
    let (hidden, d) = (common.hidden_size, common.head_dim);
    let inner = c.size_opt("n_inner")?.unwrap_or(4 * hidden);
    let eps = c.eps("layer_norm_epsilon", 1e-5)?;
    let act = activation(c, "activation_function", "gelu_new")?;
    let rotary_dim = c.size_opt("rotary_dim")?.unwrap_or(d);
    // A base or a scaling in a config does nothing in transformers' GPT-J.
    let rope = RopeConfig {
        rotary_dim,
        layout: Layout::Interleaved,
        max_position_embeddings: common.max_positions,
        ..RopeConfig::new(d, 10_000.0)
    };
    rope.validate()?;
    for key in ["rope_theta", "rope_scaling", "rope_parameters"] {
        if c.says(key) {
            c.ignored_key(&format!("{key} does nothing in GPT-J"));
        }
    }
    c.mark(&["rope_theta", "rope_scaling", "rope_parameters", "rotary", "rotary_pct", "partial_rotary_factor"]);
    let rope = PositionConfig::Rope(rope);
    let layers = (0..common.layers).map(|i| {
        let mut attention = common.attention(false, rope.clone());
        let linear = |name: &str| LinearSpec::new(&format!("attn.{name}"), hidden, hidden);
        attention.qkv = QkvSpec::Separate { q: linear("q_proj"), k: linear("k_proj"), v: linear("v_proj") };
        attention.out = linear("out_proj");
        let linear = |name: &str, i, o| LinearSpec::new(name, i, o).bias(true);
        let mlp = plain(linear("mlp.fc_in", hidden, inner), linear("mlp.fc_out", inner, hidden), act);
        let norm = NormSpec::layer("ln_1", hidden, eps);
        let mut layer = pre_norm(format!("h.{i}."), attention, mlp, [norm.clone(), norm]);
        layer.wiring.mlp_norm = None;
        layer.wiring.parallel = true;
        layer
    });
    let tied = c.flag("tie_word_embeddings", false)?;
    let mut spec = common.decoder("gptj", layers.collect(), NormSpec::layer("ln_f", hidden, eps), tied);
    spec.stack.embedding.tokens = "wte.weight".into();
    spec.prefixes = vec!["transformer.".into(), String::new()];
    if let Some(head) = &mut spec.head {
        head.bias = Some(super::parts::head_bias("lm_head.bias", common.vocab_size));
    }
    Ok(spec)
}
