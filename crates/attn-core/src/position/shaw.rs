//! Relative keys (Shaw et al. 2018, arXiv:1803.02155): each query has a product with a learned vector per distance, up to a
//! distance from which on all are alike. The bias is kept as coefficients per query and a bank of vectors by distance, so
//! that no `(t, t)` tensor is made.

use super::{BiasContext, PositionEncoding, TABLE_INIT};
use crate::ScoreBias;
use candle_core::{DType, Result, Tensor, bail};
use candle_nn::VarBuilder;

/// The learned vectors.
#[derive(Debug, Clone)]
pub struct Shaw {
    /// `(n, head_dim)`, for the distances key minus query from `first` on.
    table: Tensor,
    first: i64,
}

impl Shaw {
    /// Takes the tensor `weight` of shape `(2 max_distance + 1, head_dim)` from `vb`, for distances of up to `max_distance`
    /// either way; in a fresh `VarMap` it starts as [`candle_nn::embedding()`] does.
    ///
    /// # Errors
    /// The tensor is missing or of another shape.
    pub fn new(head_dim: usize, max_distance: usize, vb: VarBuilder) -> Result<Self> {
        let table = vb.get_with_hints((2 * max_distance + 1, head_dim), "weight", TABLE_INIT)?;
        Self::from_table(table, -(max_distance as i64))
    }

    /// From a table `(n, head_dim)` for the distances key minus query from `first` on; others take its ends. Gradients flow
    /// into it.
    ///
    /// # Errors
    /// A table without rows.
    pub fn from_table(table: Tensor, first: i64) -> Result<Self> {
        if table.dims2()?.0 == 0 {
            bail!("relative keys: the table needs at least one row")
        }
        Ok(Self { table, first })
    }
}

impl PositionEncoding for Shaw {
    fn bias(&self, at: &BiasContext) -> Result<ScoreBias> {
        let Some(q) = at.q else {
            bail!("relative keys: latent attention is not supported, since it has no whole queries")
        };
        let dtype = if q.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let bank = self.table.to_dtype(dtype)?.t()?.unsqueeze(0)?.contiguous()?;
        Ok(ScoreBias::RowBank { rows: (q.to_dtype(dtype)? * at.scale)?, bank, first: self.first })
    }
}
