//! Sets of frequencies, which rotary and sinusoidal encodings share. A frequency says by which angle a pair of lanes
//! turns per position.

use candle_core::{Result, bail};
use std::f64::consts::TAU;

/// How fast each pair turns, for one sequence length.
#[derive(Debug, Clone, PartialEq)]
pub struct Frequencies {
    /// Radians per position, one entry per rotated pair.
    pub inv_freq: Vec<f64>,
    /// Multiplies cos and sin, so scores scale by its square.
    pub attention_factor: f64,
}

impl Frequencies {
    /// Positions per full turn of each pair; infinite for a pair that does not turn.
    pub fn wavelengths(&self) -> Vec<f64> {
        self.inv_freq.iter().map(|f| TAU / f).collect()
    }
}

/// `theta^(-2i/width)` for the first `pairs` pairs.
pub fn plain_frequencies(theta: f64, width: usize, pairs: usize) -> Vec<f64> {
    (0..pairs).map(|i| theta.powf(-2.0 * i as f64 / width as f64)).collect()
}

/// Refuses zero, negative numbers, NaN and infinity.
pub(crate) fn positive(key: &str, value: f64) -> Result<()> {
    if !(value.is_finite() && value > 0.0) {
        bail!("{key} must be a positive number, got {value}")
    }
    Ok(())
}
