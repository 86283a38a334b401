//! RMS and layer norm, computed in f32 whatever the dtype of the model, with gradients where they are tracked.

use crate::profile;
use candle_core::{D, DType, Module, Result, Tensor};
use candle_nn::VarBuilder;

/// What is taken out of the last dimension before scaling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// `x / sqrt(mean(x^2) + eps)`
    Rms,
    /// `(x - mean) / sqrt(var + eps)`
    Layer,
}

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

impl Module for Norm {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let _scope = profile::scope(profile::Op::Norm);
        if let (Some(weight), true) = (&self.weight, !xs.track_op() && xs.device().is_cpu()) {
            let flat = weight.rank() == 1 && weight.dtype() == xs.dtype() && !weight.track_op();
            // Candle's fused op keeps no gradient, hence the checks above.
            if flat && self.kind == NormKind::Rms && self.bias.is_none() && xs.dtype() == DType::F32 {
                return candle_nn::ops::rms_norm(&xs.contiguous()?, weight, self.eps as f32);
            }
        }
        let compute = if xs.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let mut x = xs.to_dtype(compute)?;
        if self.kind == NormKind::Layer {
            x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        }
        let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + self.eps)?.sqrt()?;
        let mut x = x.broadcast_div(&scale)?;
        if let Some(weight) = &self.weight {
            x = x.broadcast_mul(&weight.to_dtype(compute)?)?;
        }
        if let Some(bias) = &self.bias {
            x = x.broadcast_add(&bias.to_dtype(compute)?)?;
        }
        x.to_dtype(xs.dtype())
    }
}
