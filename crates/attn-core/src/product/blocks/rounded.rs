//! Blocks times activations in 8 bits: sums of products of bytes, which one instruction adds up where f32 takes several.
//!
//! Every 32 activations share a scale, the largest of them over 127, so each is off by at most half of that. (llama.cpp's
//! scale for K-quants covers 256.) Offsets multiply sums of the activations before they are rounded.

use super::exact::{add_offsets, group_sums, total};
use super::formats::{Block, CHUNK, Groups, LINE, Numbers, blocks_of, unpack};
use super::{Format, Product, with_block};
use crate::simd::dots::{DotJob, Dots};
use crate::simd::{Job, Simd};
use std::hint::black_box;

/// Rows of activations in 8 bits.
pub(super) struct Activations {
    /// `(rows, padded)`, filled up with zeros to chunks.
    numbers: Vec<i8>,
    /// `(rows, padded / 16)`: the scale of the 16, the same for both halves of a line.
    scales: Vec<f32>,
    /// `(rows, padded / 4)`: -128 times what four numbers sum up to, for [`Dots`].
    shifts: Vec<i32>,
    /// As in the exact product.
    sums: Vec<f32>,
    rows: usize,
    padded: usize,
}

impl Activations {
    /// Rows of `depth` activations, of which there are whole lines, for weights in `format`.
    pub(super) fn new(xs: &[f32], depth: usize, format: Format) -> (Self, Vec<f32>) {
        let (rows, padded) = (xs.len() / depth, depth.next_multiple_of(CHUNK));
        let mut wide = vec![0.0; rows * padded];
        for (row, to) in xs.chunks_exact(depth).zip(wide.chunks_exact_mut(padded)) {
            to[..depth].copy_from_slice(row);
        }
        let sums = match format.has_offsets() {
            true => wide.chunks_exact(padded).flat_map(|row| group_sums(row, format.group()).flatten()).collect(),
            false => vec![],
        };
        let n = wide.len();
        let rounded =
            Self { numbers: vec![0; n], scales: vec![0.0; n / 16], shifts: vec![0; n / 4], sums, rows, padded };
        (rounded, wide)
    }
}

/// Rounds the activations.
pub(super) struct Round<'a> {
    pub(super) to: &'a mut Activations,
    pub(super) wide: &'a [f32],
}

impl Job for Round<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { to, wide } = self;
        let lines = wide.as_chunks::<LINE>().0.iter();
        let numbers = to.numbers.as_chunks_mut::<LINE>().0.iter_mut();
        let scales = to.scales.as_chunks_mut::<{ LINE / 16 }>().0.iter_mut();
        let shifts = to.shifts.as_chunks_mut::<{ LINE / 4 }>().0.iter_mut();
        for (((xs, numbers), scales), shifts) in lines.zip(numbers).zip(scales).zip(shifts) {
            *scales = [round(xs, numbers); LINE / 16];
            for (shift, numbers) in shifts.iter_mut().zip(numbers.as_chunks::<4>().0) {
                *shift = -128 * numbers.iter().map(|x| i32::from(*x)).sum::<i32>();
            }
        }
    }
}

/// Rounds a line and gives its scale, NaN if not all numbers are finite.
#[inline(always)]
fn round(xs: &[f32; LINE], to: &mut [i8; LINE]) -> f32 {
    let (mut largest, mut finite) = ([0f32; 8], [0f32; 8]);
    for xs in xs.as_chunks::<8>().0 {
        for ((largest, finite), x) in largest.iter_mut().zip(&mut finite).zip(xs) {
            *largest = largest.max(x.abs());
            // 0 times a number that is not finite is NaN.
            *finite += x * 0.0;
        }
    }
    let largest = largest.into_iter().fold(0f32, f32::max);
    let scale = largest / 127.0;
    let inverse = if scale > 0.0 { 127.0 / largest } else { 0.0 };
    for (to, x) in to.iter_mut().zip(xs) {
        // The nearest integer, in the lower bits of a number whose last place is 1.
        const ONES: f32 = 12_582_912.0;
        *to = (x * inverse + ONES).to_bits() as i8;
    }
    scale + finite.into_iter().sum::<f32>()
}

/// `ys[o][r]` for the outputs whose blocks are in `product.data`.
pub(super) struct Rounded<'a> {
    pub(super) activations: &'a Activations,
    pub(super) product: Product<'a>,
}

impl DotJob for Rounded<'_> {
    #[inline(always)]
    unsafe fn run<D: Dots>(self) {
        // SAFETY: by this function's contract.
        with_block!(self.product.format, B => unsafe { self.each::<D, B>() });
    }
}

