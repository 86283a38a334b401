//! What a position encoding adds to the attention scores, in the few forms that kernels know.
//!
//! Encodings are open (anyone may implement [`PositionEncoding`](crate::PositionEncoding)), bias forms are closed:
//! a kernel matches on them and runs at full speed for encodings that are written later, too.

use candle_core::{D, DType, Device, Result, Tensor, bail};
use std::ops::Range;

/// A bias on the scores of `h` heads, added after scale and softcap and before the mask.
///
/// Query `i` and key `j` are named by their slots. A gradient flows into every tensor of every form; the fused kernels
/// compute it for all forms but [`Dense`](Self::Dense).
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub enum ScoreBias {
    /// No bias.
    #[default]
    None,
    /// `slopes[h] * (j - i)`: ALiBi (arXiv:2108.12409). `slopes` is `(h,)` in f32.
    Linear {
        /// One slope per query head, positive for heads that prefer near keys.
        slopes: Tensor,
    },
    /// `table[h, (j - i) - first]`: any bias that depends on the distance alone, such as T5's or Kerple's. `table` is
    /// `(h, n)` in f32 and must cover every distance that occurs.
    Relative {
        /// One row per query head, one column per distance.
        table: Tensor,
        /// The distance `j - i` of column 0.
        first: i64,
    },
    /// `queries[b, h, i] - keys[b, h, j]`: a bias that is a difference of two numbers, one per query and one per key, such
    /// as the sums of the log forget gates of FoX (arXiv:2503.02130). Both are f32.
    Keys {
        /// `(b, h, tq)`
        queries: Tensor,
        /// `(b, h, tk)`
        keys: Tensor,
    },
    /// `rows[b, h, i, :] . bank[h, :, clamp(j - i - first, 0, n - 1)]`: coefficients that each query has, times vectors
    /// that depend on the distance, such as Shaw's relative keys (arXiv:1803.02155). Distances past either end of the bank
    /// take its end. Both are f32.
    RowBank {
        /// `(b, h, tq, r)`
        rows: Tensor,
        /// `(h, r, n)`, or `(1, r, n)` for a bank that all heads share.
        bank: Tensor,
        /// The distance `j - i` of the bank's first column.
        first: i64,
    },
    /// A small network of one number per query and distance, see [`Curve`]: FIRE.
    Curve(Curve),
    /// Any tensor that broadcasts to `(b, h, tq, tk)` and is added to the scores. Minus infinity hides a key. The last
    /// resort, for a bias that depends on content in another way; where a gradient flows into it, the slower reference
    /// kernel computes it.
    Dense(Tensor),
}

/// `out_bias[h] + sum_m out_weight[h, m] * relu(hidden_weight[m] * x + hidden_bias[m])` for `x = distances[D] * rows[b, i]`
/// with the distance `D = i - j`: FIRE (arXiv:2310.04418), whose bias depends on the query's place as well as on the
/// distance and yet needs no `(tq, tk)` tensor.
///
/// As a function of `x` this is a chain of straight lines, so a kernel needs to know only where one line ends and the next
/// begins, and a row costs little more than a table of distances. All tensors are f32.
#[derive(Debug, Clone)]
pub struct Curve {
    /// `(n,)`, by distance from 0 on; keys after the query take that of distance 0. Must cover every distance that occurs,
    /// be positive or zero, and never fall.
    pub distances: Tensor,
    /// `(b, tq)`, or `(1, tq)` where rows of the batch don't differ; positive or zero.
    pub rows: Tensor,
    /// `(m,)`
    pub hidden_weight: Tensor,
    /// `(m,)`
    pub hidden_bias: Tensor,
    /// `(h, m)`
    pub out_weight: Tensor,
    /// `(h,)`
    pub out_bias: Tensor,
}

/// Sizes of the call that a bias belongs to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extent {
    pub(super) b: usize,
    pub(super) h: usize,
    pub(super) tq: usize,
    pub(super) tk: usize,
    pub(super) q_start: usize,
    pub(super) k_start: usize,
}

