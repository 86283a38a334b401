//! One unit of the forward pass: a block of queries goes over its keys, tile by tile, with a running softmax.

use super::{
    bias::{Bias, RowBias},
    output::part_len,
    problem::Problem,
    skip::{RowBound, visit, without_negligible},
    task::Task,
    tile::{ROW_PAD, ROWS, Row, RowState, direct_scores, pack_panel, pack_rows, rescale, softmax_step, widen},
    unit::Unit,
};
use crate::{
    attention::{
        tokens::{Format, Tokens, with_format},
        view::Inputs,
    },
    simd::{Element, Job, Scratch, Simd, TILE_STRIDE},
    stored::CacheType,
};
use std::{marker::PhantomData, ops::Range};

/// Keys per tile: with 48 rows, the scores, a panel and a few columns of values share the first-level cache.
const KEYS: usize = 128;
/// Up to this many rows, keys are used where they lie instead of being packed.
const DIRECT_ROWS: usize = 8;

/// A unit in progress.
struct Work<'a, 's, T> {
    task: &'a Task<'a, T>,
    p: &'a Problem<'a>,
    inputs: &'a Inputs<'a, T>,
    unit: &'a Unit,
    rows: Vec<Row>,
    states: Vec<RowState>,
    bounds: Vec<RowBound>,
    direct: bool,
    /// dv rounded up to whole vectors: the width of the accumulators.
    wide: usize,
    /// The queries, packed; in plain order if `direct`.
    q: &'s mut [f32],
    /// Panels of keys of the current block, and which of them are packed.
    k: &'s mut [f32],
    packed: u64,
    copied: u64,
    copies_v: bool,
    /// Panels of `NR` columns of the current block's values, unless they are used where they lie.
    v: &'s mut [f32],
    s: &'s mut [f32],
    acc: &'s mut [f32],
}

/// Where the values of some keys are: panels of `width` columns, whose rows are `stride` apart.
struct Values {
    start: *const f32,
    stride: usize,
    width: usize,
    /// Numbers from a panel to the next.
    panel: usize,
}

/// Computes a unit and writes its result.
///
/// # Safety
/// The machine has the instruction set of `S`, and no other thread writes the unit's rows or part.
#[inline(always)]
pub(super) unsafe fn run_unit<S: Simd, T: Element>(task: &Task<T>, unit: &Unit) {
    let (p, inputs) = (task.p, &task.inputs);
    let sizes = p.sizes;
    let n = sizes.group() * unit.queries.len();
    let padded = n.next_multiple_of(ROW_PAD);
    let (wide, deep) = (sizes.dv.next_multiple_of(S::LANES), sizes.d.next_multiple_of(16));
    let direct = n <= DIRECT_ROWS;
    // Candle's buffers are aligned to 16 bytes, so what many rows read is copied to whole cache lines.
    let copies_v = !direct || inputs.v.kind != CacheType::F32 || wide != sizes.dv;
    let needs = [
        padded * sizes.d,
        if direct { 0 } else { KEYS * deep },
        if copies_v { KEYS * wide.next_multiple_of(S::NR) } else { 0 },
        ROWS * TILE_STRIDE,
        padded * wide,
    ];
    // No closure from here on: code in closures is not compiled for the instruction set.
    let mut scratch = Scratch::take();
    let [q, k, v, s, acc] = scratch.split(needs);
    let rows = unit.rows(p);
    let query = |row: &Row| inputs.q.row(unit.b, row.head, row.q);
    let group = if direct { 1 } else { S::MR };
    // SAFETY: the caller guarantees the instruction set.
    unsafe { pack_rows::<S, T>(rows.iter().map(query), group, sizes.d, p.q_factor(), q) };
    acc.fill(0.0);
    let bounds = task.skip.iter().flat_map(|skip| rows.iter().map(|row| skip.row(p, inputs, unit.b, row))).collect();
    let states = vec![RowState::EMPTY; n];
    let (packed, copied) = (0, 0);
    let mut work =
        Work { task, p, inputs, unit, rows, states, bounds, direct, wide, q, k, packed, copied, copies_v, v, s, acc };
    // SAFETY: the caller guarantees the instruction set.
    unsafe { work.all_keys::<S>() };
    // SAFETY: guaranteed by the caller.
    unsafe { work.finish() };
}

