//! Properties of a set of frequencies that explain how far a model reads, before any model is run.

use attn_core::position::frequencies::plain_frequencies;
use rayon::prelude::*;

/// RoFormer's long-term decay (section 3.4.3) at distance `m`: the mean over j of `|S_j|` with
/// `S_j = sum_{i < j} e^(i m theta_i)`. It bounds how much a query and a key `m` apart can still agree.
pub fn decay(inv_freq: &[f64], m: f64) -> f64 {
    let (mut re, mut im, mut total) = (0.0, 0.0, 0.0f64);
    for f in inv_freq {
        let (sin, cos) = (m * f).sin_cos();
        re += cos;
        im += sin;
        total += f64::hypot(re, im);
    }
    total / inv_freq.len().max(1) as f64
}

/// `sum_i cos(m theta_i)`: how much more a head can prefer a similar key `m` tokens back to a random one. Below 0 it
/// prefers the random one (Men et al. 2024, "Base of RoPE Bounds Context Length").
pub fn discrimination(inv_freq: &[f64], m: f64) -> f64 {
    inv_freq.iter().map(|f| (m * f).cos()).sum()
}

/// The first distance below `limit` at which [`discrimination`] is negative, `None` if there is none: the context that
/// these frequencies can tell apart.
pub fn discrimination_horizon(inv_freq: &[f64], limit: usize) -> Option<usize> {
    // One complex multiplication per pair and distance is faster than a cosine, but its rounding errors add up. So every block
    // starts from an exact angle again.
    const BLOCK: usize = 1 << 12;
    let steps: Vec<(f64, f64)> = inv_freq.iter().map(|f| f.sin_cos()).collect();
    let mut turned = vec![(0.0, 0.0); inv_freq.len()];
    for m in 0..limit {
        if m % BLOCK == 0 {
            turned.iter_mut().zip(inv_freq).for_each(|(z, f)| *z = (m as f64 * f).sin_cos());
        }
        if turned.iter().map(|z| z.1).sum::<f64>() < 0.0 {
            return Some(m);
        }
        for (z, step) in turned.iter_mut().zip(&steps) {
            *z = (z.0 * step.1 + z.1 * step.0, z.1 * step.1 - z.0 * step.0);
        }
    }
    None
}

/// The smallest `rope_theta` whose [`discrimination`] stays at or above 0 for all distances below `len`, at rotary
/// width `d`: the bound of Men et al. 2024, whose table is for d = 128.
///
/// A larger base does not always satisfy this where a smaller one does (for 8192 tokens 84000 does, 84500 does not, 91000
/// does), so bases are tried upwards in steps of 0.1 %. The time grows with `len`: it is about a second for 32k tokens.
pub fn smallest_base(len: usize, d: usize) -> f64 {
    let holds = |log: f64| discrimination_horizon(&plain_frequencies(log.exp(), d, d / 2), len).is_none();
    // Bisection finds some base that holds; the search starts from a quarter of it.
    let (mut low, mut high) = (0.0, 1e12f64.ln());
    while high - low > 0.01 {
        let middle = (low + high) / 2.0;
        if holds(middle) { high = middle } else { low = middle }
    }
    let first = (high - 4f64.ln()).max(1e-3);
    let steps = ((high - first) / 1e-3).ceil() as usize;
    let found = (0..steps).into_par_iter().map(|i| first + 1e-3 * i as f64).find_first(|&log| holds(log));
    found.unwrap_or(high).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_term_decay_is_that_of_roformer() {
        let f = plain_frequencies(10_000.0, 128, 64);
        for (m, expected) in [(0.0, 32.5), (10.0, 17.954), (100.0, 10.227), (250.0, 6.548)] {
            assert!((decay(&f, m) - expected).abs() < 5e-4, "m = {m}: {}", decay(&f, m));
        }
    }

    #[test]
    fn the_recurrence_agrees_with_the_cosines() {
        let f = plain_frequencies(10_000.0, 64, 32);
        let slow = (0..1 << 16).find(|&m| discrimination(&f, m as f64) < 0.0);
        assert_eq!(discrimination_horizon(&f, 1 << 16), slow);
        assert_eq!(discrimination_horizon(&f, 2), None);
    }

    #[test]
    fn smallest_bases_are_those_of_the_base_bound_paper() {
        let published = [(1, 4.3e3), (2, 1.2e4), (4, 2.7e4), (8, 8.4e4), (16, 2.3e5), (32, 6.3e5)];
        for (k, expected) in published {
            let base = smallest_base(k << 10, 128);
            println!("{k}k {base:e}");
            // The table has two digits.
            assert!((base / expected - 1.0).abs() < 0.05, "{k}k: {base:e} instead of {expected:e}");
        }
    }
}
