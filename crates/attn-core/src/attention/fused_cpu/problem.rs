//! One attention call as the kernels see it: sizes, strided views of the inputs, loop bounds and bias by row.

use super::{simd::Element, skip::Skip};
use crate::{AttendArgs, ScoreBias};
use candle_core::{CpuStorage, DType, Layout, Result, Storage, Tensor, bail};
use std::ops::{Deref, Range};

/// Sizes of a call: q `(b, h, tq, d)`, k `(b, h_kv, tk, d)`, v `(b, h_kv, tk, dv)`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) b: usize,
    pub(super) h: usize,
    pub(super) h_kv: usize,
    pub(super) tq: usize,
    pub(super) tk: usize,
    pub(super) d: usize,
    pub(super) dv: usize,
}

impl Sizes {
    pub(super) fn new(q: &Layout, k: &Layout, v: &Layout) -> Result<Self> {
        let (b, h, tq, d) = q.shape().dims4()?;
        let (_, h_kv, tk, _) = k.shape().dims4()?;
        let (_, _, _, dv) = v.shape().dims4()?;
        Ok(Self { b, h, h_kv, tq, tk, d, dv })
    }

    /// Query heads per kv head.
    pub(super) fn group(&self) -> usize {
        self.h / self.h_kv
    }

    /// Every batch row with every kv head.
    pub(super) fn key_rows(&self) -> Vec<(usize, usize)> {
        (0..self.b).flat_map(|b| (0..self.h_kv).map(move |head| (b, head))).collect()
    }
}

/// A `(b, h, t, d)` tensor with any strides but a contiguous last dimension.
#[derive(Clone, Copy)]
pub(super) struct View<'a, T> {
    data: &'a [T],
    strides: [usize; 3],
    width: usize,
}

impl<'a, T: Element> View<'a, T> {
    pub(super) fn new(storage: &'a CpuStorage, layout: &Layout) -> Result<Self> {
        let data = storage.as_slice::<T>()?;
        let (dims, strides) = (layout.dims(), layout.stride());
        let &[b, h, t, last] = strides else { bail!("attend: expected four dimensions, got {dims:?}") };
        if dims[3] > 1 && last != 1 {
            bail!("attend: the last dimension must be contiguous")
        }
        // The kernels go through pointers, so that every place is in bounds is established here.
        let size: usize = if dims.contains(&0) {
            0
        } else {
            dims.iter().zip([b, h, t, 1]).map(|(n, stride)| (n - 1) * stride).sum::<usize>() + 1
        };
        match data.get(layout.start_offset()..layout.start_offset() + size) {
            Some(data) => Ok(Self { data, strides: [b, h, t], width: dims[3] }),
            None => bail!("attend: layout {layout:?} leaves its storage of {}", data.len()),
        }
    }

    /// The numbers of one token.
    pub(super) fn row(&self, b: usize, h: usize, t: usize) -> &'a [T] {
        let start = b * self.strides[0] + h * self.strides[1] + t * self.strides[2];
        &self.data[start..start + self.width]
    }

    /// Where token `t` starts, and the distance to the next token.
    pub(super) fn tokens(&self, b: usize, h: usize, t: usize) -> (*const T, usize) {
        (self.row(b, h, t).as_ptr(), self.strides[2])
    }
}

/// The inputs of one call.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a, T> {
    pub(super) q: View<'a, T>,
    pub(super) k: View<'a, T>,
    pub(super) v: View<'a, T>,
}

/// log2(e): scores are kept in units of a factor of two, because 2^x is what the hardware helps with.
pub(super) const LOG2E: f32 = std::f32::consts::LOG2_E;

/// The bias in the units of the scores, but for `Dense`.
pub(super) enum Bias<'a> {
    None,
    Linear { slopes: Vec<f32> },
    Relative { table: Vec<f32>, columns: usize, first: i64 },
    Dense { data: &'a [f32], strides: [usize; 4] },
}

/// What a [`Bias`] borrows from, kept alive for the length of a call.
pub(super) struct BiasSource {
    tensor: Option<Tensor>,
}

impl BiasSource {
    pub(super) fn new(bias: &ScoreBias, s: &Sizes) -> Result<Self> {
        let ScoreBias::Dense(bias) = bias else { return Ok(Self { tensor: None }) };
        let mut bias = bias.detach().to_dtype(DType::F32)?.to_device(&candle_core::Device::Cpu)?;
        if bias.rank() > 0 && bias.dim(candle_core::D::Minus1)? > 1 && bias.stride()[bias.rank() - 1] > 1 {
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
        Ok(match bias {
            ScoreBias::None => Self::None,
            ScoreBias::Linear { slopes } => {
                let slopes = slopes.detach().to_dtype(DType::F32)?.to_vec1::<f32>()?;
                Self::Linear { slopes: slopes.into_iter().map(|slope| slope * LOG2E).collect() }
            }
            ScoreBias::Relative { table, first } => {
                let columns = table.dim(1)?;
                let table = table.detach().to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
                Self::Relative { table: table.into_iter().map(|x| x * LOG2E).collect(), columns, first: *first }
            }
            ScoreBias::Keys { .. } | ScoreBias::RowBank { .. } | ScoreBias::Curve(_) => {
                bail!("attend: the fused kernel does not know this form of bias")
            }
            ScoreBias::Dense(_) => {
                let Some((storage, layout)) = locked else { bail!("attend: the dense bias is gone") };
                let Storage::Cpu(storage) = &**storage else { bail!("attend: the dense bias is not on the CPU") };
                let &[b, h, q, k] = layout.stride() else { bail!("attend: dense bias of {:?}", layout.dims()) };
                let (dims, strides) = ([s.b, s.h, s.tq, s.tk], [b, h, q, k]);
                let data = storage.as_slice::<f32>()?;
                let last: usize = dims.iter().zip(strides).map(|(n, stride)| n.saturating_sub(1) * stride).sum();
                match data.get(layout.start_offset()..=layout.start_offset() + last) {
                    Some(data) if k <= 1 => Self::Dense { data, strides },
                    _ => bail!("attend: dense bias with layout {layout:?}"),
                }
            }
        })
    }
}

/// What is added to one row of scores.
#[derive(Clone, Copy)]
pub(super) enum RowBias<'a> {
    None,
    /// `slope * (key - origin)`
    Ramp {
        slope: f32,
        origin: i64,
    },
    /// `factor * values[key]`
    Values {
        values: &'a [f32],
        factor: f32,
    },
}

