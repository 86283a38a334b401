//! Perplexity of a text under a model, with its standard errors and interval.
//!
//! The perplexity is the exponential of the mean negative log-likelihood (`nll`) over the scored tokens, all with the same
//! weight; sums are kept in f64. Two standard errors come with it, both carried from the mean to the perplexity by the
//! delta method (`perplexity * error of the mean`). `stderr` treats tokens as independent, as llama.cpp does.
//! `stderr_windows` treats only whole windows as independent; it is usually larger, and more realistic, since neighbouring tokens
//! are not independent.

use crate::clock::Clock;
use crate::error::{Error, Result, Within, ensure};
use crate::stats::{self, Difference, Interval, WindowNll};
use crate::windows::{Window, WindowOptions, Windows};
use attn_models::Model;
use candle_core::Tensor;
use serde::{Deserialize, Serialize};

/// The number of parts into which a window is cut for `nll` by position.
pub const BUCKETS: usize = 8;

/// The number of parts into which a window is cut for the finer curve of `nll` by position.
pub const CURVE: usize = 32;

/// Short windows are scored together, with about this many tokens per forward pass.
const BATCH_TOKENS: usize = 2048;

/// The figures of one mode at one context.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cell {
    /// The name of the mode.
    pub mode: String,
    /// Tokens per window.
    pub context: usize,
    /// Tokens from one window's start to the next.
    pub stride: usize,
    /// The scaling's factor.
    pub factor: f64,
    /// Exponential of `nll`; infinite where it is too large for an `f64`, and null in JSON.
    #[serde(with = "crate::exact::or_too_large")]
    pub perplexity: f64,
    /// Standard error of the perplexity, with tokens treated as independent; infinite where the perplexity is.
    #[serde(with = "crate::exact::or_too_large")]
    pub stderr: f64,
    /// Standard error of the perplexity, with windows treated as independent; absent with fewer than two windows.
    pub stderr_windows: Option<f64>,
    /// Tokens scored.
    pub tokens: usize,
    /// Windows scored.
    pub windows: usize,
    /// Wall-clock time of the scoring, in seconds; 0 where there is no clock (wasm32-unknown-unknown).
    pub seconds: f64,
    /// Mean negative log-likelihood in nats per token.
    pub nll: f64,
    /// Bootstrap 95 % interval of the perplexity, windows resampled; absent with fewer than
    /// [`stats::MIN_WINDOWS`].
    pub interval: Option<Interval>,
    /// Perplexity of the scored tokens in the last quarter of their window.
    pub last_quarter_perplexity: Option<f64>,
    /// Its bootstrap 95 % interval.
    pub last_quarter_interval: Option<Interval>,
    /// Mean negative log-likelihood by position in the window, in eighths; absent where no token is scored.
    pub position_nll: Vec<Option<f64>>,
    /// The same in [`CURVE`] parts, to show where in the window a mode begins to fail.
    pub curve: Vec<Option<f64>>,
    /// The mode whose figures these are, if the two are the same computation (as most scalings at factor 1 are).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub same_as: Option<String>,
    /// Paired difference to the best mode at this context, in a comparison.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub versus_best: Option<Difference>,
    /// Perplexity of the key tokens (LongPPL), if it is measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub longppl: Option<Metric>,
    /// Divergence from the model as it is within its trained context, in nats per token, if it is measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl: Option<Metric>,
    /// What each window contributed, in the order of the text.
    #[serde(skip)]
    pub window_nll: Vec<WindowNll>,
    /// What the key tokens of each window contributed.
    #[serde(skip)]
    pub longppl_nll: Option<Vec<WindowNll>>,
    /// By how much the tokens of each window diverge.
    #[serde(skip)]
    pub kl_nll: Option<Vec<WindowNll>>,
}

/// The figure of a metric beside perplexity.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// The figure; `None` if no token counts, or if it is too large for an `f64`.
    pub value: Option<f64>,
    /// Bootstrap 95 % interval, windows resampled; absent with fewer than [`crate::stats::MIN_WINDOWS`] windows that have tokens.
    pub interval: Option<Interval>,
    /// The number of tokens that count.
    pub tokens: usize,
}

