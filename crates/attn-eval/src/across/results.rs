//! From measurements to figures per byte, and the differences between models.

use super::{BITS, ModelSpec, PassageScores};
use crate::compare::each_once;
use crate::error::{Error, Result, ensure, error};
use crate::report::About;
use crate::stats::{Interval, mean, mean_interval, paired_difference};
use serde::{Deserialize, Serialize};

/// What a model under one mode scored, over all texts together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelCell {
    /// The model's name.
    pub model: String,
    /// The mode.
    pub mode: String,
    /// Largest number of tokens per window, for each of the models.
    pub context: usize,
    /// The scaling's factor.
    pub factor: f64,
    /// Bits that the model needs for a byte of the text.
    pub bits_per_byte: f64,
    /// Bootstrap 95 % interval, windows resampled; absent with fewer than [`MIN_WINDOWS`](crate::stats::MIN_WINDOWS).
    pub interval: Option<Interval>,
    /// Bytes scored, the same for all models.
    pub bytes: usize,
    /// Windows scored, the same for all models.
    pub windows: usize,
    /// Tokens scored, as the model's tokenizer counts them.
    pub tokens: usize,
    /// Exponential of the mean negative log-likelihood per token: not to be compared between models of different tokenizers.
    /// Infinite where it is too large for an `f64`, and null in JSON.
    #[serde(with = "crate::exact::or_too_large")]
    pub perplexity: f64,
    /// Its bootstrap 95 % interval.
    pub perplexity_interval: Option<Interval>,
    /// Wall-clock time of the scoring, in seconds.
    pub seconds: f64,
    /// The mode of the same model whose figures these are, if the two are the same computation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_as: Option<String>,
    /// Paired difference to the cell with the fewest bits at this context; absent for that cell itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub versus_best: Option<ModelVersus>,
}

/// Another row, and by how much a cell exceeds it on the same bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelVersus {
    /// The other model.
    pub model: String,
    /// Its mode.
    pub mode: String,
    /// By how many bits per byte the cell exceeds it.
    pub bits_per_byte: f64,
    /// Its bootstrap 95 % interval, windows resampled; absent with too few of them.
    pub interval: Option<Interval>,
}

/// Two rows at one context: by how many bits per byte the first exceeds the second on the same bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelDifference {
    /// Largest number of tokens per window.
    pub context: usize,
    /// The first model.
    pub model: String,
    /// Its mode.
    pub mode: String,
    /// The second model and mode, and the difference.
    pub versus: ModelVersus,
}

/// What a comparison of several models found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelResults {
    /// One cell per context, model and mode, context by context.
    pub cells: Vec<ModelCell>,
    /// The differences between every two rows, context by context.
    pub differences: Vec<ModelDifference>,
}

impl ModelVersus {
    /// Whether the difference is significant, that is whether its interval does not contain zero; `None` without an interval.
    pub fn is_real(&self) -> Option<bool> {
        self.interval.map(|i| i.low > 0.0 || i.high < 0.0)
    }
}

/// Sums up measurements, one per cell in the order of the specs; the measurement of a cell with `same_as` may be absent.
///
/// # Errors
/// A measurement is missing, or two measurements at one context are of different bytes and can't be compared.
pub fn summarise(specs: &[ModelSpec], scores: &[Option<PassageScores>], about: &About) -> Result<ModelResults> {
    let measured = |spec: &ModelSpec| {
        let is_source = |other: &ModelSpec| if spec.same_as.is_some() { spec.is_twin_of(other) } else { spec == other };
        let found = specs.iter().position(is_source).and_then(|index| scores.get(index)?.as_ref());
        found.ok_or_else(|| Error::Unmeasured { cell: format!("{} at {}", spec.row, spec.context) })
    };
    let seed = about.settings.seed;
    let mut results = ModelResults::default();
    for &context in &about.settings.contexts {
        let mut at: Vec<(ModelCell, PassageScores)> = vec![];
        for spec in specs.iter().filter(|spec| spec.context == context && spec.text == 0) {
            let texts = specs.iter().filter(|other| other.context == context && other.row == spec.row);
            let parts: Vec<&PassageScores> = texts.map(measured).collect::<Result<_>>()?;
            let all = pooled(&parts);
            let model = about.models.get(spec.model).ok_or_else(|| error!(Impossible, "the run has no such model"))?;
            let name = model.checkpoint.name.clone();
            at.push((cell(spec, name, &all, seed), all));
        }
        if let Some((first, of_first)) = at.first() {
            let other = at.iter().find(|(_, scores)| scores.bytes != of_first.bytes);
            ensure!(
                other.is_none(),
                Incomparable,
                "{} at {context} was measured on other bytes than the rest",
                first.model
            );
        }
        compare(&mut results, at, seed);
    }
    Ok(results)
}

