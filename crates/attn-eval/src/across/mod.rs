//! Several models on the same bytes.
//!
//! Perplexities per token can't be compared between two tokenizers: a model whose tokenizer cuts a text into fewer tokens has to
//! predict more text with each. What can be compared is the number of bits that a model needs per byte of text. [`Passages`] cuts
//! windows that are the same bytes for every model, so that all predict the same text with the same text before it, and every
//! difference between two models is paired, window by window.
//!
//! A cell here is a model under one mode at one context. [`PassageScores`] keeps its log-likelihoods and the number of bytes that
//! they are of, window by window, in the same run files as a comparison of one model.

mod check;
mod passages;
mod results;

pub use passages::{Encoded, Passages, common_bytes};
pub use results::{ModelCell, ModelDifference, ModelResults, ModelVersus, best, contexts, summarise};

use crate::clock::Clock;
use crate::compare::{Mode, Plan, change, check_params, cost, factor_at, scaled, variants};
use crate::error::{Result, Within, bail, ensure, error};
use crate::perplexity::{score_windows, scorer};
use crate::report::About;
use crate::run::Measurable;
use crate::skipped::{Fits, Skipped, has_room};
use crate::stats::{WindowNll, mean};
use attn_models::Model;
use serde::{Deserialize, Serialize};

/// One cell to be measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelSpec {
    /// Index of the model.
    pub model: usize,
    /// Its name and the mode, for people who read the run file.
    pub row: String,
    /// Index of the text.
    pub text: usize,
    /// Largest number of tokens per window.
    pub context: usize,
    /// The name of the scaling.
    pub mode: String,
    /// Its factor.
    #[serde(with = "crate::exact")]
    pub factor: f64,
    /// The mode of the same model whose measurement serves this one too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_as: Option<String>,
}

/// The measurement of a cell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PassageScores {
    /// The log-likelihood of each window.
    pub windows: Vec<WindowNll>,
    /// The bytes that each of them scores.
    pub bytes: Vec<usize>,
    /// Wall-clock time of the scoring, in seconds.
    pub seconds: f64,
}

impl PassageScores {
    /// The log-likelihoods with bytes counted in place of tokens; their squares are not known.
    pub(crate) fn by_bytes(&self) -> Vec<WindowNll> {
        let of = |(window, &bytes): (&WindowNll, &usize)| WindowNll {
            sum: window.sum,
            squares: f64::NAN,
            tokens: bytes,
            ..WindowNll::default()
        };
        self.windows.iter().zip(&self.bytes).map(of).collect()
    }
}

/// Bits in a nat.
pub(crate) const BITS: f64 = std::f64::consts::LOG2_E;

impl Measurable for ModelSpec {
    const KIND: &str = "compare of several models";
    type Scores = PassageScores;

    fn context(&self) -> usize {
        self.context
    }

    // In run files and reports a row is a model with a mode.
    #[allow(clippy::misnamed_getters)]
    fn mode(&self) -> &str {
        &self.row
    }

    fn text(&self) -> Option<usize> {
        Some(self.text)
    }

    fn is_measured(&self) -> bool {
        self.same_as.is_none()
    }

    fn agree(a: &PassageScores, b: &PassageScores) -> bool {
        (&a.windows, &a.bytes) == (&b.windows, &b.bytes)
    }

    fn figure(scores: &PassageScores) -> String {
        format!("{:.4} bits per byte", mean(&scores.by_bytes()) * BITS)
    }

    fn check(&self, scores: &PassageScores, about: &About) -> Result<()> {
        let text = about.texts.get(self.text).ok_or_else(|| error!(Impossible, "the run has no such text"))?;
        let model = about.models.get(self.model).ok_or_else(|| error!(Impossible, "the run has no such model"))?;
        let used = model.used.get(self.text).copied();
        let used = used.ok_or_else(|| error!(Impossible, "its model has not read the text"))?;
        let (windows, bytes) = (&scores.windows, &scores.bytes);
        ensure!(
            !windows.is_empty() && windows.len() == bytes.len(),
            Impossible,
            "it has no windows, or not one number of bytes for each"
        );
        let mut tokens = 0usize;
        for (index, (window, &bytes)) in windows.iter().zip(bytes).enumerate() {
            // The largest sum of this many likelihoods in f32.
            let most = window.tokens as f64 * f64::from(f32::MAX);
            let fine = (1..=self.context).contains(&window.tokens) && window.sum.abs() <= most && bytes > 0;
            ensure!(fine, Impossible, "window {index} can't be one of at most {} tokens", self.context);
            tokens = tokens.saturating_add(window.tokens);
        }
        let scored = bytes.iter().try_fold(0usize, |sum, &bytes| sum.checked_add(bytes));
        let within = scored.is_some_and(|bytes| bytes <= text.used_bytes.unwrap_or(0)) && tokens <= used;
        ensure!(within, Impossible, "its windows score more than the text has");
        ensure!(
            scores.seconds.is_finite() && scores.seconds >= 0.0,
            Impossible,
            "it can't have taken {} s",
            scores.seconds
        );
        Ok(())
    }
}