impl ScoreBias {
    /// The bias as one tensor that broadcasts to `(b, h, tq, tk)` for the queries and keys in the given slots, or
    /// `None` if there is none. For the reference kernel; gradients flow through it.
    ///
    /// # Errors
    /// Tensors that don't fit the slots.
    pub fn to_dense(&self, q: Range<usize>, k: Range<usize>, device: &Device) -> Result<Option<Tensor>> {
        let pairs = || q.clone().flat_map(|i| k.clone().map(move |j| j as i64 - i as i64));
        let index = |of: &dyn Fn(i64) -> i64| Tensor::from_iter(pairs().map(of), device)?.reshape((q.len(), k.len()));
        match self {
            Self::None => Ok(None),
            Self::Linear { slopes } => {
                let distance = index(&|d| d)?.to_dtype(slopes.dtype())?;
                Ok(Some(slopes.reshape(((), 1, 1))?.broadcast_mul(&distance.unsqueeze(0)?)?))
            }
            Self::Relative { table, first } => {
                let rows = table.index_select(&index(&|d| d - first)?.flatten_all()?, 1)?;
                Ok(Some(rows.reshape((table.dim(0)?, q.len(), k.len()))?))
            }
            Self::Keys { queries, keys } => Ok(Some(queries.unsqueeze(D::Minus1)?.broadcast_sub(&keys.unsqueeze(2)?)?)),
            Self::RowBank { rows, bank, first } => {
                let (heads, r, n) = bank.dims3()?;
                let column = index(&|d| (d - first).clamp(0, n as i64 - 1))?.flatten_all()?;
                // (h, r, tq, tk), times the row's coefficients.
                let bank = bank.index_select(&column, 2)?.reshape((heads, r, q.len(), k.len()))?;
                let each = |i: usize| rows.narrow(3, i, 1)?.broadcast_mul(&bank.narrow(1, i, 1)?.squeeze(1)?);
                (1..r).try_fold(each(0)?, |sum, i| sum + each(i)?).map(Some)
            }
            Self::Curve(curve) => {
                let column = index(&|d| (-d).max(0))?.flatten_all()?;
                let distances = curve.distances.index_select(&column, 0)?.reshape((1, 1, q.len(), k.len()))?;
                let x = curve.rows.unsqueeze(1)?.unsqueeze(3)?.broadcast_mul(&distances)?;
                let (h, m) = curve.out_weight.dims2()?;
                let each = |i: usize| {
                    let one = |x: &Tensor| x.narrow(0, i, 1)?.reshape((1, 1, 1, 1));
                    let inner = x.broadcast_mul(&one(&curve.hidden_weight)?)?;
                    let inner = inner.broadcast_add(&one(&curve.hidden_bias)?)?.relu()?;
                    curve.out_weight.narrow(1, i, 1)?.reshape((1, h, 1, 1))?.broadcast_mul(&inner)
                };
                let start = curve.out_bias.reshape((1, h, 1, 1))?;
                (0..m).try_fold(start, |sum, i| sum.broadcast_add(&each(i)?)).map(Some)
            }
            Self::Dense(bias) => {
                Ok(Some(if bias.dtype() == DType::F64 { bias.clone() } else { bias.to_dtype(DType::F32)? }))
            }
        }
    }

    /// The bias of `rows` queries from the call's `start`-th on, of its `tq`.
    pub(super) fn of_queries(&self, start: usize, rows: usize, tq: usize) -> Result<Self> {
        Ok(match self {
            Self::Keys { queries, keys } => Self::Keys { queries: queries.narrow(2, start, rows)?, keys: keys.clone() },
            Self::RowBank { rows: coefficients, bank, first } => {
                Self::RowBank { rows: coefficients.narrow(2, start, rows)?, bank: bank.clone(), first: *first }
            }
            Self::Curve(curve) => Self::Curve(Curve { rows: curve.rows.narrow(1, start, rows)?, ..curve.clone() }),
            Self::Dense(bias) if bias.rank() >= 2 && bias.dim(D::Minus2)? == tq => {
                Self::Dense(bias.narrow(D::Minus2, start, rows)?)
            }
            Self::None | Self::Linear { .. } | Self::Relative { .. } | Self::Dense(_) => self.clone(),
        })
    }

    /// The tensors that the bias is made of, in the order of its fields.
    pub(super) fn tensors(&self) -> Vec<&Tensor> {
        match self {
            Self::None => vec![],
            Self::Linear { slopes } => vec![slopes],
            Self::Relative { table, .. } => vec![table],
            Self::Keys { queries, keys } => vec![queries, keys],
            Self::RowBank { rows, bank, .. } => vec![rows, bank],
            Self::Curve(c) => {
                vec![&c.distances, &c.rows, &c.hidden_weight, &c.hidden_bias, &c.out_weight, &c.out_bias]
            }
            Self::Dense(bias) => vec![bias],
        }
    }

