//! Operands of the products: rows filled up with zeros, and pairs side by side.

use super::{LANES, STEP};
use crate::simd::{Avx512, Simd};
use half::bf16;
use std::arch::x86_64::*;

/// Packs up to 16 rows, of up to `deep` numbers, as the right operand: per pair of numbers a line of 16 pairs, one of each
/// row. What is missing is zero.
///
/// # Safety
/// The machine has AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn queries<'a>(rows: impl Iterator<Item = &'a [bf16]>, deep: usize, to: &mut [u32]) {
    assert!(deep.is_multiple_of(STEP) && to.len() == deep / 2 * LANES);
    let mut staged = vec![bf16::ZERO; LANES * deep];
    for (row, to) in rows.zip(staged.chunks_exact_mut(deep)) {
        to[..row.len()].copy_from_slice(row);
    }
    for pair in (0..deep / 2).step_by(LANES) {
        // SAFETY: 16 pairs of each of the 16 staged rows become 16 lines of 16 pairs; transposing only moves bits.
        unsafe {
            let from = staged.as_ptr().add(2 * pair).cast::<f32>();
            Avx512::transpose(from, deep / 2, to.as_mut_ptr().add(pair * LANES).cast(), LANES);
        }
    }
}

/// Copies `n` tokens of `d` numbers, `stride` apart, as rows of `to.len() / 32`, a multiple of 32; what is missing is zero.
///
/// # Safety
/// The machine has AVX-512, and the tokens are readable.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn keys((from, stride): (*const bf16, usize), (n, d): (usize, usize), to: &mut [bf16]) {
    let deep = to.len() / STEP;
    for (i, to) in to.chunks_exact_mut(deep).enumerate() {
        for (c, to) in to.chunks_exact_mut(32).enumerate() {
            let left = if i < n { d.saturating_sub(32 * c).min(32) } else { 0 };
            let mask = ((1u64 << left) - 1) as u32;
            // SAFETY: `left` numbers of token i are readable from 32 c on, and the others not touched; 32 are writable.
            unsafe {
                let x = _mm512_maskz_loadu_epi16(mask, from.wrapping_add(i * stride + 32 * c).cast());
                _mm512_storeu_si512(to.as_mut_ptr().cast(), x);
            }
        }
    }
}

/// Transposes `n` tokens of `dv` values, `stride` apart: row `c` of `to` is number `c` of each of 32 tokens. What is
/// missing is zero.
///
/// # Safety
/// The machine has AVX-512, and the tokens are readable; `to` has room for 32 numbers in each of `wide` rows, a multiple
/// of 16, that are so far apart.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn values(
    (from, stride): (*const bf16, usize),
    (n, dv): (usize, usize),
    wide: usize,
    (to, to_stride): (*mut bf16, usize),
) {
    let mut pairs = [[0f32; LANES]; STEP / 2];
    for c in (0..wide).step_by(LANES) {
        let all = ((1u32 << dv.saturating_sub(c).min(LANES)) - 1) as u16;
        for (i, pair) in pairs.iter_mut().enumerate() {
            let mask = |t: usize| if t < n { all } else { 0 };
            let token = |t: usize| from.wrapping_add(t * stride + c).cast();
            // SAFETY: the numbers of the masks are readable, the others not touched; a pair has 16 numbers, and 16 lines of
            // 16 pairs become as many rows of `to`.
            unsafe {
                let first = _mm256_maskz_loadu_epi16(mask(2 * i), token(2 * i));
                let second = _mm256_maskz_loadu_epi16(mask(2 * i + 1), token(2 * i + 1));
                let second = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(second));
                let both = _mm512_or_si512(_mm512_cvtepu16_epi32(first), second);
                _mm512_storeu_ps(pair.as_mut_ptr(), _mm512_castsi512_ps(both));
            }
        }
        // SAFETY: as above.
        unsafe { Avx512::transpose(pairs.as_ptr().cast(), LANES, to.add(c * to_stride).cast(), to_stride / 2) };
    }
}
