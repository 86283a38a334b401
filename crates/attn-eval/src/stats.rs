//! Standard errors and intervals of averages over tokens, and paired differences between modes.
//!
//! Neighbouring tokens are not independent, so each figure here says what it treats as independent: single
//! tokens for the standard error that other tools print; whole windows for a second standard error and for the paired
//! differences on which verdicts are based.

use crate::rng::Rng;
use serde::{Deserialize, Serialize};

/// The log-likelihood of one window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct WindowNll {
    /// Sum of the negative log-likelihoods of its scored tokens.
    #[serde(with = "crate::exact")]
    pub sum: f64,
    /// Sum of their squares.
    #[serde(with = "crate::exact")]
    pub squares: f64,
    /// The number of scored tokens.
    pub tokens: usize,
    /// The sum over the scored tokens in the last quarter of the window.
    #[serde(with = "crate::exact")]
    pub last_sum: f64,
    /// The number of scored tokens in the last quarter.
    pub last_tokens: usize,
}

impl WindowNll {
    /// The last quarter alone, for statistics that need only sums and counts; the sum of its squares is not known.
    pub fn last_quarter(&self) -> Self {
        Self { sum: self.last_sum, squares: f64::NAN, tokens: self.last_tokens, ..Self::default() }
    }
}

/// A 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower end.
    #[serde(with = "crate::exact::or_too_large")]
    pub low: f64,
    /// Upper end.
    #[serde(with = "crate::exact::or_too_large")]
    pub high: f64,
}

impl Interval {
    /// Converts an interval of the mean negative log-likelihood into one of the perplexity.
    #[must_use]
    pub fn exp(self) -> Self {
        Self { low: self.low.exp(), high: self.high.exp() }
    }
}

/// The mean over all tokens of all windows.
pub fn mean(windows: &[WindowNll]) -> f64 {
    windows.iter().map(|w| w.sum).sum::<f64>() / tokens(windows) as f64
}

fn tokens(windows: &[WindowNll]) -> usize {
    windows.iter().map(|w| w.tokens).sum()
}

/// Standard error of the [`mean`] with tokens treated as independent; 0 for fewer than two tokens.
pub fn token_error(windows: &[WindowNll]) -> f64 {
    let (n, mean) = (tokens(windows) as f64, mean(windows));
    if n < 2.0 {
        return 0.0;
    }
    let squares: f64 = windows.iter().map(|w| w.squares).sum();
    ((squares - n * mean * mean).max(0.0) / (n - 1.0) / n).sqrt()
}

/// Standard error of the [`mean`] with windows treated as independent and tokens within a window as dependent in any way
/// (the linearised variance of the ratio estimator); `None` for fewer than two windows.
pub fn window_error(windows: &[WindowNll]) -> Option<f64> {
    let (n, mean, count) = (tokens(windows) as f64, mean(windows), windows.len() as f64);
    let spread: f64 = windows.iter().map(|w| (w.sum - mean * w.tokens as f64).powi(2)).sum();
    (windows.len() >= 2).then(|| (spread * count / (count - 1.0)).sqrt() / n)
}

/// By how much a mode's mean negative log-likelihood exceeds another's on the same tokens.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct Difference {
    /// The mode compared with.
    pub mode: String,
    /// Nats per token; the ratio of the perplexities is its exponential.
    pub nll: f64,
    /// Lower end of the bootstrap 95 % interval; `None` where there are too few windows to resample.
    pub low: Option<f64>,
    /// Upper end.
    pub high: Option<f64>,
}

impl Difference {
    /// Whether the difference is significant, that is whether its interval does not contain zero; `None` without an interval.
    pub fn is_real(&self) -> Option<bool> {
        Some(self.low? > 0.0 || self.high? < 0.0)
    }
}

/// The smallest number of windows for which resampling gives a useful interval.
pub const MIN_WINDOWS: usize = 4;
const RESAMPLES: usize = 4000;

