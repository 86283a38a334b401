//! Feed-forward networks: gated and plain; mixtures of experts are in `moe`.

use crate::activation::{Activation, Xielu};
use crate::builder::Builder;
use crate::moe::Moe;
use crate::spec::{GateSpec, GateUpSpec, MlpSpec, PlainActivation};
use attn_core::{Linear, ops, profile};
use candle_core::{D, Module, Result, Tensor};

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
