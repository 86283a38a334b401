//! Gradients of q, k, v and of what a bias is made of, from recomputed tiles: no `(tq, tk)` tensor, only the log of each
//! row's sum is kept.
//!
//! With weights `p`, the gradient of a score is `p * (dp - delta)`, where `dp` is the product of the output's gradient
//! with the value and `delta` that of the gradient with the output. A unit is one kv head of one batch row, with the query
//! heads that share it and, where there are few heads, a part of the keys; so it owns its part of every gradient. What
//! the parts add to the same query is summed afterwards, in order.

use super::{
    bias::LOG2E,
    forward::on_threads,
    problem::Problem,
    tile::{ROW_PAD, ROWS, add_bias, cap_scores, exp_and_gradient, pack_panel, pack_rows},
};
use crate::{
    attention::view::{Sizes, View},
    parallel::Disjoint,
    simd::{Job, KernelPath, Scratch, Simd, TILE_STRIDE, dispatch},
};
use std::{
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
};

/// Keys of a block, as in the forward pass: two tiles of scores stay in the nearby caches.
const KEYS: usize = 128;
/// The same, rounded up to whole groups of rows.
const KEY_ROWS: usize = KEYS.next_multiple_of(ROW_PAD);
/// Units that keep the threads equally busy, and the most parts that the keys of a head are cut into.
const UNITS: usize = 16;
const MOST_PARTS: usize = 4;

/// Weights below this power of two change no gradient: 2^24 of them, at distances of up to 2^24, are below the rounding of
/// the row's others.
const NEGLIGIBLE: f32 = -80.0;

/// Numbers of packed queries of the heads that go over the keys together: with their gradients they stay in the
/// second-level cache.
const TOGETHER: usize = 1 << 17;

/// Into how many parts the keys of a head are cut. It depends only on the shape of the call, so that results are repeatable.
pub(super) fn parts(s: &Sizes) -> usize {
    UNITS.div_ceil(s.b * s.h_kv).min(MOST_PARTS).min(s.tk.div_ceil(KEYS))
}

/// The inputs, widened.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub(super) q: View<'a, f32>,
    pub(super) k: View<'a, f32>,
    pub(super) v: View<'a, f32>,
}

/// What the backward pass has besides the inputs.
pub(super) struct Saved<'a> {
    /// The gradient of the output, `(b, h, tq, dv)`.
    pub(super) grad: View<'a, f32>,
    /// log2 of each row's sum of weights, `(b, h, tq)`.
    pub(super) log_sums: &'a [f32],
    /// What the gradients of a row's scores are relative to, `(b, h, tq)`: the product of the output and its gradient,
    /// minus the gradient of the log-sum-exp.
    pub(super) deltas: &'a [f32],
}

/// Where the gradients go: zeros, which units add to.
pub(super) struct Gradients<'a> {
    /// `(b, h, parts, tq, d)`
    pub(super) q: Disjoint<'a, f32>,
    /// `(b, h_kv, tk, d)` and `(b, h_kv, tk, dv)`
    pub(super) k: Disjoint<'a, f32>,
    pub(super) v: Disjoint<'a, f32>,
    /// `(b, h, parts, sums)` of what the bias is made of, if its gradient is asked for.
    pub(super) scores: Option<Disjoint<'a, f32>>,
}

struct Worker<'a> {
    p: &'a Problem<'a>,
    inputs: Inputs<'a>,
    saved: &'a Saved<'a>,
    out: &'a Gradients<'a>,
    next: &'a AtomicUsize,
}

/// Computes the gradients. Head dims are multiples of 16.
pub(super) fn backward(path: KernelPath, p: &Problem, inputs: Inputs<'_>, saved: &Saved, out: &Gradients) {
    let next = AtomicUsize::new(0);
    let units = p.sizes.b * p.sizes.h_kv * parts(&p.sizes);
    on_threads(units, || dispatch(path, Worker { p, inputs, saved, out, next: &next }));
}