impl<T: Element> Work<'_, '_, T> {
    #[inline(always)]
    unsafe fn all_keys<S: Simd>(&mut self) {
        let mut blocks = self.unit.blocks_of_rows(&self.rows, ROWS);
        for k0 in self.unit.blocks_of_keys(self.p, KEYS) {
            (self.packed, self.copied) = (0, 0);
            let mut any = false;
            for rows in &mut blocks {
                let mut keys = rows.keys.start.max(k0)..rows.keys.end.min(k0 + KEYS);
                any |= !rows.keys.is_empty();
                if let (false, Some(skip)) = (keys.is_empty(), &self.task.skip) {
                    let norms = skip.norms(self.unit.b, self.unit.kv_head, self.p.sizes.h_kv);
                    keys = without_negligible(norms, &self.bounds, |i| self.states[i].max, rows, keys);
                }
                if !keys.is_empty() {
                    // SAFETY: the caller guarantees the instruction set.
                    unsafe { self.tile::<S>(rows.range.clone(), k0, keys) };
                }
            }
            if !any {
                break;
            }
        }
    }

    /// One tile: rows `range` of the unit and `keys` of the block that starts at `k0`.
    #[inline(always)]
    unsafe fn tile<S: Simd>(&mut self, range: Range<usize>, k0: usize, keys: Range<usize>) {
        visit();
        let panels = (keys.start - k0) / S::NR..(keys.end - k0).div_ceil(S::NR);
        // Columns of the tile that hold scores.
        let (from, to) = (panels.start * S::NR, panels.end * S::NR);
        // SAFETY: panels and rows lie within the tile, which has ROWS rows and KEYS columns.
        unsafe {
            if self.direct {
                self.direct_tile::<S>(range.clone(), k0 + from, keys.end, from);
            } else {
                self.packed_tile::<S>(range.clone(), k0, panels, keys.end);
            }
        }
        let (mut computed, mut matters, plain) = ([0f32; KEYS], false, matches!(self.p.bias, Bias::None));
        for (line, i) in range.clone().enumerate() {
            let row = &self.rows[i];
            let seen = row.seen.start.clamp(keys.start, keys.end) - k0..row.seen.end.clamp(keys.start, keys.end) - k0;
            // SAFETY: line < ROWS, and columns from..to are within the tile; so are the accumulators of row i.
            unsafe {
                let s = self.s.as_mut_ptr().add(line * TILE_STRIDE + from);
                let cols = (k0 + from, seen.start - from..seen.end - from, to - from);
                let bias = match plain {
                    true => RowBias::None,
                    false => self.p.row_bias(self.unit.b, row.head, row.q).on(k0 + from..keys.end, &mut computed),
                };
                let (factor, some) = softmax_step::<S>(s, cols, self.p.softcap, bias, &mut self.states[i]);
                matters |= some;
                if factor != 1.0 {
                    rescale::<S>(self.acc.as_mut_ptr().add(i * self.wide), self.wide, factor);
                }
            }
        }
        if !matters {
            return;
        }
        // SAFETY: the keys exist; padding rows exist in tile and accumulators.
        unsafe {
            // Columns before the first key that is seen are zeros.
            let first = keys.start - k0;
            let values = self.values::<S>(k0, first, keys.end);
            let step = if self.direct { 4 } else { S::MR };
            // A panel of the values at a time stays in the first-level cache for all rows.
            for (panel, col) in (0..self.wide).step_by(values.width).enumerate() {
                let cols = (self.wide - col).min(values.width);
                let v = (values.start.add(panel * values.panel), values.stride);
                for i in range.clone().step_by(step) {
                    let rows = if self.direct { (range.end - i).min(4) } else { S::MR };
                    let weights = self.s.as_ptr().add((i - range.start) * TILE_STRIDE + first);
                    let acc = self.acc.as_mut_ptr().add(i * self.wide + col);
                    S::accumulate((rows, cols), keys.len(), weights, v, (acc, self.wide));
                }
            }
        }
    }

