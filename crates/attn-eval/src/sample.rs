//! Chooses the next token from logits.
//!
//! The steps are in llama.cpp's order: repeat penalty, top-k, top-p, min-p, temperature. At a temperature of 0 the most likely
//! token is taken, and only the penalty has an effect.

use crate::error::{Result, ensure};
use crate::rng::Rng;

/// How the next token is chosen.
#[derive(Debug, Clone)]
pub struct SampleOptions {
    /// Flattens (above 1) or sharpens (below 1) the distribution; 0 always takes the most likely token.
    pub temperature: f64,
    /// Keeps only the `k` most likely tokens; `None`: all.
    pub top_k: Option<usize>,
    /// Keeps only the most likely tokens that together reach this probability; 1: all.
    pub top_p: f64,
    /// Keeps only tokens whose probability is at least this share of that of the most likely one; 0: all.
    pub min_p: f64,
    /// Divides the logits of recent tokens if they are positive, and multiplies them if not; 1: off.
    pub repeat_penalty: f64,
    /// The number of last tokens that count as recent.
    pub repeat_last_n: usize,
    /// The seed of the random choices.
    pub seed: u64,
}

impl Default for SampleOptions {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: None, top_p: 1.0, min_p: 0.0, repeat_penalty: 1.0, repeat_last_n: 64, seed: 0 }
    }
}

/// Chooses one token after the other.
#[derive(Debug, Clone)]
pub struct Sampler {
    options: SampleOptions,
    rng: Rng,
}

impl Sampler {
    /// A sampler at the start of its seed's sequence.
    pub fn new(options: SampleOptions) -> Self {
        Self { rng: Rng::new(options.seed), options }
    }

    /// The next token after `history`.
    ///
    /// # Errors
    /// There are no logits, or one of them isn't finite.
    pub fn next(&mut self, mut logits: Vec<f32>, history: &[u32]) -> Result<u32> {
        ensure!(!logits.is_empty(), NotFinite, "the model returned no logits");
        ensure!(logits.iter().all(|x| x.is_finite()), NotFinite, "the model's logits are not finite numbers");
        self.penalize(&mut logits, history);
        if self.options.temperature <= 0.0 {
            return Ok(argmax(&logits));
        }
        let kept = self.most_likely(&logits);
        Ok(self.draw(&kept))
    }

    fn penalize(&self, logits: &mut [f32], history: &[u32]) {
        let penalty = self.options.repeat_penalty as f32;
        if penalty == 1.0 {
            return;
        }
        let recent = &history[history.len().saturating_sub(self.options.repeat_last_n)..];
        let mut recent = recent.to_vec();
        recent.sort_unstable();
        recent.dedup();
        for token in recent {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            }
        }
    }

    /// The tokens that top-k, top-p and min-p keep, most likely first, with their weights, which do not add up to 1.
    fn most_likely(&self, logits: &[f32]) -> Vec<(u32, f64)> {
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        let logit = |token: u32| f64::from(logits[token as usize]);
        let by_logit = |a: &u32, b: &u32| logit(*b).total_cmp(&logit(*a)).then(a.cmp(b));
        let k = self.options.top_k.map_or(order.len(), |k| k.clamp(1, order.len()));
        if k < order.len() {
            order.select_nth_unstable_by(k - 1, by_logit);
            order.truncate(k);
        }
        order.sort_unstable_by(by_logit);
        let top = logit(order[0]);
        let weight = |token: u32, temperature: f64| ((logit(token) - top) / temperature).exp();
        let total: f64 = order.iter().map(|&token| weight(token, 1.0)).sum();
        let mut reached = 0.0;
        let kept = order.iter().take_while(|&&token| {
            let wanted = reached < self.options.top_p * total && weight(token, 1.0) >= self.options.min_p;
            reached += weight(token, 1.0);
            wanted
        });
        let mut kept: Vec<_> = kept.map(|&token| (token, weight(token, self.options.temperature))).collect();
        if kept.is_empty() {
            kept.push((order[0], 1.0));
        }
        kept
    }

    fn draw(&mut self, kept: &[(u32, f64)]) -> u32 {
        let mut left = self.rng.unit() * kept.iter().map(|(_, weight)| weight).sum::<f64>();
        for &(token, weight) in kept {
            left -= weight;
            if left < 0.0 {
                return token;
            }
        }
        kept[0].0
    }
}

