//! OPT: learned positions with an offset of 2, norms before or after the branches, in one size embeddings narrower than
//! the residual stream.

use super::parts::{Common, activation, plain};
use crate::config::Config;
use crate::spec::{LayerSpec, LinearSpec, ModelSpec, NormSpec, ProjectionPlace, TableSpec, Wiring};
use attn_core::NormKind;
use attn_core::position::{LearnedConfig, PositionConfig};
use candle_core::Result;

/// The rows below are left over from the padding of the implementation it was trained with.
const OFFSET: usize = 2;

pub(super) fn spec(c: &Config) -> Result<ModelSpec> {
    let common = Common::read_mha(c)?.divided()?;
    let hidden = common.hidden_size;
    let inner = c.size_opt("ffn_dim")?.unwrap_or(3072);
    let act = activation(c, "activation_function", "relu")?;
    let (before, bias) = (c.flag("do_layer_norm_before", true)?, c.flag("enable_bias", true)?);
    let affine = c.flag("layer_norm_elementwise_affine", true)?;
    let final_norm = before && !c.flag("_remove_final_layer_norm", false)?;
    let width = c.size_opt("word_embed_proj_dim")?.unwrap_or(hidden);
    c.mark(&["layerdrop", "init_std", "activation_dropout"]);
    let norm = |name: &str| match affine {
        true => NormSpec::layer(name, hidden, 1e-5),
        false => NormSpec { name: None, kind: NormKind::Layer, ..NormSpec::rms("", hidden, 1e-5) },
    };
    let layers = (0..common.layers).map(|i| {
        let mut attention = common.attention(bias, super::parts::nope());
        attention.out.name = "self_attn.out_proj".into();
        let linear = |name: &str, i, o| LinearSpec::new(name, i, o).bias(bias);
        let norms = ["self_attn_layer_norm", "final_layer_norm"].map(norm);
        let mlp = plain(linear("fc1", hidden, inner), linear("fc2", inner, hidden), act);
        let wiring = if before { Wiring::pre_norm(norms) } else { Wiring::post_norm(norms) };
        LayerSpec::new(format!("layers.{i}."), attention, mlp, wiring)
    });
    let tied = c.flag("tie_word_embeddings", true)?;
    let mut spec = common.decoder("opt", layers.collect(), norm("final_layer_norm"), tied);
    if !final_norm {
        spec.stack.final_norm = None;
    }
    let embedding = &mut spec.stack.embedding;
    let rows = common.max_positions + OFFSET;
    embedding.position = PositionConfig::Learned(LearnedConfig { rows, hidden, offset: OFFSET });
    embedding.position_table = Some(TableSpec::new("embed_positions.weight"));
    if width != hidden {
        embedding.width = width;
        embedding.projection = Some((LinearSpec::new("project_in", width, hidden), ProjectionPlace::BeforePositions));
        if let Some(head) = &mut spec.head {
            head.projection = Some(LinearSpec::new("project_out", hidden, width));
        }
    }
    spec.prefixes = ["model.decoder.", "decoder.", ""].map(String::from).to_vec();
    spec.trained_context = Some(common.max_positions);
    Ok(spec)
}
