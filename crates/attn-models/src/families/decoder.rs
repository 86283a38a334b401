//! Llama's block under any position encoding: what `attn train` trains to compare encodings with nothing else changed.
//!
//! `position_encoding` names one of [`ENCODINGS`]; all other keys are Llama's, but for the few that an encoding has of its own.
//! The sinusoids are added to embeddings scaled by `sqrt(hidden_size)` (Vaswani et al. 2017); ALiBi, Sandwich and T5 keep the
//! scale of the scores. What an encoding learns in a layer is under `self_attn.position.`, and sinks are `self_attn.sinks`.

use super::parts::{Common, LLAMA_NORMS, activation, nope, pre_norm};
use super::rotary::llama_rope;
use crate::config::Config;
use crate::spec::{ModelSpec, NormSpec, TableSpec};
use attn_core::position::{
    AlibiConfig, KerpleKernel, LearnedConfig, PositionConfig, RopeConfig, SandwichConfig, SinusoidalConfig, T5Config,
    TrainedConfig, XposConfig,
};
use candle_core::{Result, bail};

/// What `position_encoding` may be.
pub const ENCODINGS: [&str; 17] = [
    "sinusoidal",
    "learned",
    "t5",
    "alibi",
    "sandwich",
    "rope",
    "none",
    "xpos",
    "learned-frequencies",
    "ssmax",
    "rope-sinks",
    "kerple",
    "kerple-power",
    "fire",
    "fox",
    "shaw",
    "cope",
];

pub(super) fn spec(c: &Config) -> Result<ModelSpec> {
    let common = Common::read(c)?;
    let eps = c.eps("rms_norm_eps", 1e-6)?;
    let intermediate = c.size(&["intermediate_size"])?;
    let act = activation(c, "hidden_act", "silu")?;
    let Some(encoding) = c.text_opt("position_encoding")? else { bail!("config.json: position_encoding is missing") };
    let hidden = common.hidden_size;
    let position = in_attention(c, &common, encoding)?;
    let norm = |name: &str| NormSpec::rms(name, hidden, eps);
    let layers = (0..common.layers).map(|i| {
        let mlp = common.gated_mlp(intermediate, false, act);
        let mut attention = common.attention(false, position.clone());
        let learns = matches!(position, PositionConfig::Trained(_));
        attention.position_prefix = learns.then(|| "self_attn.position.".into());
        attention.sinks = (encoding == "rope-sinks").then(|| "self_attn.sinks".into());
        pre_norm(format!("layers.{i}."), attention, mlp, LLAMA_NORMS.map(norm))
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

/// What acts in the layers' attention.
fn in_attention(c: &Config, common: &Common, encoding: &str) -> Result<PositionConfig> {
    let (heads, head_dim, hidden_size) = (common.heads, common.head_dim, common.hidden_size);
    let rope = || -> Result<RopeConfig> {
        match llama_rope(c, head_dim)? {
            PositionConfig::Rope(rope) => Ok(rope),
            _ => bail!("config.json: position_encoding: {encoding} needs a rotation"),
        }
    };
    let kerple = |kernel| PositionConfig::Trained(TrainedConfig::Kerple { kernel, heads });
    Ok(match encoding {
        "alibi" => PositionConfig::Alibi(AlibiConfig::new(heads)),
        "sandwich" => {
            let mut sandwich = SandwichConfig::new(heads);
            sandwich.width = c.size_opt("sandwich_width")?.unwrap_or(sandwich.width);
            PositionConfig::Sandwich(sandwich)
        }
        "t5" => {
            let mut t5 = T5Config::new(heads, false);
            t5.buckets = c.size_opt("relative_attention_num_buckets")?.unwrap_or(t5.buckets);
            t5.max_distance = c.size_opt("relative_attention_max_distance")?.unwrap_or(t5.max_distance);
            PositionConfig::T5(t5)
        }
        "rope" | "rope-sinks" => llama_rope(c, head_dim)?,
        "sinusoidal" | "learned" | "none" => nope(),
        "xpos" => {
            let scale_base = c.number_or("xpos_scale_base", 512.0)?;
            PositionConfig::Xpos(XposConfig { scale_base, ..XposConfig::new(rope()?) })
        }
        "learned-frequencies" => PositionConfig::Trained(TrainedConfig::Frequencies { rope: rope()? }),
        "ssmax" => PositionConfig::Trained(TrainedConfig::Ssmax { rope: rope()?, heads }),
        "kerple" => kerple(KerpleKernel::Logarithmic),
        "kerple-power" => kerple(KerpleKernel::Power),
        "fire" => {
            let units = c.size_opt("fire_units")?.unwrap_or(32);
            PositionConfig::Trained(TrainedConfig::Fire { heads, units })
        }
        "fox" => PositionConfig::Trained(TrainedConfig::Fox { hidden_size, heads }),
        "shaw" => {
            let max_distance = c.size_opt("shaw_max_distance")?.unwrap_or(common.max_positions / 2).max(1);
            PositionConfig::Trained(TrainedConfig::Shaw { head_dim, max_distance })
        }
        "cope" => {
            let positions = c.size_opt("cope_positions")?.unwrap_or(64);
            PositionConfig::Trained(TrainedConfig::Cope { head_dim, positions })
        }
        other => bail!("config.json: position_encoding: unknown encoding {other}; known: {}", ENCODINGS.join(", ")),
    })
}
