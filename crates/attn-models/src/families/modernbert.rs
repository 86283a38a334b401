//! ModernBERT: an encoder with rotation, gated networks, windows on most layers and a rotary base of their own for those.

use super::dense::{Defaults, Dense};
use super::parts::{embedding, layer_types};
use super::rotary::rope_by_type;
use crate::Architecture;
use crate::config::Config;
use crate::spec::{
    FusedLayout, GateSpec, GateUpSpec, LayerSpec, LinearSpec, MlpSpec, ModelSpec, MultiHeadSpec, NormSpec, QkvSpec,
    StackSpec, Wiring,
};
use attn_core::Mask;
use attn_core::position::PositionConfig;
use candle_core::{Result, bail};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 50_368,
    hidden_size: 768,
    intermediate_size: 1152,
    num_hidden_layers: 22,
    num_attention_heads: 12,
    plain_heads: true,
    max_position_embeddings: 8192,
    eps: ("norm_eps", 1e-5),
    ..Defaults::LLAMA
};

pub(super) fn spec(c: &Config) -> Result<ModelSpec> {
    let act = super::parts::activation(c, "hidden_activation", "gelu")?;
    let dense = Dense::read_with(c, &DEFAULTS, act)?;
    let (hidden, inner, heads) = (dense.common.hidden_size, dense.intermediate_size, dense.common.heads);
    let (bias, mlp_bias) = (c.flag("attention_bias", false)?, c.flag("mlp_bias", false)?);
    let norm_bias = c.flag("norm_bias", false)?;
    let local = c.size_opt("local_attention")?.unwrap_or(128);
    let every = c.size_opt("global_attn_every_n_layers")?.unwrap_or(3);
    let default = |i: usize| if i.is_multiple_of(every) { "full_attention" } else { "sliding_attention" };
    let kinds = layer_types(c, dense.common.layers, default)?;
    // What the heads on top and training are made of.
    c.mark(&[
        "classifier_activation",
        "classifier_bias",
        "classifier_pooling",
        "decoder_bias",
        "deterministic_flash_attn",
        "embedding_dropout",
        "initializer_cutoff_factor",
        "mlp_dropout",
        "reference_compile",
        "repad_logits_with_grad",
        "sparse_pred_ignore_index",
        "sparse_prediction",
        "position_embedding_type",
        "layer_norm_eps",
        "hidden_act",
    ]);
    let norm = |name: &str| NormSpec { bias: norm_bias, ..dense.layer_norm(name) };
    let layers = dense.layers(|i| {
        let window = match kinds[i].as_str() {
            "full_attention" => None,
            "sliding_attention" => Some(local / 2 + 1), // so many on either side, and the token itself
            kind => bail!("config.json: layer_types: {kind} is not supported here"),
        };
        let qkv = LinearSpec::new("attn.Wqkv", hidden, 3 * hidden).bias(bias);
        let out = LinearSpec::new("attn.Wo", hidden, hidden).bias(bias);
        let layout = FusedLayout::Blocks;
        let position = modernbert_rope(c, &dense, &kinds[i])?;
        let mut attention =
            MultiHeadSpec::new(heads, heads, hidden / heads, QkvSpec::Fused { qkv, layout }, out, position)
                .with_mask(Mask::bidirectional().with_window(window));
        attention.overridable = kinds[i] == "full_attention";
        let mlp = MlpSpec::Gated {
            gate_up: GateUpSpec::Fused(LinearSpec::new("mlp.Wi", hidden, 2 * inner).bias(mlp_bias)),
            down: LinearSpec::new("mlp.Wo", inner, hidden).bias(mlp_bias),
            gate: GateSpec::Activation(act),
        };
        let mut wiring = Wiring::pre_norm(["attn_norm", "mlp_norm"].map(norm));
        if i == 0 {
            wiring.attention_norm = None; // it starts from the embeddings' norm
        }
        Ok(LayerSpec::new(format!("layers.{i}."), attention, mlp, wiring))
    })?;
    let mut embedding = embedding("embeddings.tok_embeddings.weight", hidden);
    embedding.norm = Some(norm("embeddings.norm"));
    Ok(ModelSpec {
        family: "modernbert".into(),
        architecture: Architecture::Encoder,
        vocab_size: dense.common.vocab_size,
        hidden_size: hidden,
        trained_context: Some(dense.common.max_positions),
        stack: StackSpec::new(embedding, layers, Some(norm("final_norm"))),
        encoder: None,
        head: None,
        prefixes: vec![String::new(), "model.".into()],
        unused: ["head.", "decoder.", "classifier."].map(String::from).to_vec(),
    })
}

/// Global and local layers have a base each; a scaling in the older spelling is for both.
fn modernbert_rope(c: &Config, dense: &Dense, kind: &str) -> Result<PositionConfig> {
    let (global, local) = (c.positive_opt("global_rope_theta")?, c.positive_opt("local_rope_theta")?);
    let theta = match kind {
        "full_attention" => global.unwrap_or(160_000.0),
        _ => local.unwrap_or(10_000.0),
    };
    rope_by_type(c, kind, theta, true, &dense.rope_defaults())
}
