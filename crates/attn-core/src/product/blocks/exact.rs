//! Blocks times f32 activations: the numbers are widened in registers, so nothing is rounded but the sums.

use super::formats::{Block, CHUNK, Groups, LINE, Numbers, blocks_of, unpack};
use super::{Format, Product, with_block};
use crate::simd::{Job, Simd};
use std::hint::black_box;

/// Rows of f32 activations.
pub(super) struct Activations {
    /// `(rows, padded)`, filled up with zeros to pairs of lines.
    xs: Vec<f32>,
    /// `(rows, chunks, CHUNK / 16)`: what the activations of every group sum up to.
    sums: Vec<f32>,
    rows: usize,
    padded: usize,
}

/// What the numbers of every group of `group` sum up to, [`CHUNK`]` / 16` sums for each chunk of a row.
pub(super) fn group_sums(row: &[f32], group: usize) -> impl Iterator<Item = [f32; CHUNK / 16]> {
    row.chunks(CHUNK).map(move |xs| {
        let mut sums = [0.0; CHUNK / 16];
        for (sum, xs) in sums.iter_mut().zip(xs.chunks_exact(group)) {
            let mut lanes = [0f32; 8];
            for xs in xs.as_chunks::<8>().0 {
                for (lane, x) in lanes.iter_mut().zip(xs) {
                    *lane += x;
                }
            }
            *sum = lanes.iter().sum();
        }
        sums
    })
}

/// What the offsets of a row's groups add up to.
///
/// # Safety
/// The machine has the instruction set of `S`.
#[inline(always)]
pub(super) unsafe fn total<S: Simd>(offsets: &[f32; CHUNK / 16]) -> f32 {
    // SAFETY: LANES divides their number; the caller guarantees the instruction set.
    unsafe {
        let mut sum = S::load(offsets.as_ptr());
        for i in (S::LANES..offsets.len()).step_by(S::LANES) {
            sum = S::add(sum, S::load(offsets.as_ptr().add(i)));
        }
        S::sum(sum)
    }
}

impl Activations {
    /// Rows of `depth` activations for weights in `format`.
    pub(super) fn new(xs: &[f32], depth: usize, format: Format) -> Self {
        let padded = depth.next_multiple_of(2 * LINE);
        let rows = xs.len() / depth;
        let (mut wide, mut sums) = (vec![0.0; rows * padded], vec![]);
        for (row, to) in xs.chunks_exact(depth).zip(wide.chunks_exact_mut(padded)) {
            to[..depth].copy_from_slice(row);
            if format.has_offsets() {
                sums.extend(group_sums(row, format.group()).flatten());
            }
        }
        Self { xs: wide, sums, rows, padded }
    }
}

/// `ys[o][r]` for the outputs whose blocks are in `product.data`.
pub(super) struct Exact<'a> {
    pub(super) activations: &'a Activations,
    pub(super) product: Product<'a>,
}

impl Job for Exact<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: by this function's contract.
        with_block!(self.product.format, B => unsafe { self.each::<S, B>() });
    }
}

impl Exact<'_> {
    /// # Safety
    /// The machine has the instruction set of `S`.
    #[inline(always)]
    unsafe fn each<S: Simd, B: Block>(self) {
        let Self { activations, product } = self;
        let blocks = blocks_of::<B>(product.data);
        let outputs = blocks.chunks_exact(product.depth / B::WEIGHTS);
        for (blocks, ys) in outputs.zip(product.ys.chunks_exact_mut(activations.rows)) {
            for (i, ys) in ys.chunks_mut(4).enumerate() {
                // SAFETY: the instruction set is there; the activations have the rows from `4 * i` on.
                unsafe {
                    match ys.len() {
                        1 => tile::<S, B, 1>(activations, 4 * i, blocks, product.ahead, ys),
                        _ => tile::<S, B, 4>(activations, 4 * i, blocks, product.ahead, ys),
                    }
                }
            }
        }
    }
}

