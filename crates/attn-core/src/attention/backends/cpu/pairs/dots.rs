//! Products on `vdpbf16ps`, for processors with bf16 dot products but no tiles: sixteen sums of pairs per instruction.

use super::{GROUPS, LANES, Product, STEP};
use half::bf16;
use std::arch::x86_64::*;

/// Rows of `a` per pass: with two groups, 16 sums in registers.
const ROWS: usize = 8;

/// Needs no preparation.
pub(super) struct Dots;

impl Product for Dots {
    fn begin() -> Self {
        Self
    }

    #[inline(always)]
    unsafe fn multiply<const ADD: bool>(
        &self,
        a: (*const bf16, usize),
        b: [*const u32; GROUPS],
        c: [*mut f32; GROUPS],
        steps: usize,
    ) {
        // SAFETY: guaranteed by the caller.
        unsafe { multiply::<ADD>(a, b, c, steps) }
    }
}

/// # Safety
/// As [`Product::multiply`].
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn multiply<const ADD: bool>(
    (a, width): (*const bf16, usize),
    b: [*const u32; GROUPS],
    c: [*mut f32; GROUPS],
    steps: usize,
) {
    // SAFETY: both are 64 plain bytes.
    let pairs = |v: __m512i| unsafe { std::mem::transmute::<__m512i, __m512bh>(v) };
    for i in (0..GROUPS * LANES).step_by(ROWS) {
        let mut acc = [[_mm512_setzero_ps(); GROUPS]; ROWS];
        // SAFETY: rows i..i + 8 of both c and a, and lines of b, are in bounds, as the caller guarantees.
        unsafe {
            if ADD {
                for (r, acc) in acc.iter_mut().enumerate() {
                    for (acc, c) in acc.iter_mut().zip(c) {
                        *acc = _mm512_loadu_ps(c.add((i + r) * LANES));
                    }
                }
            }
            for pair in 0..steps * STEP / 2 {
                let b = [0, 1].map(|g| pairs(_mm512_loadu_si512(b[g].add(pair * LANES).cast())));
                for (r, acc) in acc.iter_mut().enumerate() {
                    let a = a.add((i + r) * width + 2 * pair).cast::<i32>().read_unaligned();
                    let a = pairs(_mm512_set1_epi32(a));
                    acc[0] = _mm512_dpbf16_ps(acc[0], a, b[0]);
                    acc[1] = _mm512_dpbf16_ps(acc[1], a, b[1]);
                }
            }
            for (r, acc) in acc.into_iter().enumerate() {
                for (acc, c) in acc.into_iter().zip(c) {
                    _mm512_storeu_ps(c.add((i + r) * LANES), acc);
                }
            }
        }
    }
}
