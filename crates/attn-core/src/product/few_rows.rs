//! Products of a few rows: bound by reading the weights, so every core reads its share of them once, and weights in half
//! precision are widened in registers.

use crate::parallel::{Disjoint, waiting};
use crate::simd::KernelPath;
use crate::simd::is_amd;
use crate::simd::{Element, Job, Simd, dispatch};
use std::ops::Range;

/// Outputs handed out at a time.
const GROUP: usize = 8;

/// Rows of weights that one row of inputs is multiplied with side by side. On AMD (Zen 4 and 5) it is one, because a
/// core prefetches a single stream of addresses best; on Intel (Sapphire Rapids) four share the loads of the inputs.
fn side_by_side() -> usize {
    if is_amd() { 1 } else { 4 }
}

/// How many bytes ahead of `rows` rows of weights, read side by side, memory is prefetched: at the rows that come after
/// these, and at least a page further. By itself the machine prefetches one stream of addresses up to the end of a
/// page, but not several in turn; a single stream is better left to it. Long rows are streams of their own.
fn ahead(rows: usize, row_bytes: usize) -> Option<usize> {
    (rows > 1).then(|| (rows * row_bytes).clamp(1 << 12, 1 << 15))
}

/// `ys[r][o] = sum_k xs[r][k] * w[o][k]` for `(rows, depth, out)`.
///
/// Runs on threads that stay awake, because a product of one token takes tens of microseconds, as long as waking a
/// thread.
pub(super) fn product<E: Element + Sync>(xs: &[f32], w: &[E], (rows, depth, out): (usize, usize, usize)) -> Vec<f32> {
    assert!(depth > 0 && xs.len() == rows * depth && w.len() == out * depth);
    let path = KernelPath::choose(None).unwrap_or(KernelPath::Portable);
    let mut ordered = vec![];
    if E::IN_TURN {
        ordered.resize(xs.len(), 0.0);
        dispatch(path, EvenThenOdd { xs, depth, to: &mut ordered });
    }
    let xs = if E::IN_TURN { &ordered } else { xs };
    columns((rows, out), |outs, target| {
        // SAFETY: the target is zeroed, and every range of outputs is handed out once.
        let ys = unsafe { target.part(outs.start * rows, outs.len() * rows) };
        dispatch(path, Rows { xs, w: &w[outs.start * depth..outs.end * depth], depth, ys });
    })
}

/// Sums `(rows, out)` that `fill` computes for disjoint ranges of outputs, on every core, as `(out, rows)`.
pub(super) fn columns((rows, out): (usize, usize), fill: impl Fn(Range<usize>, &Disjoint<'_, f32>) + Sync) -> Vec<f32> {
    let target = Disjoint::zeroed(out * rows);
    waiting::chunked(out.div_ceil(GROUP), |groups| {
        fill(groups.start * GROUP..out.min(groups.end * GROUP), &target);
    });
    // SAFETY: all were there from the start.
    let columns = unsafe { target.finish() };
    if rows == 1 {
        return columns;
    }
    let mut ys = vec![0f32; rows * out];
    for (o, column) in columns.chunks_exact(rows).enumerate() {
        for (r, y) in column.iter().enumerate() {
            ys[r * out + o] = *y;
        }
    }
    ys
}

/// Rows of inputs in the order of [`Element::load_two`]: of every two vectors, the even numbers and then the odd ones.
struct EvenThenOdd<'a> {
    xs: &'a [f32],
    depth: usize,
    to: &'a mut [f32],
}

impl Job for EvenThenOdd<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for (xs, to) in self.xs.chunks_exact(self.depth).zip(self.to.chunks_exact_mut(self.depth)) {
            let (mut xs, mut to) = (xs.chunks_exact(2 * S::LANES), to.chunks_exact_mut(2 * S::LANES));
            for (xs, to) in xs.by_ref().zip(to.by_ref()) {
                let (even, odd) = to.split_at_mut(S::LANES);
                for ((pair, even), odd) in xs.as_chunks::<2>().0.iter().zip(even).zip(odd) {
                    (*even, *odd) = (pair[0], pair[1]);
                }
            }
            to.into_remainder().copy_from_slice(xs.remainder());
        }
    }
}

