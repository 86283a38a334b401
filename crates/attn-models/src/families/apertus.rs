//! Apertus: xIELU without a gate, norms on query and key heads, Llama 3's scaling unless the config says otherwise.

use super::dense::{Defaults, Dense};
use super::parts::pre_norm;
use super::rotary::{rope, rope_dictionary, rope_of};
use crate::activation::Activation;
use crate::config::Config;
use crate::spec::{MlpSpec, ModelSpec, PlainActivation};
use attn_core::QkNormPlace;
use attn_core::position::PositionConfig;
use candle_core::Result;
use serde_json::json;

const DEFAULTS: Defaults = Defaults {
    vocab_size: 131_072,
    intermediate_size: 14_336,
    max_position_embeddings: 65_536,
    eps: ("rms_norm_eps", 1e-5),
    hidden_act: "xielu",
    rope_theta: 12_000_000.0,
    ..Defaults::LLAMA
};

pub(super) fn spec(c: &Config) -> Result<ModelSpec> {
    let xielu = c.text_or("hidden_act", "xielu")? == "xielu";
    let dense = match xielu {
        // Its slopes are in the checkpoint: it takes the place of this one below.
        true => Dense::read_with(c, &DEFAULTS, Activation::Relu)?,
        false => Dense::read(c, &DEFAULTS)?,
    };
    let rope = apertus_rope(c, &dense)?;
    let bias = c.flag("attention_bias", false)?;
    let layers = dense.layers(|i| {
        let mut attention = dense.common.attention(bias, rope.clone());
        let [q, k] = dense.head_norms(["q_norm", "k_norm"]);
        attention.qk_norm = Some((q, k, QkNormPlace::Heads));
        let mut mlp = dense.plain_mlp(["up_proj", "down_proj"], false);
        if let (MlpSpec::Plain { activation, .. }, true) = (&mut mlp, xielu) {
            *activation = PlainActivation::Xielu { prefix: "mlp.act_fn.".into() };
        }
        let norms = ["attention_layernorm", "feedforward_layernorm"].map(|name| dense.rms(name));
        Ok(pre_norm(format!("layers.{i}."), attention, mlp, norms))
    })?;
    Ok(dense.decoder("apertus", layers))
}

/// Without a dictionary the class has one of its own, theta included: a `rope_theta` beside it has no effect then.
fn apertus_rope(c: &Config, dense: &Dense) -> Result<PositionConfig> {
    if ["rope_scaling", "rope_parameters"].into_iter().any(|key| rope_dictionary(c, key).is_some()) {
        return rope(c, None, &dense.rope_defaults());
    }
    let own = json!({"rope_type": "llama3", "rope_theta": 12_000_000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192});
    rope_of(c, None, &dense.rope_defaults(), own)
}
