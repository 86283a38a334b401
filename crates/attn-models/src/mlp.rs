//! Feed-forward networks: gated, plain, and mixtures of experts.

use crate::activation::Activation;
use crate::builder::Builder;
use crate::spec::{ExpertNames, GateUpSpec, LinearSpec, MlpSpec, MoeSpec, Routing};
use attn_core::{Linear, ops, profile};
use candle_core::{DType, Module, Result, Tensor};

/// A feed-forward network.
#[derive(Debug, Clone)]
pub(crate) enum Mlp {
    Gated { gate_up: GateUp, down: Linear, activation: Activation },
    Plain { up: Linear, down: Linear, activation: Activation },
    Moe(Box<Moe>),
}

#[derive(Debug, Clone)]
pub(crate) enum GateUp {
    Separate { gate: Linear, up: Linear },
    Fused(Linear),
}

impl GateUp {
    /// `act(gate) * up`.
    fn forward(&self, xs: &Tensor, activation: Activation) -> Result<Tensor> {
        match self {
            Self::Separate { gate, up } => ops::gated_pair(activation, &gate.forward(xs)?, &up.forward(xs)?),
            Self::Fused(both) => ops::gated(activation, &both.forward(xs)?),
        }
    }
}

impl Mlp {
    pub(crate) fn load(spec: &MlpSpec, prefix: &str, weights: &Builder) -> Result<Self> {
        Ok(match spec {
            MlpSpec::Gated { gate_up, down, activation } => {
                let gate_up = match gate_up {
                    GateUpSpec::Fused(both) => GateUp::Fused(weights.linear(prefix, both)?),
                    GateUpSpec::Separate { gate, up } => match weights.stacked(prefix, &[gate, up], false)? {
                        Some(both) => GateUp::Fused(both),
                        None => {
                            GateUp::Separate { gate: weights.linear(prefix, gate)?, up: weights.linear(prefix, up)? }
                        }
                    },
                };
                Self::Gated { gate_up, down: weights.linear(prefix, down)?, activation: *activation }
            }
            MlpSpec::Plain { up, down, activation } => Self::Plain {
                up: weights.linear(prefix, up)?,
                down: weights.linear(prefix, down)?,
                activation: *activation,
            },
            MlpSpec::Moe(spec) => Self::Moe(Box::new(Moe::load(spec, prefix, weights)?)),
        })
    }

    /// `(b, t, hidden)` to the same.
    pub(crate) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let _scope = profile::scope(profile::Op::ElementWise);
        match self {
            Self::Gated { gate_up, down, activation } => down.forward(&gate_up.forward(xs, *activation)?),
            Self::Plain { up, down, activation } => down.forward(&activation.forward(&up.forward(xs)?)?),
            Self::Moe(moe) => moe.forward(xs),
        }
    }
}

/// A router, experts, and a shared expert beside them.
#[derive(Debug, Clone)]
pub(crate) struct Moe {
    router: Linear,
    routing: Routing,
    /// DeepSeek's correction of the scores for the choice, on the CPU.
    correction: Vec<f32>,
    top_k: usize,
    experts: Vec<Mlp>,
    shared: Option<Mlp>,
}

/// An expert's share of a token.
struct Choice {
    token: u32,
    weight: f32,
}

