//! Leaves out far keys under ALiBi, which is a soft window: keys whose weights cannot matter are not read.
//!
//! A score is at most `scale * |q| * |k|` (or the softcap), so a bound on the norms of a run of keys, plus the largest
//! bias among them, bounds their weights. If that is under 2^-24 of the row's largest weight, divided by how many keys
//! could be that close to the bound, then all the skipped keys together are below the rounding of the row's sum.
//! The row's largest weight is known early because keys are visited from the nearest on.

use super::{
    bias::{Bias, LOG2E},
    problem::Problem,
    tile::Row,
    unit::Rows,
};
use crate::attention::{
    key_norms::{KeyNorms, NORM_BLOCK, measure},
    view::Inputs,
};
use crate::simd::Element;
use std::{ops::Range, sync::Arc};

/// Queries below which the bounds aren't worth computing: reading every key for them would cost what it saves.
const WORTHWHILE: usize = 64;

/// Bounds for one call.
pub(super) struct Skip {
    norms: Arc<KeyNorms>,
    /// Per query head, by how many powers of two a weight has to be below the row's largest to be left out.
    margins: Vec<f32>,
}

/// What the kernel needs to know of one row.
#[derive(Clone, Copy)]
pub(super) struct RowBound {
    /// `scale * |q|` as exponents of two, rounded up.
    strength: f32,
    slope: f32,
    margin: f32,
    /// The query's place among the keys.
    origin: i64,
    cap: f32,
    /// The row's largest score is at least this.
    floor: f32,
}

impl Skip {
    /// The bounds, where the bias is linear and they are given or worth computing.
    pub(super) fn new<T: Element>(p: &Problem, inputs: &Inputs<T>, given: Option<&Arc<KeyNorms>>) -> Option<Self> {
        let Bias::Linear { slopes } = &p.bias else { return None };
        let s = p.sizes;
        let norms = match given {
            Some(norms) => norms.clone(),
            None if s.tq * s.group() >= WORTHWHILE && s.tk >= 4 * NORM_BLOCK => {
                Arc::new(KeyNorms::from_blocks(s.tk, measure(&inputs.k, 0)))
            }
            None => return None,
        };
        let margins = slopes.iter().map(|slope| {
            let geometric = -1.0 / (-slope.abs()).exp2_m1_accurate();
            24.0 + geometric.clamp(1.0, s.tk as f32).log2()
        });
        Some(Self { norms, margins: margins.collect() })
    }

    pub(super) fn norms(&self, b: usize, kv_head: usize, h_kv: usize) -> &[f32] {
        self.norms.blocks(b * h_kv + kv_head)
    }

    /// The bound of one row. It uses the score of the row's favoured key, so that a part of a split call that has only
    /// far keys can be left out without waiting for the part with the near ones.
    pub(super) fn row<T: Element>(&self, p: &Problem, inputs: &Inputs<T>, b: usize, row: &Row) -> RowBound {
        let Bias::Linear { slopes } = &p.bias else { unreachable!("bounds exist for a linear bias only") };
        let (slope, q) = (slopes[row.head], inputs.q.row(b, row.head, row.q));
        let origin = p.origin(row.q);
        // A row that sees no key sets no bound.
        let mut floor = f32::INFINITY;
        if !row.seen.is_empty() {
            let nearest = if slope >= 0.0 { row.seen.end - 1 } else { row.seen.start };
            let score = inputs.k.dot(q, b, row.head / p.sizes.group(), nearest) as f32 * p.scale;
            let score = p.softcap.map_or(score, |cap| cap * (score / cap).tanh());
            // Less what the kernel's own rounding may differ by.
            floor = score * LOG2E - score.abs() * 1e-4 - 1e-3 + slope * (nearest as i64 - origin) as f32;
        }
        let norm = q.iter().map(|x| (x.widen() as f64).powi(2)).sum::<f64>().sqrt() as f32;
        RowBound {
            // The factor covers the rounding of both norms and of the score itself.
            strength: norm * p.scale.abs() * LOG2E * 1.0001,
            slope,
            margin: self.margins[row.head],
            origin,
            floor,
            cap: p.softcap.map_or(f32::INFINITY, |cap| cap.abs() * LOG2E * 1.0001),
        }
    }
}

impl RowBound {
    /// True if no key of `keys`, all with norms up to `norm`, can matter to the row, one of whose scores is `max`.
    fn negligible(&self, norm: f32, keys: &Range<usize>, max: f32) -> bool {
        let nearest = if self.slope >= 0.0 { keys.end - 1 } else { keys.start };
        let bias = self.slope * (nearest as i64 - self.origin) as f32;
        let score = (self.strength * norm).min(self.cap);
        // False if anything is NaN or nothing has been seen yet.
        score + bias < max.max(self.floor) - self.margin
    }
}

/// The part of `keys` that may matter to any of the rows, one of whose scores is `max`; shortens the rows' own range when
/// nothing before does.
pub(super) fn without_negligible(
    norms: &[f32],
    bounds: &[RowBound],
    max: impl Fn(usize) -> f32,
    rows: &mut Rows,
    mut keys: Range<usize>,
) -> Range<usize> {
    let range = rows.range.clone();
    let negligible = |norm: f32, keys: Range<usize>| range.clone().all(|i| bounds[i].negligible(norm, &keys, max(i)));
    let cut = |keys: &Range<usize>| keys.end.min((keys.start / NORM_BLOCK + 1) * NORM_BLOCK);
    while !keys.is_empty() && negligible(norms[keys.start / NORM_BLOCK], keys.start..cut(&keys)) {
        keys.start = cut(&keys);
    }
    if keys.is_empty() {
        let before = norms[rows.keys.start / NORM_BLOCK..keys.end.div_ceil(NORM_BLOCK)].iter();
        if negligible(before.fold(0f32, |a, b| a.max(*b)), rows.keys.start..keys.end) {
            rows.keys.end = rows.keys.start;
        }
    }
    keys
}

#[cfg(test)]
thread_local! {
    static VISITED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// The tiles that this thread has worked on since it was last asked.
#[cfg(test)]
pub(in crate::attention) fn tiles_visited() -> usize {
    VISITED.take()
}

/// Counts a tile, for the tests.
#[inline(always)]
pub(super) fn visit() {
    #[cfg(test)]
    VISITED.set(VISITED.get() + 1);
}

trait Exp2M1 {
    fn exp2_m1_accurate(self) -> f32;
}

impl Exp2M1 for f32 {
    /// 2^x - 1 without cancellation near zero.
    fn exp2_m1_accurate(self) -> f32 {
        (self as f64 * std::f64::consts::LN_2).exp_m1() as f32
    }
}