impl Metric {
    /// The mean over the tokens of windows, converted by `shown`.
    fn new(windows: &[WindowNll], seed: u64, shown: fn(f64) -> f64) -> Self {
        let tokens = windows.iter().map(|window| window.tokens).sum();
        let value = (tokens > 0).then(|| shown(stats::mean(windows))).filter(|value| value.is_finite());
        let interval = value.and(stats::mean_interval(windows, seed));
        let interval = interval.map(|Interval { low, high }| Interval { low: shown(low), high: shown(high) });
        Self { value, interval, tokens }
    }

    /// LongPPL of windows' key tokens.
    pub fn longppl(windows: &[WindowNll], seed: u64) -> Self {
        Self::new(windows, seed, f64::exp)
    }

    /// The mean divergence of windows.
    pub fn kl(windows: &[WindowNll], seed: u64) -> Self {
        Self::new(windows, seed, |nats| nats)
    }
}

/// The name and settings of a cell, and the seed for its intervals.
#[derive(Debug, Clone, Default)]
pub struct Label {
    /// The name of the mode.
    pub mode: String,
    /// Its factor.
    pub factor: f64,
    /// Tokens per window.
    pub context: usize,
    /// Tokens from one window's start to the next.
    pub stride: usize,
    /// Seed of the bootstrap.
    pub seed: u64,
}

/// How a text is scored.
#[derive(Debug, Clone, Default)]
pub struct ScoreOptions {
    /// How the text is cut.
    pub windows: WindowOptions,
    /// The sequence length that length-dependent scalings resolve for; `None`: the window's.
    pub length: Option<usize>,
}

/// Scores `tokens` under `model`. `progress` is told the number of tokens read after each forward pass.
///
/// # Errors
/// The text can't be cut ([`Windows::new`]), the model has no room for such a window, or a likelihood isn't finite.
pub fn score(model: &Model, tokens: &[u32], options: &ScoreOptions, progress: &mut dyn FnMut(usize)) -> Result<Scores> {
    let context = options.windows.context;
    check_room(model, context)?;
    let mut nll = scorer(model, context, options.length);
    score_with(&mut nll, tokens, options, progress)
}

/// Scores windows of `context` under a model; length-dependent scalings resolve for `length`, or else for `context`.
pub(crate) fn scorer(
    model: &Model,
    context: usize,
    length: Option<usize>,
) -> impl FnMut(&[Vec<u32>]) -> candle_core::Result<Vec<Vec<f32>>> {
    move |batch| {
        let flat: Vec<u32> = batch.concat();
        let ids = Tensor::from_vec(flat, (batch.len(), batch.first().map_or(0, Vec::len)), model.device())?;
        model.nll(&ids, length.unwrap_or(context))?.to_vec2()
    }
}

/// The number of windows of `context` tokens that go through a model together.
pub fn rows(context: usize) -> usize {
    (BATCH_TOKENS / context.max(1)).max(1)
}

/// Refuses a context that a learned position table can't represent.
///
/// # Errors
/// The table is shorter than `context`.
pub fn check_room(model: &Model, context: usize) -> Result<()> {
    match model.max_context() {
        Some(end) if context > end => Err(Error::PastPositions { context, end }),
        _ => Ok(()),
    }
}

/// Turns a batch of equally long rows of ids into the negative log-likelihoods, in nats, of tokens `1..` of each row. Its error is
/// that of Candle's models; a scorer without one wraps its own errors ([`candle_core::Error::wrap`]).
pub type Scorer<'a> = dyn FnMut(&[Vec<u32>]) -> candle_core::Result<Vec<Vec<f32>>> + 'a;

/// [`score`] with any function that gives likelihoods in the place of a model.
///
/// # Errors
/// As [`score`].
pub fn score_with(
    nll: &mut Scorer<'_>,
    tokens: &[u32],
    options: &ScoreOptions,
    progress: &mut dyn FnMut(usize),
) -> Result<Scores> {
    let clock = Clock::start();
    let windows = Windows::new(tokens.len(), &options.windows)?;
    score_windows(nll, tokens, &windows, windows.windows(), progress)
        .map(|scores| Scores { seconds: clock.seconds(), ..scores })
}

