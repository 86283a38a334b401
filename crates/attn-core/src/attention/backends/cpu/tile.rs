//! What happens to one tile of scores: packing the operands, bias and softcap, and a step of the online softmax.

use super::bias::{LOG2E, RowBias};
use crate::{
    attention::tokens::Format,
    simd::{Element, MOST_MR, Simd, TILE_STRIDE},
};
use std::ops::Range;

/// Rows of a score tile, a multiple of every path's `MR`.
pub(super) const ROWS: usize = 48;
/// Row counts are padded to a multiple of this: the least common multiple of the paths' `MR` and of 4.
pub(super) const ROW_PAD: usize = 12;
/// The reference point of a row's softmax moves only when a score exceeds it by this many factors of two, which saves
/// most of the rescaling of accumulators; weights stay below 2^8 and sums far below f32's limit.
const SLACK: f32 = 8.0;

/// Weights this many factors of two below a row's largest change nothing: 2^24 of them are below the rounding of its sum.
const NEGLIGIBLE: f32 = 60.0;

/// The running softmax of one query row.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowState {
    /// What scores are taken relative to: the row's largest score so far, or up to [`SLACK`] less.
    pub(super) max: f32,
    /// The sum of the weights, in as many parts as a vector has lanes.
    sums: [f32; 16],
}

impl RowState {
    pub(super) const EMPTY: Self = Self { max: f32::NEG_INFINITY, sums: [0.0; 16] };

    /// The sum of the weights.
    pub(super) fn sum(&self) -> f32 {
        self.sums.iter().sum()
    }
}

/// Packs rows `mr` at a time and transposed, as the score kernel reads its left side, times `factor`. `dst` has room for
/// a multiple of `mr` rows of `width`; missing rows are zero.
///
/// # Safety
/// The machine has the instruction set of `S`.
#[inline(always)]
pub(super) unsafe fn pack_rows<'a, S: Simd, T: Element>(
    mut rows: impl Iterator<Item = &'a [T]>,
    mr: usize,
    width: usize,
    factor: f32,
    dst: &mut [f32],
) {
    let (mut group, mut start): ([&[T]; MOST_MR], usize) = ([&[]; MOST_MR], 0);
    loop {
        let mut n = 0;
        while n < mr
            && let Some(row) = rows.next()
        {
            group[n] = &row[..width];
            n += 1;
        }
        if n == 0 {
            break;
        }
        // SAFETY: guaranteed by the caller.
        unsafe { pack_group::<S, T>(&group[..n], mr, width, factor, &mut dst[start..]) };
        start += mr * width;
    }
}

/// Packs up to `mr` rows to the start of `dst`; what is after them in `dst` may change.
///
/// # Safety
/// The machine has the instruction set of `S`.
#[inline(always)]
unsafe fn pack_group<S: Simd, T: Element>(rows: &[&[T]], mr: usize, width: usize, factor: f32, dst: &mut [f32]) {
    let (lanes, mut c) = (S::LANES, 0);
    if mr > 1 && mr <= lanes {
        let mut staged = [0f32; 256];
        // A transposition writes LANES numbers to each line of `mr`; the next line overwrites what is too much.
        while c + lanes <= width && (c + lanes - 1) * mr + lanes <= dst.len() {
            // SAFETY: LANES numbers from `c` are in every row, `staged` has room for LANES^2, and the last line ends in
            // `dst`.
            unsafe {
                for (i, row) in rows.iter().enumerate() {
                    let x = S::mul(T::load::<S>(row.as_ptr().add(c)), S::splat(factor));
                    S::store(staged.as_mut_ptr().add(i * lanes), x);
                }
                S::transpose(staged.as_ptr(), lanes, dst.as_mut_ptr().add(c * mr), mr);
            }
            c += lanes;
        }
    }
    for (c, line) in dst[..mr * width].chunks_exact_mut(mr).enumerate().skip(c) {
        for (i, x) in line.iter_mut().enumerate() {
            *x = rows.get(i).map_or(0.0, |row| row[c].widen() * factor);
        }
    }
}

