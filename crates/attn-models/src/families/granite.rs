//! Granite: Llama with four multipliers, dense or with experts in stacked tensors.

use super::dense::{Defaults, Dense};
use super::experts::Experts;
use super::parts::{Common, LLAMA_NORMS, activation, pre_norm};
use super::rotary::llama_rope;
use crate::config::Config;
use crate::spec::{AttentionSpec, ExpertWeights, ModelSpec, NormSpec, Routing};
use candle_core::Result;

pub(super) fn spec(c: &Config) -> Result<ModelSpec> {
    let common = Common::read(c)?;
    let eps = c.eps("rms_norm_eps", 1e-6)?;
    let intermediate = c.size(&["intermediate_size"])?;
    let act = activation(c, "hidden_act", "silu")?;
    let (bias, mlp_bias) = (c.flag("attention_bias", false)?, c.flag("mlp_bias", false)?);
    let rope = llama_rope(c, common.head_dim)?;
    let norm = |name: &str| NormSpec::rms(name, common.hidden_size, eps);
    let layers = (0..common.layers).map(|i| {
        let mlp = common.gated_mlp(intermediate, mlp_bias, act);
        pre_norm(format!("layers.{i}."), common.attention(bias, rope.clone()), mlp, LLAMA_NORMS.map(norm))
    });
    let tied = c.flag("tie_word_embeddings", false)?;
    multiplied(c, common.decoder("granite", layers.collect(), norm("norm"), tied))
}

const MOE: Defaults = Defaults::LLAMA;

pub(super) fn moe(c: &Config) -> Result<ModelSpec> {
    let dense = Dense::read(c, &MOE)?;
    let rope = dense.rope(c)?;
    let bias = c.flag("attention_bias", false)?;
    let experts = Experts::read(c, ["num_local_experts"; 2], 8, ["num_experts_per_tok"; 2], 2)?;
    let weights = ExpertWeights::Stacked {
        gate_up: "block_sparse_moe.input_linear.weight".into(),
        down: "block_sparse_moe.output_linear.weight".into(),
        transposed: false,
        interleaved: false,
        biases: None,
    };
    let router = "block_sparse_moe.router.layer";
    let moe = experts.moe(&dense, router, Routing::softmax(true), dense.intermediate_size, weights);
    let layers = dense.layers(|i| Ok(dense.layer(i, dense.common.attention(bias, rope.clone()), moe.clone())))?;
    multiplied(c, dense.decoder("granitemoe", layers))
}

/// The multipliers on embeddings, scores, branches and logits.
fn multiplied(c: &Config, mut spec: ModelSpec) -> Result<ModelSpec> {
    let scale = c.number_or("attention_multiplier", 1.0)?;
    let residual = c.number_or("residual_multiplier", 1.0)?;
    for layer in &mut spec.stack.layers {
        if let AttentionSpec::MultiHead(attention) = &mut layer.attention {
            attention.scale = scale;
        }
        layer.wiring.residual_multiplier = Some(residual);
    }
    spec.stack.embedding.scale = c.number_or("embedding_multiplier", 1.0)?;
    if let Some(head) = &mut spec.head {
        head.scale = 1.0 / c.positive_opt("logits_scaling")?.unwrap_or(1.0);
    }
    Ok(spec)
}
