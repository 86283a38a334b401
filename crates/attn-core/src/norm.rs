//! RMS and layer norm as modules: their parameters, and [`ops::norm`](fn@crate::ops::norm) on them.

use crate::ops::{self, NormKind};
use crate::profile;
use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

/// A norm over the last dimension, with optional weight and bias that broadcast from the right.
#[derive(Debug, Clone)]
pub struct Norm {
    kind: NormKind,
    weight: Option<Tensor>,
    bias: Option<Tensor>,
    eps: f64,
}

impl Norm {
    /// A norm with the given scale and shift; `weight` may have more than one dimension, such as `(h, d)` for a norm
    /// of every head of `(b, t, h, d)`.
    pub fn new(kind: NormKind, weight: Option<Tensor>, bias: Option<Tensor>, eps: f64) -> Self {
        Self { kind, weight, bias, eps }
    }

    /// An RMS norm whose `weight` of `size` is read from `vb`.
    pub fn rms(size: usize, eps: f64, vb: &VarBuilder) -> Result<Self> {
        Ok(Self::new(NormKind::Rms, Some(vb.get(size, "weight")?), None, eps))
    }
}

impl Norm {
    /// `a + b` and its norm, in one pass where no gradients are tracked.
    pub fn forward_sum(&self, a: &Tensor, b: &Tensor) -> Result<(Tensor, Tensor)> {
        let _scope = profile::scope(profile::Op::Norm);
        ops::add_norm(self.kind, a, b, self.weight.as_ref(), self.bias.as_ref(), self.eps)
    }
}

impl Module for Norm {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let _scope = profile::scope(profile::Op::Norm);
        ops::norm(self.kind, xs, self.weight.as_ref(), self.bias.as_ref(), self.eps)
    }
}