/// Packs `n <= NR` tokens of `width` numbers, `stride` bytes apart, into a panel: `dst[c * NR + j]` is number `c` of token
/// `j`; missing tokens are zero.
///
/// # Safety
/// `src` holds `n` tokens; `dst` has room for `width` rounded up to 16, times `NR`.
#[inline(always)]
pub(super) unsafe fn pack_panel<S: Simd, F: Format>(
    (src, stride): (*const u8, usize),
    n: usize,
    width: usize,
    dst: *mut f32,
) {
    let lanes = S::LANES;
    let mut staged = [0f32; 256];
    for j in (0..S::NR).step_by(lanes) {
        for c in (0..width).step_by(lanes) {
            // SAFETY: whole blocks are read where they are; partial ones go through `staged`, which holds LANES^2
            // numbers. Rows c..c + LANES of the panel exist, as the caller guarantees.
            unsafe {
                let to = dst.add(c * S::NR + j);
                if F::IS_F32 && j + lanes <= n && c + lanes <= width {
                    S::transpose(src.add(j * stride).cast::<f32>().add(c), stride / size_of::<f32>(), to, S::NR);
                    continue;
                }
                let cols = lanes.min(width - c);
                for i in 0..lanes {
                    let line = &mut staged[i * lanes..(i + 1) * lanes];
                    if j + i < n {
                        widen::<S, F>(src.add((j + i) * stride), c..c + cols, line.as_mut_ptr());
                        line[cols..].fill(0.0);
                    } else {
                        line.fill(0.0);
                    }
                }
                S::transpose(staged.as_ptr(), lanes, to, S::NR);
            }
        }
    }
}

/// Copies numbers `range` of the token at `row` as f32; the first is a multiple of `LANES`.
///
/// # Safety
/// The token has these numbers, and as many are writable at `dst`.
#[inline(always)]
pub(super) unsafe fn widen<S: Simd, F: Format>(row: *const u8, range: Range<usize>, dst: *mut f32) {
    let mut c = range.start;
    // SAFETY: c + 2 LANES <= range.end, then c + LANES, then c < range.end.
    unsafe {
        while c.is_multiple_of(2 * S::LANES) && c + 2 * S::LANES <= range.end {
            let (first, second) = F::load_two::<S>(row, c);
            S::store(dst.add(c - range.start), first);
            S::store(dst.add(c - range.start + S::LANES), second);
            c += 2 * S::LANES;
        }
        while c + S::LANES <= range.end {
            S::store(dst.add(c - range.start), F::load::<S>(row, c));
            c += S::LANES;
        }
        while c < range.end {
            *dst.add(c - range.start) = F::number(row, c);
            c += 1;
        }
    }
}

/// tanh to 2 units in the last place: a ratio of polynomials, as in Eigen.
///
/// # Safety
/// The machine has the instruction set of `S`.
#[inline(always)]
pub(super) unsafe fn tanh<S: Simd>(x: S::V) -> S::V {
    const TOP: [f32; 7] =
        [4.893_524_6e-3, 6.372_619_3e-4, 1.485_722_4e-5, 5.122_297e-8, -8.604_672e-11, 2.000_188e-13, -2.760_768_5e-16];
    const BOTTOM: [f32; 4] = [4.893_525e-3, 2.268_434_6e-3, 1.185_347_1e-4, 1.198_258_4e-6];
    // SAFETY: arithmetic only.
    unsafe {
        let x = S::max(S::splat(-7.905_311), S::min(S::splat(7.905_311), x));
        let x2 = S::mul(x, x);
        let mut top = S::splat(TOP[6]);
        for c in TOP[..6].iter().rev() {
            top = S::fma(top, x2, S::splat(*c));
        }
        let mut bottom = S::splat(BOTTOM[3]);
        for c in BOTTOM[..3].iter().rev() {
            bottom = S::fma(bottom, x2, S::splat(*c));
        }
        S::div(S::mul(top, x), bottom)
    }
}

/// Caps the scores of `cols`, rounded up to whole vectors, which are products with queries times [`Problem::q_factor`].
///
/// [`Problem::q_factor`]: super::problem::Problem::q_factor
///
/// # Safety
/// `s` has room for `cols.end` rounded up to whole vectors from `cols.start`.
#[inline(always)]
pub(super) unsafe fn cap_scores<S: Simd>(s: *mut f32, cols: Range<usize>, cap: f32) {
    for c in cols.step_by(S::LANES) {
        // SAFETY: guaranteed by the caller.
        unsafe { S::store(s.add(c), S::mul(tanh::<S>(S::load(s.add(c))), S::splat(cap * LOG2E))) };
    }
}

