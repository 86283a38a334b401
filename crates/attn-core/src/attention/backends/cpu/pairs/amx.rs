//! Products on AMX tiles: 16 by 16 sums of 32 products in one instruction.

use super::{GROUPS, LANES, Product};
use crate::simd::amx;
use half::bf16;
use std::arch::asm;

/// The tile registers, configured.
pub(super) struct Tiles {
    _tiles: amx::Tiles,
}

impl Product for Tiles {
    fn begin() -> Self {
        Self { _tiles: amx::Tiles::configure() }
    }

    #[inline(always)]
    unsafe fn multiply<const ADD: bool>(
        &self,
        (a, width): (*const bf16, usize),
        b: [*const u32; GROUPS],
        c: [*mut f32; GROUPS],
        steps: usize,
    ) {
        let row = 2 * width;
        // SAFETY: the tiles are configured as 16 rows of 64 bytes while `self` lives. Per step the loop reads 64 bytes
        // of each of 32 rows of `a` and 16 lines of 64 bytes of either `b`; before and after, 2 tiles of 16 lines of 64
        // bytes of either `c` are read and written: what the caller guarantees.
        unsafe {
            if ADD {
                asm!(
                    "tileloadd tmm0, [{c0} + {line} * 1]",
                    "tileloadd tmm1, [{c1} + {line} * 1]",
                    "tileloadd tmm2, [{c0} + {line} * 1 + 1024]",
                    "tileloadd tmm3, [{c1} + {line} * 1 + 1024]",
                    c0 = in(reg) c[0], c1 = in(reg) c[1], line = in(reg) 64usize,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    options(nostack, readonly),
                );
            } else {
                asm!(
                    "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    options(nostack, nomem),
                );
            }
            asm!(
                "2:",
                "tileloadd tmm6, [{b0} + {line} * 1]",
                "tileloadd tmm4, [{a0} + {row} * 1]",
                "tileloadd tmm7, [{b1} + {line} * 1]",
                "tileloadd tmm5, [{a1} + {row} * 1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a0}, 64",
                "add {a1}, 64",
                "add {b0}, 1024",
                "add {b1}, 1024",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{c0} + {line} * 1], tmm0",
                "tilestored [{c1} + {line} * 1], tmm1",
                "tilestored [{c0} + {line} * 1 + 1024], tmm2",
                "tilestored [{c1} + {line} * 1 + 1024], tmm3",
                a0 = inout(reg) a => _,
                a1 = inout(reg) a.add(LANES * width) => _,
                b0 = inout(reg) b[0] => _,
                b1 = inout(reg) b[1] => _,
                c0 = in(reg) c[0],
                c1 = in(reg) c[1],
                row = in(reg) row,
                line = in(reg) 64usize,
                steps = inout(reg) steps => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}
