//! Which scaling of its positions a model runs under.

use attn_core::PositionConfig;
use attn_core::position::extend::LOG_N;
use attn_eval::encoding::describe;
use attn_models::Model;
use attn_models::spec::StackSpec;

/// The scaling in effect and its factor, `none` and 1 for a model that has none, the encoding's name for other
/// encodings.
pub(crate) fn scaling(model: &Model) -> (String, f64) {
    let spec = model.spec();
    let extended = |config: &PositionConfig| match config {
        PositionConfig::Extended(config) => {
            let method = config.method.map(|method| method.name());
            method.into_iter().chain(config.log_n.map(|_| LOG_N)).map(|word| format!("+{word}")).collect()
        }
        _ => String::new(),
    };
    match positions(&spec.stack).find_map(|config| Some((config.rope()?, extended(config)))) {
        Some((rope, extended)) => {
            (format!("{}{extended}", rope.scaling.scheme().called()), rope.scaling.factor().unwrap_or(1.0))
        }
        _ => (positions(&spec.stack).next().map_or("nope", |config| describe(config, 1).kind).to_string(), 1.0),
    }
}

/// Whether any layer's encoding is RoPE.
pub(crate) fn has_rope(model: &Model) -> bool {
    positions(&model.spec().stack).any(|config| config.rope().is_some())
}

/// The encodings of a stack: that on the embeddings if there is one, then those of the layers.
fn positions(stack: &StackSpec) -> impl Iterator<Item = &PositionConfig> {
    let embedding = Some(&stack.embedding.position).filter(|config| !matches!(config, PositionConfig::Nope(_)));
    embedding.into_iter().chain(stack.layers.iter().map(|layer| layer.attention.position()))
}
