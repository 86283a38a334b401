//! The choice of experts: which experts a token passes through, and with which weights.
//!
//! It is a sort of a few numbers per token and happens on the CPU.

use crate::spec::{GroupLimit, GroupScore, RouterScores, Routing};
use std::cmp::Ordering;

/// How a token chooses its experts.
#[derive(Debug, Clone)]
pub(crate) struct Choice {
    pub(crate) routing: Routing,
    /// What is added to each expert's score for the choice, but not for its weight.
    pub(crate) correction: Option<Vec<f32>>,
    /// A factor of each expert's weight.
    pub(crate) expert_scales: Option<Vec<f32>>,
    /// Experts of one token.
    pub(crate) top_k: usize,
}

impl Choice {
    /// The experts of a token with these logits, and their weights.
    pub(crate) fn of(&self, logits: &[f32]) -> Vec<(usize, f32)> {
        let mut chosen = match self.routing.scores {
            RouterScores::SparseMixer { jitter } => sparse_mixer(logits, self.top_k, jitter as f32),
            RouterScores::Softmax => self.best(logits, &softmax(logits)),
            RouterScores::Sigmoid => {
                self.best(logits, &logits.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect::<Vec<_>>())
            }
        };
        if let Some(least) = self.routing.normalise {
            let sum = chosen.iter().map(|(_, weight)| weight).sum::<f32>().max(least as f32);
            chosen.iter_mut().for_each(|(_, weight)| *weight /= sum);
        }
        for (expert, weight) in &mut chosen {
            *weight *= self.routing.scale as f32 * self.expert_scales.as_ref().map_or(1.0, |scales| scales[*expert]);
        }
        chosen
    }

    /// The experts of the largest scores, corrected and within the best groups.
    fn best(&self, logits: &[f32], scores: &[f32]) -> Vec<(usize, f32)> {
        let corrected = self.correction.as_ref().map(|c| scores.iter().zip(c).map(|(s, c)| s + c).collect::<Vec<_>>());
        // Logits have the same order as their scores, and still differ where the scores have rounded to 0 or 1.
        let order = corrected.as_deref().unwrap_or(logits);
        let scored = corrected.as_deref().unwrap_or(scores);
        let experts = match self.routing.groups {
            None => top(order, self.top_k, |_| true),
            Some(GroupLimit { groups, kept, by }) => {
                let size = (order.len() / groups).max(1);
                let score = |group: &[f32]| match by {
                    GroupScore::Best => group.iter().copied().fold(f32::NEG_INFINITY, f32::max),
                    GroupScore::BestTwo => top(group, 2, |_| true).into_iter().map(|i| group[i]).sum(),
                };
                let kept = top(&scored.chunks(size).map(score).collect::<Vec<f32>>(), kept, |_| true);
                top(order, self.top_k, |i| kept.contains(&(i / size)))
            }
        };
        experts.into_iter().map(|i| (i, scores[i])).collect()
    }
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers = logits.iter().map(|x| (x - most).exp()).collect::<Vec<_>>();
    let sum = powers.iter().sum::<f32>();
    powers.into_iter().map(|x| x / sum).collect()
}

/// See [`RouterScores::SparseMixer`].
fn sparse_mixer(logits: &[f32], k: usize, jitter: f32) -> Vec<(usize, f32)> {
    let mut chosen = Vec::with_capacity(k);
    for _ in 0..k {
        let left = |i: usize| chosen.iter().all(|(expert, _)| *expert != i);
        let Some(&best) = top(logits, 1, left).first() else { break };
        let most = logits[best];
        // A quotient of two zeros counts as near, as in the original.
        let near = |x: f32| ((most - x) / x.abs().max(most)).partial_cmp(&(2.0 * jitter)) != Some(Ordering::Greater);
        let powers = logits.iter().enumerate().filter(|(i, x)| left(*i) && near(**x)).map(|(_, x)| (x - most).exp());
        let weight = 1.0 / powers.sum::<f32>().max(1.0);
        chosen.push((best, weight));
    }
    chosen
}

/// Indices of the `k` largest values among those allowed, largest first; ties go to the lower index.
fn top(values: &[f32], k: usize, allowed: impl Fn(usize) -> bool) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).filter(|&i| allowed(i)).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    order.truncate(k);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(routing: Routing, correction: Option<Vec<f32>>, top_k: usize, logits: &[f32]) -> Vec<(usize, f32)> {
        Choice { routing, correction, expert_scales: None, top_k }.of(logits)
    }

    fn near(got: &[(usize, f32)], want: &[(usize, f32)]) {
        let alike = |(a, b): (&(usize, f32), &(usize, f32))| a.0 == b.0 && (a.1 - b.1).abs() < 1e-6;
        assert!(got.len() == want.len() && got.iter().zip(want).all(alike), "{got:?} is not {want:?}");
    }

    #[test]
    fn a_normalised_softmax_is_one_over_the_chosen() {
        let logits = [1.0, 3.0, 2.0, -1.0];
        let e = 1f32.exp();
        near(&choose(Routing::softmax(true), None, 2, &logits), &[(1, e / (1.0 + e)), (2, 1.0 / (1.0 + e))]);
        let all: f32 = logits.iter().map(|x: &f32| (x - 3.0).exp()).sum();
        near(&choose(Routing::softmax(false), None, 1, &logits), &[(1, 1.0 / all)]);
    }

    #[test]
    fn a_correction_moves_the_choice_and_not_the_weight() {
        let routing = Routing { scores: RouterScores::Sigmoid, scale: 2.0, ..Routing::softmax(false) };
        let half = choose(routing, Some(vec![0.0, 0.0, 9.0]), 1, &[5.0, 4.0, 0.0]);
        near(&half, &[(2, 1.0)]);
    }

    #[test]
    fn groups_are_ranked_by_their_best_or_their_best_two() {
        let logits = [9.0, -9.0, 2.0, 2.0, 1.0, 1.0];
        let of = |by| {
            let groups = Some(GroupLimit { groups: 3, kept: 1, by });
            let routing = Routing { groups, scores: RouterScores::Sigmoid, ..Routing::softmax(true) };
            choose(routing, None, 2, &logits).into_iter().map(|(i, _)| i).collect::<Vec<_>>()
        };
        assert_eq!((of(GroupScore::Best), of(GroupScore::BestTwo)), (vec![0, 1], vec![2, 3]));
    }

    #[test]
    fn sparse_mixer_weighs_among_those_near_the_largest() {
        let e = |x: f32| x.exp();
        // With a jitter of 0.1 those within a fifth of the largest count: 4.0 and 3.5, then 3.5 and 3.0.
        let got = sparse_mixer(&[3.0, 4.0, 3.5, 1.0], 2, 0.1);
        near(&got, &[(1, 1.0 / (1.0 + e(-0.5))), (2, 1.0 / (1.0 + e(-0.5)))]);
        near(&sparse_mixer(&[3.0, 4.0, 3.5, 1.0], 2, 0.0), &[(1, 1.0), (2, 1.0)]);
    }
}