impl ModelSpec {
    /// Whether the other is the cell that this one takes its measurement from.
    pub(crate) fn is_twin_of(&self, other: &Self) -> bool {
        let same = (self.model, self.text, self.context) == (other.model, other.text, other.context);
        same && self.same_as.as_deref() == Some(other.mode.as_str()) && other.same_as.is_none()
    }
}

/// The modes of a plan that can be applied to a model, and for each other mode a line that says why it can't.
///
/// # Errors
/// None of them can be applied, or the factor is not known.
pub fn modes_of(model: &Model, plan: &Plan) -> Result<(Vec<Mode>, Vec<String>)> {
    check_params(plan)?;
    let longest = plan.contexts.iter().copied().max().unwrap_or(0);
    let factor = factor_at(model, plan, longest)?;
    let (mut takes, mut others) = (vec![], vec![]);
    for &mode in &plan.modes {
        let change = change(plan, mode, factor)?;
        match model.with_positions(&change) {
            Ok(_) => takes.push(mode),
            // The first line, since an error may be followed by its backtrace.
            Err(error) => {
                others.push(format!("mode {mode}: {}", error.to_string().lines().next().unwrap_or_default()));
            }
        }
    }
    if takes.is_empty() {
        bail!(
            UnsuitableModel,
            "none of the modes asked for applies to it ({}): add checkpoint to the modes",
            others.join("; ")
        )
    }
    Ok((takes, others))
}

/// The cells of one model, given by its index and name, on `texts` texts, and the contexts that it can't read. `fits` says why a
/// context is impossible, for example because there is not enough memory.
///
/// # Errors
/// A mode of the plan can't be applied to the model.
pub fn cells(
    model: &Model,
    (index, name): (usize, &str),
    texts: usize,
    plan: &Plan,
    fits: &Fits<'_>,
) -> Result<(Vec<ModelSpec>, Vec<Skipped>)> {
    let (mut specs, mut skipped) = (vec![], vec![]);
    for text in 0..texts {
        for &context in &plan.contexts {
            if let Err(reason) = has_room(model, context, fits) {
                if text == 0 {
                    skipped.push(Skipped::new(context, Some(name), reason));
                }
                continue;
            }
            for variant in variants(model, plan, context)? {
                let (mode, same_as) = (variant.mode.to_string(), variant.same_as.map(|mode| mode.to_string()));
                let row = format!("{name}, {mode}");
                specs.push(ModelSpec { model: index, row, text, context, mode, factor: variant.factor, same_as });
            }
        }
    }
    Ok((specs, skipped))
}

/// Millions of floating-point operations for reading `tokens` tokens in windows of `context`.
pub fn work(model: &Model, tokens: usize, context: usize) -> f64 {
    tokens as f64 * cost(model, context)
}

/// Measures a cell of `model`, which sees the text as `ids`. `progress` is told the number of tokens read after each forward pass.
///
/// # Errors
/// A mode that can't be applied to the model, a text that was not cut for it, or a likelihood that isn't finite.
pub fn measure(
    model: &Model,
    plan: &Plan,
    spec: &ModelSpec,
    ids: &[u32],
    passages: &Passages,
    progress: &mut dyn FnMut(usize),
) -> Result<PassageScores> {
    let clock = Clock::start();
    let mode = plan.modes.iter().find(|mode| mode.to_string() == spec.mode);
    let mode = mode.ok_or_else(|| error!(Setting, "there is no mode {}", spec.mode))?;
    let model = scaled(model, plan, *mode, spec.factor)?;
    let windows = passages.windows.get(spec.model);
    let windows = windows.ok_or_else(|| error!(Setting, "the text was not cut for this model"))?;
    let mut nll = scorer(&model, spec.context, plan.length);
    let scores = score_windows(&mut nll, ids, windows, windows.windows(), progress).within(|| spec.row.clone())?;
    Ok(PassageScores { windows: scores.windows, bytes: passages.bytes(), seconds: clock.seconds() })
}

#[cfg(test)]
mod tests;
