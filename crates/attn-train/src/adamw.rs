//! AdamW (Loshchilov and Hutter 2019) on f32 weights, one pass per tensor.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Constants of the optimizer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdamW {
    /// Decay of the mean gradient.
    pub beta1: f64,
    /// Decay of the mean squared gradient.
    pub beta2: f64,
    /// Added to the root of the mean squared gradient, so that the divisor is never 0.
    pub eps: f64,
    /// Decay of the weights per step, as a multiple of the learning rate. [`Trainer`](crate::Trainer) lets only matrices decay.
    pub weight_decay: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1 }
    }
}

/// What the optimizer remembers of one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    /// Mean gradient.
    pub mean: Vec<f32>,
    /// Mean squared gradient.
    pub square: Vec<f32>,
}

impl Moments {
    /// Zeros, for a tensor of `n` numbers.
    pub fn new(n: usize) -> Self {
        Self { mean: vec![0.0; n], square: vec![0.0; n] }
    }
}

impl AdamW {
    /// Moves `weights` against `gradient * scale` at learning rate `rate`; `step` counts from 1. `decays` says whether these
    /// weights decay. Weights, gradient and moments have the same length.
    pub fn update(
        &self,
        weights: &mut [f32],
        gradient: &[f32],
        moments: &mut Moments,
        (step, rate, scale): (usize, f64, f64),
        decays: bool,
    ) {
        let (beta1, beta2, eps, scale) = (self.beta1 as f32, self.beta2 as f32, self.eps as f32, scale as f32);
        let step = i32::try_from(step).unwrap_or(i32::MAX);
        let size = (rate / (1.0 - self.beta1.powi(step))) as f32;
        let root = (1.0 / (1.0 - self.beta2.powi(step)).sqrt()) as f32;
        let keep = if decays { (1.0 - rate * self.weight_decay) as f32 } else { 1.0 };
        const CHUNK: usize = 1 << 14;
        let states = moments.mean.par_chunks_mut(CHUNK).zip(moments.square.par_chunks_mut(CHUNK));
        weights.par_chunks_mut(CHUNK).zip(gradient.par_chunks(CHUNK)).zip(states).for_each(|((w, g), (m, v))| {
            for (((w, g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
                let g = g * scale;
                *m = beta1 * *m + (1.0 - beta1) * g;
                *v = beta2 * *v + (1.0 - beta2) * g * g;
                *w = *w * keep - size * *m / (v.sqrt() * root + eps);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three steps written out in f64, as torch.optim.AdamW defines them.
    #[test]
    fn follows_the_definition() {
        let adam = AdamW { beta1: 0.8, beta2: 0.9, eps: 1e-6, weight_decay: 0.5 };
        let (mut w, mut moments) = (vec![1.0f32], Moments::new(1));
        let (mut x, mut m, mut v) = (1.0f64, 0.0, 0.0);
        for (step, g) in [(1, 0.3), (2, -0.2), (3, 0.7)] {
            adam.update(&mut w, &[g as f32 * 2.0], &mut moments, (step, 0.1, 0.5), true);
            x *= 1.0 - 0.1 * 0.5;
            m = 0.8 * m + 0.2 * g;
            v = 0.9 * v + 0.1 * g * g;
            let (mean, square) = (m / (1.0 - 0.8f64.powi(step as i32)), v / (1.0 - 0.9f64.powi(step as i32)));
            x -= 0.1 * mean / (square.sqrt() + 1e-6);
            assert!((f64::from(w[0]) - x).abs() < 1e-6, "step {step}: {} and {x}", w[0]);
        }
    }
}
