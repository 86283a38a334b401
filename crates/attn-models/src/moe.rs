//! Mixtures of experts: each token passes through the few experts that a router chooses for it.
//!
//! Tokens are gathered per expert, so an expert's product runs once over all tokens that chose it. The choice itself is a
//! sort of a few numbers per token and happens on the CPU.

use crate::builder::Builder;
use crate::mlp::{GateUp, Mlp};
use crate::spec::{
    ExpertWeights, GateUpSpec, GroupLimit, GroupScore, LinearSpec, MlpSpec, MoeSpec, RouterScores, Routing,
};
use attn_core::{Linear, Norm, NormKind};
use candle_core::{DType, Module, Result, Tensor};
use std::cmp::Ordering;

/// A router, experts, and a shared expert beside them.
#[derive(Debug, Clone)]
pub(crate) struct Moe {
    router: Linear,
    router_norm: Option<Norm>,
    choice: Choice,
    weighs_input: bool,
    experts: Vec<Mlp>,
    shared: Option<(Mlp, Option<Linear>)>,
}

/// An expert's share of a token.
struct Share {
    token: u32,
    weight: f32,
}

impl Moe {
    pub(crate) fn load(spec: &MoeSpec, prefix: &str, weights: &Builder) -> Result<Self> {
        let router = weights.linear(prefix, &spec.router)?;
        let correction = match &spec.routing.correction {
            Some((name, shape)) => {
                Some(weights.tensor_as(&format!("{prefix}{name}"), shape, DType::F32)?.flatten_all()?.to_vec1()?)
            }
            None => None,
        };
        let expert_scales = match &spec.routing.expert_scales {
            Some(name) => Some(weights.tensor_as(&format!("{prefix}{name}"), &[spec.experts], DType::F32)?.to_vec1()?),
            None => None,
        };
        let router_norm = match &spec.router_norm {
            Some(norm) => {
                let weight = weights.tensor_as(&format!("{prefix}{}", norm.weight), &[spec.hidden_size], DType::F32)?;
                Some(Norm::new(NormKind::Rms, Some((weight * norm.factor)?), None, norm.eps))
            }
            None => None,
        };
        let shared = match &spec.shared {
            Some(shared) => {
                let gate = shared.gate.as_ref().map(|gate| weights.linear(prefix, gate)).transpose()?;
                Some((Mlp::load(&shared.mlp, prefix, weights)?, gate))
            }
            None => None,
        };
        Ok(Self {
            router,
            router_norm,
            choice: Choice { routing: spec.routing.clone(), correction, expert_scales, top_k: spec.top_k },
            weighs_input: spec.routing.weighs_input,
            experts: experts(spec, prefix, weights)?,
            shared,
        })
    }

    /// `(b, t, hidden)` to the same.
    pub(crate) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.forward_routed(xs, xs)
    }

    /// [`forward`](Self::forward) with a router that sees `seen`, `(b, t, hidden)`, instead of what the experts see.
    pub(crate) fn forward_routed(&self, xs: &Tensor, seen: &Tensor) -> Result<Tensor> {
        let (b, t, hidden) = xs.dims3()?;
        let flat = xs.reshape((b * t, hidden))?;
        let seen = seen.reshape((b * t, hidden))?;
        let seen = self.router_norm.as_ref().map_or(Ok(seen.clone()), |norm| norm.forward(&seen))?;
        let logits = self.router.forward(&seen)?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
        let mut chosen: Vec<Vec<Share>> = (0..self.experts.len()).map(|_| Vec::new()).collect();
        for (token, logits) in logits.iter().enumerate() {
            for (expert, weight) in self.choice.of(logits) {
                chosen[expert].push(Share { token: token as u32, weight });
            }
        }
        let mut out = match &self.shared {
            Some((shared, gate)) => {
                let out = shared.forward(xs)?.reshape((b * t, hidden))?;
                match gate {
                    Some(gate) => out.broadcast_mul(&candle_nn::ops::sigmoid(&gate.forward(&flat)?)?)?,
                    None => out,
                }
            }
            None => flat.zeros_like()?,
        };
        for (expert, shares) in self.experts.iter().zip(&chosen).filter(|(_, shares)| !shares.is_empty()) {
            let tokens = Tensor::from_iter(shares.iter().map(|s| s.token), xs.device())?;
            let weights = Tensor::from_iter(shares.iter().map(|s| s.weight), xs.device())?;
            let weights = weights.to_dtype(xs.dtype())?.unsqueeze(1)?;
            let mut ins = flat.index_select(&tokens, 0)?.unsqueeze(0)?;
            if self.weighs_input {
                ins = ins.broadcast_mul(&weights)?;
            }
            let mut outs = expert.forward(&ins)?.squeeze(0)?;
            if !self.weighs_input {
                outs = outs.broadcast_mul(&weights)?;
            }
            out = out.index_add(&tokens, &outs, 0)?;
        }
        out.reshape((b, t, hidden))
    }
}

