//! RoFormer: BERT's layout with rotation instead of added positions; the sines and cosines are in the checkpoint.

use super::bert::{BERT, Encoder};
use super::dense::Defaults;
use crate::config::Config;
use crate::spec::{AttentionSpec, ModelSpec, TableSpec};
use attn_core::position::{PositionConfig, RotaryTableConfig};
use candle_core::{Result, bail};
use serde_json::Value;

const DEFAULTS: Defaults = Defaults { vocab_size: 50_000, max_position_embeddings: 1536, ..BERT };

pub(super) fn spec(c: &Config) -> Result<ModelSpec> {
    let encoder = Encoder::read(c, "roformer", &DEFAULTS)?;
    c.only("rotary_value", &Value::Bool(false))?;
    let common = &encoder.dense.common;
    let (rows, head_dim) = (common.max_positions, common.head_dim);
    if !head_dim.is_multiple_of(2) {
        bail!("config.json: hidden_size {} among {} heads leaves no pairs to rotate", common.hidden_size, common.heads)
    }
    let width = c.size_opt("embedding_size")?.unwrap_or(common.hidden_size);
    let mut spec = encoder.spec(c, width, None)?;
    for layer in &mut spec.stack.layers {
        if let AttentionSpec::MultiHead(attention) = &mut layer.attention {
            attention.position = PositionConfig::RotaryTable(RotaryTableConfig { rows, head_dim });
        }
    }
    spec.stack.layer_table = Some(TableSpec::new("encoder.embed_positions.weight").or_sinusoids());
    Ok(spec)
}
