//! StarCoder 2: layer norms, biases, no gate, a window on every layer if there is one.

use super::dense::{Defaults, Dense};
use super::parts::{LLAMA_NORMS, pre_norm};
use crate::config::Config;
use crate::spec::ModelSpec;
use candle_core::Result;

const DEFAULTS: Defaults = Defaults {
    vocab_size: 49_152,
    hidden_size: 3072,
    intermediate_size: 12_288,
    num_hidden_layers: 30,
    num_attention_heads: 24,
    num_key_value_heads: Some(2),
    max_position_embeddings: 4096,
    eps: ("norm_epsilon", 1e-5),
    hidden_act: "gelu_pytorch_tanh",
    tie_word_embeddings: true,
    ..Defaults::LLAMA
};

pub(super) fn spec(c: &Config) -> Result<ModelSpec> {
    let dense = Dense::read(c, &DEFAULTS)?;
    let rope = dense.rope(c)?;
    let bias = c.flag("use_bias", true)?;
    let window = c.size_opt("sliding_window")?;
    c.mark(&["residual_dropout", "embedding_dropout"]);
    let layers = dense.layers(|i| {
        let mut attention = dense.common.attention(bias, rope.clone());
        attention.mask = attention.mask.with_window(window);
        let mlp = dense.plain_mlp(["c_fc", "c_proj"], bias);
        Ok(pre_norm(format!("layers.{i}."), attention, mlp, LLAMA_NORMS.map(|name| dense.layer_norm(name))))
    })?;
    Ok(dense.decoder_with("starcoder2", layers, dense.layer_norm("norm")))
}
