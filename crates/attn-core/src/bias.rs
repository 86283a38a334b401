//! What a position encoding adds to the attention scores, in the few forms that kernels know.
//!
//! Encodings are open (anyone may implement [`PositionEncoding`](crate::PositionEncoding)), bias forms are closed:
//! a kernel matches on them and runs at full speed for encodings that nobody has written yet.

use candle_core::{DType, Device, Result, Tensor};
use std::ops::Range;

/// A bias on the scores of `h` heads, added after scale and softcap and before the mask.
#[derive(Debug, Clone, Default)]
pub enum ScoreBias {
    /// No bias.
    #[default]
    None,
    /// `slopes[h] * (k - q)`: ALiBi. `slopes` is `(h,)` in f32.
    Linear {
        /// One slope per query head, positive for heads that prefer near keys.
        slopes: Tensor,
    },
    /// `table[h, (k - q) - first]`: any bias that depends on the distance alone, such as T5's. `table` is
    /// `(h, n)` in f32 and must cover every distance that occurs.
    Relative {
        /// One row per query head, one column per distance.
        table: Tensor,
        /// The distance `k - q` of column 0.
        first: i64,
    },
    /// Added as it stands: any tensor that broadcasts to `(b, h, tq, tk)`. The last resort, for a bias that depends on
    /// content or on the row.
    Dense(Tensor),
}

impl ScoreBias {
    /// The bias as one f32 tensor that broadcasts to `(b, h, tq, tk)` for the queries and keys in the given slots, or
    /// `None` if there is none. For the reference kernel; gradients flow through it.
    pub fn to_dense(&self, q: Range<usize>, k: Range<usize>, device: &Device) -> Result<Option<Tensor>> {
        let distance = |first: i64| {
            let index = q.clone().flat_map(|q| k.clone().map(move |k| k as i64 - q as i64 - first));
            Tensor::from_iter(index, device)?.reshape((q.len(), k.len()))
        };
        match self {
            Self::None => Ok(None),
            Self::Linear { slopes } => {
                let distance = distance(0)?.to_dtype(slopes.dtype())?;
                Ok(Some(slopes.reshape(((), 1, 1))?.broadcast_mul(&distance.unsqueeze(0)?)?))
            }
            Self::Relative { table, first } => {
                let rows = table.index_select(&distance(*first)?.flatten_all()?, 1)?;
                Ok(Some(rows.reshape((table.dim(0)?, q.len(), k.len()))?))
            }
            Self::Dense(bias) => {
                // The tensor covers the whole call; a caller that works in blocks of queries narrows it beforehand.
                Ok(Some(if bias.dtype() == DType::F64 { bias.clone() } else { bias.to_dtype(DType::F32)? }))
            }
        }
    }

    /// True if a gradient has to flow into the bias.
    pub fn track_op(&self) -> bool {
        match self {
            Self::None => false,
            Self::Linear { slopes } => slopes.track_op(),
            Self::Relative { table, .. } => table.track_op(),
            Self::Dense(bias) => bias.track_op(),
        }
    }
}
