//! One attention call as the kernels see it: sizes, the keys that each query sees, and from products to scores.

use super::bias::{Bias, BiasSource, Computed, LOG2E, RowBias};
use crate::attention::{
    scores::AttendArgs,
    view::{Sizes, numbers},
};
use candle_core::{Layout, Result, Storage};
use std::ops::{Deref, Range};

/// Everything about a call but the numbers in q, k and v.
pub(super) struct Problem<'a> {
    pub(super) sizes: Sizes,
    pub(super) scale: f32,
    pub(super) softcap: Option<f32>,
    pub(super) bias: Bias<'a>,
    /// Per query head a score that has no key, as exponents of two.
    pub(super) sinks: Option<Vec<f32>>,
    pub(super) q_start: usize,
    pub(super) k_start: usize,
    seen: Vec<(u32, u32)>,
    seen_differs: bool,
}

impl<'a> Problem<'a> {
    /// `locked` is of the bias' [`BiasSource`].
    pub(super) fn new(
        sizes: Sizes,
        args: &AttendArgs,
        locked: &'a Option<(impl Deref<Target = Storage>, &Layout)>,
    ) -> Result<Self> {
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
        let sinks = args.scores.sinks.as_ref().map(numbers).transpose()?;
        Ok(Self {
            sizes,
            scale: args.scores.scale as f32,
            softcap: args.scores.softcap.map(|cap| cap as f32),
            bias: Bias::new(&args.scores.bias, locked, &sizes)?,
            sinks: sinks.map(|sinks| sinks.into_iter().map(|sink| sink * LOG2E).collect()),
            q_start: args.q_start,
            k_start: args.k_start,
            seen,
            seen_differs: rows > 1,
        })
    }

    /// What the bias of `args` is borrowed from.
    pub(super) fn source(sizes: &Sizes, args: &AttendArgs) -> Result<BiasSource> {
        BiasSource::new(&args.scores.bias, sizes)
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

    /// The place of query `q` among the keys.
    pub(super) fn origin(&self, q: usize) -> i64 {
        (self.q_start + q) as i64 - self.k_start as i64
    }

    /// The values of a relative bias from the first key of query `q` on.
    pub(super) fn distances(&self, head: usize, q: usize) -> &[f32] {
        let Bias::Relative { table, columns, .. } = &self.bias else { return &[] };
        &table[head * columns + self.distance(q)..]
    }

    /// The column of a relative table that the first key of query `q` takes.
    pub(super) fn distance(&self, q: usize) -> usize {
        let Bias::Relative { first, .. } = &self.bias else { return 0 };
        // Not negative: `attend` has checked that the table covers every distance.
        (-self.origin(q) - first) as usize
    }

    /// The bias of one query row.
    pub(super) fn row_bias(&self, b: usize, head: usize, q: usize) -> RowBias<'_> {
        let (origin, s) = (self.origin(q), &self.sizes);
        match &self.bias {
            Bias::None => RowBias::None,
            Bias::Linear { slopes } => RowBias::Ramp { slope: slopes[head], origin },
            Bias::Relative { .. } => {
                RowBias::Values { values: &self.distances(head, q)[..s.tk], first: 0, factor: 1.0 }
            }
            Bias::Keys { queries, keys } => {
                let row = b * s.h + head;
                RowBias::Difference { values: keys.row(row), origin: queries[row * s.tq + q] }
            }
            Bias::Bank(bank) => {
                let (coefficients, vectors) = bank.row(s, b, head, q);
                RowBias::Computed(Computed::Bank { bank, coefficients, vectors, column: -origin - bank.first })
            }
            Bias::Curve(lines) => RowBias::Computed(Computed::Curve { lines, head, factor: lines.row(b, q), origin }),
            Bias::Dense { data, strides } => {
                let start = b * strides[0] + head * strides[1] + q * strides[2];
                // Without a stride the bias is the same for every key.
                let n = if strides[3] == 0 { 1 } else { s.tk };
                RowBias::Values { values: &data[start..start + n], first: 0, factor: LOG2E }
            }
        }
    }
}