fn experts(spec: &MoeSpec, prefix: &str, weights: &Builder) -> Result<Vec<Mlp>> {
    let (n, hidden, inter) = (spec.experts, spec.hidden_size, spec.intermediate_size);
    match &spec.weights {
        ExpertWeights::Separate { prefix: experts, names: [gate, up, down], bias } => {
            let linear = |name: &str, i, o| LinearSpec::new(name, i, o).bias(*bias);
            let mlp = MlpSpec::Gated {
                gate_up: GateUpSpec::Separate { gate: linear(gate, hidden, inter), up: linear(up, hidden, inter) },
                down: linear(down, inter, hidden),
                gate: spec.gate,
            };
            (0..n).map(|i| Mlp::load(&mlp, &format!("{prefix}{experts}{i}."), weights)).collect()
        }
        ExpertWeights::Stacked { gate_up, down, transposed, interleaved, biases } => {
            let read = |name: &str, bias: Option<&String>, outs: usize, ins: usize| {
                let shape = if *transposed { [n, ins, outs] } else { [n, outs, ins] };
                let all = weights.tensor(&format!("{prefix}{name}"), &shape)?;
                let bias = bias.map(|name| weights.tensor(&format!("{prefix}{name}"), &[n, outs])).transpose()?;
                Ok::<_, candle_core::Error>((all, bias))
            };
            let gate_up = read(gate_up, biases.as_ref().map(|b| &b[0]), 2 * inter, hidden)?;
            let down = read(down, biases.as_ref().map(|b| &b[1]), hidden, inter)?;
            let apart = match interleaved {
                true => Some(Tensor::from_iter(
                    (0..2).flat_map(|half| (half..2 * inter as u32).step_by(2)),
                    &weights.device,
                )?),
                false => None,
            };
            let one = |(all, biases): &(Tensor, Option<Tensor>), i: usize, order: Option<&Tensor>| {
                let weight = all.get(i)?;
                let weight = if *transposed { weight.t()? } else { weight }.contiguous()?;
                let bias = biases.as_ref().map(|b| b.get(i)).transpose()?;
                match order {
                    Some(rows) => {
                        Linear::new(weight.index_select(rows, 0)?, bias.map(|b| b.index_select(rows, 0)).transpose()?)
                    }
                    None => Linear::new(weight, bias),
                }
            };
            let expert = |i| {
                let both = GateUp::Fused(one(&gate_up, i, apart.as_ref())?);
                Ok(Mlp::Gated { gate_up: both, down: one(&down, i, None)?, gate: spec.gate })
            };
            (0..n).map(expert).collect()
        }
    }
}

/// How a token chooses.
#[derive(Debug, Clone)]
struct Choice {
    routing: Routing,
    correction: Option<Vec<f32>>,
    expert_scales: Option<Vec<f32>>,
    top_k: usize,
}

impl Choice {
    /// The experts of a token with these logits, and their weights.
    fn of(&self, logits: &[f32]) -> Vec<(usize, f32)> {
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
