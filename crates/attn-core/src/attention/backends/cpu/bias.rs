//! The bias of a call as the kernels read it: one row at a time, from numbers in the units of the scores.

use super::curve::Lines;
use crate::attention::{
    bias::ScoreBias,
    view::{Sizes, numbers},
};
use candle_core::{D, DType, Device, Layout, Result, Storage, Tensor, bail};
use std::{
    borrow::Cow,
    ops::{Deref, Range},
};

/// log2(e): scores are kept as exponents of two, because the hardware helps to compute 2^x.
pub(super) const LOG2E: f32 = std::f32::consts::LOG2_E;

/// The forms of [`ScoreBias`], on the CPU in f32.
pub(super) enum Bias<'a> {
    None,
    /// In factors of two, as scores are.
    Linear {
        slopes: Vec<f32>,
    },
    /// `(h, columns)`, as exponents of two.
    Relative {
        table: Vec<f32>,
        columns: usize,
        first: i64,
    },
    /// Numbers of the queries, `(b, h, tq)`, and of the keys; their difference is taken before it is scaled, which loses less.
    Keys {
        queries: Vec<f32>,
        keys: KeyRows<'a>,
    },
    Bank(Bank),
    Curve(Lines),
    Dense {
        data: &'a [f32],
        strides: [usize; 4],
    },
}

/// A number per head and key, `(b, h, tk)`. Where many queries read the row of their head, rows begin on cache lines: a
/// vector that crosses them is loaded twice, and Candle's buffers are aligned to 16 bytes.
pub(super) struct KeyRows<'a> {
    numbers: Cow<'a, [f32]>,
    /// Where the first row begins.
    start: usize,
    width: usize,
    stride: usize,
}

impl<'a> KeyRows<'a> {
    /// Numbers in a cache line.
    const LINE: usize = 16;
    /// Up to this many queries, rows are used where they lie.
    const FEW_QUERIES: usize = 8;

    fn new(rows: &'a [f32], s: &Sizes) -> Self {
        let width = s.tk;
        if s.tq <= Self::FEW_QUERIES {
            return Self { numbers: rows.into(), start: 0, width, stride: width };
        }
        let stride = width.next_multiple_of(Self::LINE);
        let mut numbers = vec![0.0; s.b * s.h * stride + Self::LINE];
        let start = numbers.as_ptr().align_offset(size_of::<f32>() * Self::LINE).min(Self::LINE);
        for (to, from) in numbers[start..].chunks_exact_mut(stride.max(1)).zip(rows.chunks_exact(width.max(1))) {
            to[..width].copy_from_slice(from);
        }
        Self { numbers: numbers.into(), start, width, stride }
    }

    pub(super) fn row(&self, i: usize) -> &[f32] {
        &self.numbers[self.start + i * self.stride..][..self.width]
    }
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
        let here = |x: &Tensor| x.detach().to_dtype(DType::F32)?.to_device(&Device::Cpu);
        let tensor = match bias {
            ScoreBias::Keys { keys, .. } => Some(here(keys)?.contiguous()?),
            ScoreBias::Dense(bias) => {
                let mut bias = here(bias)?;
                if bias.rank() > 0 && bias.dim(D::Minus1)? > 1 && bias.stride()[bias.rank() - 1] > 1 {
                    bias = bias.contiguous()?;
                }
                Some(bias.broadcast_as((s.b, s.h, s.tq, s.tk))?)
            }
            _ => None,
        };
        Ok(Self { tensor })
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
            ScoreBias::Keys { queries, .. } => {
                let (data, layout) = borrowed(locked)?;
                let keys = &data[layout.start_offset()..][..s.b * s.h * s.tk];
                Self::Keys { queries: numbers(queries)?, keys: KeyRows::new(keys, s) }
            }
            ScoreBias::RowBank { rows, bank, first } => {
                let (heads, width, columns) = bank.dims3()?;
                let (rows, bank) = (numbers(rows)?, numbers(bank)?);
                Self::Bank(Bank { rows, bank, heads, width, columns, first: *first })
            }
            ScoreBias::Curve(curve) => Self::Curve(Lines::new(curve, s)?),
            ScoreBias::Dense(_) => {
                let (data, layout) = borrowed(locked)?;
                Self::dense(data, layout, s)?
            }
        })
    }

    fn dense(data: &'a [f32], layout: &Layout, s: &Sizes) -> Result<Self> {
        let &[b, h, q, k] = layout.stride() else { bail!("attend: dense bias of {:?}", layout.dims()) };
        let (dims, strides) = ([s.b, s.h, s.tq, s.tk], [b, h, q, k]);
        let last: usize = dims.iter().zip(strides).map(|(n, stride)| n.saturating_sub(1) * stride).sum();
        match data.get(layout.start_offset()..=layout.start_offset() + last) {
            Some(data) if k <= 1 => Ok(Self::Dense { data, strides }),
            _ => bail!("attend: dense bias with layout {layout:?}"),
        }
    }
}

/// The numbers of a [`BiasSource`] that has some.
fn borrowed<'a>(locked: &'a Option<(impl Deref<Target = Storage>, &Layout)>) -> Result<(&'a [f32], &'a Layout)> {
    let Some((storage, layout)) = locked else { bail!("attend: the bias is gone") };
    let Storage::Cpu(storage) = &**storage else { bail!("attend: the bias is not on the CPU") };
    Ok((storage.as_slice::<f32>()?, layout))
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
    /// `slope * values[key - first] + start`
    Line {
        values: &'a [f32],
        first: usize,
        slope: f32,
        start: f32,
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
    /// The same for `keys` only; if their numbers have to be computed, they are written to `line`.
    #[inline(always)]
    pub(super) fn on<'l>(self, keys: Range<usize>, line: &'l mut [f32]) -> RowBias<'l>
    where
        'a: 'l,
    {
        if let Self::Computed(Computed::Curve { lines, head, factor, origin }) = self
            && let Some((slope, start, values)) = lines.straight(head, factor, origin, keys.clone())
        {
            return RowBias::Line { values, first: keys.start, slope: slope * LOG2E, start: start * LOG2E };
        }
        self.written(keys, line)
    }

    /// As [`RowBias::on`], where all that is computed goes to `line`.
    #[inline(always)]
    pub(super) fn written<'l>(self, keys: Range<usize>, line: &'l mut [f32]) -> RowBias<'l>
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