impl Job for Worker<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let s = self.p.sizes;
        let heads = s.b * s.h_kv;
        loop {
            let i = self.next.fetch_add(1, Ordering::Relaxed);
            if i >= heads * parts(&s) {
                break;
            }
            // The first keys first: under a causal mask they are the most work.
            let (part, i) = (i / heads, i % heads);
            // SAFETY: the caller guarantees the instruction set, and each part of a head is taken once.
            unsafe { self.unit::<S>(i / s.h_kv, i % s.h_kv, part) };
        }
    }
}

/// Some query heads of a unit, which go over its keys together, and their buffers; those of queries are one head after
/// the other.
struct Unit<'s> {
    b: usize,
    kv_head: usize,
    part: usize,
    heads: Range<usize>,
    /// Rows of a head's queries, padded.
    rows: usize,
    /// Queries and output gradients, packed.
    q: &'s mut [f32],
    grad: &'s mut [f32],
    /// Panels of the current block's keys and values.
    k: &'s mut [f32],
    v: &'s mut [f32],
    /// The current block's keys, and the current tile's queries and output gradients, row by row on whole cache lines.
    k_rows: &'s mut [f32],
    q_rows: &'s mut [f32],
    grad_rows: &'s mut [f32],
    /// Tiles: scores, then weights; products of gradient and value, then gradients of the scores.
    weights: &'s mut [f32],
    scores: &'s mut [f32],
    /// How much each score changes with its product, if there is a softcap.
    slopes: &'s mut [f32],
    /// Sums: for all queries, and for the current block's keys and values.
    dq: &'s mut [f32],
    dk: &'s mut [f32],
    dv: &'s mut [f32],
    /// The sums of the current head's bias, or nothing.
    sums: &'s mut [f32],
}

