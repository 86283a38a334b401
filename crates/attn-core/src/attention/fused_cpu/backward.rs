//! Gradients of q, k, v and the relative table from recomputed tiles: no `(tq, tk)` tensor, only the log of each row's sum
//! is kept.
//!
//! With weights `p`, the gradient of a score is `p * (dp - delta)`, where `dp` is the product of the output's gradient
//! with the value and `delta` that of the gradient with the output. A unit is one query head of one batch row with one
//! half of the keys, so that it owns its part of every gradient; what the halves add to the same query, and the query
//! heads of a group to a shared key, is summed afterwards, in order.

use super::{
    forward::{Shared, on_threads},
    problem::{Inputs, LOG2E, Problem, RowBias, View},
    scratch::Scratch,
    simd::{Job, Simd, TILE_STRIDE, dispatch},
    tile::{ROW_PAD, ROWS, exp_and_gradient, finish_scores, pack_panel, pack_rows},
};
use crate::attention::KernelPath;
use std::{
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
};

/// Keys of a block, as in the forward pass: two tiles of scores stay close.
const KEYS: usize = 128;
/// The same, rounded up to whole groups of rows.
const KEY_ROWS: usize = KEYS.next_multiple_of(ROW_PAD);
/// Into how many parts the keys of a head are cut, so that few heads keep the threads equally busy.
pub(super) const PARTS: usize = 2;

/// What the backward pass has besides the inputs.
pub(super) struct Saved<'a> {
    /// The output and its gradient, `(b, h, tq, dv)`.
    pub(super) out: View<'a, f32>,
    pub(super) grad: View<'a, f32>,
    /// log2 of each row's sum of weights, `(b, h, tq)`.
    pub(super) log_sums: &'a [f32],
}

/// Where the gradients go.
pub(super) struct Gradients {
    /// `(b, h, PARTS, tq, d)`
    pub(super) q: Shared<f32>,
    /// `(b, h, tk, d)` and `(b, h, tk, dv)`, per query head.
    pub(super) k: Shared<f32>,
    pub(super) v: Shared<f32>,
    /// `(b, h, PARTS, columns)` of a relative table, if its gradient is asked for.
    pub(super) table: Option<Shared<f32>>,
}

struct Worker<'a> {
    p: &'a Problem<'a>,
    inputs: Inputs<'a, f32>,
    saved: &'a Saved<'a>,
    out: &'a Gradients,
    next: &'a AtomicUsize,
}

/// Computes the gradients. Head dims are multiples of 16.
pub(super) fn backward(path: KernelPath, p: &Problem, inputs: Inputs<'_, f32>, saved: &Saved, out: &Gradients) {
    let next = AtomicUsize::new(0);
    on_threads(p.sizes.b * p.sizes.h * PARTS, || dispatch(path, Worker { p, inputs, saved, out, next: &next }));
}

impl Job for Worker<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let s = self.p.sizes;
        loop {
            let i = self.next.fetch_add(1, Ordering::Relaxed);
            let heads = s.b * s.h;
            if i >= heads * PARTS {
                break;
            }
            // The first keys first: under a causal mask they are the most work.
            let (part, i) = (i / heads, i % heads);
            // SAFETY: the instruction set is there by the caller's word, and each part of a head is taken once.
            unsafe { self.head::<S>(i / s.h, i % s.h, part) };
        }
    }
}

/// One head's buffers.
struct Head<'s> {
    b: usize,
    head: usize,
    /// Queries and output gradients, packed.
    q: &'s mut [f32],
    grad: &'s mut [f32],
    /// Panels of the current block's keys and values.
    k: &'s mut [f32],
    v: &'s mut [f32],
    /// Tiles: scores, then weights; products of gradient and value, then gradients of the scores.
    weights: &'s mut [f32],
    scores: &'s mut [f32],
    /// The product of the output and its gradient in each row.
    deltas: &'s mut [f32],
    /// Sums: for all queries, and for the current block's keys and values.
    dq: &'s mut [f32],
    dk: &'s mut [f32],
    dv: &'s mut [f32],
    /// The gradient of the head's relative table, or nothing.
    table: &'s mut [f32],
}