/// Adds a row's bias to the scores of `cols`, rounded up to whole vectors, and returns the largest of each lane. Column `c`
/// is key `k0 + c`; no bias is read at or past `cols.end`.
///
/// # Safety
/// As [`cap_scores`].
#[inline(always)]
pub(super) unsafe fn add_bias<S: Simd>(s: *mut f32, cols: Range<usize>, k0: usize, bias: RowBias<'_>) -> S::V {
    let iota: [f32; 16] = std::array::from_fn(|i| i as f32);
    // SAFETY: columns are in bounds, as the caller guarantees, and values are checked against their slice.
    unsafe {
        let mut max = S::splat(f32::NEG_INFINITY);
        match bias {
            RowBias::None => {
                for c in cols.step_by(S::LANES) {
                    max = S::max(S::load(s.add(c)), max);
                }
            }
            RowBias::Ramp { slope, origin } => {
                let (iota, slope) = (S::load(iota.as_ptr()), S::splat(slope));
                for c in cols.step_by(S::LANES) {
                    // Distances are integers and exact, so far keys lose nothing to cancellation.
                    let distance = S::add(S::splat(((k0 + c) as i64 - origin) as f32), iota);
                    max = S::max(biased::<S>(s.add(c), slope, distance), max);
                }
            }
            RowBias::Values { values: [value], factor, .. } => {
                for c in cols.step_by(S::LANES) {
                    max = S::max(biased::<S>(s.add(c), S::splat(*value), S::splat(factor)), max);
                }
            }
            RowBias::Values { values, first, factor } => {
                let (values, s) = (&values[k0 + cols.start - first..k0 + cols.end - first], s.add(cols.start));
                let (whole, factor) = (values.len() / S::LANES * S::LANES, S::splat(factor));
                for c in (0..whole).step_by(S::LANES) {
                    max = S::max(biased::<S>(s.add(c), S::load(values.as_ptr().add(c)), factor), max);
                }
                if whole < values.len() {
                    let value = S::load_first(values.as_ptr().add(whole), values.len() - whole);
                    max = S::max(biased::<S>(s.add(whole), value, factor), max);
                }
            }
            RowBias::Difference { values, origin } => {
                let (values, s) = (&values[k0 + cols.start..k0 + cols.end], s.add(cols.start));
                let (whole, origin) = (values.len() / S::LANES * S::LANES, S::splat(origin));
                let factor = S::splat(LOG2E);
                for c in (0..whole).step_by(S::LANES) {
                    let value = S::sub(origin, S::load(values.as_ptr().add(c)));
                    max = S::max(biased::<S>(s.add(c), value, factor), max);
                }
                if whole < values.len() {
                    let value = S::load_first(values.as_ptr().add(whole), values.len() - whole);
                    max = S::max(biased::<S>(s.add(whole), S::sub(origin, value), factor), max);
                }
            }
            RowBias::Line { values, first, slope, start } => {
                let (values, s) = (&values[k0 + cols.start - first..k0 + cols.end - first], s.add(cols.start));
                let (whole, slope) = (values.len() / S::LANES * S::LANES, S::splat(slope));
                let start = S::splat(start);
                for c in (0..whole).step_by(S::LANES) {
                    let value = S::fma(slope, S::load(values.as_ptr().add(c)), start);
                    max = S::max(plus::<S>(s.add(c), value), max);
                }
                if whole < values.len() {
                    let value = S::load_first(values.as_ptr().add(whole), values.len() - whole);
                    max = S::max(plus::<S>(s.add(whole), S::fma(slope, value, start)), max);
                }
            }
            RowBias::Computed(_) => unreachable!("a bias that is computed is made into values first"),
        }
        max
    }
}

/// Adds `a * b` to the scores at `s`, and returns them.
///
/// # Safety
/// A vector of scores is at `s`.
#[inline(always)]
unsafe fn biased<S: Simd>(s: *mut f32, a: S::V, b: S::V) -> S::V {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let sum = S::fma(a, b, S::load(s));
        S::store(s, sum);
        sum
    }
}

/// Adds `a` to the scores at `s`, and returns them.
///
/// # Safety
/// As [`biased`].
#[inline(always)]
unsafe fn plus<S: Simd>(s: *mut f32, a: S::V) -> S::V {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let sum = S::add(a, S::load(s));
        S::store(s, sum);
        sum
    }
}