/// The paired difference `a - b` in mean negative log-likelihood and its 95 % percentile interval, resampling whole
/// windows. Both have to come from the same windows.
pub fn paired_difference(a: &[WindowNll], b: &[WindowNll], mode: &str, seed: u64) -> Difference {
    debug_assert!(a.iter().zip(b).all(|(a, b)| a.tokens == b.tokens) && a.len() == b.len());
    let pairs: Vec<(f64, f64)> = a.iter().zip(b).map(|(a, b)| (a.sum - b.sum, a.tokens as f64)).collect();
    let interval = bootstrap(&pairs, seed);
    let (low, high) = (interval.map(|i| i.low), interval.map(|i| i.high));
    Difference { mode: mode.to_string(), nll: ratio(pairs.iter().fold((0.0, 0.0), add)), low, high }
}

/// The 95 % percentile interval of the [`mean`], resampling whole windows; `None` for fewer than [`MIN_WINDOWS`].
pub fn mean_interval(windows: &[WindowNll], seed: u64) -> Option<Interval> {
    let scored = windows.iter().filter(|w| w.tokens > 0);
    bootstrap(&scored.map(|w| (w.sum, w.tokens as f64)).collect::<Vec<_>>(), seed)
}

fn ratio(sum: (f64, f64)) -> f64 {
    sum.0 / sum.1
}

fn add(x: (f64, f64), y: &(f64, f64)) -> (f64, f64) {
    (x.0 + y.0, x.1 + y.1)
}

/// The 95 % percentile interval of the ratio of two sums, from draws with replacement, widened by [`small_sample`].
fn bootstrap(pairs: &[(f64, f64)], seed: u64) -> Option<Interval> {
    if pairs.len() < MIN_WINDOWS {
        return None;
    }
    let mut rng = Rng::new(seed);
    let mut draws: Vec<f64> = (0..RESAMPLES)
        .map(|_| ratio((0..pairs.len()).fold((0.0, 0.0), |sum, _| add(sum, &pairs[rng.below(pairs.len())]))))
        .collect();
    draws.sort_by(f64::total_cmp);
    let (center, wider) = (ratio(pairs.iter().fold((0.0, 0.0), add)), small_sample(pairs.len()));
    let at = |share: f64| center + (draws[((RESAMPLES - 1) as f64 * share).round() as usize] - center) * wider;
    Some(Interval { low: at(0.025), high: at(0.975) })
}

