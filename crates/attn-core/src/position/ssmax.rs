//! Scalable softmax (Nakanishi 2025, arXiv:2501.19399): the scores of a query times a learned number per head and the log of
//! how many keys it sees, so that attention does not go flat over long texts. Combines with another encoding.

use super::{BiasContext, Context, Part, PositionEncoding, Resolution};
use crate::ScoreBias;
use candle_core::{DType, Result, Tensor};
use candle_nn::{Init, VarBuilder};
use std::sync::Arc;

/// Another encoding, with scores that grow with the log of the position.
#[derive(Debug, Clone)]
pub struct Ssmax {
    inner: Arc<dyn PositionEncoding>,
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
        Ok(Self { inner, scale })
    }
}

impl PositionEncoding for Ssmax {
    /// Placed by the other encoding, times `s ln(i + 1)`.
    fn queries(&self, q: &Tensor, at: &Context) -> Result<Tensor> {
        let dtype = if q.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let logs = at.positions.all().map(|i| (i as f64).ln_1p()).collect::<Vec<_>>();
        let shape = (at.positions.rows(), 1, at.positions.len(), 1);
        let logs = Tensor::from_vec(logs, shape, q.device())?.to_dtype(dtype)?;
        let factors = self.scale.to_dtype(dtype)?.reshape((1, (), 1, 1))?.broadcast_mul(&logs)?;
        self.inner.queries(q, at)?.to_dtype(dtype)?.broadcast_mul(&factors)?.to_dtype(q.dtype())
    }

    fn keys(&self, k: &Tensor, at: &Context) -> Result<Tensor> {
        self.inner.keys(k, at)
    }

    fn remember(&self, at: &Context, last: Option<&Tensor>) -> Result<Option<Tensor>> {
        self.inner.remember(at, last)
    }

    fn bias(&self, at: &BiasContext) -> Result<ScoreBias> {
        self.inner.bias(at)
    }

    fn sinks(&self) -> Option<Tensor> {
        self.inner.sinks()
    }

    fn parts(&self) -> &[Part] {
        self.inner.parts()
    }

    fn resolve(&self, len: usize) -> Resolution {
        self.inner.resolve(len)
    }

    fn max_positions(&self) -> Option<usize> {
        self.inner.max_positions()
    }
}