impl Moe {
    fn load(spec: &MoeSpec, prefix: &str, weights: &Builder) -> Result<Self> {
        let (hidden, inter) = (spec.hidden_size, spec.intermediate_size);
        let router = weights.linear(prefix, &LinearSpec::new(&spec.router, hidden, spec.experts))?;
        let experts = match &spec.names {
            ExpertNames::Separate { prefix: experts } => (0..spec.experts)
                .map(|i| {
                    let linear = |name: &str, i, o| LinearSpec::new(name, i, o);
                    let spec = MlpSpec::Gated {
                        gate_up: GateUpSpec::Separate {
                            gate: linear("gate_proj", hidden, inter),
                            up: linear("up_proj", hidden, inter),
                        },
                        down: linear("down_proj", inter, hidden),
                        activation: spec.activation,
                    };
                    Mlp::load(&spec, &format!("{prefix}{experts}{i}."), weights)
                })
                .collect::<Result<Vec<_>>>()?,
            ExpertNames::Stacked { gate_up, down } => {
                let n = spec.experts;
                let gate_up = weights.tensor(&format!("{prefix}{gate_up}"), &[n, hidden, 2 * inter])?;
                let down = weights.tensor(&format!("{prefix}{down}"), &[n, inter, hidden])?;
                let expert = |i| {
                    let linear = |all: &Tensor| Linear::new(all.get(i)?.t()?.contiguous()?, None);
                    let (gate_up, down) = (GateUp::Fused(linear(&gate_up)?), linear(&down)?);
                    Ok(Mlp::Gated { gate_up, down, activation: spec.activation })
                };
                (0..n).map(expert).collect::<Result<Vec<_>>>()?
            }
        };
        let correction = match &spec.routing {
            Routing::GroupedSigmoid { correction, .. } => {
                weights.tensor_as(&format!("{prefix}{correction}"), &[spec.experts], DType::F32)?.to_vec1()?
            }
            Routing::SigmoidInput => Vec::new(),
        };
        let shared = spec.shared.as_ref().map(|s| Mlp::load(s, prefix, weights)).transpose()?;
        Ok(Self { router, routing: spec.routing.clone(), correction, top_k: spec.top_k, experts, shared })
    }

    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let (b, t, hidden) = xs.dims3()?;
        let flat = xs.reshape((b * t, hidden))?;
        let logits = self.router.forward(&flat)?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
        let mut chosen: Vec<Vec<Choice>> = (0..self.experts.len()).map(|_| Vec::new()).collect();
        for (token, logits) in logits.iter().enumerate() {
            for (expert, weight) in self.route(logits) {
                chosen[expert].push(Choice { token: token as u32, weight });
            }
        }
        let mut out = match &self.shared {
            Some(shared) => shared.forward(xs)?.reshape((b * t, hidden))?,
            None => flat.zeros_like()?,
        };
        for (expert, choices) in self.experts.iter().zip(&chosen).filter(|(_, c)| !c.is_empty()) {
            let tokens = Tensor::from_iter(choices.iter().map(|c| c.token), xs.device())?;
            let weights = Tensor::from_iter(choices.iter().map(|c| c.weight), xs.device())?;
            let weights = weights.to_dtype(xs.dtype())?.unsqueeze(1)?;
            let mut ins = flat.index_select(&tokens, 0)?.unsqueeze(0)?;
            let scales_input = matches!(self.routing, Routing::SigmoidInput);
            if scales_input {
                ins = ins.broadcast_mul(&weights)?;
            }
            let mut outs = expert.forward(&ins)?.squeeze(0)?;
            if !scales_input {
                outs = outs.broadcast_mul(&weights)?;
            }
            out = out.index_add(&tokens, &outs, 0)?;
        }
        out.reshape((b, t, hidden))
    }

    /// The experts of one token and their weights.
    fn route(&self, logits: &[f32]) -> Vec<(usize, f32)> {
        let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
        match &self.routing {
            Routing::SigmoidInput => {
                top(logits, self.top_k, |_| true).into_iter().map(|i| (i, sigmoid(logits[i]))).collect()
            }
            Routing::GroupedSigmoid { groups, top_groups, normalise, scale, .. } => {
                let scores: Vec<f32> = logits.iter().map(|&x| sigmoid(x)).collect();
                let choice: Vec<f32> = scores.iter().zip(&self.correction).map(|(s, c)| s + c).collect();
                let size = (choice.len() / groups).max(1);
                let best_two = |group: &[f32]| top(group, 2, |_| true).into_iter().map(|i| group[i]).sum::<f32>();
                let group_scores: Vec<f32> = choice.chunks(size).map(best_two).collect();
                let kept = top(&group_scores, *top_groups, |_| true);
                let experts = top(&choice, self.top_k, |i| kept.contains(&(i / size)));
                let sum = if *normalise { experts.iter().map(|&i| scores[i]).sum::<f32>() + 1e-20 } else { 1.0 };
                experts.into_iter().map(|i| (i, scores[i] / sum * *scale as f32)).collect()
            }
        }
    }
}

/// Indices of the `k` largest values among those allowed, largest first; ties go to the lower index.
fn top(values: &[f32], k: usize, allowed: impl Fn(usize) -> bool) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).filter(|&i| allowed(i)).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    order.truncate(k);
    order
}