impl Worker<'_> {
    /// One part of the keys of one kv head.
    ///
    /// # Safety
    /// The machine has the instruction set of `S`, and no other thread has this part.
    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, b: usize, kv_head: usize, part: usize) {
        let s = self.p.sizes;
        let rows = s.tq.next_multiple_of(ROW_PAD);
        let (first, last) = (kv_head * s.group(), (kv_head + 1) * s.group());
        let most = (TOGETHER / (rows * s.d.max(s.dv))).clamp(1, s.group());
        let tile = ROWS * TILE_STRIDE;
        let mut scratch = Scratch::take();
        let needs = [
            most * rows * s.d,
            most * rows * s.dv,
            KEYS * s.d,
            KEYS * s.dv,
            KEYS * s.d,
            ROWS * s.d,
            ROWS * s.dv,
            tile,
            tile,
            if self.p.softcap.is_some() { tile } else { 0 },
            most * rows * s.d,
            KEY_ROWS * s.d,
            KEY_ROWS * s.dv,
        ];
        let [q, grad, k, v, k_rows, q_rows, grad_rows, weights, scores, slopes, dq, dk, dv] = scratch.split(needs);
        let mut unit = Unit {
            b,
            kv_head,
            part,
            heads: first..first,
            rows,
            q,
            grad,
            k,
            v,
            k_rows,
            q_rows,
            grad_rows,
            weights,
            scores,
            slopes,
            dq,
            dk,
            dv,
            sums: &mut [],
        };
        while unit.heads.end < last {
            unit.heads = unit.heads.end..last.min(unit.heads.end + most);
            // SAFETY: guaranteed by the caller.
            unsafe {
                self.pack::<S>(&mut unit);
                self.all_keys::<S>(&mut unit);
            }
            for (i, head) in unit.heads.clone().enumerate() {
                let at = (b * s.h + head) * parts(&s) + part;
                // SAFETY: this part of the queries' gradient is this unit's.
                let to = unsafe { self.out.q.part(at * s.tq * s.d, s.tq * s.d) };
                add(to, &unit.dq[i * rows * s.d..], self.p.scale);
            }
        }
    }

    /// Packs the heads' queries and output gradients, and clears their sums.
    #[inline(always)]
    unsafe fn pack<S: Simd>(&self, u: &mut Unit) {
        let s = self.p.sizes;
        for (i, head) in u.heads.clone().enumerate() {
            let (q, grad) = (&mut u.q[i * u.rows * s.d..], &mut u.grad[i * u.rows * s.dv..]);
            let q_rows = (0..s.tq).map(|t| self.inputs.q.row(u.b, head, t));
            let grad_rows = (0..s.tq).map(|t| self.saved.grad.row(u.b, head, t));
            // SAFETY: the caller guarantees the instruction set.
            unsafe {
                pack_rows::<S, f32>(q_rows, S::MR, s.d, self.p.q_factor(), q);
                pack_rows::<S, f32>(grad_rows, S::MR, s.dv, 1.0, grad);
            }
        }
        u.dq[..u.heads.len() * u.rows * s.d].fill(0.0);
    }

    /// The heads against all keys of the part.
    #[inline(always)]
    unsafe fn all_keys<'u, S: Simd>(&'u self, u: &mut Unit<'u>) {
        let s = self.p.sizes;
        let seen = self.p.seen_by_any(u.b, 0..s.tq);
        let share = s.tk.div_ceil(parts(&s)).next_multiple_of(KEYS);
        let range = (u.part * share).min(s.tk)..((u.part + 1) * share).min(s.tk);
        for k0 in range.clone().step_by(KEYS) {
            let block = k0..range.end.min(k0 + KEYS);
            u.dk.fill(0.0);
            u.dv.fill(0.0);
            if seen.start < block.end && block.start < seen.end {
                // SAFETY: the caller guarantees the instruction set.
                unsafe { self.key_block::<S>(u, block.clone()) };
            }
            let at = (u.b * s.h_kv + u.kv_head) * s.tk + block.start;
            // SAFETY: these keys of this head are this unit's.
            unsafe {
                add(self.out.k.part(at * s.d, block.len() * s.d), u.dk, self.p.scale);
                add(self.out.v.part(at * s.dv, block.len() * s.dv), u.dv, 1.0);
            }
        }
    }

    /// All queries of the heads against one block of keys.
    #[inline(always)]
    unsafe fn key_block<'u, S: Simd>(&'u self, u: &mut Unit<'u>, block: Range<usize>) {
        let s = self.p.sizes;
        for t in block.clone().step_by(S::NR) {
            let (n, at) = (S::NR.min(block.end - t), t - block.start);
            // SAFETY: panels of KEYS keys fit, and head dims are multiples of 16.
            unsafe {
                let place = |of: &View<f32>| {
                    let (start, stride) = of.tokens(u.b, u.kv_head, t);
                    (start.cast::<u8>(), stride * size_of::<f32>())
                };
                let (k, v) = (place(&self.inputs.k), place(&self.inputs.v));
                pack_panel::<S, f32>(k, n, s.d, u.k.as_mut_ptr().add(at * s.d));
                pack_panel::<S, f32>(v, n, s.dv, u.v.as_mut_ptr().add(at * s.dv));
            }
        }
        copy_rows(block.clone().map(|t| self.inputs.k.row(u.b, u.kv_head, t)), u.k_rows);
        for (i, head) in u.heads.clone().enumerate() {
            if let (Some(scores), n) = (&self.out.scores, self.p.score_sums()) {
                let at = (u.b * s.h + head) * parts(&s) + u.part;
                // SAFETY: this line is this unit's, and only one head's is in use.
                u.sums = unsafe { scores.part(at * n, n) };
            }
            for q0 in (0..s.tq).step_by(ROWS) {
                let queries = q0..s.tq.min(q0 + ROWS);
                let seen = self.p.seen_by_any(u.b, queries.clone());
                let keys = seen.start.max(block.start)..seen.end.min(block.end);
                if !keys.is_empty() {
                    // SAFETY: as above.
                    unsafe { self.tile::<S>(u, i, queries, block.start, keys) };
                }
            }
        }
    }

    /// One tile of head `i` of the unit's: recomputes its weights, and adds what it gives to every gradient.
    #[inline(always)]
    unsafe fn tile<S: Simd>(&self, u: &mut Unit, i: usize, queries: Range<usize>, k0: usize, keys: Range<usize>) {
        let s = self.p.sizes;
        let (head, first_row) = (u.heads.start + i, i * u.rows);
        let (from, to) = ((keys.start - k0) / S::NR * S::NR, (keys.end - k0).next_multiple_of(S::NR));
        let tile = Tile { head, first_row, queries: queries.clone(), k0, keys: keys.clone() };
        // SAFETY: panels from..to are packed; groups of MR rows are in the packed rows, padded, and in the tiles.
        unsafe {
            let mut matters = false;
            products::<S>(&tile, (from, to), s.d, (u.q, u.k), u.weights);
            for q in queries.clone() {
                matters |= self.scores::<S>(u, &tile, q);
            }
            if !matters {
                return;
            }
            products::<S>(&tile, (from, to), s.dv, (u.grad, u.v), u.scores);
            for q in queries.clone() {
                self.gradients::<S>(u, &tile, q);
            }
            let (weights, scores) = (u.weights.as_ptr(), u.scores.as_ptr());
            // dq += ds k
            let k = (u.k_rows[from * s.d..].as_ptr(), s.d);
            for row in queries.clone().step_by(S::MR) {
                let ds = scores.add((row - queries.start) * TILE_STRIDE + from);
                let dq = u.dq.as_mut_ptr().add((first_row + row) * s.d);
                S::accumulate((S::MR, s.d), keys.end - k0 - from, ds, k, (dq, s.d));
            }
            // dk += ds^T q and dv += p^T grad, a group of keys at a time; columns outside the tile are zero.
            copy_rows(queries.clone().map(|t| self.inputs.q.row(u.b, head, t)), u.q_rows);
            copy_rows(queries.clone().map(|t| self.saved.grad.row(u.b, head, t)), u.grad_rows);
            let (q, grad) = ((u.q_rows.as_ptr(), s.d), (u.grad_rows.as_ptr(), s.dv));
            for j in (from / S::MR * S::MR..keys.end - k0).step_by(S::MR) {
                let (dk, dv) = (u.dk.as_mut_ptr().add(j * s.d), u.dv.as_mut_ptr().add(j * s.dv));
                S::accumulate_transposed(s.d, queries.len(), scores.add(j), q, (dk, s.d));
                S::accumulate_transposed(s.dv, queries.len(), weights.add(j), grad, (dv, s.dv));
            }
        }
    }

    /// The columns that query `q` sees of a tile, and what its scores are relative to.
    fn seen(&self, u: &Unit, tile: &Tile, q: usize) -> (Range<usize>, f32) {
        let (seen, keys) = (self.p.seen(u.b, q), &tile.keys);
        let seen = seen.start.clamp(keys.start, keys.end) - tile.k0..seen.end.clamp(keys.start, keys.end) - tile.k0;
        let log_sum = self.saved.log_sums[(u.b * self.p.sizes.h + tile.head) * self.p.sizes.tq + q];
        // A row without any weight gets no gradient either.
        (seen, if log_sum == f32::NEG_INFINITY { f32::INFINITY } else { log_sum })
    }

    /// One row of a tile: products become scores. Returns whether any of them has a weight that can matter.
    #[inline(always)]
    unsafe fn scores<S: Simd>(&self, u: &mut Unit, tile: &Tile, q: usize) -> bool {
        let (seen, log_sum) = self.seen(u, tile, q);
        if seen.is_empty() {
            return false;
        }
        let cols = seen.start / S::LANES * S::LANES..seen.end;
        let line = tile.line(q);
        let mut computed = [0f32; KEYS];
        let bias = self.p.row_bias(u.b, tile.head, q);
        let bias = bias.on(tile.k0 + cols.start..tile.k0 + cols.end, &mut computed);
        let weights = &mut u.weights[line.clone()];
        // SAFETY: columns rounded up to whole vectors are within the line.
        unsafe {
            if let Some(cap) = self.p.softcap {
                cap_scores::<S>(weights.as_mut_ptr(), cols.clone(), cap);
                for (slope, score) in u.slopes[line].iter_mut().zip(&*weights) {
                    *slope = 1.0 - (score / (cap * LOG2E)).powi(2);
                }
            }
            let max = add_bias::<S>(weights.as_mut_ptr(), cols, tile.k0, bias);
            // Written so that a NaN counts as one that matters.
            let below = S::largest(max) - log_sum < NEGLIGIBLE;
            !below
        }
    }

    /// One row of a tile: scores become weights, products become gradients of the scores.
    #[inline(always)]
    unsafe fn gradients<S: Simd>(&self, u: &mut Unit, tile: &Tile, q: usize) {
        let (seen, log_sum) = self.seen(u, tile, q);
        let line = tile.line(q);
        let (weights, scores) = (&mut u.weights[line.clone()], &mut u.scores[line.clone()]);
        if !seen.is_empty() {
            let cols = seen.start / S::LANES * S::LANES..seen.end;
            let delta = self.saved.deltas[(u.b * self.p.sizes.h + tile.head) * self.p.sizes.tq + q];
            // SAFETY: columns rounded up to whole vectors are within the lines.
            unsafe {
                exp_and_gradient::<S>(weights.as_mut_ptr(), scores.as_mut_ptr(), cols, (log_sum, delta));
                if !u.sums.is_empty() {
                    let place = (u.b, tile.head, q);
                    self.p.add_score_gradients::<S>(u.sums, place, tile.k0 + seen.start, &scores[seen.clone()]);
                }
            }
            if self.p.softcap.is_some() {
                for (gradient, slope) in scores.iter_mut().zip(&u.slopes[line]) {
                    *gradient *= slope;
                }
            }
        }
        for line in [weights, scores] {
            line[..seen.start].fill(0.0);
            line[seen.end..].fill(0.0);
        }
    }
}

