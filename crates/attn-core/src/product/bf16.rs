//! bf16 products of many rows by dot products of pairs: the operands stay bf16, the sums are f32.
//!
//! Both kernels read the weights in the order of AMX's second operand: for 16 outputs and one pair of inputs, 16 pairs side
//! by side. A task repacks the weights of some outputs into its cache and multiplies many rows with them, so that repacking
//! takes little of the time and no second copy of the weights is kept. [`Cut`] says which rows and outputs.

mod amx;
mod avx512;
mod blocks;

pub(super) use blocks::of_blocks;

use crate::parallel::Disjoint;
use crate::parallel::filled;
use crate::simd::KernelPath;
use crate::simd::{Element, Job, Simd, dispatch};
use candle_core::Result;
use half::bf16;
use rayon::prelude::*;
use std::ops::Range;

/// Outputs per panel of packed weights: two tiles.
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
    fn path(self) -> KernelPath {
        match self {
            Self::Amx => KernelPath::Amx,
            Self::Avx512 => KernelPath::Avx512Bf16,
        }
    }

    /// True if this machine can run it.
    pub(super) fn is_available(self) -> bool {
        self.path().is_available()
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
    /// The weights can't be widened.
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

/// How a product is cut into tasks, each of some rows and some outputs.
///
/// A task multiplies [`ROWS`] rows with all of its panels before it goes on to the next rows. The rows are then read from the
/// first-level cache and the panels from the second, and the sums of a row are written side by side. With one panel per task,
/// all rows would come from memory once for every 32 outputs. Rows that fit into the second-level cache have tasks of one panel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cut {
    /// Rows of a task, a multiple of [`ROWS`].
    part: usize,
    parts: usize,
    /// Panels of a task.
    group: usize,
    groups: usize,
}

impl Cut {
    /// Bytes of the second-level cache: every processor with these instructions has as many or more.
    const CACHE: usize = 1 << 20;
    /// Bytes of a task's panels.
    const GROUP: usize = Self::CACHE / 2;
    /// Most rows of a task: enough to make packing the weights cheap.
    const PART: usize = 2048;
    /// Tasks per thread that are wanted, so that no thread is left waiting for long.
    const TASKS: usize = 4;

    /// For padded rows, padded inputs and panels.
    fn new((rows, depth, panels): (usize, usize, usize), threads: usize) -> Self {
        let parts = rows.div_ceil(Self::PART).max(1);
        let part = rows.div_ceil(parts).next_multiple_of(ROWS).max(ROWS);
        let most = match 2 * rows * depth <= Self::CACHE {
            true => 1,
            false => (Self::GROUP / (2 * COLS * depth)).max(1),
        };
        let wanted = (Self::TASKS * threads).div_ceil(parts).min(panels);
        let group = panels.div_ceil(panels.div_ceil(most).max(wanted).max(1)).max(1);
        Self { part, parts: rows.div_ceil(part), group, groups: panels.div_ceil(group) }
    }
}

/// `xs W^T` for `(rows, depth, out)`.
///
/// # Errors
/// The errors of [`Weights::with`].
pub(super) fn product<O: Element>(
    kernel: Kernel,
    xs: &[bf16],
    weights: &impl Weights,
    (rows, depth, out): (usize, usize, usize),
) -> Result<Vec<O>> {
    let path = kernel.path();
    let padded = (rows.next_multiple_of(ROWS), depth.next_multiple_of(DEPTH));
    let xs = &tiles(xs, depth, padded);
    let target = Disjoint::unwritten(rows * out);
    let cut = Cut::new((padded.0, padded.1, out.div_ceil(COLS)), rayon::current_num_threads());
    let panel = COLS * padded.1 / 2;
    (0..cut.parts * cut.groups).into_par_iter().try_for_each_init(
        || vec![0u32; cut.group * panel],
        |packed, task| -> Result<()> {
            let first = task % cut.groups * cut.group * COLS;
            let outs = first..out.min(first + cut.group * COLS);
            for (packed, start) in packed.chunks_exact_mut(panel).zip(outs.clone().step_by(COLS)) {
                let outs = start..outs.end.min(start + COLS);
                weights.with(outs, &mut |w| dispatch(path, Pack { w, depth, packed }))?;
            }
            let row = task / cut.groups * cut.part;
            let xs = &xs[row * padded.1..padded.0.min(row + cut.part) * padded.1];
            let packed = &packed[..outs.len().div_ceil(COLS) * panel];
            let block = Block { xs, packed, depth: padded.1, row, rows, out, outs };
            dispatch(path, Columns { kernel, block, target: &target });
            Ok(())
        },
    )?;
    // SAFETY: the tasks have written all rows of all columns.
    Ok(unsafe { target.finish() })
}