/// `ys[o][r]` for the outputs whose weights are in `w`.
struct Rows<'a, E> {
    xs: &'a [f32],
    w: &'a [E],
    depth: usize,
    ys: &'a mut [f32],
}

impl<E: Element> Job for Rows<'_, E> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { xs, w, depth, ys } = self;
        let rows = xs.len() / depth;
        let outs = w.len() / depth;
        let together = if rows == 1 { side_by_side() } else { 4 };
        let mut o = 0;
        while o < outs {
            let n = if outs - o >= together { together } else { 1 };
            let mut r = 0;
            while r < rows {
                let m = if rows - r >= 4 { 4 } else { 1 };
                let (x, w) = (&xs[r * depth..(r + m) * depth], &w[o * depth..(o + n) * depth]);
                // SAFETY: the machine has the instruction set by this function's contract; the slices hold m and n whole
                // rows of `depth`.
                unsafe {
                    match (m, n) {
                        (1, 4) => block::<S, E, 1, 4>(x, w, depth, &mut ys[o * rows + r..], rows),
                        (4, 4) => block::<S, E, 4, 4>(x, w, depth, &mut ys[o * rows + r..], rows),
                        (4, _) => block::<S, E, 4, 1>(x, w, depth, &mut ys[o * rows + r..], rows),
                        _ => block::<S, E, 1, 1>(x, w, depth, &mut ys[o * rows + r..], rows),
                    }
                }
                r += m;
            }
            o += n;
        }
    }
}

/// `M` rows by `N` outputs, all accumulators in registers; with one row, two of each, so that the loop is not bound by the
/// latency of its additions.
///
/// # Safety
/// The machine has the instruction set of `S`; `xs` holds `M` and `w` holds `N` rows of `depth`.
#[inline(always)]
unsafe fn block<S: Simd, E: Element, const M: usize, const N: usize>(
    xs: &[f32],
    w: &[E],
    depth: usize,
    ys: &mut [f32],
    stride: usize,
) {
    let whole = depth / S::LANES * S::LANES;
    let ahead = ahead(N, size_of_val(&w[..depth]));
    // SAFETY: every load is of LANES elements at k <= whole - LANES within a row of `depth`, or of twice as many, by the
    // contract above.
    let mut sums = unsafe {
        let mut acc = [[S::splat(0.0); N]; M];
        let mut odd = [[S::splat(0.0); N]; M];
        let mut k = 0;
        while k + 2 * S::LANES <= whole {
            for n in 0..N {
                let at = w.as_ptr().add(n * depth + k);
                if let Some(ahead) = ahead {
                    let next = at.cast::<u8>().wrapping_add(ahead);
                    S::prefetch(next);
                    if size_of::<E>() * S::LANES >= 64 {
                        S::prefetch(next.wrapping_add(64));
                    }
                }
                let (a, b) = E::load_two::<S>(at);
                for (m, (acc, odd)) in acc.iter_mut().zip(&mut odd).enumerate() {
                    let x = xs.as_ptr().add(m * depth + k);
                    acc[n] = S::fma(S::load(x), a, acc[n]);
                    // More rows have sums enough to keep the machine busy, and no registers to spare.
                    let second = if M == 1 { &mut odd[n] } else { &mut acc[n] };
                    *second = S::fma(S::load(x.add(S::LANES)), b, *second);
                }
            }
            k += 2 * S::LANES;
        }
        if k < whole {
            for n in 0..N {
                let weight = E::load::<S>(w.as_ptr().add(n * depth + k));
                for (m, acc) in acc.iter_mut().enumerate() {
                    acc[n] = S::fma(S::load(xs.as_ptr().add(m * depth + k)), weight, acc[n]);
                }
            }
        }
        let mut sums = [[0f32; N]; M];
        for m in 0..M {
            for n in 0..N {
                sums[m][n] = S::sum(S::add(acc[m][n], odd[m][n]));
            }
        }
        sums
    };
    for k in whole..depth {
        for (m, sums) in sums.iter_mut().enumerate() {
            for (n, sum) in sums.iter_mut().enumerate() {
                *sum += xs[m * depth + k] * w[n * depth + k].widen();
            }
        }
    }
    for (m, sums) in sums.iter().enumerate() {
        for (n, sum) in sums.iter().enumerate() {
            ys[n * stride + m] = *sum;
        }
    }
}
