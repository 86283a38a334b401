//! Where models and matrix products meet: dense weights, quantised blocks and any other module take the same call.
//!
//! Models hold [`Linear`]s and do not know which kind they have, so a faster product changes [`Linear::forward`] and
//! nothing else.

use crate::{Blocks, product, profile};
use candle_core::{D, DType, Module, Result, Tensor, bail, quantized::QMatMul};
use candle_nn::{Init, VarBuilder, init::DEFAULT_KAIMING_NORMAL};
use std::{fmt, sync::Arc};

/// `xs W^T + b` with `W` of shape `(out, in)`, or whatever module takes its place: LoRA, a shard of a larger product, a
/// quantised product of another kind.
///
/// ```
/// use attn_core::Linear;
/// use candle_core::{DType, Device, Module, Result, Tensor};
/// use std::sync::Arc;
///
/// /// The product and a low-rank change of it: the first step of a LoRA.
/// struct Lora {
///     base: Linear,
///     a: Tensor, // (r, in)
///     b: Tensor, // (out, r)
/// }
///
/// impl Module for Lora {
///     fn forward(&self, xs: &Tensor) -> Result<Tensor> {
///         let change = xs.broadcast_matmul(&self.a.t()?)?.broadcast_matmul(&self.b.t()?)?;
///         self.base.forward(xs)? + change
///     }
/// }
///
/// # fn main() -> Result<()> {
/// let zeros = |shape: (usize, usize)| Tensor::zeros(shape, DType::F32, &Device::Cpu);
/// let base = Linear::new(zeros((8, 4))?, None)?;
/// let (i, o) = (base.in_dim(), base.out_dim());
/// let linear = Linear::from_module(Arc::new(Lora { base, a: zeros((2, i))?, b: zeros((o, 2))? }), i, o);
/// assert_eq!(linear.forward(&zeros((3, 4))?)?.dims(), [3, 8]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
    in_dim: usize,
    out_dim: usize,
}

#[derive(Clone)]
enum Weight {
    Dense(Tensor),
    Quantized(Blocks),
    /// What Candle widens although it came in blocks.
    Widened(QMatMul),
    Module(Arc<dyn Module + Send + Sync>),
}

impl fmt::Debug for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dense(weight) => weight.fmt(f),
            Self::Quantized(weight) => weight.fmt(f),
            Self::Widened(weight) => weight.fmt(f),
            Self::Module(_) => f.write_str("Module"),
        }
    }
}

