//! CoPE, contextual positions (Golovneva et al. 2024, arXiv:2405.18719). Every query has a gate for every key, between 0
//! and 1. The position of a key is the sum of the gates from it to the query, and the bias interpolates learned vectors
//! between whole positions.
//!
//! The bias depends on the content of every query and key, so it is written out as `(b, h, tq, tk)` and added by the
//! slower reference kernel.

use super::{BiasContext, PositionEncoding};
use crate::ScoreBias;
use candle_core::{D, DType, Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};

/// The learned vectors, one per whole position.
#[derive(Debug, Clone)]
pub struct Cope {
    /// `(head_dim, n)`
    table: Tensor,
}

impl Cope {
    /// Takes the tensor `weight` of shape `(head_dim, positions)` from `vb`; in a fresh `VarMap` it starts at zero, as in the
    /// paper.
    ///
    /// # Errors
    /// The tensor is missing or of another shape.
    pub fn new(head_dim: usize, positions: usize, vb: VarBuilder) -> Result<Self> {
        Self::from_table(vb.get_with_hints((head_dim, positions), "weight", Init::Const(0.0))?)
    }

    /// From a table `(head_dim, positions)`; gradients flow into it.
    ///
    /// # Errors
    /// A table without columns.
    pub fn from_table(table: Tensor) -> Result<Self> {
        if table.dims2()?.1 == 0 {
            bail!("cope: the table needs at least one position")
        }
        Ok(Self { table })
    }
}

impl PositionEncoding for Cope {
    fn bias(&self, at: &BiasContext) -> Result<ScoreBias> {
        let (Some(q), Some(k)) = (at.q, at.k) else {
            bail!("cope: latent attention is not supported, since it has no whole keys")
        };
        let dtype = if q.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let (q, k) = (q.to_dtype(dtype)?.contiguous()?, k.to_dtype(dtype)?);
        let (b, h, tq, d) = q.dims4()?;
        let (_, h_kv, tk, _) = k.dims4()?;
        let scores = (q.reshape((b, h_kv, h / h_kv * tq, d))?.matmul(&k.t()?.contiguous()?)? * at.scale)?;
        // Only keys up to the query count, and no padding.
        let mut counted = Vec::with_capacity(at.at.positions.rows() * tq * tk);
        for row in 0..at.at.positions.rows() {
            let pad = at.at.positions.pad(row);
            for i in at.queries() {
                counted.extend(at.keys.clone().map(|j| u8::from(j <= i && j >= pad)));
            }
        }
        let counted = Tensor::from_vec(counted, (at.at.positions.rows(), 1, tq, tk), q.device())?.to_dtype(dtype)?;
        let gates = candle_nn::ops::sigmoid(&scores.reshape((b, h, tq, tk))?)?.broadcast_mul(&counted)?;
        let sums = gates.cumsum(3)?;
        // The gates from the key on: all of them, minus those before it.
        let from = (gates.broadcast_sub(&sums)?).broadcast_add(&sums.narrow(3, tk - 1, 1)?)?;
        let last = self.table.dim(1)? - 1;
        let position = from.minimum(last as f64)?.maximum(0f64)?;
        let below = position.detach().floor()?;
        let above = position.detach().ceil()?;
        let share = (&position - &below)?;
        let values = q.broadcast_matmul(&self.table.to_dtype(dtype)?)?;
        let pick = |index: &Tensor| values.gather(&index.to_dtype(DType::U32)?.contiguous()?, D::Minus1);
        let whole = (1.0 - &share)?;
        Ok(ScoreBias::Dense(((pick(&above)? * &share)? + (pick(&below)? * whole)?)?))
    }
}
