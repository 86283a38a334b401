//! EXAONE 4: a norm after each branch instead of before, norms on query and key heads, windows on most layers; where
//! there are windows, only those layers rotate.

use super::dense::{Defaults, Dense};
use super::parts::{layer_types, nope, window};
use crate::config::Config;
use crate::spec::ModelSpec;
use attn_core::QkNormPlace;
use candle_core::Result;

const DEFAULTS: Defaults = Defaults {
    vocab_size: 102_400,
    intermediate_size: 16_384,
    num_key_value_heads: Some(32),
    eps: ("rms_norm_eps", 1e-5),
    ..Defaults::LLAMA
};

pub(super) fn spec(c: &Config) -> Result<ModelSpec> {
    let dense = Dense::read(c, &DEFAULTS)?;
    let rope = dense.rope(c)?;
    let sliding = c.size_or_null("sliding_window", Some(4096))?;
    // Published configs also spell it as a string of L and G, beside layer_types, which win.
    let pattern = match c.get("layer_types") {
        Some(_) => None,
        None => c.size_or_null("sliding_window_pattern", Some(4))?,
    };
    c.mark(&["sliding_window_pattern"]);
    let full = |i: usize| sliding.is_none() || pattern.is_none_or(|p| (i + 1).is_multiple_of(p));
    let default = |i| if full(i) { "full_attention" } else { "sliding_attention" };
    let kinds = layer_types(c, dense.common.layers, default)?;
    let layers = dense.layers(|i| {
        let rotates = sliding.is_none() || kinds[i] == "sliding_attention";
        let mut attention = dense.common.attention(false, if rotates { rope.clone() } else { nope() });
        let [q, k] = dense.head_norms(["q_norm", "k_norm"]);
        attention.qk_norm = Some((q, k, QkNormPlace::Heads));
        attention.mask = attention.mask.with_window(window(&kinds[i], sliding)?);
        Ok(dense.post_norm(i, attention, dense.gated_mlp(false)))
    })?;
    Ok(dense.decoder("exaone4", layers))
}
