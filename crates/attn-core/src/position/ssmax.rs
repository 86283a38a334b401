//! Scalable softmax (Nakanishi 2025, arXiv:2501.19399): the scores of a query times a learned number per head and the log
//! of how many keys it sees, so that the weights of attention do not spread out over long texts. It is combined with
//! another encoding.

use super::{Context, Over, PositionEncoding, over::QueryStep};
use candle_core::{DType, Result, Tensor};
use candle_nn::{Init, VarBuilder};
use std::sync::Arc;

/// Another encoding, with scores that grow with the log of the position.
pub type Ssmax = Over<LearnedLog>;

/// Queries times `s ln(i + 1)` for a learned `s` per head.
#[derive(Debug, Clone)]
pub struct LearnedLog {
    /// `(heads,)`
    scale: Tensor,
}

impl Ssmax {
    /// Takes the tensor `s` of shape `(heads,)` from `vb`; in a fresh `VarMap` it starts at 0.43, as in the paper.
    ///
    /// # Errors
    /// The tensor is missing or of another shape.
    pub fn new(inner: Arc<dyn PositionEncoding>, heads: usize, vb: VarBuilder) -> Result<Self> {
        Self::from_scale(inner, vb.get_with_hints(heads, "s", Init::Const(0.43))?)
    }

    /// From the numbers `(heads,)`; gradients flow into them.
    ///
    /// # Errors
    /// A tensor of another rank.
    pub fn from_scale(inner: Arc<dyn PositionEncoding>, scale: Tensor) -> Result<Self> {
        scale.dims1()?;
        Ok(Self { inner, step: LearnedLog { scale } })
    }
}

impl QueryStep for LearnedLog {
    fn change(&self, q: &Tensor, at: &Context) -> Result<Tensor> {
        let dtype = if q.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let logs = at.positions.all().map(|i| (i as f64).ln_1p()).collect::<Vec<_>>();
        let shape = (at.positions.rows(), 1, at.positions.len(), 1);
        let logs = Tensor::from_vec(logs, shape, q.device())?.to_dtype(dtype)?;
        let factors = self.scale.to_dtype(dtype)?.reshape((1, (), 1, 1))?.broadcast_mul(&logs)?;
        q.to_dtype(dtype)?.broadcast_mul(&factors)?.to_dtype(q.dtype())
    }
}
