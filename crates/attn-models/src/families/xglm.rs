//! XGLM: sinusoids with an offset of 2, sines first, on scaled embeddings.

use super::parts::{Common, activation, plain, pre_norm};
use crate::config::Config;
use crate::spec::{LinearSpec, ModelSpec, NormSpec};
use attn_core::position::{PositionConfig, SinusoidalConfig};
use candle_core::{Result, bail};
use serde_json::Value;

/// The row of position 0; those below belong to padding.
const OFFSET: usize = 2;

pub(super) fn spec(c: &Config) -> Result<ModelSpec> {
    let common = Common::read_mha(c)?.divided()?;
    let hidden = common.hidden_size;
    let inner = c.size_opt("ffn_dim")?.unwrap_or(4096);
    let act = activation(c, "activation_function", "gelu")?;
    let scaled = c.flag("scale_embedding", true)?;
    c.only("add_cross_attention", &Value::Bool(false))?;
    if let Some(pad) = c.get("pad_token_id").and_then(Value::as_u64)
        && pad >= OFFSET as u64
    {
        bail!("config.json: pad_token_id = {pad} is not supported: the position of that number would have no vector")
    }
    c.mark(&["layerdrop", "init_std", "activation_dropout"]);
    let norm = |name: &str| NormSpec::layer(name, hidden, 1e-5);
    let linear = |name: &str, i, o| LinearSpec::new(name, i, o).bias(true);
    let layers = (0..common.layers).map(|i| {
        let mut attention = common.attention(true, super::parts::nope());
        attention.out.name = "self_attn.out_proj".into();
        let mlp = plain(linear("fc1", hidden, inner), linear("fc2", inner, hidden), act);
        pre_norm(format!("layers.{i}."), attention, mlp, ["self_attn_layer_norm", "final_layer_norm"].map(norm))
    });
    let tied = c.flag("tie_word_embeddings", true)?;
    let mut spec = common.decoder("xglm", layers.collect(), norm("layer_norm"), tied);
    let embedding = &mut spec.stack.embedding;
    embedding.position = PositionConfig::Sinusoidal(SinusoidalConfig::tensor2tensor(hidden, OFFSET));
    embedding.scale = if scaled { (hidden as f64).sqrt() } else { 1.0 };
    Ok(spec)
}