/// Everything about a call but the numbers in q, k and v.
pub(super) struct Problem<'a> {
    pub(super) sizes: Sizes,
    pub(super) scale: f32,
    pub(super) softcap: Option<f32>,
    pub(super) bias: Bias<'a>,
    pub(super) q_start: usize,
    pub(super) k_start: usize,
    pub(super) skip: Option<Skip>,
    seen: Vec<(u32, u32)>,
    seen_differs: bool,
}

impl<'a> Problem<'a> {
    pub(super) fn new(sizes: Sizes, args: &AttendArgs, bias: Bias<'a>) -> Self {
        let rows = if args.mask.differs_by_row() { sizes.b } else { 1 };
        let slots = args.k_start..args.k_start + sizes.tk;
        let mut seen = Vec::with_capacity(rows * sizes.tq);
        for row in 0..rows {
            for q in args.q_start..args.q_start + sizes.tq {
                let range = args.mask.visible(row, q, slots.clone());
                // An empty range may lie outside the slots.
                let (start, end) = if range.is_empty() { (0, 0) } else { (range.start, range.end) };
                let local = |slot: usize| slot.saturating_sub(args.k_start) as u32;
                seen.push((local(start), local(end)));
            }
        }
        let softcap = args.scores.softcap.map(|cap| cap as f32);
        let (q_start, k_start) = (args.q_start, args.k_start);
        let scale = args.scores.scale as f32;
        Self { sizes, scale, softcap, bias, q_start, k_start, skip: None, seen, seen_differs: rows > 1 }
    }

    /// The keys, counted from the call's first, that query `q` of batch row `b` sees.
    pub(super) fn seen(&self, b: usize, q: usize) -> Range<usize> {
        let row = if self.seen_differs { b } else { 0 };
        let (start, end) = self.seen[row * self.sizes.tq + q];
        start as usize..end as usize
    }

    /// The keys from the first to the last that any of the queries sees.
    pub(super) fn seen_by_any(&self, b: usize, queries: Range<usize>) -> Range<usize> {
        let seen = queries.map(|q| self.seen(b, q)).filter(|seen| !seen.is_empty());
        seen.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)).unwrap_or(0..0)
    }

    /// What q is multiplied by, so that products with keys are scores, or arguments of the softcap's tanh.
    pub(super) fn q_factor(&self) -> f32 {
        match self.softcap {
            Some(cap) => self.scale / cap,
            None => self.scale * LOG2E,
        }
    }

    /// The values of a relative bias from the first key of query `q` on.
    pub(super) fn distances(&self, head: usize, q: usize) -> &[f32] {
        let Bias::Relative { table, columns, .. } = &self.bias else { return &[] };
        &table[head * columns + self.distance(q)..]
    }

    /// The column of a relative table that the first key of query `q` takes.
    pub(super) fn distance(&self, q: usize) -> usize {
        let Bias::Relative { first, .. } = &self.bias else { return 0 };
        let origin = (self.q_start + q) as i64 - self.k_start as i64;
        // Not negative: `attend` has checked that the table covers every distance.
        (-origin - first) as usize
    }

    /// The columns of a relative table.
    pub(super) fn columns(&self) -> usize {
        if let Bias::Relative { columns, .. } = &self.bias { *columns } else { 0 }
    }

    /// The bias of one query row.
    pub(super) fn row_bias(&self, b: usize, head: usize, q: usize) -> RowBias<'_> {
        let origin = (self.q_start + q) as i64 - self.k_start as i64;
        match &self.bias {
            Bias::None => RowBias::None,
            Bias::Linear { slopes } => RowBias::Ramp { slope: slopes[head], origin },
            Bias::Relative { .. } => RowBias::Values { values: &self.distances(head, q)[..self.sizes.tk], factor: 1.0 },
            Bias::Dense { data, strides } => {
                let start = b * strides[0] + head * strides[1] + q * strides[2];
                if strides[3] == 0 && self.sizes.tk > 1 {
                    // The same for every key.
                    return RowBias::Values { values: &data[start..=start], factor: LOG2E };
                }
                RowBias::Values { values: &data[start..start + self.sizes.tk], factor: LOG2E }
            }
        }
    }
}