/// The factor by which the percentile interval of `n` windows has to be widened to contain the true value in 95 of 100 cases.
/// Resampling underestimates the spread of a mean by `sqrt((n - 1) / n)`. It also estimates the spread from only `n` windows,
/// so Student's t replaces the normal distribution (Hesterberg 2015, What Teachers Should Know About the Bootstrap). The factor
/// is 1.86 for four windows and 1.06 for thirty.
fn small_sample(n: usize) -> f64 {
    const Z: f64 = 1.959_964;
    let freedom = (n - 1) as f64;
    // The 97.5 % quantile of Student's t, by its expansion around the normal one: exact to 1 % from 3 degrees of freedom on.
    let t = Z
        + (Z.powi(3) + Z) / (4.0 * freedom)
        + (5.0 * Z.powi(5) + 16.0 * Z.powi(3) + 3.0 * Z) / (96.0 * freedom.powi(2))
        + (3.0 * Z.powi(7) + 19.0 * Z.powi(5) + 17.0 * Z.powi(3) - 15.0 * Z) / (384.0 * freedom.powi(3));
    t / Z * (n as f64 / freedom).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(nlls: &[f64]) -> WindowNll {
        let squares = nlls.iter().map(|x| x * x).sum();
        WindowNll { sum: nlls.iter().sum(), squares, tokens: nlls.len(), ..WindowNll::default() }
    }

    #[test]
    fn tokens_weigh_the_same_whatever_window_they_are_in() {
        let windows = [window(&[1.0, 2.0, 3.0]), window(&[6.0])];
        assert_eq!(mean(&windows), 3.0);
        // Variance of 1, 2, 3, 6 is 14/3, so the error of their mean is sqrt(14/12).
        assert!((token_error(&windows) - (14.0f64 / 12.0).sqrt()).abs() < 1e-12);
        // Window residuals 6 - 9 = -3 and 6 - 3 = 3: sqrt((9 + 9) * 2 / 1) / 4.
        assert!((window_error(&windows).unwrap() - 1.5).abs() < 1e-12);
        assert_eq!(window_error(&windows[..1]), None);
    }

    #[test]
    fn equal_windows_of_independent_tokens_give_the_textbook_error() {
        let windows: Vec<_> = [1.0, 2.0, 4.0, 5.0].iter().map(|&x| window(&[x])).collect();
        assert!((window_error(&windows).unwrap() - token_error(&windows)).abs() < 1e-12);
    }

    #[test]
    fn a_constant_difference_has_a_tight_interval_however_noisy_the_text() {
        let b: Vec<_> = (0..20).map(|i| window(&[1.0 + f64::from(i), 2.0])).collect();
        let a: Vec<_> = (0..20).map(|i| window(&[1.1 + f64::from(i), 2.1])).collect();
        let d = paired_difference(&a, &b, "b", 0);
        assert!((d.nll - 0.1).abs() < 1e-12);
        assert!((d.low.unwrap() - 0.1).abs() < 1e-9 && (d.high.unwrap() - 0.1).abs() < 1e-9);
        assert_eq!(d.is_real(), Some(true));
    }

    #[test]
    fn the_interval_is_that_of_the_normal_theory_and_repeats_with_its_seed() {
        // 50 windows of one token, difference +1 or -1 in turn: standard error 1 / sqrt(50) = 0.1414.
        let b = vec![window(&[0.0]); 50];
        let a: Vec<_> = (0..50).map(|i| window(&[if i % 2 == 0 { 1.0 } else { -1.0 }])).collect();
        let d = paired_difference(&a, &b, "b", 7);
        let (low, high) = (d.low.unwrap(), d.high.unwrap());
        assert!((low + 0.286).abs() < 0.05 && (high - 0.286).abs() < 0.05, "{low} {high}");
        assert_eq!(d.is_real(), Some(false));
        assert_eq!(d, paired_difference(&a, &b, "b", 7));
    }

    /// The share of samples whose interval misses the true mean, for windows of normal noise.
    #[test]
    fn an_interval_of_few_windows_holds_as_often_as_it_says() {
        // Quantiles of Student's t from tables.
        for (n, t) in [(4, 3.182), (6, 2.571), (11, 2.228), (31, 2.042)] {
            let wanted = t / 1.959_964 * (n as f64 / (n - 1) as f64).sqrt();
            assert!((small_sample(n) / wanted - 1.0).abs() < 0.01, "{n}: {} not {wanted}", small_sample(n));
        }
        let mut rng = Rng::new(3);
        let mut normal = || (0..12).map(|_| rng.below(1 << 20) as f64 / f64::from(1 << 20)).sum::<f64>() - 6.0;
        let zeros = vec![window(&[0.0]); 4];
        let missed = |_: &usize| {
            let sample: Vec<_> = (0..4).map(|_| window(&[normal()])).collect();
            paired_difference(&sample, &zeros, "b", 1).is_real() == Some(true)
        };
        let missed = (0..400usize).filter(missed).count();
        assert!((4..36).contains(&missed), "{missed} of 400, 20 expected");
    }

    #[test]
    fn few_windows_have_no_interval() {
        let d = paired_difference(&[window(&[2.0])], &[window(&[1.0])], "b", 0);
        assert_eq!((d.nll, d.low, d.is_real()), (1.0, None, None));
    }
}
