//! RMS and layer norm as modules: their parameters, and [`ops::norm`](fn@crate::ops::norm) on them.

use crate::ops::{self, NormKind};
use crate::profile;
use candle_core::{Module, Result, Tensor};
use candle_nn::{Init, VarBuilder};

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

    /// An RMS norm whose `weight` of `size` is read from `vb`; in a fresh `VarMap` it starts at 1.
    pub fn rms(size: usize, eps: f64, vb: &VarBuilder) -> Result<Self> {
        Ok(Self::new(NormKind::Rms, Some(vb.get_with_hints(size, "weight", Init::Const(1.0))?), None, eps))
    }

    /// A layer norm whose `weight` and `bias` of `size` are read from `vb`; in a fresh `VarMap` they start at 1 and 0.
    pub fn layer(size: usize, eps: f64, vb: &VarBuilder) -> Result<Self> {
        let weight = vb.get_with_hints(size, "weight", Init::Const(1.0))?;
        let bias = vb.get_with_hints(size, "bias", Init::Const(0.0))?;
        Ok(Self::new(NormKind::Layer, Some(weight), Some(bias), eps))
    }

    /// RMS or layer norm.
    pub fn kind(&self) -> NormKind {
        self.kind
    }

    /// What the normed numbers are multiplied by.
    pub fn weight(&self) -> Option<&Tensor> {
        self.weight.as_ref()
    }

    /// What is added then.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// Added to the variance.
    pub fn eps(&self) -> f64 {
        self.eps
    }

    /// True if weight and bias broadcast to the last dimensions `dims` of an input.
    pub(crate) fn fits(&self, dims: &[usize]) -> bool {
        let fits = |x: &Tensor| {
            let pairs = x.dims().iter().rev().zip(dims.iter().rev());
            x.rank() <= dims.len() && pairs.enumerate().all(|(i, (a, b))| a == b || (i > 0 && *a == 1))
        };
        [&self.weight, &self.bias].into_iter().flatten().all(fits)
    }

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
