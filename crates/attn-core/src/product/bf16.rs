//! bf16 products of many rows by dot products of pairs: the operands stay bf16, the sums are f32.
//!
//! Both kernels read the weights in the order of AMX's second operand: for 16 outputs and one pair of inputs, 16 pairs side
//! by side. A task repacks the weights of a few outputs into its cache and then streams all rows past them, so the
//! repacking is paid once per call and no second copy of the weights is kept.

mod amx;
mod avx512;
mod blocks;

pub(super) use blocks::of_blocks;

use super::target::Target;
use crate::attention::KernelPath;
use crate::attention::fused_cpu::simd::Element;
use candle_core::Result;
use half::bf16;
use rayon::prelude::*;
use std::ops::Range;

/// Outputs per task: two tiles.
const COLS: usize = 32;
/// Rows per step: two tiles.
const ROWS: usize = 32;
/// Inputs per tile.
const DEPTH: usize = 32;

/// A way to multiply bf16 that this machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kernel {
    /// Tiles of 16 by 16 sums (Intel Xeon from Sapphire Rapids).
    Amx,
    /// `vdpbf16ps` (AMD from Zen 4, Intel from Cooper Lake).
    Avx512,
}

impl Kernel {
    /// True if this machine can run it.
    pub(super) fn is_available(self) -> bool {
        match self {
            Self::Amx => KernelPath::Amx.is_available(),
            Self::Avx512 => KernelPath::Avx512Bf16.is_available(),
        }
    }

    /// The fastest that the machine has, unless `ATTN_KERNEL` asks for a path without it.
    pub(super) fn fastest() -> Option<Self> {
        match KernelPath::choose(None) {
            Ok(KernelPath::Amx) => Some(Self::Amx),
            Ok(KernelPath::Avx512Bf16 | KernelPath::Avx512) => Some(Self::Avx512).filter(|k| k.is_available()),
            _ => None,
        }
    }
}

/// Where the weights come from: memory, or blocks that are widened when they are needed.
pub(super) trait Weights: Sync {
    /// Calls `pack` with the weights of some outputs.
    ///
    /// # Errors
    /// They can't be had.
    fn with(&self, outs: Range<usize>, pack: &mut dyn FnMut(&[bf16])) -> Result<()>;
}

/// Weights `(out, depth)` as they are.
pub(super) struct Dense<'a> {
    pub(super) w: &'a [bf16],
    pub(super) depth: usize,
}

impl Weights for Dense<'_> {
    fn with(&self, outs: Range<usize>, pack: &mut dyn FnMut(&[bf16])) -> Result<()> {
        pack(&self.w[outs.start * self.depth..outs.end * self.depth]);
        Ok(())
    }
}

/// `xs W^T` for `(rows, depth, out)`.
///
/// # Errors
/// Those of `weights`.
pub(super) fn product<O: Element>(
    kernel: Kernel,
    xs: &[bf16],
    weights: &impl Weights,
    (rows, depth, out): (usize, usize, usize),
) -> Result<Vec<O>> {
    let padded = (rows.next_multiple_of(ROWS), depth.next_multiple_of(DEPTH));
    let xs = &tiles(xs, depth, padded);
    let mut ys = vec![O::zero(); rows * out];
    let target = Target::of(&mut ys);
    (0..out.div_ceil(COLS)).into_par_iter().try_for_each_init(
        || vec![0u32; COLS * padded.1 / 2],
        |packed, task| -> Result<()> {
            let first = task * COLS;
            let cols = COLS.min(out - first);
            weights.with(first..first + cols, &mut |w| pack(w, depth, packed))?;
            let block = Block { xs, packed, depth: padded.1, rows, out, first, cols };
            match kernel {
                Kernel::Amx => amx::columns(&block, &target),
                Kernel::Avx512 => avx512::columns(&block, &target),
            }
            Ok(())
        },
    )?;
    Ok(ys)
}

/// All rows against the packed weights of `cols` outputs from `first` on.
struct Block<'a> {
    /// All rows, as [`tiles`] lays them out.
    xs: &'a [bf16],
    /// Per 16 outputs, per pair of inputs: 16 pairs.
    packed: &'a [u32],
    /// Padded to `DEPTH`.
    depth: usize,
    /// Rows and outputs of the whole product, not padded.
    rows: usize,
    out: usize,
    first: usize,
    cols: usize,
}

impl Block<'_> {
    /// Rounds and writes sums `(ROWS, COLS)` of the rows from `row` on.
    fn write<O: Element>(&self, target: &Target<O>, row: usize, sums: &[f32; ROWS * COLS]) {
        for (i, sums) in sums.chunks_exact(COLS).take(self.rows.saturating_sub(row)).enumerate() {
            // SAFETY: no other task has these columns.
            let ys = unsafe { target.slice((row + i) * self.out + self.first, self.cols) };
            O::narrow_all(&sums[..self.cols], ys);
        }
    }
}

/// Rows as the tiles that a kernel takes them in, filled up with zeros: for 16 rows, per `DEPTH` inputs, a line of these
/// inputs of each row. Tiles are then read one after the other, which the machine can foresee; rows far apart it can't.
fn tiles(xs: &[bf16], depth: usize, (rows, padded): (usize, usize)) -> Vec<bf16> {
    let mut tiles = vec![bf16::ZERO; rows * padded];
    tiles.par_chunks_mut(16 * padded).zip(xs.par_chunks(16 * depth)).for_each(|(tiles, xs)| {
        for (row, xs) in xs.chunks_exact(depth).enumerate() {
            for (tile, line) in tiles.chunks_exact_mut(16 * DEPTH).zip(xs.chunks(DEPTH)) {
                tile[row * DEPTH..][..line.len()].copy_from_slice(line);
            }
        }
    });
    tiles
}

/// Weights `(cols, depth)` to groups of 16 outputs, pairs of inputs outermost; missing outputs and inputs are zero.
fn pack(w: &[bf16], depth: usize, packed: &mut [u32]) {
    let pairs = packed.len() / COLS;
    packed.fill(0);
    for (col, row) in w.chunks_exact(depth).enumerate() {
        let group = &mut packed[col / 16 * 16 * pairs..][..16 * pairs];
        let slots = group[col % 16..].iter_mut().step_by(16);
        let mut chunks = row.chunks_exact(2);
        for (slot, pair) in slots.zip(&mut chunks) {
            *slot = u32::from(pair[0].to_bits()) | u32::from(pair[1].to_bits()) << 16;
        }
        if let [last] = chunks.remainder() {
            group[depth / 2 * 16 + col % 16] = u32::from(last.to_bits());
        }
    }
}