/// Scores some of a text's windows; seconds are left at 0.
pub(crate) fn score_windows(
    nll: &mut Scorer<'_>,
    tokens: &[u32],
    windows: &Windows,
    some: &[Window],
    progress: &mut dyn FnMut(usize),
) -> Result<Scores> {
    let mut scores = Scores::default();
    for batch in some.chunks(rows(windows.context())) {
        let mut ids: Vec<Vec<u32>> = batch.iter().map(|window| windows.ids(window, tokens)).collect();
        let read = ids.iter().map(Vec::len).sum();
        fill_up(&mut ids);
        let rows = nll(&ids).within(|| format!("scoring a context of {}", windows.context()))?;
        for (window, row) in batch.iter().zip(&rows) {
            scores.add(row, windows.positions(window), windows.context(), window.scored.start)?;
        }
        progress(read);
    }
    Ok(scores)
}

/// Makes rows as long as the longest of them. What comes after a token does not change its likelihood.
fn fill_up(rows: &mut [Vec<u32>]) {
    let longest = rows.iter().map(Vec::len).max().unwrap_or(0);
    rows.iter_mut().for_each(|row| row.resize(longest, row.last().copied().unwrap_or(0)));
}

/// What was measured, before it is summed up: enough to pool texts and to resample windows, and small enough to keep.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// What each window contributed, in the order of the text.
    pub windows: Vec<WindowNll>,
    /// Sum of negative log-likelihoods and number of tokens by position, in [`CURVE`] parts.
    pub curve: Vec<Bucket>,
    /// What the key tokens of each window contributed, if LongPPL is measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub longppl: Option<Vec<WindowNll>>,
    /// By how much the tokens of each window diverge from the reference, if that is measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl: Option<Vec<WindowNll>>,
    /// Wall-clock time of the scoring, in seconds; 0 where there is no clock (wasm32-unknown-unknown).
    pub seconds: f64,
}

/// The sum over one part of a window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Bucket {
    /// Sum of negative log-likelihoods.
    #[serde(with = "crate::exact")]
    pub sum: f64,
    /// Tokens scored.
    pub tokens: usize,
}

impl Bucket {
    fn mean(parts: &[Self]) -> Option<f64> {
        let tokens: usize = parts.iter().map(|part| part.tokens).sum();
        (tokens > 0).then(|| parts.iter().map(|part| part.sum).sum::<f64>() / tokens as f64)
    }
}

