//! What a tensor of the checkpoint is in the files: rows of one tensor, several tensors joined, or numbers of the metadata.
//!
//! [`Undo`] and [`Join`] say how its original values come back; `source` reads them so.

use super::parse::Info;

/// A tensor of the checkpoint, as the files hold it.
#[derive(Debug, Clone)]
pub(crate) enum Held {
    /// Rows of one tensor.
    Rows(Info, Undo),
    /// Several tensors that were one.
    Joined {
        /// The tensors.
        pieces: Vec<Info>,
        /// How they make one.
        join: Join,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// Numbers that the file has in its metadata.
    Numbers(Vec<f32>, Vec<usize>),
}

impl Held {
    pub(super) fn dims(&self) -> Vec<usize> {
        match self {
            Self::Rows(info, Undo::Transposed) => info.dims.iter().rev().copied().collect(),
            Self::Rows(info, _) => info.dims.clone(),
            Self::Joined { shape, .. } | Self::Numbers(_, shape) => shape.clone(),
        }
    }
}

/// The way back of what changed the order or the values of a tensor's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Undo {
    /// Nothing is to be undone.
    None,
    /// Row `2i + h` of a head goes to row `h * d/2 + i`.
    Interleaved {
        /// The number of heads the rows belong to.
        heads: usize,
    },
    /// From all queries, all keys, all values to those of one kv head after the other.
    Parts {
        /// Query heads.
        heads: usize,
        /// Key and value heads.
        kv_heads: usize,
    },
    /// Minus one.
    PlusOne,
    /// Transposed.
    Transposed,
}

impl Undo {
    /// Whether `n` rows divide as they have to.
    pub(crate) fn check(self, n: usize) -> Result<(), String> {
        let parts = match self {
            Self::Interleaved { heads } => heads.saturating_mul(2),
            Self::Parts { heads, kv_heads } => heads.saturating_add(kv_heads.saturating_mul(2)),
            Self::None | Self::PlusOne | Self::Transposed => return Ok(()),
        };
        match parts == 0 || n == 0 || !n.is_multiple_of(parts) {
            true => Err(format!("{n} rows can't be divided among heads ({parts} parts)")),
            false => Ok(()),
        }
    }

    /// For every row of the Hugging Face tensor, the row of the file it is; `None` if rows keep their places.
    ///
    /// # Errors
    /// The rows can't be divided among the heads.
    pub(crate) fn rows(self, n: usize) -> Result<Option<Vec<usize>>, String> {
        self.check(n)?;
        Ok(match self {
            Self::Interleaved { heads } => {
                let half = n / heads / 2;
                let row = |r: usize| {
                    let (head, r) = (r / (2 * half), r % (2 * half));
                    head * 2 * half + 2 * (r % half) + r / half
                };
                Some((0..n).map(row).collect())
            }
            Self::Parts { heads, kv_heads } => {
                let (d, per) = (n / (heads + 2 * kv_heads), heads / kv_heads);
                let row = |r: usize| {
                    let (kv, in_group, lane) = (r / ((per + 2) * d), r / d % (per + 2), r % d);
                    let head = match in_group.checked_sub(per) {
                        None => kv * per + in_group,
                        Some(part) => heads + part * kv_heads + kv,
                    };
                    head * d + lane
                };
                Some((0..n).map(row).collect())
            }
            Self::None | Self::PlusOne | Self::Transposed => None,
        })
    }
}

/// How one tensor is made of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Join {
    /// `(e, a, c)` over `(e, b, c)`: the rows of every expert under each other (Granite).
    Rows,
    /// The same, transposed: `(e, c, a + b)` (Llama 4).
    Columns,
    /// Columns in turn, transposed: `(e, c, 2 a)` (gpt-oss).
    ColumnsInTurn,
    /// `(e, a)` and `(e, a)` in turn: `(e, 2 a)` (gpt-oss's biases).
    BiasesInTurn,
    /// `(e, a, b)` as `(e, b, a)`.
    Turned,
    /// DeepSeek's `k_b` `(h, r, n)` and `v_b` `(h, v, r)` as `kv_b_proj` `(h (n + v), r)`.
    LatentKv,
    /// `(n)` as `(1, n)`.
    AsRow,
}

impl Join {
    /// The shape of what the pieces make.
    pub(super) fn shape(self, pieces: &[Info]) -> Result<Vec<usize>, String> {
        let dims: Vec<&[usize]> = pieces.iter().map(|p| p.dims.as_slice()).collect();
        let shape = match (self, dims.as_slice()) {
            (Self::Rows, &[&[e, a, c], &[e2, b, c2]]) if (e, c) == (e2, c2) => vec![e, a + b, c],
            (Self::Columns, &[&[e, a, c], &[e2, b, c2]]) if (e, c) == (e2, c2) => vec![e, c, a + b],
            (Self::ColumnsInTurn, &[&[e, a, c], &[e2, b, c2]]) if (e, a, c) == (e2, b, c2) => vec![e, c, 2 * a],
            (Self::BiasesInTurn, &[&[e, a], &[e2, b]]) if (e, a) == (e2, b) => vec![e, 2 * a],
            (Self::Turned, &[&[e, a, b]]) => vec![e, b, a],
            (Self::LatentKv, &[&[h, r, n], &[h2, v, r2]]) if (h, r) == (h2, r2) => vec![h * (n + v), r],
            (Self::AsRow, &[&[n]]) | (Self::AsRow, &[&[1, n]]) => vec![1, n],
            _ => return Err(format!("shapes {dims:?} do not fit together")),
        };
        Ok(shape)
    }
}
