//! f32 products of many rows, on the micro-kernel of the attention scores.
//!
//! A task packs the weights of a few outputs once, inputs outermost, and streams packed rows past them. Sums run over the
//! inputs in order, so a result depends neither on the number of threads nor on the other rows.

use crate::parallel::Disjoint;
use crate::parallel::filled;
use crate::simd::KernelPath;
use crate::simd::{Job, MOST_MR, Simd, TILE_STRIDE, dispatch};
use rayon::prelude::*;

/// Most rows per task, a multiple of every path's `MR`: enough to make packing the weights cheap.
const ROWS: usize = 768;
/// Tasks per thread that are wanted, so that no thread is left waiting for long.
const TASKS: usize = 4;

/// The path of this machine on which the kernel is faster than Candle's product.
pub(super) fn path() -> Option<KernelPath> {
    let path = KernelPath::choose(None).ok()?;
    matches!(path, KernelPath::Amx | KernelPath::Avx512Bf16 | KernelPath::Avx512).then_some(path)
}

/// `ys[r][o] = sum_k xs[r][k] * w[o][k]` for `(rows, depth, out)`.
pub(super) fn product(path: KernelPath, xs: &[f32], w: &[f32], size: (usize, usize, usize)) -> Vec<f32> {
    let (rows, depth, out) = size;
    assert!(depth > 0 && xs.len() == rows * depth && w.len() == out * depth);
    let mut shape = (1, 1);
    dispatch(path, Shape { shape: &mut shape });
    let (mr, nr) = shape;
    let packed = interleaved(path, xs, depth, mr);
    let target = Disjoint::unwritten(rows * out);
    let panels = out.div_ceil(nr);
    let part = rows_per_task(rows, mr, panels, rayon::current_num_threads());
    (0..panels * rows.div_ceil(part)).into_par_iter().for_each_init(Vec::new, |panel, task| {
        let (first, from) = (task % panels * nr, task / panels * part);
        let cols = nr.min(out - first);
        let blocks = &packed[from * depth..packed.len().min((from + part) * depth)];
        let w = &w[first * depth..(first + cols) * depth];
        dispatch(path, Panel { blocks, w, panel, depth, rows: from..rows, first, out, target: &target });
    });
    // SAFETY: the tasks have written all rows of all outputs.
    unsafe { target.finish() }
}

/// Rows in equal parts, as many of them as keep the threads busy, but not so few rows that packing weighs more.
fn rows_per_task(rows: usize, mr: usize, panels: usize, threads: usize) -> usize {
    const FEWEST: usize = 96;
    let parts = (TASKS * threads).div_ceil(panels).min(rows / FEWEST).max(rows.div_ceil(ROWS));
    rows.div_ceil(parts.max(1)).next_multiple_of(mr)
}

/// The rows in blocks of `mr`, rows innermost, the last block filled up with zeros.
fn interleaved(path: KernelPath, xs: &[f32], depth: usize, mr: usize) -> Vec<f32> {
    let len = (xs.len() / depth).next_multiple_of(mr) * depth;
    let [packed] = filled(len, mr * depth, false, |i, [block]: [&mut [f32]; 1]| {
        dispatch(path, Interleave { xs: &xs[i * mr * depth..], depth, block });
    });
    packed
}

/// The first `MR` of the rows, as many as there are, into one block.
struct Interleave<'a> {
    xs: &'a [f32],
    depth: usize,
    block: &'a mut [f32],
}

impl Job for Interleave<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { xs, depth, block } = self;
        let (rows, mr) = (xs.len() / depth, S::MR);
        assert!(block.len() == mr * depth);
        let mut k = 0;
        if mr <= S::LANES && S::LANES <= 2 * mr && rows >= S::LANES {
            // A transposition writes LANES numbers per line of `mr`; the next line overwrites what is too much.
            while k + S::LANES < depth {
                // SAFETY: LANES rows have LANES inputs from `k`, and after the LANES lines from `k` comes another one.
                unsafe { S::transpose(xs.as_ptr().add(k), depth, block.as_mut_ptr().add(k * mr), mr) };
                k += S::LANES;
            }
        }
        for (k, line) in block.chunks_exact_mut(mr).enumerate().skip(k) {
            for (i, slot) in line.iter_mut().enumerate() {
                *slot = if i < rows { xs[i * depth + k] } else { 0.0 };
            }
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
    target: &'a Disjoint<'a, f32>,
}

impl Job for Panel<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { blocks, w, panel, depth, rows, first, out, target } = self;
        let cols = w.len() / depth;
        // SAFETY: the machine has the instruction set by this function's contract.
        unsafe { pack::<S>(w, depth, panel) };
        assert!(S::MR <= MOST_MR && blocks.len().is_multiple_of(S::MR * depth) && panel.len() == depth * S::NR);
        let mut tile = [0f32; MOST_MR * TILE_STRIDE];
        for (i, block) in blocks.chunks_exact(S::MR * depth).enumerate() {
            // SAFETY: the block holds MR rows, the panel NR outputs of `depth`, the tile MR rows of TILE_STRIDE >= NR.
            unsafe { S::scores(cols, depth, block.as_ptr(), panel.as_ptr(), tile.as_mut_ptr()) };
            let from = rows.start + i * S::MR;
            for (row, sums) in (from..rows.end).zip(tile.chunks_exact(TILE_STRIDE)).take(S::MR) {
                // SAFETY: row < rows and first + cols <= out; no other task has these rows and outputs.
                unsafe {
                    match cols == S::NR {
                        true => target.write(row * out + first, &sums[..S::NR]),
                        false => target.write(row * out + first, &sums[..cols]),
                    }
                }
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
