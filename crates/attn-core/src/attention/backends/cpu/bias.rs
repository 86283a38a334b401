//! The bias of a call as the kernels read it: one row at a time, from numbers in the units of the scores.

use super::curve::Lines;
use crate::attention::{
    bias::ScoreBias,
    view::{Sizes, numbers},
};
use candle_core::{CpuStorage, D, DType, Device, Layout, Result, Storage, Tensor, bail};
use std::ops::{Deref, Range};

/// log2(e): scores are kept in units of a factor of two, because 2^x is what the hardware helps with.
pub(super) const LOG2E: f32 = std::f32::consts::LOG2_E;

/// The forms of [`ScoreBias`], on the CPU in f32.
pub(super) enum Bias<'a> {
    None,
    /// In factors of two, as scores are.
    Linear {
        slopes: Vec<f32>,
    },
    /// `(h, columns)`, in factors of two.
    Relative {
        table: Vec<f32>,
        columns: usize,
        first: i64,
    },
    /// `(b, h, tq)` and `(b, h, tk)`; their difference is taken before it is scaled, which loses less.
    Keys {
        queries: Vec<f32>,
        keys: Vec<f32>,
    },
    Bank(Bank),
    Curve(Lines),
    Dense {
        data: &'a [f32],
        strides: [usize; 4],
    },
}

/// Coefficients of every query, and vectors by distance.
pub(super) struct Bank {
    /// `(b, h, tq, width)`
    pub(super) rows: Vec<f32>,
    /// `(heads, width, columns)`
    pub(super) bank: Vec<f32>,
    /// 1 if all heads share one.
    pub(super) heads: usize,
    pub(super) width: usize,
    pub(super) columns: usize,
    pub(super) first: i64,
}

/// What a [`Bias`] borrows from, kept alive for the length of a call.
pub(super) struct BiasSource {
    tensor: Option<Tensor>,
}

impl BiasSource {
    pub(super) fn new(bias: &ScoreBias, s: &Sizes) -> Result<Self> {
        let ScoreBias::Dense(bias) = bias else { return Ok(Self { tensor: None }) };
        let mut bias = bias.detach().to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
        if bias.rank() > 0 && bias.dim(D::Minus1)? > 1 && bias.stride()[bias.rank() - 1] > 1 {
            bias = bias.contiguous()?;
        }
        Ok(Self { tensor: Some(bias.broadcast_as((s.b, s.h, s.tq, s.tk))?) })
    }

    pub(super) fn lock(&self) -> Option<(impl Deref<Target = Storage> + '_, &Layout)> {
        self.tensor.as_ref().map(|tensor| tensor.storage_and_layout())
    }
}

impl<'a> Bias<'a> {
    pub(super) fn new(
        bias: &ScoreBias,
        locked: &'a Option<(impl Deref<Target = Storage>, &Layout)>,
        s: &Sizes,
    ) -> Result<Self> {
        let in_twos = |x: &Tensor| Ok::<_, candle_core::Error>(numbers(x)?.into_iter().map(|x| x * LOG2E).collect());
        Ok(match bias {
            ScoreBias::None => Self::None,
            ScoreBias::Linear { slopes } => Self::Linear { slopes: in_twos(slopes)? },
            ScoreBias::Relative { table, first } => {
                Self::Relative { table: in_twos(table)?, columns: table.dim(1)?, first: *first }
            }
            ScoreBias::Keys { queries, keys } => Self::Keys { queries: numbers(queries)?, keys: numbers(keys)? },
            ScoreBias::RowBank { rows, bank, first } => {
                let (heads, width, columns) = bank.dims3()?;
                let (rows, bank) = (numbers(rows)?, numbers(bank)?);
                Self::Bank(Bank { rows, bank, heads, width, columns, first: *first })
            }
            ScoreBias::Curve(curve) => Self::Curve(Lines::new(curve, s)?),
            ScoreBias::Dense(_) => {
                let Some((storage, layout)) = locked else { bail!("attend: the dense bias is gone") };
                let Storage::Cpu(storage) = &**storage else { bail!("attend: the dense bias is not on the CPU") };
                Self::dense(storage, layout, s)?
            }
        })
    }