/// Some rows against the packed weights of some outputs.
struct Block<'a> {
    /// Rows from `row` on, as [`tiles`] lays them out.
    xs: &'a [bf16],
    /// Panels of [`COLS`] outputs; per 16 outputs, per pair of inputs: 16 pairs.
    packed: &'a [u32],
    /// Padded to `DEPTH`.
    depth: usize,
    row: usize,
    /// Rows and outputs of the whole product, not padded.
    rows: usize,
    out: usize,
    /// The outputs whose weights are packed.
    outs: Range<usize>,
}

/// A block as a job, so that what surrounds the kernels is compiled for the machine too.
struct Columns<'a, O> {
    kernel: Kernel,
    block: Block<'a>,
    target: &'a Disjoint<'a, O>,
}

impl<O: Element> Job for Columns<'_, O> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        match self.kernel {
            Kernel::Amx => amx::columns(&self.block, self.target),
            Kernel::Avx512 => avx512::columns(&self.block, self.target),
        }
    }
}

impl<'a> Block<'a> {
    /// The rows, [`ROWS`] at a time, each with every panel, and the places of both.
    #[inline(always)]
    fn pairs(&self) -> impl Iterator<Item = (&'a [bf16], &'a [u32], (usize, usize))> {
        let (row, first, panel) = (self.row, self.outs.start, COLS * self.depth / 2);
        assert!(self.depth > 0 && self.depth.is_multiple_of(DEPTH));
        // Otherwise the last rows or outputs would be left out.
        assert!(self.xs.len().is_multiple_of(ROWS * self.depth));
        assert!(self.packed.len() == self.outs.len().div_ceil(COLS) * panel);
        let packed = self.packed;
        self.xs.chunks_exact(ROWS * self.depth).enumerate().flat_map(move |(step, xs)| {
            let place = move |i: usize| (row + step * ROWS, first + i * COLS);
            packed.chunks_exact(panel).enumerate().map(move |(i, packed)| (xs, packed, place(i)))
        })
    }

    /// Rounds and writes the sums `(ROWS, COLS)` of the rows from `row` and the outputs from `first` on.
    #[inline(always)]
    fn write<O: Element>(&self, target: &Disjoint<'_, O>, (row, first): (usize, usize), sums: &[f32; ROWS * COLS]) {
        let cols = COLS.min(self.outs.end - first);
        for (i, sums) in sums.chunks_exact(COLS).take(self.rows.saturating_sub(row)).enumerate() {
            let mut ys = [O::zero(); COLS];
            O::narrow_all(sums, &mut ys);
            let start = (row + i) * self.out + first;
            // SAFETY: no other task has these rows of these columns.
            unsafe {
                match cols {
                    COLS => target.write(start, &ys),
                    cols => target.write(start, &ys[..cols]),
                }
            }
        }
    }
}