/// One step of a row's softmax: products in columns `seen` become scores and then weights, every other column up to
/// `width` becomes zero. Column 0 is key `k0`. Returns what the row's accumulators have to be multiplied by, and whether any
/// of the weights can matter.
///
/// # Safety
/// `s` has room for `width`, a multiple of `LANES`; `seen` lies within.
#[inline(always)]
pub(super) unsafe fn softmax_step<S: Simd>(
    s: *mut f32,
    (k0, seen, width): (usize, Range<usize>, usize),
    softcap: Option<f32>,
    bias: RowBias<'_>,
    row: &mut RowState,
) -> (f32, bool) {
    if seen.is_empty() {
        // SAFETY: guaranteed by the caller.
        unsafe { std::slice::from_raw_parts_mut(s, width) }.fill(0.0);
        return (1.0, false);
    }
    let cols = seen.start / S::LANES * S::LANES..seen.end.next_multiple_of(S::LANES);
    // SAFETY: `s` holds `width` numbers, of which `cols` are whole vectors; sums have room for a vector.
    unsafe {
        if let Some(cap) = softcap {
            cap_scores::<S>(s, cols.clone(), cap);
        }
        if seen != (0..width) {
            hide(std::slice::from_raw_parts_mut(s, width), &seen, &cols);
        }
        // Without a bias scores are hardly ever so far below the others that a weight is too small for f32's normal form.
        let plain = matches!(bias, RowBias::None);
        let max = add_bias::<S>(s, cols.start..seen.end, k0, bias);
        let mut factor = 1.0;
        let sums = row.sums.as_mut_ptr();
        if S::any_above(max, S::splat(row.max + SLACK)) {
            let max = S::largest(max);
            if row.max != f32::NEG_INFINITY {
                factor = (row.max - max).exp2();
            }
            rescale::<S>(sums, S::LANES, factor);
            row.max = max;
        }
        let reference = S::splat(if row.max == f32::NEG_INFINITY { 0.0 } else { row.max });
        if plain {
            weigh::<S, false>(s, cols, reference, sums);
        } else {
            weigh::<S, true>(s, cols, reference, sums);
        }
        (factor, S::any_above(max, S::splat(row.max - NEGLIGIBLE)))
    }
}

/// Sets the columns that aren't `seen` to zero, or to minus infinity where they are among `cols`, which become weights.
fn hide(line: &mut [f32], seen: &Range<usize>, cols: &Range<usize>) {
    line[..cols.start].fill(0.0);
    line[cols.start..seen.start].fill(f32::NEG_INFINITY);
    line[seen.end..cols.end].fill(f32::NEG_INFINITY);
    line[cols.end..].fill(0.0);
}

/// Turns the scores of `cols` into weights relative to `reference`, and adds them to the sums of the lanes. With `CUT`,
/// weights below 2^-100 become zero.
///
/// # Safety
/// As [`cap_scores`]; a vector of sums is at `sums`.
#[inline(always)]
unsafe fn weigh<S: Simd, const CUT: bool>(s: *mut f32, cols: Range<usize>, reference: S::V, sums: *mut f32) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let mut sum = S::load(sums);
        for c in cols.step_by(S::LANES) {
            let exponent = S::sub(S::load(s.add(c)), reference);
            let weight = if CUT { S::exp2_cut(exponent) } else { S::exp2(exponent) };
            S::store(s.add(c), weight);
            sum = S::add(sum, weight);
        }
        S::store(sums, sum);
    }
}

/// For the backward pass: turns scores `s` into weights and `g`, products of the output's gradient with values, into
/// gradients of the scores. Works on whole vectors from `cols.start`.
///
/// # Safety
/// `s` and `g` have room for `cols.end` rounded up to whole vectors from `cols.start`.
#[inline(always)]
pub(super) unsafe fn exp_and_gradient<S: Simd>(
    s: *mut f32,
    g: *mut f32,
    cols: Range<usize>,
    (log_sum, delta): (f32, f32),
) {
    for c in cols.step_by(S::LANES) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            let weight = S::exp2_cut(S::sub(S::load(s.add(c)), S::splat(log_sum)));
            let gradient = S::mul(weight, S::sub(S::load(g.add(c)), S::splat(delta)));
            S::store(s.add(c), weight);
            S::store(g.add(c), gradient);
        }
    }
}

