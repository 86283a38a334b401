//! AVX-512: 32 registers of 16 lanes, so micro-kernels of 6 rows by 4 vectors, and of 12 by 2 where fewer columns are left.
//!
//! Both keep 24 sums in registers, but 6 by 4 needs 10 loads for 24 multiply-adds where 12 by 2 needs 14. The
//! difference counts when the other hardware thread of the core is busy.

use super::{Job, Simd, TILE_STRIDE, accumulate, accumulate_transposed, avx2::Avx2, product};
use half::{bf16, f16};
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub(crate) struct Avx512;

/// 2^f for f in 0..1: minimax polynomial, relative error 7.5e-8.
const EXP2: [f32; 6] = [0.999_999_93, 0.693_153_1, 0.240_153_62, 0.055_826_32, 0.008_989_34, 0.001_877_58];

/// # Safety
/// The machine has the features.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma,avx2,f16c,bmi2")]
pub(super) unsafe fn enter<J: Job>(job: J) {
    // SAFETY: the features are enabled here, and the caller guarantees them.
    unsafe { job.run::<Avx512>() }
}

/// The micro-kernel of 6 rows by 4 vectors on 12 rows and `cols` columns, a multiple of 64.
///
/// # Safety
/// As [`product`].
#[inline(always)]
unsafe fn by_halves<const ROW: usize, const STEP: usize, const ADD: bool>(
    cols: usize,
    depth: usize,
    a: *const f32,
    (b, b_stride): (*const f32, usize),
    (c, c_stride): (*mut f32, usize),
) {
    for col in (0..cols).step_by(64) {
        for half in [0, 6] {
            // SAFETY: guaranteed by the caller; rows `half..half + 6` are among the 12.
            unsafe {
                let (a, b, c) = (a.add(half * ROW), b.add(col), c.add(half * c_stride + col));
                product::<Avx512, 6, 4, ROW, STEP, ADD>(depth, a, (b, b_stride), (c, c_stride));
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
unsafe fn scores(cols: usize, depth: usize, a: *const f32, b: *const f32, c: *mut f32) {
    let (b, c) = ((b, Avx512::NR), (c, TILE_STRIDE));
    // SAFETY: guaranteed by the caller.
    unsafe {
        match cols <= 32 {
            true => product::<Avx512, 12, 2, 1, 12, false>(depth, a, b, c),
            false => by_halves::<1, 12, false>(Avx512::NR, depth, a, b, c),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
unsafe fn accumulate_rows(
    (rows, cols): (usize, usize),
    depth: usize,
    a: *const f32,
    b: (*const f32, usize),
    c: (*mut f32, usize),
) {
    let whole = if rows > 4 { cols / 64 * 64 } else { 0 };
    // SAFETY: guaranteed by the caller; columns below `whole` are among `cols`.
    unsafe {
        by_halves::<TILE_STRIDE, 1, true>(whole, depth, a, b, c);
        let (b, c) = ((b.0.add(whole), b.1), (c.0.add(whole), c.1));
        accumulate::<Avx512, 12, 2, 4>((rows, cols - whole), depth, a, b, c);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
unsafe fn accumulate_columns(cols: usize, depth: usize, a: *const f32, b: (*const f32, usize), c: (*mut f32, usize)) {
    let whole = cols / 64 * 64;
    // SAFETY: as in `accumulate_rows`.
    unsafe {
        by_halves::<1, TILE_STRIDE, true>(whole, depth, a, b, c);
        let (b, c) = ((b.0.add(whole), b.1), (c.0.add(whole), c.1));
        accumulate_transposed::<Avx512, 12, 2>(cols - whole, depth, a, b, c);
    }
}

/// 2^(x - floor(x))
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn power_of_fraction(x: __m512) -> __m512 {
    // `scalef` takes the floor itself.
    let f = _mm512_reduce_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(x);
    let mut y = _mm512_set1_ps(EXP2[5]);
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(EXP2[4]));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(EXP2[3]));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(EXP2[2]));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(EXP2[1]));
    _mm512_fmadd_ps(y, f, _mm512_set1_ps(EXP2[0]))
}

/// [`Simd::apart`].
///
/// # Safety
/// The machine has the features.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma,avx2,f16c,bmi2")]
#[inline(never)]
unsafe fn apart<J: Job>(job: J) {
    // SAFETY: the features are enabled here, and the caller guarantees them.
    unsafe { job.run::<Avx512>() }
}

#[allow(unsafe_op_in_unsafe_fn)] // one-line wrappers of intrinsics: the contract is that of the trait
impl Simd for Avx512 {
    type V = __m512;
    type Bytes = __m256i;
    const LANES: usize = 16;
    const MR: usize = 12;
    const NR: usize = 64;

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
    unsafe fn splat(x: f32) -> __m512 {
        _mm512_set1_ps(x)
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        _mm512_loadu_ps(p)
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m512) {
        _mm512_storeu_ps(p, v)
    }

    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        _mm512_add_ps(a, b)
    }

    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        _mm512_sub_ps(a, b)
    }

    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        _mm512_mul_ps(a, b)
    }

    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        _mm512_div_ps(a, b)
    }

    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        _mm512_fmadd_ps(a, b, c)
    }

    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        _mm512_min_ps(a, b)
    }

    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        _mm512_max_ps(a, b)
    }

    #[inline(always)]
    unsafe fn sum(v: __m512) -> f32 {
        _mm512_reduce_add_ps(v)
    }

    #[inline(always)]
    unsafe fn sums([a, b, c, d]: [__m512; 4]) -> [f32; 4] {
        // Numbers of the four side by side, in every 128 bits; then the 128 bits of each quarter.
        let ab = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
        let cd = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d)));
        let (low, high) = (_mm512_unpacklo_pd(ab, cd), _mm512_unpackhi_pd(ab, cd));
        let all = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
        let half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps::<1>(all));
        let mut to = [0f32; 4];
        let quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
        _mm_storeu_ps(to.as_mut_ptr(), quarter);
        to
    }

    #[inline(always)]
    unsafe fn largest(v: __m512) -> f32 {
        _mm512_reduce_max_ps(v)
    }

    #[inline(always)]
    unsafe fn any_above(a: __m512, b: __m512) -> bool {
        _mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b) != 0
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> __m512 {
        let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> __m512 {
        _mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))
    }

    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> __m512 {
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast())))
    }

    #[inline(always)]
    unsafe fn load_low_nibbles(p: *const u8) -> __m512 {
        let bytes = _mm_and_si128(_mm_loadu_si128(p.cast()), _mm_set1_epi8(15));
        _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes))
    }

    #[inline(always)]
    unsafe fn load_high_nibbles(p: *const u8) -> __m512 {
        _mm512_cvtepi32_ps(_mm512_srli_epi32::<4>(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()))))
    }

    #[inline(always)]
    unsafe fn load_bf16_in_turn(p: *const bf16) -> (__m512, __m512) {
        let pairs = _mm512_loadu_si512(p.cast());
        let odd = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32 as i32));
        (_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)), _mm512_castsi512_ps(odd))
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
        Avx2::widen_f16_each(from, size, to);
    }

    #[inline(always)]
    unsafe fn widen_f16_pairs(from: *const u8, size: usize, first: &mut [f32; 8], second: &mut [f32; 8]) {
        Avx2::widen_f16_pairs(from, size, first, second);
    }

    #[inline(always)]
    unsafe fn nibbles(from: *const u8, fifth: u32, bias: u8, to: *mut u8) {
        let bytes = _mm_loadu_si128(from.cast());
        let both = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(bytes), _mm_srli_epi16::<4>(bytes));
        let low = _mm256_and_si256(both, _mm256_set1_epi8(15));
        let numbers = _mm256_mask_add_epi8(low, fifth, low, _mm256_set1_epi8(16));
        _mm256_storeu_si256(to.cast(), _mm256_sub_epi8(numbers, _mm256_set1_epi8(bias as i8)))
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
    unsafe fn round_and_power(x: __m512) -> (__m512, __m512) {
        let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
        (n, _mm512_scalef_ps(_mm512_set1_ps(1.0), n))
    }

    #[inline(always)]
    unsafe fn exp2(x: __m512) -> __m512 {
        _mm512_scalef_ps(power_of_fraction(x), x)
    }

    #[inline(always)]
    unsafe fn exp2_cut(x: __m512) -> __m512 {
        let matters = _mm512_cmp_ps_mask::<_CMP_NLE_UQ>(x, _mm512_set1_ps(-100.0));
        _mm512_maskz_scalef_ps(matters, power_of_fraction(x), x)
    }

    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> __m512 {
        _mm512_maskz_loadu_ps(((1u32 << n) - 1) as __mmask16, p)
    }

    #[inline(always)]
    unsafe fn transpose(src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize) {
        let mut r = [_mm512_setzero_ps(); 16];
        for (i, r) in r.iter_mut().enumerate() {
            *r = _mm512_loadu_ps(src.add(i * src_stride));
        }
        // Pairs, then quadruples within each 128-bit lane, then the lanes themselves.
        let mut t = r;
        for i in 0..8 {
            t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
            t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
        }
        for i in 0..4 {
            let (a, b) = (4 * i, 4 * i + 2);
            r[a] = _mm512_shuffle_ps::<0x44>(t[a], t[b]);
            r[a + 1] = _mm512_shuffle_ps::<0xee>(t[a], t[b]);
            r[a + 2] = _mm512_shuffle_ps::<0x44>(t[a + 1], t[b + 1]);
            r[a + 3] = _mm512_shuffle_ps::<0xee>(t[a + 1], t[b + 1]);
        }
        for i in 0..4 {
            let low = _mm512_shuffle_f32x4::<0x88>(r[i], r[i + 4]);
            let high = _mm512_shuffle_f32x4::<0x88>(r[i + 8], r[i + 12]);
            let low_odd = _mm512_shuffle_f32x4::<0xdd>(r[i], r[i + 4]);
            let high_odd = _mm512_shuffle_f32x4::<0xdd>(r[i + 8], r[i + 12]);
            t[i] = _mm512_shuffle_f32x4::<0x88>(low, high);
            t[i + 4] = _mm512_shuffle_f32x4::<0x88>(low_odd, high_odd);
            t[i + 8] = _mm512_shuffle_f32x4::<0xdd>(low, high);
            t[i + 12] = _mm512_shuffle_f32x4::<0xdd>(low_odd, high_odd);
        }
        for (j, t) in t.iter().enumerate() {
            _mm512_storeu_ps(dst.add(j * dst_stride), *t);
        }
    }

    #[inline(always)]
    unsafe fn scores(cols: usize, depth: usize, a: *const f32, b: *const f32, c: *mut f32) {
        scores(cols, depth, a, b, c)
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