    /// Scores of the rows with the panels up to key `end`; panels are packed when first needed.
    #[inline(always)]
    unsafe fn packed_tile<S: Simd>(&mut self, range: Range<usize>, k0: usize, panels: Range<usize>, end: usize) {
        let sizes = self.p.sizes;
        let panel_len = sizes.d.next_multiple_of(16) * S::NR;
        for panel in panels {
            // SAFETY: the panel has room in `k`; groups of MR rows have room in `q` and in the tile.
            unsafe {
                let packed = self.k.as_mut_ptr().add(panel * panel_len);
                if self.packed & (1 << panel) == 0 {
                    self.packed |= 1 << panel;
                    let t = k0 + panel * S::NR;
                    let keys = self.inputs.k.at(self.unit.b, self.unit.kv_head, t);
                    let n = S::NR.min(sizes.tk - t);
                    S::apart(PackPanel { kind: self.inputs.k.kind, from: keys, n, width: sizes.d, to: packed });
                }
                let cols = (end - (k0 + panel * S::NR)).min(S::NR);
                for i in range.clone().step_by(S::MR) {
                    let q = self.q.as_ptr().add(i * sizes.d);
                    let s = self.s.as_mut_ptr().add((i - range.start) * TILE_STRIDE + panel * S::NR);
                    S::scores(cols, sizes.d, q, packed, s);
                }
            }
        }
    }

    /// Scores of a few rows with keys where they lie, from column `col` on.
    #[inline(always)]
    unsafe fn direct_tile<S: Simd>(&mut self, range: Range<usize>, start: usize, end: usize, col: usize) {
        let (b, head, d) = (self.unit.b, self.unit.kv_head, self.p.sizes.d);
        let next = |tokens: &Tokens| {
            let (row, stride) = tokens.at(b, head, start);
            (row, stride, tokens.bytes)
        };
        let (k, v) = (next(&self.inputs.k), next(&self.inputs.v));
        for i in range.clone().step_by(4) {
            // SAFETY: keys start..end exist, and so do rows i.. of `q` and of the tile.
            unsafe {
                let q = (self.q.as_ptr().add(i * d), d);
                let s = self.s.as_mut_ptr().add((i - range.start) * TILE_STRIDE + col);
                let (kind, rows, n) = (self.inputs.k.kind, range.end - i, end - start);
                S::apart(DirectScores { kind, rows, q, k, v, n, d, s });
            }
        }
    }

    /// The values from key `k0 + from` up to `end` as rows of f32: where they lie, or copied to panels.
    #[inline(always)]
    unsafe fn values<S: Simd>(&mut self, k0: usize, from: usize, end: usize) -> Values {
        let (b, head, sizes) = (self.unit.b, self.unit.kv_head, self.p.sizes);
        if !self.copies_v {
            let (v, stride) = self.inputs.v.at(b, head, k0 + from);
            return Values { start: v.cast(), stride: stride / size_of::<f32>(), width: self.wide, panel: 0 };
        }
        let panel_len = KEYS * S::NR;
        for panel in from / S::NR..(end - k0).div_ceil(S::NR) {
            if self.copied & (1 << panel) != 0 {
                continue;
            }
            self.copied |= 1 << panel;
            let tokens = panel * S::NR..((panel + 1) * S::NR).min(sizes.tk - k0);
            let from = self.inputs.v.at(b, head, k0 + tokens.start);
            let to = &mut self.v[..];
            // SAFETY: these tokens exist, and the panels have their lines.
            unsafe { S::apart(CopyValues { kind: self.inputs.v.kind, from, tokens, width: sizes.dv, to }) };
        }
        Values { start: self.v[from * S::NR..].as_ptr(), stride: S::NR, width: S::NR, panel: panel_len }
    }