/// The index of the largest logit, the first of several equal ones.
pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, &x) in logits.iter().enumerate() {
        if x > logits[best] {
            best = i;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(options: SampleOptions, logits: &[f32], n: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(options);
        (0..n).map(|_| sampler.next(logits.to_vec(), &[]).unwrap()).collect()
    }

    #[test]
    fn temperature_0_takes_the_first_of_the_largest() {
        assert_eq!(draws(SampleOptions::default(), &[0.0, 3.0, 3.0, -1.0], 3), [1, 1, 1]);
    }

    #[test]
    fn frequencies_follow_the_softmax_at_the_temperature() {
        // At temperature 2 logits 2 ln 3 and 0 have odds 3 : 1.
        let options = SampleOptions { temperature: 2.0, ..Default::default() };
        let seen = draws(options, &[2.0 * 3f32.ln(), 0.0], 4000);
        let share = seen.iter().filter(|&&t| t == 0).count() as f64 / 4000.0;
        assert!((share - 0.75).abs() < 0.03, "{share}");
    }

    #[test]
    fn top_k_and_top_p_keep_the_most_likely() {
        let logits = [0.4f32, 0.1, 0.3, 0.2].map(f32::ln);
        let k = SampleOptions { temperature: 1.0, top_k: Some(2), ..Default::default() };
        assert!(draws(k.clone(), &logits, 300).iter().all(|t| [0, 2].contains(t)));
        let p = SampleOptions { top_k: None, top_p: 0.65, ..k };
        let seen = draws(p.clone(), &logits, 300);
        assert!(seen.iter().all(|t| [0, 2].contains(t)) && seen.contains(&2));
        let likely = SampleOptions { top_p: 1.0, min_p: 0.5, ..p.clone() };
        let kept = Sampler::new(likely).most_likely(&[1.0, 1.2, 0.4, 1.2 - 0.7]);
        assert_eq!(
            kept.iter().map(|(token, _)| *token).collect::<Vec<_>>(),
            [1, 0],
            "exp(-0.8) and exp(-0.7) are below a half"
        );
        let none = SampleOptions { top_p: 0.0, ..p };
        assert!(draws(none, &logits, 20).iter().all(|&t| t == 0));
    }

    #[test]
    fn the_penalty_falls_on_recent_tokens_of_either_sign_once() {
        let options = SampleOptions { repeat_penalty: 2.0, repeat_last_n: 2, ..Default::default() };
        let mut sampler = Sampler::new(options);
        assert_eq!(sampler.next(vec![1.0, 1.5, 0.6], &[1, 1]).unwrap(), 0);
        assert_eq!(sampler.next(vec![-1.5, -1.0, -3.0], &[1, 2]).unwrap(), 0);
        assert_eq!(sampler.next(vec![1.0, 1.5], &[1, 0, 0]).unwrap(), 1);
    }

    #[test]
    fn a_seed_repeats_and_another_differs() {
        let logits = vec![0.0; 50];
        let with = |seed| draws(SampleOptions { temperature: 1.0, seed, ..Default::default() }, &logits, 20);
        assert_eq!(with(1), with(1));
        assert_ne!(with(1), with(2));
    }

    #[test]
    fn logits_that_are_no_numbers_are_refused() {
        let mut sampler = Sampler::new(SampleOptions::default());
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(sampler.next(vec![0.0, value], &[]).is_err());
        }
        assert!(sampler.next(vec![], &[]).is_err());
    }
}