impl Linear {
    /// Dense weights `(out, in)` and an optional bias `(out,)`.
    ///
    /// # Errors
    /// Shapes that don't fit each other.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Result<Self> {
        let dims = weight.dims2()?;
        Self::checked(Weight::Dense(weight), bias, dims)
    }

    /// Weights that stay in their quantised blocks, `(out, in)`, and an optional bias in the compute dtype.
    ///
    /// # Errors
    /// Shapes that don't fit each other.
    pub fn quantized(weight: impl Into<Blocks>, bias: Option<Tensor>) -> Result<Self> {
        let blocks = weight.into();
        let dims = blocks.dims2()?;
        let weight = match blocks.as_candle().map(|w| QMatMul::from_arc(w.clone())).transpose()? {
            Some(wide @ (QMatMul::Tensor(_) | QMatMul::TensorF16(_))) => Weight::Widened(wide),
            Some(QMatMul::QTensor(_)) | None => Weight::Quantized(blocks),
        };
        Self::checked(weight, bias, dims)
    }

    /// Any module that maps `(.., in_dim)` to `(.., out_dim)`, a bias included if it has one.
    pub fn from_module(module: Arc<dyn Module + Send + Sync>, in_dim: usize, out_dim: usize) -> Self {
        Self { weight: Weight::Module(module), bias: None, in_dim, out_dim }
    }

    /// Reads `weight` and, if asked for, `bias` from `vb`. In a fresh `VarMap` they start as those of
    /// [`candle_nn::linear()`] do.
    pub fn load(in_dim: usize, out_dim: usize, bias: bool, vb: &VarBuilder) -> Result<Self> {
        let weight = vb.get_with_hints((out_dim, in_dim), "weight", DEFAULT_KAIMING_NORMAL)?;
        let bound = 1.0 / (in_dim as f64).sqrt();
        let bias = match bias {
            true => Some(vb.get_with_hints(out_dim, "bias", Init::Uniform { lo: -bound, up: bound })?),
            false => None,
        };
        Self::new(weight, bias)
    }

    fn checked(weight: Weight, bias: Option<Tensor>, (out_dim, in_dim): (usize, usize)) -> Result<Self> {
        if let Some(bias) = &bias
            && bias.dims() != [out_dim]
        {
            bail!("linear: weight ({out_dim}, {in_dim}) with a bias of shape {:?}", bias.dims())
        }
        Ok(Self { weight, bias, in_dim, out_dim })
    }

    /// Numbers it takes.
    pub fn in_dim(&self) -> usize {
        self.in_dim
    }

    /// Numbers it gives.
    pub fn out_dim(&self) -> usize {
        self.out_dim
    }

    /// The weight `(out, in)`, if it is a tensor.
    pub fn weight(&self) -> Option<&Tensor> {
        match &self.weight {
            Weight::Dense(weight) => Some(weight),
            Weight::Widened(QMatMul::Tensor(weight) | QMatMul::TensorF16(weight)) => Some(weight),
            Weight::Widened(QMatMul::QTensor(_)) | Weight::Quantized(_) | Weight::Module(_) => None,
        }
    }

    /// The weight `(out, in)`, if it stays in quantised blocks.
    pub fn quantized_weight(&self) -> Option<&Blocks> {
        match &self.weight {
            Weight::Quantized(weight) => Some(weight),
            _ => None,
        }
    }

    /// The module that took the place of a weight, if one did.
    pub fn module(&self) -> Option<&Arc<dyn Module + Send + Sync>> {
        match &self.weight {
            Weight::Module(module) => Some(module),
            _ => None,
        }
    }

    /// The bias `(out,)`.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }
}

impl From<candle_nn::Linear> for Linear {
    fn from(linear: candle_nn::Linear) -> Self {
        let weight = linear.weight().clone();
        // candle-nn takes any tensor for a weight and complains when it is used; so does this.
        let (out_dim, in_dim) = weight.dims2().unwrap_or_default();
        Self { weight: Weight::Dense(weight), bias: linear.bias().cloned(), in_dim, out_dim }
    }
}

impl Module for Linear {
    /// `(.., in)` to `(.., out)`, in the dtype of `xs`.
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let _scope = profile::scope(profile::Op::Matmul);
        let ys = match &self.weight {
            Weight::Dense(w) => product::matmul_t(xs, w)?,
            Weight::Quantized(w) => quantized(xs, w)?,
            Weight::Widened(w) => w.forward(&xs.to_dtype(DType::F32)?.contiguous()?)?.to_dtype(xs.dtype())?,
            Weight::Module(module) => {
                let ys = module.forward(xs)?;
                if *ys.shape() != product::with_last(xs.dims(), self.out_dim) {
                    bail!(
                        "linear: a module that was to give {} numbers turned {:?} into {:?}",
                        self.out_dim,
                        xs.dims(),
                        ys.dims()
                    )
                }
                ys
            }
        };
        match &self.bias {
            Some(bias) => ys.broadcast_add(bias),
            None => Ok(ys),
        }
    }
}

/// `xs W^T` in the dtype of `xs`; Candle's own quantised product computes in f32.
fn quantized(xs: &Tensor, w: &Blocks) -> Result<Tensor> {
    let rows = xs.elem_count() / xs.dim(D::Minus1)?.max(1);
    let flat = xs.reshape((rows, ()))?;
    let ys = match product::blocks::matmul_t(&flat, w)? {
        Some(ys) => ys,
        None => {
            let flat = flat.to_dtype(DType::F32)?.contiguous()?;
            let ys = match w.as_candle() {
                Some(blocks) => QMatMul::from_arc(blocks.clone())?.forward(&flat)?,
                None => flat.matmul(&w.dequantize()?.t()?)?,
            };
            ys.to_dtype(xs.dtype())?
        }
    };
    ys.reshape(product::with_last(xs.dims(), ys.dim(1)?))
}
