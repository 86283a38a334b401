//! The token embedding: a dense table, or one that stays in the blocks of a GGUF file and is widened row by row.

use attn_core::{Blocks, Linear};
use candle_core::{DType, Device, Result, Tensor};

/// Rows `(vocab, hidden)` to look up; a tied head multiplies with the same ones.
#[derive(Debug, Clone)]
pub(crate) enum Tokens {
    Dense(Tensor),
    /// Blocks, the dtype that rows are handed out in, and where.
    Quantized(Blocks, DType, Device),
}

impl Tokens {
    /// `(vocab, hidden)`
    pub(crate) fn dims2(&self) -> Result<(usize, usize)> {
        match self {
            Self::Dense(table) => table.dims2(),
            Self::Quantized(blocks, ..) => blocks.dims2(),
        }
    }

    pub(crate) fn device(&self) -> &Device {
        match self {
            Self::Dense(table) => table.device(),
            Self::Quantized(_, _, device) => device,
        }
    }

    /// Ids `(b, t)` to `(b, t, hidden)`.
    pub(crate) fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        let (b, t) = ids.dims2()?;
        match self {
            Self::Dense(table) => table.index_select(&ids.flatten_all()?, 0)?.reshape((b, t, ())),
            Self::Quantized(blocks, dtype, _) => blocks.embedding(ids)?.to_dtype(*dtype),
        }
    }

    /// The head that shares the table, with a bias of its own.
    pub(crate) fn tied_head(&self, bias: Option<Tensor>) -> Result<Linear> {
        match self {
            Self::Dense(table) => Linear::new(table.clone(), bias),
            Self::Quantized(blocks, ..) => Linear::quantized(blocks.clone(), bias),
        }
    }
}
