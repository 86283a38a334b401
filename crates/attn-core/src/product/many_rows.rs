//! f32 products of many rows, on the micro-kernel of the attention scores: 12 rows by 32 outputs in registers.
//!
//! A task packs the weights of a few outputs once, inputs outermost, and streams packed rows past them. Sums run over the
//! inputs in order, so a result depends neither on the number of threads nor on the other rows.

use super::target::Target;
use crate::attention::KernelPath;
use crate::attention::fused_cpu::simd::{Job, Simd, TILE_STRIDE, dispatch};
use rayon::prelude::*;

/// Rows per task, a multiple of every path's `MR`: enough to make packing the weights cheap.
const ROWS: usize = 384;
/// The most rows of a micro-kernel.
const MOST_ROWS: usize = 16;

/// The path of this machine on which the kernel is faster than Candle's product.
pub(super) fn path() -> Option<KernelPath> {
    let path = KernelPath::choose(None).ok()?;
    matches!(path, KernelPath::Amx | KernelPath::Avx512Bf16 | KernelPath::Avx512).then_some(path)
}

/// `ys[r][o] = sum_k xs[r][k] * w[o][k]` for `(rows, depth, out)`.
pub(super) fn product(path: KernelPath, xs: &[f32], w: &[f32], size: (usize, usize, usize)) -> Vec<f32> {
    let (rows, depth, out) = size;
    assert!(depth > 0 && xs.len() == rows * depth && w.len() == out * depth);
    let mut ys = vec![0f32; rows * out];
    let mut shape = (1, 1);
    dispatch(path, Shape { shape: &mut shape });
    let (mr, nr) = shape;
    let mut packed = vec![0f32; rows.next_multiple_of(mr) * depth];
    packed
        .par_chunks_mut(mr * depth)
        .zip(xs.par_chunks(mr * depth))
        .for_each(|(block, xs)| interleave(xs, depth, mr, block));
    let target = Target::of(&mut ys);
    let (panels, parts) = (out.div_ceil(nr), rows.div_ceil(ROWS));
    (0..panels * parts).into_par_iter().for_each_init(Vec::new, |panel, task| {
        let (first, from) = (task % panels * nr, task / panels * ROWS);
        let cols = nr.min(out - first);
        let blocks = &packed[from * depth..packed.len().min((from + ROWS) * depth)];
        let w = &w[first * depth..(first + cols) * depth];
        dispatch(path, Panel { blocks, w, panel, depth, rows: from..rows, first, out, target: &target });
    });
    ys
}

/// Up to `mr` rows into a block of zeros, the rows innermost.
fn interleave(xs: &[f32], depth: usize, mr: usize, block: &mut [f32]) {
    for (i, row) in xs.chunks_exact(depth).enumerate() {
        for (x, slot) in row.iter().zip(block[i..].iter_mut().step_by(mr)) {
            *slot = *x;
        }
    }
}

/// Asks a path for the size of its micro-kernel.
struct Shape<'a> {
    shape: &'a mut (usize, usize),
}

impl Job for Shape<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        *self.shape = (S::MR, S::NR);
    }
}

/// Some rows against the weights of up to `NR` outputs.
struct Panel<'a> {
    /// Blocks of `MR` rows, rows innermost.
    blocks: &'a [f32],
    /// `(outputs, depth)`
    w: &'a [f32],
    /// Room for the packed weights.
    panel: &'a mut Vec<f32>,
    depth: usize,
    /// From the first row of the blocks to the last that there is.
    rows: std::ops::Range<usize>,
    first: usize,
    out: usize,
    target: &'a Target<'a, f32>,
}

impl Job for Panel<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { blocks, w, panel, depth, rows, first, out, target } = self;
        let cols = w.len() / depth;
        // SAFETY: the machine has the instruction set by this function's contract.
        unsafe { pack::<S>(w, depth, panel) };
        assert!(S::MR <= MOST_ROWS && blocks.len().is_multiple_of(S::MR * depth) && panel.len() == depth * S::NR);
        let mut tile = [0f32; MOST_ROWS * TILE_STRIDE];
        for (i, block) in blocks.chunks_exact(S::MR * depth).enumerate() {
            // SAFETY: the block holds MR rows, the panel NR outputs of `depth`, the tile MR rows of TILE_STRIDE >= NR.
            unsafe { S::scores(depth, block.as_ptr(), panel.as_ptr(), tile.as_mut_ptr()) };
            let from = rows.start + i * S::MR;
            for (row, sums) in (from..rows.end).zip(tile.chunks_exact(TILE_STRIDE)).take(S::MR) {
                // SAFETY: row < rows and first + cols <= out; no other task has these rows and outputs.
                unsafe { target.slice(row * out + first, cols) }.copy_from_slice(&sums[..cols]);
            }
        }
    }
}

/// Weights `(up to NR, depth)` with the outputs innermost, missing ones zero.
///
/// # Safety
/// The machine has the instruction set of `S`.
#[inline(always)]
unsafe fn pack<S: Simd>(w: &[f32], depth: usize, panel: &mut Vec<f32>) {
    panel.clear();
    panel.resize(depth * S::NR, 0.0);
    let (cols, whole) = (w.len() / depth, depth / S::LANES * S::LANES);
    let mut col = 0;
    while col < cols {
        let n = if cols - col >= S::LANES { S::LANES } else { 1 };
        let from = if n == 1 { 0 } else { whole };
        for k in (0..from).step_by(S::LANES) {
            // SAFETY: LANES outputs from `col` and LANES inputs from `k` are inside both.
            unsafe {
                S::transpose(w.as_ptr().add(col * depth + k), depth, panel.as_mut_ptr().add(k * S::NR + col), S::NR);
            }
        }
        for j in col..col + n {
            for k in from..depth {
                panel[k * S::NR + j] = w[j * depth + k];
            }
        }
        col += n;
    }
}