/// Rows as the tiles that a kernel takes them in, filled up with zeros: for 16 rows, per `DEPTH` inputs, a line of
/// these inputs of each row. Tiles are then read one after the other, which the machine can prefetch; it cannot
/// prefetch rows that are far apart.
fn tiles(xs: &[bf16], depth: usize, (rows, padded): (usize, usize)) -> Vec<bf16> {
    let [tiles] = filled(rows * padded, 16 * padded, false, |i, [tiles]: [&mut [bf16]; 1]| {
        let xs = &xs[xs.len().min(i * 16 * depth)..];
        for (row, xs) in xs.chunks_exact(depth).take(16).enumerate() {
            let (whole, rest) = xs.as_chunks::<DEPTH>();
            for (tile, line) in tiles.chunks_exact_mut(16 * DEPTH).zip(whole) {
                tile[row * DEPTH..][..DEPTH].copy_from_slice(line);
            }
            if let Some(tile) = tiles.chunks_exact_mut(16 * DEPTH).nth(whole.len()) {
                tile[row * DEPTH..][..rest.len()].copy_from_slice(rest);
            }
        }
    });
    tiles
}

/// Weights `(cols, depth)` to groups of 16 outputs, pairs of inputs outermost; missing outputs and inputs are zero.
struct Pack<'a> {
    w: &'a [bf16],
    depth: usize,
    packed: &'a mut [u32],
}

impl Job for Pack<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { w, depth, packed } = self;
        let (pairs, cols) = (packed.len() / COLS, w.len() / depth);
        packed.fill(0);
        // A pair is as wide as an f32, and moving one doesn't look at it.
        let whole = if depth.is_multiple_of(2) { depth / 2 / S::LANES * S::LANES } else { 0 };
        let mut col = 0;
        while col < cols {
            let n = if cols - col >= S::LANES { S::LANES } else { 1 };
            let from = if n == 1 { 0 } else { whole };
            let group = &mut packed[col / 16 * 16 * pairs..][..16 * pairs];
            for pair in (0..from).step_by(S::LANES) {
                // SAFETY: LANES outputs from `col` with LANES pairs from `pair` are in the weights, and LANES lines from
                // `pair` in their group, which LANES divides. Both kernels' path is AVX-512's, whose transposition takes
                // any alignment.
                unsafe {
                    let src = w.as_ptr().add(col * depth + 2 * pair).cast();
                    S::transpose(src, depth / 2, group.as_mut_ptr().add(pair * 16 + col % 16).cast(), 16);
                }
            }
            if 2 * from < depth {
                for (i, row) in w[col * depth..].chunks_exact(depth).take(n).enumerate() {
                    pack_row(&row[2 * from..], &mut group[from * 16 + col % 16 + i..]);
                }
            }
            col += n;
        }
    }
}

/// One output's weights, every sixteenth pair.
#[inline(always)]
fn pack_row(row: &[bf16], slots: &mut [u32]) {
    for (slot, pair) in slots.iter_mut().step_by(16).zip(row.chunks(2)) {
        let second = pair.get(1).map_or(0, |x| u32::from(x.to_bits()));
        *slot = u32::from(pair[0].to_bits()) | second << 16;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every row and every panel is in one task, panels fit the cache unless one alone does not, and a task has several panels
    /// only where the threads have enough tasks.
    #[test]
    fn tasks_cover_a_product_once_and_fit_the_caches() {
        for rows in [32usize, 64, 512, 1024, 2048, 2080, 4096, 16384, 100_000] {
            for depth in [32, 576, 1536, 8192, 28672] {
                for panels in [1, 2, 18, 30, 96, 1536, 4752] {
                    for threads in [1, 2, 16, 128] {
                        let rows = rows.next_multiple_of(ROWS);
                        let cut = Cut::new((rows, depth, panels), threads);
                        let said = format!("{rows} x {depth} x {panels}, {threads} threads: {cut:?}");
                        let whole =
                            |size: usize, count: usize, all: usize| size * count >= all && size * (count - 1) < all;
                        assert!(whole(cut.part, cut.parts, rows) && whole(cut.group, cut.groups, panels), "{said}");
                        assert!(cut.part.is_multiple_of(ROWS) && cut.part <= Cut::PART, "{said}");
                        assert!(cut.group == 1 || 2 * cut.group * COLS * depth <= Cut::GROUP, "{said}");
                        let tasks = cut.parts * cut.groups;
                        assert!(cut.group == 1 || 2 * tasks >= Cut::TASKS * threads, "{said}");
                    }
                }
            }
        }
    }
}