    /// Writes the rows, or the part that they make up.
    ///
    /// # Safety
    /// No other thread writes them.
    #[inline(always)]
    unsafe fn finish(&self) {
        let (output, parts) = (&self.task.output, &self.task.parts);
        let dv = self.p.sizes.dv;
        let part_len = part_len(self.p, self.unit.queries.len());
        for (i, (row, state)) in self.rows.iter().zip(&self.states).enumerate() {
            let acc = &self.acc[i * self.wide..][..dv];
            // SAFETY: guaranteed by the caller.
            unsafe {
                match self.unit.part {
                    None => output.put(self.p, (self.unit.b, row.head, row.q), acc, state.max, state.sum()),
                    Some(part) => {
                        let line = parts.part(part * part_len + i * (dv + 2), dv + 2);
                        line[..dv].copy_from_slice(acc);
                        line[dv..].copy_from_slice(&[state.max, state.sum()]);
                    }
                }
            }
        }
    }
}

/// Scores of up to four rows with `n` keys where they lie, see [`direct_scores`].
struct DirectScores {
    kind: CacheType,
    rows: usize,
    q: (*const f32, usize),
    k: (*const u8, usize, usize),
    v: (*const u8, usize, usize),
    n: usize,
    d: usize,
    s: *mut f32,
}

impl Job for DirectScores {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the maker of the job guarantees that its places are valid, and calls it with the instruction set.
        unsafe { with_format!(self.kind, F => S::apart(OfFormat::<F, _>(self, PhantomData))) }
    }
}

/// A job on tokens of one format.
struct OfFormat<F, J>(J, PhantomData<F>);

impl<F: Format> Job for OfFormat<F, DirectScores> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let DirectScores { rows, q, k, v, n, d, s, .. } = self.0;
        // SAFETY: as above.
        unsafe {
            match rows {
                1 => direct_scores::<S, F, 1>(q, k, v, n, d, s),
                2 => direct_scores::<S, F, 2>(q, k, v, n, d, s),
                3 => direct_scores::<S, F, 3>(q, k, v, n, d, s),
                _ => direct_scores::<S, F, 4>(q, k, v, n, d, s),
            }
        }
    }
}

/// A panel of keys to be packed, see [`pack_panel`].
struct PackPanel {
    kind: CacheType,
    from: (*const u8, usize),
    n: usize,
    width: usize,
    to: *mut f32,
}

impl Job for PackPanel {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { kind, from, n, width, to } = self;
        // SAFETY: the maker of the job guarantees that its places are valid, and calls it with the instruction set.
        unsafe { with_format!(kind, F => pack_panel::<S, F>(from, n, width, to)) }
    }
}

/// Values, `stride` bytes apart, to be copied to the lines `tokens` of their panels.
struct CopyValues<'a> {
    kind: CacheType,
    from: (*const u8, usize),
    tokens: Range<usize>,
    width: usize,
    to: &'a mut [f32],
}

impl Job for CopyValues<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the maker of the job guarantees that its places are valid, and calls it with the instruction set.
        unsafe { with_format!(self.kind, F => self.copy::<S, F>()) }
    }
}

impl CopyValues<'_> {
    #[inline(always)]
    unsafe fn copy<S: Simd, F: Format>(self) {
        let (row, stride) = self.from;
        for (i, t) in self.tokens.enumerate() {
            for (c, panel) in (0..self.width).step_by(S::NR).zip(self.to.chunks_exact_mut(KEYS * S::NR)) {
                let (line, end) = (&mut panel[t * S::NR..(t + 1) * S::NR], self.width.min(c + S::NR));
                // SAFETY: the token has `width` numbers, and the line room for NR.
                unsafe { widen::<S, F>(row.add(i * stride), c..end, line.as_mut_ptr()) };
                line[end - c..].fill(0.0);
            }
        }
    }
}
