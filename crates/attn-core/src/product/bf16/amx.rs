//! The product on AMX tiles.

use super::{Block, COLS, DEPTH, ROWS};
use crate::parallel::Disjoint;
use crate::simd::{Element, amx::Tiles};
use std::arch::asm;

/// The rows of `block` with all of its panels.
#[inline(always)]
pub(super) fn columns<O: Element>(block: &Block<'_>, target: &Disjoint<'_, O>) {
    let mut sums = [0f32; ROWS * COLS];
    let _tiles = Tiles::configure();
    for (xs, packed, place) in block.pairs() {
        // SAFETY: `xs` holds the tiles of ROWS rows of `depth` bf16, `packed` two groups of depth / 2 lines of 64
        // bytes, `sums` ROWS rows of COLS f32: exactly what the loop reads and writes.
        unsafe { multiply(xs.as_ptr().cast(), packed.as_ptr().cast(), block.depth, sums.as_mut_ptr().cast()) };
        block.write(target, place, &sums);
    }
}

/// 32 rows by 32 outputs: four tiles of sums, two of rows, two of weights.
///
/// # Safety
/// As `columns` states; the tiles are configured.
unsafe fn multiply(xs: *const u8, packed: *const u8, depth: usize, sums: *mut u8) {
    let group = 16 * 2 * depth;
    // SAFETY: per step of 32 inputs the loop reads a tile of 16 lines of 64 bytes of either group of rows and of
    // weights, depth / 32 times in all, and then writes 2 x 2 tiles of 16 rows of 64 bytes, 128 bytes apart.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{x0} + {line} * 1]",
            "tileloadd tmm6, [{w0} + {line} * 1]",
            "tileloadd tmm5, [{x1} + {line} * 1]",
            "tileloadd tmm7, [{w1} + {line} * 1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {x0}, 1024",
            "add {x1}, 1024",
            "add {w0}, 1024",
            "add {w1}, 1024",
            "dec {steps}",
            "jnz 2b",
            "add {line}, 64",
            "tilestored [{sums} + {line} * 1], tmm0",
            "tilestored [{sums} + {line} * 1 + 64], tmm1",
            "tilestored [{lower} + {line} * 1], tmm2",
            "tilestored [{lower} + {line} * 1 + 64], tmm3",
            x0 = inout(reg) xs => _,
            x1 = inout(reg) xs.add(group) => _,
            w0 = inout(reg) packed => _,
            w1 = inout(reg) packed.add(group) => _,
            line = inout(reg) 64usize => _,
            steps = inout(reg) depth / DEPTH => _,
            sums = in(reg) sums,
            lower = in(reg) sums.add(16 * 4 * COLS),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