impl Worker<'_> {
    #[inline(always)]
    unsafe fn head<S: Simd>(&self, b: usize, head: usize, part: usize) {
        let s = self.p.sizes;
        let rows = s.tq.next_multiple_of(ROW_PAD);
        let tile = ROWS * TILE_STRIDE;
        let mut scratch = Scratch::take();
        let needs = [
            rows * s.d,
            rows * s.dv,
            KEYS * s.d,
            KEYS * s.dv,
            tile,
            tile,
            rows * s.d,
            KEY_ROWS * s.d,
            KEY_ROWS * s.dv,
            s.tq,
        ];
        let [q, grad, k, v, weights, scores, dq, dk, dv, deltas] = scratch.split(needs);
        pack_rows((0..s.tq).map(|t| self.inputs.q.row(b, head, t)), S::MR, s.d, self.p.q_factor(), q);
        pack_rows((0..s.tq).map(|t| self.saved.grad.row(b, head, t)), S::MR, s.dv, 1.0, grad);
        for (t, delta) in deltas.iter_mut().enumerate() {
            let (out, grad) = (self.saved.out.row(b, head, t), self.saved.grad.row(b, head, t));
            // SAFETY: rows are as long, and a multiple of 16.
            *delta = unsafe { dot::<S>(out, grad) };
        }
        dq.fill(0.0);
        let unit = (b * s.h + head) * PARTS + part;
        let table = match (&self.out.table, self.p.columns()) {
            // SAFETY: this part of the table's gradient is this unit's.
            (Some(table), columns) => unsafe { table.part(unit * columns, columns) },
            _ => &mut [],
        };
        let mut h = Head { b, head, q, grad, k, v, weights, scores, deltas, dq, dk, dv, table };
        let keys = self.p.seen_by_any(b, 0..s.tq);
        let half = s.tk.div_ceil(PARTS).next_multiple_of(KEYS);
        let range = (part * half).min(s.tk)..((part + 1) * half).min(s.tk);
        for k0 in range.clone().step_by(KEYS) {
            let block = k0..range.end.min(k0 + KEYS);
            h.dk.fill(0.0);
            h.dv.fill(0.0);
            if keys.start < block.end && block.start < keys.end {
                // SAFETY: the instruction set is there by the caller's word.
                unsafe { self.key_block::<S>(&mut h, block.clone()) };
            }
            let at = (b * s.h + head) * s.tk + block.start;
            // SAFETY: these keys of this head are this unit's.
            unsafe {
                put(self.out.k.part(at * s.d, block.len() * s.d), h.dk, self.p.scale);
                put(self.out.v.part(at * s.dv, block.len() * s.dv), h.dv, 1.0);
            }
        }
        // SAFETY: this part of the queries' gradient is this unit's.
        unsafe { put(self.out.q.part(unit * s.tq * s.d, s.tq * s.d), h.dq, self.p.scale) };
    }

    /// All queries against one block of keys.
    #[inline(always)]
    unsafe fn key_block<S: Simd>(&self, h: &mut Head, block: Range<usize>) {
        let s = self.p.sizes;
        let kv_head = h.head / s.group();
        for t in block.clone().step_by(S::NR) {
            let (n, at) = (S::NR.min(block.end - t), t - block.start);
            // SAFETY: panels of KEYS keys fit, and head dims are multiples of 16.
            unsafe {
                let (k, v) = (self.inputs.k.tokens(h.b, kv_head, t), self.inputs.v.tokens(h.b, kv_head, t));
                pack_panel::<S, f32>(k, n, s.d, h.k.as_mut_ptr().add(at * s.d));
                pack_panel::<S, f32>(v, n, s.dv, h.v.as_mut_ptr().add(at * s.dv));
            }
        }
        for q0 in (0..s.tq).step_by(ROWS) {
            let queries = q0..s.tq.min(q0 + ROWS);
            let seen = self.p.seen_by_any(h.b, queries.clone());
            let keys = seen.start.max(block.start)..seen.end.min(block.end);
            if !keys.is_empty() {
                // SAFETY: as above.
                unsafe { self.tile::<S>(h, queries, block.start, keys) };
            }
        }
    }

    /// One tile: recomputes its weights, and adds what it gives to every gradient.
    #[inline(always)]
    unsafe fn tile<S: Simd>(&self, h: &mut Head, queries: Range<usize>, k0: usize, keys: Range<usize>) {
        let s = self.p.sizes;
        let kv_head = h.head / s.group();
        let (from, to) = ((keys.start - k0) / S::NR * S::NR, (keys.end - k0).next_multiple_of(S::NR));
        // SAFETY: panels from..to are packed; groups of MR rows are in the packed rows, padded, and in the tiles.
        unsafe {
            for col in (from..to).step_by(S::NR) {
                for i in queries.clone().step_by(S::MR) {
                    let at = (i - queries.start) * TILE_STRIDE + col;
                    let (q, grad) = (h.q.as_ptr().add(i * s.d), h.grad.as_ptr().add(i * s.dv));
                    S::scores(s.d, q, h.k.as_ptr().add(col * s.d), h.weights.as_mut_ptr().add(at));
                    S::scores(s.dv, grad, h.v.as_ptr().add(col * s.dv), h.scores.as_mut_ptr().add(at));
                }
            }
            for q in queries.clone() {
                self.row::<S>(h, q, queries.start, k0, keys.clone());
            }
            let (weights, scores) = (h.weights.as_ptr(), h.scores.as_ptr());
            // dq += ds k
            let k = self.inputs.k.tokens(h.b, kv_head, k0 + from);
            for i in queries.clone().step_by(S::MR) {
                let ds = scores.add((i - queries.start) * TILE_STRIDE + from);
                S::accumulate((S::MR, s.d), keys.end - k0 - from, ds, k, (h.dq.as_mut_ptr().add(i * s.d), s.d));
            }
            // dk += ds^T q and dv += p^T grad, a group of keys at a time; columns outside the tile are zero.
            let (q, grad) =
                (self.inputs.q.tokens(h.b, h.head, queries.start), self.saved.grad.tokens(h.b, h.head, queries.start));
            for j in (from / S::MR * S::MR..keys.end - k0).step_by(S::MR) {
                let (dk, dv) = (h.dk.as_mut_ptr().add(j * s.d), h.dv.as_mut_ptr().add(j * s.dv));
                S::accumulate_transposed(s.d, queries.len(), scores.add(j), q, (dk, s.d));
                S::accumulate_transposed(s.dv, queries.len(), weights.add(j), grad, (dv, s.dv));
            }
        }
    }

    /// One row of a tile: scores become weights, products become gradients of the scores.
    #[inline(always)]
    unsafe fn row<S: Simd>(&self, h: &mut Head, q: usize, first: usize, k0: usize, keys: Range<usize>) {
        let seen = self.p.seen(h.b, q);
        let seen = seen.start.clamp(keys.start, keys.end) - k0..seen.end.clamp(keys.start, keys.end) - k0;
        let line = (q - first) * TILE_STRIDE;
        let (weights, scores) = (&mut h.weights[line..line + TILE_STRIDE], &mut h.scores[line..line + TILE_STRIDE]);
        if !seen.is_empty() {
            let cols = seen.start / S::LANES * S::LANES..seen.end;
            let at = (h.b * self.p.sizes.h + h.head) * self.p.sizes.tq + q;
            let (log_sum, delta) = (self.saved.log_sums[at], h.deltas[q]);
            let bias = self.p.row_bias(h.b, h.head, q);
            let mut slopes = None;
            // SAFETY: columns rounded up to whole vectors are within the lines.
            unsafe {
                let w = weights.as_mut_ptr();
                if let Some(cap) = self.p.softcap {
                    finish_scores::<S>(w, cols.clone(), k0, Some(cap), RowBias::None);
                    let slope = |c: usize| 1.0 - (weights[c] / (cap * LOG2E)).powi(2);
                    slopes = Some(std::array::from_fn::<f32, TILE_STRIDE, _>(slope));
                }
                let w = weights.as_mut_ptr();
                finish_scores::<S>(w, cols.clone(), k0, None, bias);
                exp_and_gradient::<S>(w, scores.as_mut_ptr(), cols, (log_sum, delta));
            }
            if !h.table.is_empty() {
                let at = self.p.distance(q) + k0 + seen.start;
                for (sum, gradient) in h.table[at..].iter_mut().zip(&scores[seen.clone()]) {
                    *sum += gradient;
                }
            }
            if let Some(slopes) = &slopes {
                for (gradient, slope) in scores.iter_mut().zip(slopes) {
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

/// The product of two rows.
///
/// # Safety
/// They are as long as each other, and a multiple of `LANES`.
#[inline(always)]
unsafe fn dot<S: Simd>(a: &[f32], b: &[f32]) -> f32 {
    // SAFETY: c + LANES is within both.
    unsafe {
        let mut sum = S::splat(0.0);
        for c in (0..a.len()).step_by(S::LANES) {
            sum = S::fma(S::load(a.as_ptr().add(c)), S::load(b.as_ptr().add(c)), sum);
        }
        S::sum(sum)
    }
}

/// Writes sums, times `factor`.
fn put(to: &mut [f32], sums: &[f32], factor: f32) {
    for (to, sum) in to.iter_mut().zip(sums) {
        *to = sum * factor;
    }
}
