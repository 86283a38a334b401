//! The one seam between the models and matrix products: dense weights or quantised blocks, same call.
//!
//! Models hold [`Linear`]s and never see which; a faster product replaces the inside of [`Linear::forward`] and
//! nothing else.

use crate::{product, profile};
use candle_core::{
    D, DType, Module, Result, Tensor, bail,
    quantized::{QMatMul, QTensor},
};
use candle_nn::VarBuilder;
use std::sync::Arc;

/// `xs W^T + b` with `W` of shape `(out, in)`.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
}

#[derive(Debug, Clone)]
enum Weight {
    Dense(Tensor),
    Quantized(QMatMul),
}

impl Linear {
    /// Dense weights `(out, in)` and an optional bias `(out,)`.
    ///
    /// # Errors
    /// Shapes that don't fit each other.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Result<Self> {
        let (out, _) = weight.dims2()?;
        if let Some(bias) = &bias
            && bias.dims() != [out]
        {
            bail!("linear: weight {:?} with a bias of shape {:?}", weight.dims(), bias.dims())
        }
        Ok(Self { weight: Weight::Dense(weight), bias })
    }

    /// Weights that stay in their quantised blocks, `(out, in)`, and an optional bias in the compute dtype.
    pub fn quantized(weight: Arc<QTensor>, bias: Option<Tensor>) -> Result<Self> {
        Ok(Self { weight: Weight::Quantized(QMatMul::from_arc(weight)?), bias })
    }

    /// Reads `weight` and, if asked for, `bias` from `vb`.
    pub fn load(in_dim: usize, out_dim: usize, bias: bool, vb: &VarBuilder) -> Result<Self> {
        let weight = vb.get((out_dim, in_dim), "weight")?;
        Self::new(weight, if bias { Some(vb.get(out_dim, "bias")?) } else { None })
    }
}

impl Module for Linear {
    /// `(.., in)` to `(.., out)`, in the dtype of `xs`.
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let _scope = profile::scope(profile::Op::Matmul);
        let ys = match &self.weight {
            Weight::Dense(w) => product::matmul_t(xs, w)?,
            Weight::Quantized(w) => quantized(xs, w)?,
        };
        match &self.bias {
            Some(bias) => ys.broadcast_add(bias),
            None => Ok(ys),
        }
    }
}

/// `xs W^T` in the dtype of `xs`; Candle's own quantised product computes in f32.
fn quantized(xs: &Tensor, w: &QMatMul) -> Result<Tensor> {
    let rows = xs.elem_count() / xs.dim(D::Minus1)?.max(1);
    let flat = xs.reshape((rows, ()))?;
    let ys = match w {
        QMatMul::QTensor(blocks) => product::blocks::matmul_t(&flat, blocks)?,
        _ => None,
    };
    let ys = match ys {
        Some(ys) => ys,
        None => w.forward(&flat.to_dtype(DType::F32)?.contiguous()?)?.to_dtype(xs.dtype())?,
    };
    ys.reshape(product::with_last(xs.dims(), ys.dim(1)?))
}
