//! The share of the hidden things that was found, with its interval.

use crate::stats::Interval;

/// The normal distribution's 97.5 % quantile, squared.
const Z2: f64 = 1.959_963_985 * 1.959_963_985;

/// The share found in one or more trials. Each trial counts with the share of what it asked for that was found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share {
    /// The sum of the shares of the trials.
    score: f64,
    /// Number of trials.
    trials: usize,
}

impl Share {
    /// `found` things of `wanted` in `trials` trials, all of which asked for the same number of things.
    pub fn of(found: usize, wanted: usize, trials: usize) -> Self {
        Self { score: found as f64 / wanted as f64 * trials as f64, trials }
    }

    /// The share, from 0 to 1.
    pub fn value(self) -> f64 {
        self.score / self.trials as f64
    }

    /// The number of trials.
    pub fn trials(self) -> usize {
        self.trials
    }

    /// Whether it is significantly more than nothing, given the number of trials.
    pub fn is_more_than_nothing(self) -> bool {
        self.above(Self { score: 0.0, ..self }).low > 0.0
    }

    /// The share of the trials of both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { score: self.score + other.score, trials: self.trials + other.trials }
    }

    /// The 95 % interval of the share (Wilson's score interval, which holds for few trials and for shares of 0 and 1 too).
    /// If a trial asks for several things the interval is wider than necessary: of all numbers between 0 and 1 with a given mean,
    /// those that are only 0 or 1 vary most.
    pub fn interval(self) -> Interval {
        let (n, p) = (self.trials as f64, self.value());
        let middle = (p + Z2 / (2.0 * n)) / (1.0 + Z2 / n);
        let half = (Z2 * (p * (1.0 - p) / n + Z2 / (4.0 * n * n))).sqrt() / (1.0 + Z2 / n);
        Interval { low: (middle - half).max(0.0), high: (middle + half).min(1.0) }
    }

    /// The 95 % interval of this share minus the other (Newcombe's hybrid score interval, 1998, number 10,
    /// from the two Wilson intervals). For two modes on the same trials it is wider than necessary, since a trial that is hard
    /// for one of them tends to be hard for the other.
    pub fn above(self, other: Self) -> Interval {
        let (p, q) = (self.value(), other.value());
        let (a, b) = (self.interval(), other.interval());
        let half = |x: f64, y: f64| (x * x + y * y).sqrt();
        Interval { low: p - q - half(p - a.low, b.high - q), high: p - q + half(a.high - p, q - b.low) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(interval: Interval, low: f64, high: f64) {
        assert!((interval.low - low).abs() < 1e-6 && (interval.high - high).abs() < 1e-6, "{interval:?}");
    }

    /// The expected values are those of statsmodels' `proportion_confint(method="wilson")`.
    #[test]
    fn intervals_are_wilsons() {
        for (correct, trials, low, high) in [
            (0, 10, 0.0, 0.277_533),
            (5, 10, 0.236_593, 0.763_407),
            (25, 25, 0.866_808, 1.0),
            (1, 3, 0.061_492, 0.792_340),
        ] {
            near(Share::of(correct, trials, trials).interval(), low, high);
        }
        // Half of what every trial asks for is half of the trials.
        assert_eq!(Share::of(20, 40, 10), Share::of(5, 10, 10));
    }

    /// Newcombe 1998, table II, method 10: 56 of 70 against 48 of 80, 9 of 10 against 3 of 10, 10 of 10 against 0 of 10.
    #[test]
    fn differences_are_newcombes() {
        let of = |a, m, b, n| Share::of(a, m, m).above(Share::of(b, n, n));
        let near = |interval: Interval, low: f64, high: f64| {
            assert!((interval.low - low).abs() < 1e-4 && (interval.high - high).abs() < 1e-4, "{interval:?}");
        };
        near(of(56, 70, 48, 80), 0.0524, 0.3339);
        near(of(9, 10, 3, 10), 0.1705, 0.8090);
        near(of(10, 10, 0, 10), 0.6075, 1.0);
        assert!(of(5, 10, 5, 10).low < 0.0 && of(5, 10, 5, 10).high > 0.0);
    }

    #[test]
    fn few_trials_do_not_tell_little_from_nothing() {
        for (found, trials, tells) in [(1, 2, false), (2, 2, true), (0, 50, false), (3, 10, false), (5, 10, true)] {
            assert_eq!(Share::of(found, trials, trials).is_more_than_nothing(), tells, "{found} of {trials}");
        }
    }

    #[test]
    fn trials_weigh_the_same_whatever_they_ask_for() {
        let both = Share::of(4, 4, 4).and(Share::of(0, 16, 4));
        assert_eq!((both.value(), both.trials()), (0.5, 8));
    }
}