impl Rounded<'_> {
    /// # Safety
    /// The machine has the instruction set of `D`.
    #[inline(always)]
    unsafe fn each<D: Dots, B: Block>(self) {
        let Self { activations, product } = self;
        let blocks = blocks_of::<B>(product.data);
        let outputs = blocks.chunks_exact(product.depth / B::WEIGHTS);
        for (blocks, ys) in outputs.zip(product.ys.chunks_exact_mut(activations.rows)) {
            for (i, ys) in ys.chunks_mut(4).enumerate() {
                // SAFETY: the instruction set is there; the activations have the rows from `4 * i` on.
                unsafe {
                    match ys.len() {
                        1 => tile::<D, B, 1>(activations, 4 * i, blocks, product.ahead, ys),
                        _ => tile::<D, B, 4>(activations, 4 * i, blocks, product.ahead, ys),
                    }
                }
            }
        }
    }
}

/// One output for `ys.len() <= M` rows of activations from `first` on; rows that are missing to `M` repeat the last.
///
/// # Safety
/// The machine has the instruction set of `D`, and the activations have these rows, as long as the blocks.
#[inline(always)]
unsafe fn tile<D: Dots, B: Block, const M: usize>(
    a: &Activations,
    first: usize,
    blocks: &[B],
    ahead: usize,
    ys: &mut [f32],
) {
    let rows: [usize; M] = std::array::from_fn(|m| first + m.min(ys.len() - 1));
    let (mut numbers, mut groups) = (Numbers::new(), Groups::new());
    let mut offsets = [[0f32; CHUNK / 16]; M];
    // SAFETY: the chunk is inside a row of `padded` activations; the caller guarantees the instruction set.
    unsafe {
        let mut sums = [[D::zero(); 2]; M];
        for (c, blocks) in blocks.chunks(CHUNK / B::WEIGHTS).enumerate() {
            unpack::<D::S, B>(blocks, ahead, &mut numbers, &mut groups);
            // Lines of a chunk that has an odd number of them come with a scale of 0.
            let lines = (blocks.len() * B::WEIGHTS / LINE).next_multiple_of(2);
            for ((row, sums), offsets) in rows.iter().zip(&mut sums).zip(&mut offsets) {
                let at = row * a.padded + c * CHUNK;
                add_lines::<D, B>(sums, (&numbers, &groups), lines, a, at);
                if B::OFFSETS {
                    add_offsets(offsets, &groups, &a.sums[at / 16..]);
                }
            }
        }
        for ((y, [even, odd]), offsets) in ys.iter_mut().zip(sums).zip(&offsets) {
            *y = D::sum(even, odd) + if B::OFFSETS { total::<D::S>(offsets) } else { 0.0 };
        }
    }
}

/// Adds the products of a chunk's lines with the activations from `at` on, even and odd lines apart.
///
/// # Safety
/// The machine has the instruction set of `D`, and a chunk of activations follows.
#[inline(always)]
unsafe fn add_lines<D: Dots, B: Block>(
    [even, odd]: &mut [D::V; 2],
    (numbers, groups): (&Numbers, &Groups),
    lines: usize,
    a: &Activations,
    at: usize,
) {
    let scales = scales_of::<B>(groups, &a.scales[at / 16..][..CHUNK / 16]);
    if B::GROUP == LINE && B::WEIGHTS == CHUNK {
        // One load spreads a scale that is in memory. Scales that come one by one are no vector there.
        black_box(&scales);
    }
    for (i, numbers) in numbers.0.iter().enumerate().take(lines) {
        let acc = if i % 2 == 0 { &mut *even } else { &mut *odd };
        let at = at + i * LINE;
        // SAFETY: a line of numbers, of activations and of their sums; the caller guarantees the instruction set.
        unsafe {
            let x = (a.numbers.as_ptr().add(at), a.shifts.as_ptr().add(at / 4));
            *acc = match B::GROUP {
                LINE => D::add_line(*acc, numbers.as_ptr(), x, B::SIGNED, scales[i]),
                _ => D::add_halves(*acc, numbers.as_ptr(), x, B::SIGNED, [scales[2 * i], scales[2 * i + 1]]),
            };
        }
    }
}

/// The scales of the weights' groups times those of the activations, of which there are two for each line.
#[inline(always)]
fn scales_of<B: Block>(groups: &Groups, xs: &[f32]) -> [f32; CHUNK / 16] {
    let mut scales = groups.scales;
    for (i, scale) in scales.iter_mut().enumerate().take(CHUNK / B::GROUP) {
        *scale *= xs[i * B::GROUP / 16];
    }
    scales
}
