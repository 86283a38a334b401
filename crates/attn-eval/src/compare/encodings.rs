//! Position encodings side by side: models that differ only in their encoding, each as it is, on the same windows of one text.

use super::results::{cell, compare_with_best};
use super::{CellSpec, Text};
use crate::error::{Result, Within};
use crate::perplexity::{Cell, ScoreOptions, score};
use crate::windows::WindowOptions;
use attn_models::Model;

/// Scores every model at every context that its positions reach, context by context; a cell's mode is the model's name.
/// `bos` begins every window; `seed` is that of the bootstrap; `progress` is told the share that is done, from 0 to 1.
///
/// # Errors
/// The text is too short for a context, or a model fails.
pub fn encodings(
    models: &[(&str, Model)],
    text: &Text,
    contexts: &[usize],
    bos: Option<u32>,
    seed: u64,
    progress: &mut dyn FnMut(f64),
) -> Result<Vec<Cell>> {
    let mut cells = vec![];
    let steps = (contexts.len() * models.len()) as f64;
    for (i, &context) in contexts.iter().enumerate() {
        for (j, (name, model)) in models.iter().enumerate() {
            progress((i * models.len() + j) as f64 / steps);
            if model.max_context().is_some_and(|end| context > end) {
                continue;
            }
            let windows = WindowOptions { context, stride: None, bos };
            let stride = context - usize::from(bos.is_some());
            let scores = score(model, &text.tokens, &ScoreOptions { windows, length: None }, &mut |_| ())
                .within(|| format!("{name} on {}", text.name))?;
            let (mode, same_as) = (name.to_string(), None);
            cells.push(cell(
                &CellSpec { text: 0, context, stride, mode, factor: 1.0, same_as, between: false },
                scores,
                seed,
            ));
        }
    }
    compare_with_best(&mut cells, seed);
    Ok(cells)
}
