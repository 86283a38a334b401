//! Hunyuan: Llama with norms on query and key heads after the rotation, whose base an `alpha` enlarges once for all
//! lengths.

use super::dense::{Defaults, Dense};
use super::rotary::{rope, rope_dictionary, rope_of};
use crate::config::Config;
use crate::spec::ModelSpec;
use attn_core::QkNormPlace;
use attn_core::position::PositionConfig;
use candle_core::Result;
use serde_json::json;

const DEFAULTS: Defaults = Defaults { vocab_size: 290_943, eps: ("rms_norm_eps", 1e-5), ..Defaults::LLAMA };

pub(super) fn spec(c: &Config) -> Result<ModelSpec> {
    let dense = Dense::read(c, &DEFAULTS)?;
    let rope = hunyuan_rope(c, &dense)?;
    let bias = c.flag("attention_bias", false)?;
    c.mark(&["eod_token_id"]);
    let layers = dense.layers(|i| {
        let mut attention = dense.common.attention(bias, rope.clone());
        let [q, k] = dense.head_norms(["query_layernorm", "key_layernorm"]);
        attention.qk_norm = Some((q, k, QkNormPlace::AfterRotation));
        Ok(dense.layer(i, attention, dense.gated_mlp(false)))
    })?;
    Ok(dense.decoder("hunyuan_v1_dense", layers))
}

/// `dynamic` with an `alpha` is static NTK with alpha as its factor; what else such a dictionary holds has no effect.
fn hunyuan_rope(c: &Config, dense: &Dense) -> Result<PositionConfig> {
    let found = ["rope_scaling", "rope_parameters"].into_iter().find_map(|key| rope_dictionary(c, key));
    let kind = found.and_then(|d| d.get("rope_type").or(d.get("type"))).and_then(|v| v.as_str());
    let alpha = found.and_then(|d| d.get("alpha")).filter(|a| a.as_f64().is_none_or(|a| a != 0.0));
    match (found, kind, alpha) {
        (Some(dictionary), Some("dynamic"), Some(alpha)) if !alpha.is_null() => {
            let mut ntk = json!({"rope_type": "ntk", "factor": alpha});
            if let Some(theta) = dictionary.get("rope_theta") {
                ntk["rope_theta"] = theta.clone();
            }
            rope_of(c, None, &dense.rope_defaults(), ntk)
        }
        _ => rope(c, None, &dense.rope_defaults()),
    }
}
