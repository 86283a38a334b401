//! The one seam between the models and matrix products: dense weights or quantised blocks, same call.
//!
//! Models hold [`Linear`]s and never see which; a faster product replaces the inside of [`Linear::forward`] and
//! nothing else.

use crate::{product, profile};
use candle_core::{
    Module, Result, Tensor, bail,
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

    /// Bytes the weights take in memory.
    pub fn size_in_bytes(&self) -> usize {
        let weight = match &self.weight {
            Weight::Dense(w) => w.elem_count() * w.dtype().size_in_bytes(),
            Weight::Quantized(QMatMul::QTensor(q)) => q.storage_size_in_bytes(),
            Weight::Quantized(QMatMul::Tensor(w) | QMatMul::TensorF16(w)) => w.elem_count() * w.dtype().size_in_bytes(),
        };
        weight + self.bias.as_ref().map_or(0, |b| b.elem_count() * b.dtype().size_in_bytes())
    }
}

impl Module for Linear {
    /// `(.., in)` to `(.., out)`, in the dtype of `xs`.
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let _scope = profile::scope(profile::Op::Matmul);
        // One product for all leading dimensions: candle's batched product would copy the weights per row.
        let (mut shape, rows) = (xs.dims().to_vec(), xs.elem_count() / xs.dim(candle_core::D::Minus1)?.max(1));
        let flat = xs.reshape((rows, ()))?;
        let ys = match &self.weight {
            Weight::Dense(w) => product::matmul_t(&flat, w)?,
            Weight::Quantized(w) => quantized(&flat, w)?,
        };
        if let Some(last) = shape.last_mut() {
            *last = ys.dim(1)?;
        }
        let ys = ys.reshape(shape)?;
        match &self.bias {
            Some(bias) => ys.broadcast_add(bias),
            None => Ok(ys),
        }
    }
}

/// `xs W^T` in the dtype of `xs`; Candle's own quantised product computes in f32.
fn quantized(xs: &Tensor, w: &QMatMul) -> Result<Tensor> {
    if let QMatMul::QTensor(blocks) = w
        && let Some(ys) = product::blocks::matmul_t(xs, blocks)?
    {
        return Ok(ys);
    }
    w.forward(&xs.to_dtype(candle_core::DType::F32)?.contiguous()?)?.to_dtype(xs.dtype())
}
