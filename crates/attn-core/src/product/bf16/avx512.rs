//! The product on `vdpbf16ps`: sixteen sums of pairs per instruction.

use super::{Block, COLS, DEPTH, ROWS};
use crate::parallel::Disjoint;
use crate::simd::Element;
use half::bf16;
use std::arch::x86_64::{
    __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_storeu_ps,
};

/// Rows held in registers at once, by two vectors of outputs.
const STEP: usize = 8;

/// The rows of `block` with all of its panels.
#[inline(always)]
pub(super) fn columns<O: Element>(block: &Block<'_>, target: &Disjoint<'_, O>) {
    let mut sums = [0f32; ROWS * COLS];
    for (xs, packed, place) in block.pairs() {
        for (part, sums) in sums.chunks_exact_mut(STEP * COLS).enumerate() {
            let (group, first) = (part * STEP / 16, part * STEP % 16);
            let xs = &xs[group * 16 * block.depth + first * DEPTH..];
            // SAFETY: is_available() was true; STEP rows of tiles follow, a panel of weights, STEP rows of sums.
            unsafe { multiply(xs, packed, block.depth, sums) };
        }
        block.write(target, place, &sums);
    }
}

/// # Safety
/// The machine has avx512bf16; the slices are of the sizes named above, `xs` from the first row's line in its first tile on.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn multiply(xs: &[bf16], packed: &[u32], depth: usize, sums: &mut [f32]) {
    let (low, high) = packed.split_at(packed.len() / 2);
    // SAFETY: both are 64 plain bytes.
    let pairs = |v: __m512i| unsafe { std::mem::transmute::<__m512i, __m512bh>(v) };
    let mut acc = [[_mm512_setzero_ps(); 2]; STEP];
    for pair in 0..depth / 2 {
        // SAFETY: line `pair` of either half of the weights, and pair `pair` of every row, are in bounds.
        unsafe {
            let w0 = pairs(_mm512_loadu_si512(low.as_ptr().add(pair * 16).cast()));
            let w1 = pairs(_mm512_loadu_si512(high.as_ptr().add(pair * 16).cast()));
            for (row, acc) in acc.iter_mut().enumerate() {
                let line = xs.as_ptr().add(2 * pair / DEPTH * 16 * DEPTH + row * DEPTH);
                let x = line.add(2 * pair % DEPTH).cast::<i32>().read_unaligned();
                let x = pairs(_mm512_set1_epi32(x));
                acc[0] = _mm512_dpbf16_ps(acc[0], x, w0);
                acc[1] = _mm512_dpbf16_ps(acc[1], x, w1);
            }
        }
    }
    for (acc, sums) in acc.iter().zip(sums.chunks_exact_mut(COLS)) {
        // SAFETY: `sums` is a row of COLS = 32 numbers.
        unsafe {
            _mm512_storeu_ps(sums.as_mut_ptr(), acc[0]);
            _mm512_storeu_ps(sums.as_mut_ptr().add(16), acc[1]);
        }
    }
}
