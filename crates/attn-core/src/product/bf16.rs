//! bf16 products of many rows by dot products of pairs: the operands stay bf16, the sums are f32.
//!
//! Both kernels read the weights in the order of AMX's second operand: for 16 outputs and one pair of inputs, 16 pairs side
//! by side. A task repacks the weights of a few outputs into its cache and then streams all rows past them, so the
//! repacking is paid once per call and no second copy of the weights is kept.

mod amx;
mod avx512;

use crate::attention::KernelPath;
use half::bf16;
use rayon::prelude::*;

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

/// `xs W^T` for `(rows, depth, out)`, rounded to bf16.
pub(super) fn product(kernel: Kernel, xs: &[bf16], w: &[bf16], (rows, depth, out): (usize, usize, usize)) -> Vec<bf16> {
    let padded = (rows.next_multiple_of(ROWS), depth.next_multiple_of(DEPTH));
    let copy;
    let xs = if padded == (rows, depth) {
        xs
    } else {
        copy = pad(xs, depth, padded);
        &copy
    };
    let mut ys = vec![bf16::ZERO; rows * out];
    let target = Target { ys: ys.as_mut_ptr(), rows, out };
    (0..out.div_ceil(COLS)).into_par_iter().for_each_init(
        || vec![0u32; COLS * padded.1 / 2],
        |packed, task| {
            let first = task * COLS;
            let cols = COLS.min(out - first);
            pack(&w[first * depth..(first + cols) * depth], depth, packed);
            let block = Block { xs, packed, depth: padded.1, first, cols };
            match kernel {
                Kernel::Amx => amx::columns(&block, &target),
                Kernel::Avx512 => avx512::columns(&block, &target),
            }
        },
    );
    ys
}

/// All rows against the packed weights of `cols` outputs from `first` on.
struct Block<'a> {
    /// `(rows padded to ROWS, depth)`
    xs: &'a [bf16],
    /// Per 16 outputs, per pair of inputs: 16 pairs.
    packed: &'a [u32],
    /// Padded to `DEPTH`.
    depth: usize,
    first: usize,
    cols: usize,
}

/// Where the results go, shared by tasks that each own other columns.
struct Target {
    ys: *mut bf16,
    rows: usize,
    out: usize,
}

// SAFETY: tasks write disjoint columns, and only through `Target::write`.
unsafe impl Sync for Target {}

impl Target {
    /// Rounds and writes sums `(ROWS, COLS)` of the rows from `row` on.
    fn write(&self, row: usize, sums: &[f32; ROWS * COLS], block: &Block) {
        for (i, sums) in sums.chunks_exact(COLS).take(self.rows.saturating_sub(row)).enumerate() {
            // SAFETY: row + i < rows and first + cols <= out, so the slice is inside ys; no other task has these columns.
            let ys =
                unsafe { std::slice::from_raw_parts_mut(self.ys.add((row + i) * self.out + block.first), block.cols) };
            half::slice::HalfFloatSliceExt::convert_from_f32_slice(ys, &sums[..block.cols]);
        }
    }
}

/// Rows and inputs filled up with zeros.
fn pad(xs: &[bf16], depth: usize, (rows, padded): (usize, usize)) -> Vec<bf16> {
    let mut copy = vec![bf16::ZERO; rows * padded];
    for (to, from) in copy.chunks_exact_mut(padded).zip(xs.chunks_exact(depth)) {
        to[..depth].copy_from_slice(from);
    }
    copy
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