/// Multiplies `n` numbers, a multiple of `LANES`.
///
/// # Safety
/// `p` has room for `n`.
#[inline(always)]
pub(super) unsafe fn rescale<S: Simd>(p: *mut f32, n: usize, factor: f32) {
    for c in (0..n).step_by(S::LANES) {
        // SAFETY: c + LANES <= n.
        unsafe { S::store(p.add(c), S::mul(S::load(p.add(c)), S::splat(factor))) }
    }
}

/// Scores of `R` query rows, in plain order, with `n` keys where they lie: what decoding does, where packing keys that
/// are used once would cost more than it saves.
///
/// Strides are in bytes. Meanwhile the keys that come next and the tokens of the values, of `width` bytes, are
/// prefetched: by itself the machine prefetches only one stream, and only up to the end of a page.
///
/// # Safety
/// `q` holds `R` rows of `q_stride >= d`, `k` holds `n` tokens, and a tile of `R` rows starts at `s`.
#[inline(always)]
pub(super) unsafe fn direct_scores<S: Simd, F: Format, const R: usize>(
    q: (*const f32, usize),
    k: (*const u8, usize, usize),
    v: (*const u8, usize, usize),
    n: usize,
    d: usize,
    s: *mut f32,
) {
    let mut j = 0;
    // SAFETY: guaranteed by the caller; four keys from `j` on, or one, are among the `n`.
    unsafe {
        // Where there are registers for their products with all rows.
        while (S::LANES != 8 || R <= 2) && j + 4 <= n {
            direct_keys::<S, F, R, 4>(q, k, v, j, d, s);
            j += 4;
        }
        while j < n {
            direct_keys::<S, F, R, 1>(q, k, v, j, d, s);
            j += 1;
        }
    }
}

/// [`direct_scores`] of `J` keys from key `j` on.
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn direct_keys<S: Simd, F: Format, const R: usize, const J: usize>(
    (q, q_stride): (*const f32, usize),
    (k, k_stride, k_width): (*const u8, usize, usize),
    (v, v_stride, v_width): (*const u8, usize, usize),
    j: usize,
    d: usize,
    s: *mut f32,
) {
    /// How many tokens ahead keys are prefetched.
    const AHEAD: usize = 32;
    /// Bytes of a cache line.
    const LINE: usize = 64;
    // SAFETY: tokens j..j + J, numbers below d, and columns j..j + J of each row are in bounds.
    unsafe {
        let mut keys = [k; J];
        for (i, key) in keys.iter_mut().enumerate() {
            *key = k.add((j + i) * k_stride);
            for c in (0..k_width).step_by(LINE) {
                S::prefetch(key.wrapping_add(AHEAD * k_stride + c));
            }
            for c in (0..v_width).step_by(LINE) {
                S::prefetch(v.wrapping_add((j + i) * v_stride + c));
            }
        }
        let mut acc = [[S::splat(0.0); J]; R];
        let mut c = 0;
        while c + 2 * S::LANES <= d {
            for (j, key) in keys.iter().enumerate() {
                let (first, second) = F::load_two::<S>(*key, c);
                for (i, acc) in acc.iter_mut().enumerate() {
                    let q = q.add(i * q_stride + c);
                    acc[j] = S::fma(S::load(q), first, acc[j]);
                    acc[j] = S::fma(S::load(q.add(S::LANES)), second, acc[j]);
                }
            }
            c += 2 * S::LANES;
        }
        if c + S::LANES <= d {
            for (j, key) in keys.iter().enumerate() {
                let key = F::load::<S>(*key, c);
                for (i, acc) in acc.iter_mut().enumerate() {
                    acc[j] = S::fma(S::load(q.add(i * q_stride + c)), key, acc[j]);
                }
            }
            c += S::LANES;
        }
        for (i, acc) in acc.iter().enumerate() {
            let to = s.add(i * TILE_STRIDE + j);
            match acc.as_chunks::<4>().0 {
                [acc] => to.cast::<[f32; 4]>().write_unaligned(S::sums(*acc)),
                _ => {
                    for (j, acc) in acc.iter().enumerate() {
                        *to.add(j) = S::sum(*acc);
                    }
                }
            }
            for (j, key) in keys.iter().enumerate() {
                for c in c..d {
                    *to.add(j) += *q.add(i * q_stride + c) * F::number(*key, c);
                }
            }
        }
    }
}

/// One query row of a block of work.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) head: usize,
    pub(super) q: usize,
    pub(super) seen: Range<usize>,
}