impl Scores {
    /// The measurements of several texts, as if they were one text: every token has the same weight.
    pub fn pooled<'a>(parts: impl IntoIterator<Item = &'a Self>) -> Self {
        parts.into_iter().fold(Self::default(), |mut all, part| {
            all.windows.extend_from_slice(&part.windows);
            for (all, part) in [(&mut all.longppl, &part.longppl), (&mut all.kl, &part.kl)] {
                if let Some(part) = part {
                    all.get_or_insert_default().extend_from_slice(part);
                }
            }
            all.curve.resize(CURVE, Bucket::default());
            for (sum, bucket) in all.curve.iter_mut().zip(&part.curve) {
                sum.sum += bucket.sum;
                sum.tokens += bucket.tokens;
            }
            all.seconds += part.seconds;
            all
        })
    }

    /// Adds the window of `context` tokens whose negative log-likelihoods are `row` (entry `p - 1` belongs to position `p`). The
    /// scored ones are at `positions`; the first of these is token `first` of the text.
    pub(crate) fn add(
        &mut self,
        row: &[f32],
        positions: std::ops::Range<usize>,
        context: usize,
        first: usize,
    ) -> Result<()> {
        self.curve.resize(CURVE, Bucket::default());
        let mut window = WindowNll { tokens: positions.len(), ..WindowNll::default() };
        for (offset, position) in positions.enumerate() {
            let nll = f64::from(row[position - 1]);
            ensure!(
                nll.is_finite(),
                NotFinite,
                "token {} of the text has a log-likelihood of {}",
                first + offset,
                -nll
            );
            window.sum += nll;
            window.squares += nll * nll;
            let bucket = &mut self.curve[position * CURVE / context];
            bucket.sum += nll;
            bucket.tokens += 1;
            if position >= context - context / 4 {
                window.last_sum += nll;
                window.last_tokens += 1;
            }
        }
        self.windows.push(window);
        Ok(())
    }

    /// Lets the mean of the last window count as that of `tokens` tokens.
    pub(crate) fn weigh_last(&mut self, tokens: usize) {
        if let Some(window) = self.windows.last_mut().filter(|window| window.tokens != tokens) {
            let share = tokens as f64 / window.tokens as f64;
            let (sum, squares) = (window.sum * share, window.squares * share);
            *window = WindowNll { sum, squares, tokens, ..*window };
        }
    }

    /// Refuses scores that windows of `context` tokens of a text of `used` tokens can't give.
    pub(crate) fn check(&self, context: usize, used: usize) -> Result<()> {
        let most = f64::from(f32::MAX);
        let within = |sum: f64, tokens: usize, most: f64| sum.abs() <= tokens as f64 * most;
        for (index, window) in self.windows.iter().enumerate() {
            let WindowNll { sum, squares, tokens, last_sum, last_tokens } = *window;
            let counts = last_tokens <= tokens && tokens <= context;
            let sums = within(sum, tokens, most) && within(last_sum, last_tokens, most);
            ensure!(
                counts && sums && within(squares, tokens, most * most),
                Impossible,
                "window {index} can't be one of {context} tokens"
            );
        }
        let scored = checked_sum(self.windows.iter().map(|window| window.tokens));
        ensure!(
            scored.is_some_and(|n| 0 < n && n <= used),
            Impossible,
            "its windows score none, or more than all, of the {used} tokens"
        );
        for metric in [&self.longppl, &self.kl].into_iter().flatten() {
            let alike = metric.len() == self.windows.len();
            let within = |(m, w): (&WindowNll, &WindowNll)| m.tokens <= w.tokens && within(m.sum, m.tokens, most);
            ensure!(
                alike && metric.iter().zip(&self.windows).all(within),
                Impossible,
                "its metrics do not fit its windows"
            );
        }
        let by_position = checked_sum(self.curve.iter().map(|bucket| bucket.tokens));
        let sums = self.curve.iter().all(|bucket| within(bucket.sum, bucket.tokens, most));
        let whole = self.curve.len() == CURVE && by_position == scored && sums;
        ensure!(whole, Impossible, "its parts by position do not fit its windows");
        Ok(())
    }

    /// The figures that a report shows.
    pub fn cell(self, label: &Label) -> Cell {
        let nll = stats::mean(&self.windows);
        let perplexity = nll.exp();
        // The error of an infinite perplexity is unknown, also if all tokens cost the same.
        let error = |of_nll: f64| if perplexity.is_finite() { perplexity * of_nll } else { f64::INFINITY };
        let last: Vec<WindowNll> = self.windows.iter().map(WindowNll::last_quarter).collect();
        let last_tokens: usize = last.iter().map(|w| w.tokens).sum();
        Cell {
            mode: label.mode.clone(),
            context: label.context,
            stride: label.stride,
            factor: label.factor,
            perplexity,
            stderr: error(stats::token_error(&self.windows)),
            stderr_windows: stats::window_error(&self.windows).map(error),
            tokens: self.windows.iter().map(|w| w.tokens).sum(),
            windows: self.windows.len(),
            seconds: self.seconds,
            nll,
            interval: stats::mean_interval(&self.windows, label.seed).map(Interval::exp),
            last_quarter_perplexity: (last_tokens > 0).then(|| stats::mean(&last).exp()),
            last_quarter_interval: stats::mean_interval(&last, label.seed).map(Interval::exp),
            position_nll: self.curve.chunks(CURVE / BUCKETS).map(Bucket::mean).collect(),
            curve: self.curve.chunks(1).map(Bucket::mean).collect(),
            same_as: None,
            versus_best: None,
            longppl: self.longppl.as_ref().map(|windows| Metric::longppl(windows, label.seed)),
            kl: self.kl.as_ref().map(|windows| Metric::kl(windows, label.seed)),
            window_nll: self.windows,
            longppl_nll: self.longppl,
            kl_nll: self.kl,
        }
    }
}

