//! Feed-forward networks: gated, plain, and mixtures of experts, in which each token passes through the few networks that a
//! router chooses for it.
//!
//! The tokens of an expert are gathered, so that its product runs once over all tokens that chose it.

use crate::activation::{Activation, Xielu};
use crate::builder::Builder;
use crate::routing::Choice;
use crate::spec::{ExpertWeights, GateSpec, GateUpSpec, LinearSpec, MlpSpec, MoeSpec, PlainActivation};
use attn_core::{Linear, Norm, NormKind, ops, profile};
use candle_core::{D, DType, Module, Result, Tensor};

/// A feed-forward network.
#[derive(Debug, Clone)]
pub(crate) enum Mlp {
    Gated { gate_up: GateUp, down: Linear, gate: GateSpec },
    Plain { up: Linear, down: Linear, activation: Pointwise },
    Moe(Box<Moe>),
}

/// The activation of a network without a gate, with what it has learned.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pointwise {
    Fixed(Activation),
    Xielu(Xielu),
}

impl Pointwise {
    fn load(spec: &PlainActivation, prefix: &str, weights: &Builder) -> Result<Self> {
        Ok(match spec {
            PlainActivation::Fixed(activation) => Self::Fixed(*activation),
            PlainActivation::Xielu { prefix: own } => Self::Xielu(Xielu::load(&format!("{prefix}{own}"), weights)?),
        })
    }

    fn forward(self, xs: &Tensor) -> Result<Tensor> {
        match self {
            Self::Fixed(activation) => activation.forward(xs),
            Self::Xielu(xielu) => xielu.forward(xs),
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) enum GateUp {
    Separate { gate: Linear, up: Linear },
    Fused(Linear),
}

impl GateUp {
    /// The gate and what passes it, joined.
    fn forward(&self, xs: &Tensor, spec: GateSpec) -> Result<Tensor> {
        let activation = match spec {
            GateSpec::Activation(activation) => activation,
            GateSpec::ClampedSwiglu { alpha, limit } => {
                let (gate, up) = self.halves(xs)?;
                return clamped_swiglu(&gate, &up, alpha, limit);
            }
        };
        match self {
            Self::Separate { gate, up } => ops::gated_pair(activation, &gate.forward(xs)?, &up.forward(xs)?),
            Self::Fused(both) => ops::gated(activation, &both.forward(xs)?),
        }
    }

    fn halves(&self, xs: &Tensor) -> Result<(Tensor, Tensor)> {
        match self {
            Self::Separate { gate, up } => Ok((gate.forward(xs)?, up.forward(xs)?)),
            Self::Fused(both) => {
                let both = both.forward(xs)?;
                let width = both.dim(D::Minus1)? / 2;
                Ok((both.narrow(D::Minus1, 0, width)?, both.narrow(D::Minus1, width, width)?))
            }
        }
    }
}

/// See [`GateSpec::ClampedSwiglu`].
fn clamped_swiglu(gate: &Tensor, up: &Tensor, alpha: f64, limit: f64) -> Result<Tensor> {
    let gate = gate.minimum(limit)?;
    let up = up.clamp(-limit, limit)?;
    (up + 1.0)? * (&gate * candle_nn::ops::sigmoid(&(&gate * alpha)?)?)?
}

impl Mlp {
    pub(crate) fn load(spec: &MlpSpec, prefix: &str, weights: &Builder) -> Result<Self> {
        Ok(match spec {
            MlpSpec::Gated { gate_up, down, gate } => {
                let gate_up = match gate_up {
                    GateUpSpec::Fused(both) => GateUp::Fused(weights.linear(prefix, both)?),
                    GateUpSpec::Separate { gate, up } => match weights.stacked(prefix, &[gate, up], false)? {
                        Some(both) => GateUp::Fused(both),
                        None => {
                            GateUp::Separate { gate: weights.linear(prefix, gate)?, up: weights.linear(prefix, up)? }
                        }
                    },
                };
                Self::Gated { gate_up, down: weights.linear(prefix, down)?, gate: *gate }
            }
            MlpSpec::Plain { up, down, activation } => Self::Plain {
                up: weights.linear(prefix, up)?,
                down: weights.linear(prefix, down)?,
                activation: Pointwise::load(activation, prefix, weights)?,
            },
            MlpSpec::Moe(spec) => Self::Moe(Box::new(Moe::load(spec, prefix, weights)?)),
        })
    }

    /// `(b, t, hidden)` to the same.
    pub(crate) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let _scope = profile::scope(profile::Op::ElementWise);
        match self {
            Self::Gated { gate_up, down, gate } => down.forward(&gate_up.forward(xs, *gate)?),
            Self::Plain { up, down, activation } => down.forward(&activation.forward(&up.forward(xs)?)?),
            Self::Moe(moe) => moe.forward(xs),
        }
    }
}

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