/// The measurements of several texts, as if they were one text: every byte has the same weight.
fn pooled(parts: &[&PassageScores]) -> PassageScores {
    PassageScores {
        windows: parts.iter().flat_map(|part| part.windows.iter().copied()).collect(),
        bytes: parts.iter().flat_map(|part| part.bytes.iter().copied()).collect(),
        seconds: parts.iter().map(|part| part.seconds).sum(),
    }
}

fn cell(spec: &ModelSpec, model: String, scores: &PassageScores, seed: u64) -> ModelCell {
    let by_bytes = scores.by_bytes();
    ModelCell {
        model,
        mode: spec.mode.clone(),
        context: spec.context,
        factor: spec.factor,
        bits_per_byte: mean(&by_bytes) * BITS,
        interval: mean_interval(&by_bytes, seed).map(bits),
        bytes: scores.bytes.iter().sum(),
        windows: scores.bytes.len(),
        tokens: scores.windows.iter().map(|window| window.tokens).sum(),
        perplexity: mean(&scores.windows).exp(),
        perplexity_interval: mean_interval(&scores.windows, seed).map(Interval::exp),
        seconds: if spec.same_as.is_some() { 0.0 } else { scores.seconds },
        same_as: spec.same_as.clone(),
        versus_best: None,
    }
}

fn bits(nats: Interval) -> Interval {
    Interval { low: nats.low * BITS, high: nats.high * BITS }
}

/// Adds the cells of one context, with their differences.
fn compare(results: &mut ModelResults, at: Vec<(ModelCell, PassageScores)>, seed: u64) {
    let versus = |(_, a): &(ModelCell, PassageScores), (cell, b): &(ModelCell, PassageScores)| {
        let found = paired_difference(&a.by_bytes(), &b.by_bytes(), "", seed);
        let interval = found.low.zip(found.high).map(|(low, high)| bits(Interval { low, high }));
        let (model, mode) = (cell.model.clone(), cell.mode.clone());
        ModelVersus { model, mode, bits_per_byte: found.nll * BITS, interval }
    };
    let first = (0..at.len()).min_by(|&a, &b| at[a].0.bits_per_byte.total_cmp(&at[b].0.bits_per_byte));
    for (index, row) in at.iter().enumerate() {
        let best = first.filter(|&first| first != index).map(|first| versus(row, &at[first]));
        results.cells.push(ModelCell { versus_best: best, ..row.0.clone() });
        for other in &at[index + 1..] {
            let (model, mode) = (row.0.model.clone(), row.0.mode.clone());
            let (context, versus) = (row.0.context, versus(row, other));
            results.differences.push(ModelDifference { context, model, mode, versus });
        }
    }
}

/// The cell with the fewest bits at `context`, the first of several equal ones; `None` without cells there.
pub fn best(cells: &[ModelCell], context: usize) -> Option<&ModelCell> {
    let at = cells.iter().filter(|cell| cell.context == context);
    at.min_by(|a, b| a.bits_per_byte.total_cmp(&b.bits_per_byte))
}

/// The contexts of a comparison, in its order.
pub fn contexts(cells: &[ModelCell]) -> Vec<usize> {
    each_once(cells.iter().map(|cell| cell.context))
}