/// The sum; `None` if it overflows.
pub(crate) fn checked_sum(mut counts: impl Iterator<Item = usize>) -> Option<usize> {
    counts.try_fold(0usize, usize::checked_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(context: usize, stride: Option<usize>) -> ScoreOptions {
        ScoreOptions { windows: WindowOptions { context, stride, bos: None }, length: None }
    }

    fn cell(scores: Scores, context: usize, stride: usize) -> Cell {
        scores.cell(&Label { mode: "none".into(), factor: 1.0, context, stride, seed: 0 })
    }

    /// A "model" under which the token with id `i` costs `i` nats, whatever comes before.
    fn by_id(batch: &[Vec<u32>]) -> candle_core::Result<Vec<Vec<f32>>> {
        Ok(batch.iter().map(|row| row[1..].iter().map(|&id| id as f32).collect()).collect())
    }

    #[test]
    fn disjoint_windows_by_hand() {
        let tokens = [9, 1, 2, 3, 9, 4, 5, 6, 9, 9];
        let mut read = 0;
        let scores = score_with(&mut by_id, &tokens, &options(4, None), &mut |n| read += n).unwrap();
        let cell = cell(scores, 4, 4);
        assert_eq!((cell.tokens, cell.windows, cell.stride, read), (6, 2, 4, 8));
        assert_eq!(cell.nll, 3.5);
        assert_eq!(cell.perplexity, 3.5f64.exp());
        // Variance of 1..=6 is 3.5.
        assert!((cell.stderr - cell.perplexity * (3.5f64 / 6.0).sqrt()).abs() < 1e-9);
        // The last quarter of 4 tokens is the last: 3 and 6.
        assert!((cell.last_quarter_perplexity.unwrap() - 4.5f64.exp()).abs() < 1e-9);
        // Positions 1, 2, 3 of 4 fall into eighths 2, 4 and 6.
        let expected = [None, None, Some(2.5), None, Some(3.5), None, Some(4.5), None];
        assert_eq!(cell.position_nll, expected);
        assert_eq!(cell.window_nll.iter().map(|w| w.sum).collect::<Vec<_>>(), [6.0, 15.0]);
    }

    #[test]
    fn a_stride_counts_every_token_after_the_first_once() {
        let tokens: Vec<u32> = (0..11).collect();
        let cell = cell(score_with(&mut by_id, &tokens, &options(4, Some(2)), &mut |_| ()).unwrap(), 4, 2);
        assert_eq!((cell.tokens, cell.windows), (10, 5));
        assert_eq!(cell.nll, 5.5);
    }

    #[test]
    fn short_windows_are_batched_and_the_batching_does_not_show() {
        let tokens: Vec<u32> = (0..2000).map(|i| i % 7).collect();
        let mut largest = 0;
        let mut nll = |batch: &[Vec<u32>]| {
            largest = largest.max(batch.len());
            by_id(batch)
        };
        let scores = score_with(&mut nll, &tokens, &options(100, None), &mut |_| ()).unwrap();
        let cell = cell(scores, 100, 100);
        assert_eq!(largest, 20);
        assert_eq!(cell.windows, 20);
        let sum: u32 = tokens.iter().enumerate().filter(|(i, _)| i % 100 != 0).map(|(_, t)| t).sum();
        assert!((cell.nll - f64::from(sum) / 1980.0).abs() < 1e-12);
    }

    #[test]
    fn a_likelihood_that_is_no_number_is_an_error_that_says_where() {
        let mut nll = |batch: &[Vec<u32>]| Ok(vec![vec![f32::NAN; batch[0].len() - 1]; batch.len()]);
        let error = score_with(&mut nll, &[0; 8], &options(4, None), &mut |_| ()).unwrap_err();
        assert!(error.to_string().contains("token 1"), "{error}");
    }
}
