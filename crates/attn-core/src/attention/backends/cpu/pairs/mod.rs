//! The forward pass in bf16 by dot products of pairs: AMX tiles, or `vdpbf16ps`.
//!
//! Works on transposed scores, keys by queries: a vector holds the scores of one key with sixteen queries. Then the
//! maximum, the sum and the rescaling of sixteen rows are plain vector operations, keys and values are the left operand
//! of either product as they lie, and the weights of two keys, side by side, are its right operand. Sums, softmax and
//! bias are f32; what is rounded to bf16 is the weights.
//!
//! The reference point of a row's softmax is the largest score of the first block that the row sees, and moves only when
//! weights grow past 2^40: f32 and bf16 weights are as precise at any magnitude, and nothing has to look for the
//! largest score of every block.

mod amx;
mod block;
mod dots;
mod lanes;
mod pack;

use super::{problem::Problem, task::Task, unit::Unit};
use crate::simd::KernelPath;
use half::bf16;

/// Queries per vector.
const LANES: usize = 16;
/// Groups of [`LANES`] queries that a product takes.
const GROUPS: usize = 2;
/// Keys, or head dimensions, that a step of a product takes.
const STEP: usize = 32;
/// Keys per block: the more, the less often sums are loaded and stored; few enough for the second-level cache.
const KEYS: usize = 256;
/// Fewer rows than this are bound by reading the keys, which other kernels do where they lie.
const FEW_ROWS: usize = 9;

/// A product `A B` on the right-hand layout of AMX: `B` is, for 16 columns and a pair of rows, 16 pairs side by side.
trait Product: Sized {
    /// Prepares the processor, until dropped.
    fn begin() -> Self;

    /// `c[g][i][j] += sum_k a[i * width + k] * b[g][k][j]` for two groups `g` of 16 columns, 32 rows and `32 * steps`
    /// numbers `k`; with `ADD` false, `c` is overwritten.
    ///
    /// # Safety
    /// All of that is in bounds, and the machine has the instructions.
    unsafe fn multiply<const ADD: bool>(
        &self,
        a: (*const bf16, usize),
        b: [*const u32; GROUPS],
        c: [*mut f32; GROUPS],
        steps: usize,
    );
}

/// Runs units in this way if it is the fastest that `path` allows.
pub(super) fn runs(path: KernelPath, p: &Problem, unit: &Unit) -> bool {
    matches!(path, KernelPath::Amx | KernelPath::Avx512Bf16) && p.sizes.group() * unit.queries.len() >= FEW_ROWS
}

/// Computes a unit and writes its result.
///
/// # Safety
/// The machine has `path`, for which [`runs`] is true, and no other thread writes the unit's rows or part.
pub(super) unsafe fn run_unit(path: KernelPath, task: &Task<bf16>, unit: &Unit) {
    // SAFETY: guaranteed by the caller; both paths have the instructions that `block` uses.
    unsafe {
        match path {
            KernelPath::Amx => block::run::<amx::Tiles>(task, unit),
            _ => block::run::<dots::Dots>(task, unit),
        }
    }
}