/// Some queries of one head, and some keys of the block that starts at `k0`.
struct Tile {
    head: usize,
    /// The head's first row among the unit's packed rows.
    first_row: usize,
    queries: Range<usize>,
    k0: usize,
    keys: Range<usize>,
}

impl Tile {
    /// Where the row of query `q` is in a tile of numbers.
    fn line(&self, q: usize) -> Range<usize> {
        let start = (q - self.queries.start) * TILE_STRIDE;
        start..start + KEY_ROWS
    }
}

/// Products of a tile's packed rows with the panels of the columns `from..to`, `depth` numbers each.
///
/// # Safety
/// The machine has the instruction set of `S`; panels and groups of `MR` rows are packed, and the tile has room for them.
#[inline(always)]
unsafe fn products<S: Simd>(
    tile: &Tile,
    (from, to): (usize, usize),
    depth: usize,
    (rows, panels): (&[f32], &[f32]),
    out: &mut [f32],
) {
    for col in (from..to).step_by(S::NR) {
        let cols = (tile.keys.end - tile.k0 - col).min(S::NR);
        for row in tile.queries.clone().step_by(S::MR) {
            let at = (row - tile.queries.start) * TILE_STRIDE + col;
            // SAFETY: guaranteed by the caller.
            unsafe {
                let packed = rows.as_ptr().add((tile.first_row + row) * depth);
                S::scores(cols, depth, packed, panels.as_ptr().add(col * depth), out.as_mut_ptr().add(at));
            }
        }
    }
}

/// Copies rows one after another.
fn copy_rows<'a>(rows: impl Iterator<Item = &'a [f32]>, to: &mut [f32]) {
    let mut rest = to;
    for row in rows {
        let (to, left) = rest.split_at_mut(row.len());
        to.copy_from_slice(row);
        rest = left;
    }
}

/// Adds sums, times `factor`, to what other heads left.
fn add(to: &mut [f32], sums: &[f32], factor: f32) {
    for (to, sum) in to.iter_mut().zip(sums) {
        *to += sum * factor;
    }
}