/// One output for `ys.len() <= M` rows of activations from `first` on; rows that are missing to `M` repeat the last.
///
/// # Safety
/// The machine has the instruction set of `S`, and the activations have these rows, as long as the blocks.
#[inline(always)]
unsafe fn tile<S: Simd, B: Block, const M: usize>(
    a: &Activations,
    first: usize,
    blocks: &[B],
    ahead: usize,
    ys: &mut [f32],
) {
    let rows: [usize; M] = std::array::from_fn(|m| first + m.min(ys.len() - 1));
    let (mut numbers, mut groups) = (Numbers::new(), Groups::new());
    let mut offsets = [[0f32; CHUNK / 16]; M];
    // SAFETY: numbers and activations are read up to the padded end of a row, as the chunk has pairs of lines.
    unsafe {
        let mut even = [S::splat(0.0); M];
        let mut odd = [S::splat(0.0); M];
        for (c, blocks) in blocks.chunks(CHUNK / B::WEIGHTS).enumerate() {
            unpack::<S, B>(blocks, ahead, &mut numbers, &mut groups);
            // One load widens numbers, or broadcasts a scale, that are in memory. Taking them out of registers, where
            // the compiler would keep them, needs more instructions on the busiest port.
            black_box((&mut numbers, &mut groups));
            let xs: [*const f32; M] = std::array::from_fn(|m| a.xs.as_ptr().add(rows[m] * a.padded + c * CHUNK));
            let count = (blocks.len() * B::WEIGHTS).next_multiple_of(2 * LINE) / B::GROUP;
            for g in (0..count).step_by(2) {
                add_group::<S, B, M>(&mut even, &numbers, &groups, g, xs);
                add_group::<S, B, M>(&mut odd, &numbers, &groups, g + 1, xs);
            }
            // This comes last, when the offsets have reached the cache: they are written one by one and read as whole
            // vectors, and an earlier read would have to wait.
            for (to, row) in offsets.iter_mut().zip(rows).take(if B::OFFSETS { M } else { 0 }) {
                add_offsets(to, &groups, &a.sums[(row * a.padded.div_ceil(CHUNK) + c) * CHUNK / 16..]);
            }
        }
        for (m, y) in ys.iter_mut().enumerate() {
            *y = S::sum(S::add(even[m], odd[m])) + if B::OFFSETS { total::<S>(&offsets[m]) } else { 0.0 };
        }
    }
}

/// Adds the offset of every group of a chunk, times the sum of its activations.
#[inline(always)]
pub(super) fn add_offsets(to: &mut [f32; CHUNK / 16], groups: &Groups, sums: &[f32]) {
    for ((to, offset), sum) in to.iter_mut().zip(&groups.offsets).zip(&sums[..CHUNK / 16]) {
        *to += offset * sum;
    }
}

/// Adds the products of one group of numbers with each row.
///
/// # Safety
/// The machine has the instruction set of `S`; the chunk's activations are at `xs`.
#[inline(always)]
unsafe fn add_group<S: Simd, B: Block, const M: usize>(
    acc: &mut [S::V; M],
    numbers: &Numbers,
    groups: &Groups,
    group: usize,
    xs: [*const f32; M],
) {
    let start = group * B::GROUP;
    // SAFETY: the numbers and activations from `start` on are there; the caller guarantees the instruction set.
    unsafe {
        let numbers = numbers.0.as_ptr().cast::<u8>().add(start);
        let first = S::load_i8(numbers);
        let mut dots: [S::V; M] = std::array::from_fn(|m| S::mul(S::load(xs[m].add(start)), first));
        for k in (S::LANES..B::GROUP).step_by(S::LANES) {
            let more = S::load_i8(numbers.add(k));
            for (dot, x) in dots.iter_mut().zip(xs) {
                *dot = S::fma(S::load(x.add(start + k)), more, *dot);
            }
        }
        let scale = S::splat(groups.scales[group]);
        for (acc, dot) in acc.iter_mut().zip(dots) {
            *acc = S::fma(dot, scale, *acc);
        }
    }
}
