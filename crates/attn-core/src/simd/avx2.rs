//! AVX2 with fused multiply-add: 16 registers of 8 lanes, so micro-kernels of 6 rows by 2 vectors.

use super::{Job, Simd, accumulate, accumulate_transposed, product};
use half::{bf16, f16};
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub(crate) struct Avx2;

/// # Safety
/// The machine has the features.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn enter<J: Job>(job: J) {
    // SAFETY: the features are enabled here, and the caller guarantees them.
    unsafe { job.run::<Avx2>() }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn scores(depth: usize, a: *const f32, b: *const f32, c: *mut f32) {
    // SAFETY: guaranteed by the caller.
    unsafe { product::<Avx2, 6, 2, 1, 6, false>(depth, a, (b, 16), (c, super::TILE_STRIDE)) }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn accumulate_rows(
    size: (usize, usize),
    depth: usize,
    a: *const f32,
    b: (*const f32, usize),
    c: (*mut f32, usize),
) {
    // SAFETY: guaranteed by the caller.
    unsafe { accumulate::<Avx2, 6, 2, 2>(size, depth, a, b, c) }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn accumulate_columns(cols: usize, depth: usize, a: *const f32, b: (*const f32, usize), c: (*mut f32, usize)) {
    // SAFETY: guaranteed by the caller.
    unsafe { accumulate_transposed::<Avx2, 6, 2>(cols, depth, a, b, c) }
}

/// [`Simd::apart`].
///
/// # Safety
/// The machine has the features.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline(never)]
unsafe fn apart<J: Job>(job: J) {
    // SAFETY: the features are enabled here, and the caller guarantees them.
    unsafe { job.run::<Avx2>() }
}

#[allow(unsafe_op_in_unsafe_fn)] // one-line wrappers of intrinsics: the contract is that of the trait
impl Simd for Avx2 {
    type V = __m256;
    type Bytes = __m256i;
    const LANES: usize = 8;
    const MR: usize = 6;
    const NR: usize = 16;

    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        _mm_prefetch::<_MM_HINT_T0>(p.cast())
    }

    #[inline(always)]
    unsafe fn prefetch_early(p: *const u8) {
        _mm_prefetch::<_MM_HINT_T1>(p.cast())
    }

    #[inline(always)]
    unsafe fn apart<J: Job>(job: J) {
        apart(job)
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        _mm256_set1_ps(x)
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m256 {
        _mm256_loadu_ps(p)
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m256) {
        _mm256_storeu_ps(p, v)
    }

    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        _mm256_add_ps(a, b)
    }

    #[inline(always)]
    unsafe fn sub(a: __m256, b: __m256) -> __m256 {
        _mm256_sub_ps(a, b)
    }

    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        _mm256_mul_ps(a, b)
    }

    #[inline(always)]
    unsafe fn div(a: __m256, b: __m256) -> __m256 {
        _mm256_div_ps(a, b)
    }

    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        _mm256_fmadd_ps(a, b, c)
    }

    #[inline(always)]
    unsafe fn min(a: __m256, b: __m256) -> __m256 {
        _mm256_min_ps(a, b)
    }

    #[inline(always)]
    unsafe fn max(a: __m256, b: __m256) -> __m256 {
        _mm256_max_ps(a, b)
    }

    #[inline(always)]
    unsafe fn sum(v: __m256) -> f32 {
        let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
    }

    #[inline(always)]
    unsafe fn sums([a, b, c, d]: [__m256; 4]) -> [f32; 4] {
        // Numbers of the four side by side, in every 128 bits; then the two halves.
        let all = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
        let mut to = [0f32; 4];
        _mm_storeu_ps(to.as_mut_ptr(), _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps::<1>(all)));
        to
    }

    #[inline(always)]
    unsafe fn largest(v: __m256) -> f32 {
        let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
    }

    #[inline(always)]
    unsafe fn any_above(a: __m256, b: __m256) -> bool {
        _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(a, b)) != 0
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> __m256 {
        let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> __m256 {
        _mm256_cvtph_ps(_mm_loadu_si128(p.cast()))
    }

    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> __m256 {
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast())))
    }

    #[inline(always)]
    unsafe fn load_low_nibbles(p: *const u8) -> __m256 {
        let bytes = _mm_and_si128(_mm_loadl_epi64(p.cast()), _mm_set1_epi8(15));
        _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes))
    }

    #[inline(always)]
    unsafe fn load_high_nibbles(p: *const u8) -> __m256 {
        _mm256_cvtepi32_ps(_mm256_srli_epi32::<4>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()))))
    }

    #[inline(always)]
    unsafe fn load_bf16_in_turn(p: *const bf16) -> (__m256, __m256) {
        let pairs = _mm256_loadu_si256(p.cast());
        let odd = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32 as i32));
        (_mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs)), _mm256_castsi256_ps(odd))
    }

    #[inline(always)]
    unsafe fn widen_f16(p: *const u8) -> f32 {
        _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(p.cast::<u16>().read_unaligned()))))
    }

    #[inline(always)]
    unsafe fn widen_first_f16(p: *const u8) -> f32 {
        _mm_cvtss_f32(_mm_cvtph_ps(_mm_loadl_epi64(p.cast())))
    }

    #[inline(always)]
    unsafe fn widen_f16_each(from: *const u8, size: usize, to: &mut [f32; 8]) {
        let x = |i: usize| from.add(i * size).cast::<i16>().read_unaligned();
        let all = _mm_set_epi16(x(7), x(6), x(5), x(4), x(3), x(2), x(1), x(0));
        _mm256_storeu_ps(to.as_mut_ptr(), _mm256_cvtph_ps(all));
    }

    #[inline(always)]
    unsafe fn widen_f16_pairs(from: *const u8, size: usize, first: &mut [f32; 8], second: &mut [f32; 8]) {
        let x = |i: usize| from.add(i * size).cast::<i32>().read_unaligned();
        let low = _mm_set_epi32(x(3), x(2), x(1), x(0));
        let high = _mm_set_epi32(x(7), x(6), x(5), x(4));
        // Packing limits words to 65535, which none of these exceeds.
        let mask = _mm_set1_epi32(0xffff);
        let firsts = _mm_packus_epi32(_mm_and_si128(low, mask), _mm_and_si128(high, mask));
        let seconds = _mm_packus_epi32(_mm_srli_epi32::<16>(low), _mm_srli_epi32::<16>(high));
        _mm256_storeu_ps(first.as_mut_ptr(), _mm256_cvtph_ps(firsts));
        _mm256_storeu_ps(second.as_mut_ptr(), _mm256_cvtph_ps(seconds));
    }

    #[inline(always)]
    unsafe fn nibbles(from: *const u8, fifth: u32, bias: u8, to: *mut u8) {
        let bytes = _mm_loadu_si128(from.cast());
        let both = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(bytes), _mm_srli_epi16::<4>(bytes));
        let low = _mm256_and_si256(both, _mm256_set1_epi8(15));
        // Byte i of four is spread over the numbers 8 i to 8 i + 7, each of which looks at its own bit.
        let spread = _mm256_set_epi64x(0x0303_0303_0303_0303, 0x0202_0202_0202_0202, 0x0101_0101_0101_0101, 0);
        let own = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
        let bits = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(fifth as i32), spread), own);
        let sixteens = _mm256_and_si256(_mm256_cmpeq_epi8(bits, own), _mm256_set1_epi8(16));
        let numbers = _mm256_sub_epi8(_mm256_or_si256(low, sixteens), _mm256_set1_epi8(bias as i8));
        _mm256_storeu_si256(to.cast(), numbers)
    }

    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> __m256i {
        _mm256_loadu_si256(p.cast())
    }

    #[inline(always)]
    unsafe fn store_bytes(p: *mut u8, v: __m256i) {
        _mm256_storeu_si256(p.cast(), v)
    }

    #[inline(always)]
    unsafe fn shift_bytes(v: __m256i, left: i32, mask: u8) -> __m256i {
        let by = _mm_cvtsi32_si128(left.abs());
        let moved = if left < 0 { _mm256_srl_epi16(v, by) } else { _mm256_sll_epi16(v, by) };
        _mm256_and_si256(moved, _mm256_set1_epi8(mask as i8))
    }

    #[inline(always)]
    unsafe fn or_bytes(a: __m256i, b: __m256i) -> __m256i {
        _mm256_or_si256(a, b)
    }

    #[inline(always)]
    unsafe fn lower_bytes(v: __m256i, by: u8) -> __m256i {
        _mm256_sub_epi8(v, _mm256_set1_epi8(by as i8))
    }

    #[inline(always)]
    unsafe fn look_up(table: &[i8; 16], v: __m256i) -> __m256i {
        _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast())), v)
    }

    #[inline(always)]
    unsafe fn round_and_power(x: __m256) -> (__m256, __m256) {
        let n = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
        let bits = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
        (n, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(bits)))
    }

    #[inline(always)]
    unsafe fn scores(_cols: usize, depth: usize, a: *const f32, b: *const f32, c: *mut f32) {
        scores(depth, a, b, c)
    }

    #[inline(always)]
    unsafe fn accumulate(
        size: (usize, usize),
        depth: usize,
        a: *const f32,
        b: (*const f32, usize),
        c: (*mut f32, usize),
    ) {
        accumulate_rows(size, depth, a, b, c)
    }
    #[inline(always)]
    unsafe fn accumulate_transposed(
        cols: usize,
        depth: usize,
        a: *const f32,
        b: (*const f32, usize),
        c: (*mut f32, usize),
    ) {
        accumulate_columns(cols, depth, a, b, c)
    }
}