    /// The same form of other tensors: what `f` makes of each.
    pub(super) fn map(&self, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(match self {
            Self::None => Self::None,
            Self::Linear { slopes } => Self::Linear { slopes: f(slopes)? },
            Self::Relative { table, first } => Self::Relative { table: f(table)?, first: *first },
            Self::Keys { queries, keys } => Self::Keys { queries: f(queries)?, keys: f(keys)? },
            Self::RowBank { rows, bank, first } => Self::RowBank { rows: f(rows)?, bank: f(bank)?, first: *first },
            Self::Curve(c) => Self::Curve(Curve {
                distances: f(&c.distances)?,
                rows: f(&c.rows)?,
                hidden_weight: f(&c.hidden_weight)?,
                hidden_bias: f(&c.hidden_bias)?,
                out_weight: f(&c.out_weight)?,
                out_bias: f(&c.out_bias)?,
            }),
            Self::Dense(bias) => Self::Dense(f(bias)?),
        })
    }

    /// The same on a device.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        self.map(|x| x.to_device(device))
    }

    /// True if a gradient has to flow into the bias.
    pub fn track_op(&self) -> bool {
        self.tensors().iter().any(|x| x.track_op())
    }

    /// An error, by the name of the form, unless the tensors fit the call.
    pub(super) fn check(&self, e: Extent) -> Result<()> {
        let Extent { b, h, tq, tk, .. } = e;
        // Distances run from (first key - last query) to (last key - first query).
        let low = e.k_start as i64 - (e.q_start + tq) as i64 + 1;
        let high = (e.k_start + tk) as i64 - 1 - e.q_start as i64;
        match self {
            Self::None => {}
            Self::Linear { slopes } => {
                if slopes.dims() != [h] {
                    bail!("attend: {h} heads but slopes of shape {:?}", slopes.dims())
                }
            }
            Self::Relative { table, first } => {
                let (rows, n) = table.dims2()?;
                if rows != h || low < *first || high >= *first + n as i64 {
                    bail!(
                        "attend: relative bias ({rows}, {n}) from {first} does not cover {h} heads, distances \
                         {low}..={high}"
                    )
                }
            }
            Self::Keys { queries, keys } => {
                if queries.dims() != [b, h, tq] || keys.dims() != [b, h, tk] {
                    bail!(
                        "attend: a bias by keys needs ({b}, {h}, {tq}) and ({b}, {h}, {tk}), not {:?} and {:?}",
                        queries.dims(),
                        keys.dims()
                    )
                }
            }
            Self::RowBank { rows, bank, .. } => {
                let (heads, r, n) = bank.dims3()?;
                if r == 0 || n == 0 || (heads != h && heads != 1) || rows.dims() != [b, h, tq, r] {
                    bail!(
                        "attend: coefficients {:?} and a bank {:?} do not fit {b} rows, {h} heads and {tq} queries",
                        rows.dims(),
                        bank.dims()
                    )
                }
            }
            Self::Curve(curve) => curve.check(e, -low)?,
            Self::Dense(bias) => {
                bias.broadcast_as((b, h, tq, tk))?;
            }
        }
        Ok(())
    }
}

impl Curve {
    /// `farthest` is the largest distance that occurs.
    fn check(&self, e: Extent, farthest: i64) -> Result<()> {
        let (n, m) = (self.distances.dims1()?, self.hidden_weight.dims1()?);
        let (rows, queries) = self.rows.dims2()?;
        let network = self.hidden_bias.dims() == [m] && self.out_weight.dims() == [e.h, m];
        if m == 0 || !network || self.out_bias.dims() != [e.h] {
            bail!(
                "attend: a curve of {m} hidden units for {} heads has parts {:?}, {:?} and {:?}",
                e.h,
                self.hidden_bias.dims(),
                self.out_weight.dims(),
                self.out_bias.dims()
            )
        }
        if (rows != e.b && rows != 1) || queries != e.tq || farthest >= n as i64 {
            bail!(
                "attend: a curve with rows {:?} and {n} distances does not cover {} rows, {} queries and distances up to \
                 {farthest}",
                self.rows.dims(),
                e.b,
                e.tq
            )
        }
        Ok(())
    }
}
