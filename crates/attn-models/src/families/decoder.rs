//! Llama's block under any position encoding: what `attn train` trains to compare encodings with nothing else changed.
//!
//! `position_encoding` is `sinusoidal`, `learned`, `t5`, `alibi`, `rope` or `none`; all other keys are Llama's. The
//! sinusoids are added to embeddings scaled by `sqrt(hidden_size)` (Vaswani et al. 2017); ALiBi and T5 keep the scale of
//! the scores.

use super::{Common, LLAMA_NORMS, activation, llama_rope, nope, pre_norm};
use crate::config::Config;
use crate::spec::{ModelSpec, NormSpec, TableSpec};
use attn_core::position::{AlibiConfig, LearnedConfig, PositionConfig, SinusoidalConfig, T5Config};
use candle_core::{Result, bail};

pub(super) fn spec(c: &Config) -> Result<ModelSpec> {
    let common = Common::read(c)?;
    let eps = c.eps("rms_norm_eps", 1e-6)?;
    let intermediate = c.size(&["intermediate_size"])?;
    let act = activation(c, "hidden_act", "silu")?;
    let Some(encoding) = c.text_opt("position_encoding")? else { bail!("config.json: position_encoding is missing") };
    let (heads, hidden) = (common.heads, common.hidden_size);
    let bias = match encoding {
        "alibi" => PositionConfig::Alibi(AlibiConfig::new(heads)),
        "t5" => {
            let mut t5 = T5Config::new(heads, false);
            t5.buckets = c.size_opt("relative_attention_num_buckets")?.unwrap_or(t5.buckets);
            t5.max_distance = c.size_opt("relative_attention_max_distance")?.unwrap_or(t5.max_distance);
            PositionConfig::T5(t5)
        }
        "rope" => llama_rope(c, common.head_dim)?,
        "sinusoidal" | "learned" | "none" => nope(),
        other => bail!("config.json: position_encoding: unknown encoding {other}"),
    };
    let norm = |name: &str| NormSpec::rms(name, hidden, eps);
    let layers = (0..common.layers).map(|i| {
        let mlp = common.gated_mlp(intermediate, false, act);
        pre_norm(format!("layers.{i}."), common.attention(false, bias.clone()), mlp, LLAMA_NORMS.map(norm))
    });
    let tied = c.flag("tie_word_embeddings", false)?;
    let mut spec = common.decoder("attn_decoder", layers.collect(), norm("norm"), tied);
    let embedding = &mut spec.stack.embedding;
    match encoding {
        "sinusoidal" => {
            embedding.position = PositionConfig::Sinusoidal(SinusoidalConfig::new(hidden));
            embedding.scale = (hidden as f64).sqrt();
        }
        "learned" => {
            let rows = common.max_positions;
            embedding.position = PositionConfig::Learned(LearnedConfig { rows, hidden, offset: 0 });
            embedding.position_table = Some(TableSpec::new("embed_positions.weight"));
        }
        "t5" => spec.stack.layer_table = Some(TableSpec::new("relative_attention_bias.weight")),
        _ => {}
    }
    Ok(spec)
}