    fn dense(storage: &'a CpuStorage, layout: &Layout, s: &Sizes) -> Result<Self> {
        let &[b, h, q, k] = layout.stride() else { bail!("attend: dense bias of {:?}", layout.dims()) };
        let (dims, strides) = ([s.b, s.h, s.tq, s.tk], [b, h, q, k]);
        let data = storage.as_slice::<f32>()?;
        let last: usize = dims.iter().zip(strides).map(|(n, stride)| n.saturating_sub(1) * stride).sum();
        match data.get(layout.start_offset()..=layout.start_offset() + last) {
            Some(data) if k <= 1 => Ok(Self::Dense { data, strides }),
            _ => bail!("attend: dense bias with layout {layout:?}"),
        }
    }
}

/// What is added to one row of scores. Keys are counted from the call's first.
#[derive(Clone, Copy)]
pub(super) enum RowBias<'a> {
    None,
    /// `slope * (key - origin)`
    Ramp {
        slope: f32,
        origin: i64,
    },
    /// `factor * values[key - first]`; the same for every key if there is one value.
    Values {
        values: &'a [f32],
        first: usize,
        factor: f32,
    },
    /// `(origin - values[key]) * log2(e)`
    Difference {
        values: &'a [f32],
        origin: f32,
    },
    /// Numbers that are computed for the keys of a tile, see [`RowBias::on`].
    Computed(Computed<'a>),
}

/// A row of a bias that is computed where it is needed.
#[derive(Clone, Copy)]
pub(super) enum Computed<'a> {
    /// The row's coefficients, the head's bank, and the column that key 0 takes.
    Bank { bank: &'a Bank, coefficients: &'a [f32], vectors: &'a [f32], column: i64 },
    /// The row's factor, and its place among the keys.
    Curve { lines: &'a Lines, head: usize, factor: f32, origin: i64 },
}

impl<'a> RowBias<'a> {
    /// The same for `keys` alone, whose numbers go to `line` if they have to be computed.
    #[inline(always)]
    pub(super) fn on<'l>(self, keys: Range<usize>, line: &'l mut [f32]) -> RowBias<'l>
    where
        'a: 'l,
    {
        let Self::Computed(computed) = self else { return self };
        let values = &mut line[..keys.len()];
        match computed {
            Computed::Bank { bank, coefficients, vectors, column } => {
                bank.fill(coefficients, vectors, column + keys.start as i64, values);
            }
            Computed::Curve { lines, head, factor, origin } => lines.fill(head, factor, origin, keys.start, values),
        }
        RowBias::Values { values, first: keys.start, factor: LOG2E }
    }
}

impl Bank {
    /// What a row is made of: its coefficients and its head's vectors.
    pub(super) fn row(&self, s: &Sizes, b: usize, head: usize, q: usize) -> (&[f32], &[f32]) {
        let row = ((b * s.h + head) * s.tq + q) * self.width;
        let head = if self.heads == 1 { 0 } else { head };
        let size = self.width * self.columns;
        (&self.rows[row..row + self.width], &self.bank[head * size..(head + 1) * size])
    }

    /// How many of `n` keys, the first of which takes `column`, take the bank's first column because they are before it, and
    /// how many are not past its last.
    pub(super) fn inside(&self, column: i64, n: usize) -> (usize, usize) {
        let before = (-column).clamp(0, n as i64) as usize;
        let until = (self.columns as i64 - column).clamp(before as i64, n as i64) as usize;
        (before, until)
    }

    #[inline(always)]
    fn fill(&self, coefficients: &[f32], vectors: &[f32], column: i64, values: &mut [f32]) {
        let (before, until) = self.inside(column, values.len());
        values.fill(0.0);
        for (c, vector) in coefficients.iter().zip(vectors.chunks_exact(self.columns)) {
            let (low, high) = (c * vector[0], c * vector[self.columns - 1]);
            values[..before].iter_mut().for_each(|x| *x += low);
            if before < until {
                let from = (column + before as i64) as usize;
                for (x, v) in values[before..until].iter_mut().zip(&vector[from..]) {
                    *x += c * v;
                }
            }
            values[until..].iter_mut().for_each(|x| *x += high);
        }
    }
}
