//! NEON: 32 registers of 4 lanes, so micro-kernels of 6 rows by 4 vectors.
//!
//! Run under emulation alone so far (`scripts/check_aarch64.sh`), so its speed is not known.

use super::{Job, Simd, accumulate, accumulate_transposed, product};
use half::{bf16, f16};
use std::arch::{aarch64::*, asm};

#[derive(Clone, Copy)]
pub(super) struct Neon;

/// # Safety
/// The machine has NEON.
#[target_feature(enable = "neon")]
pub(super) unsafe fn enter<J: Job>(job: J) {
    // SAFETY: the feature is enabled here and present by the caller's word.
    unsafe { job.run::<Neon>() }
}

#[target_feature(enable = "neon")]
unsafe fn scores(depth: usize, a: *const f32, b: *const f32, c: *mut f32) {
    // SAFETY: by the caller's word.
    unsafe { product::<Neon, 6, 4, 1, 6, false>(depth, a, (b, 16), (c, super::TILE_STRIDE)) }
}

#[target_feature(enable = "neon")]
unsafe fn accumulate_rows(
    size: (usize, usize),
    depth: usize,
    a: *const f32,
    b: (*const f32, usize),
    c: (*mut f32, usize),
) {
    // SAFETY: by the caller's word.
    unsafe { accumulate::<Neon, 6, 4, 4>(size, depth, a, b, c) }
}

#[target_feature(enable = "neon")]
unsafe fn accumulate_columns(cols: usize, depth: usize, a: *const f32, b: (*const f32, usize), c: (*mut f32, usize)) {
    // SAFETY: by the caller's word.
    unsafe { accumulate_transposed::<Neon, 6, 4>(cols, depth, a, b, c) }
}

/// Four f16 numbers as f32. The intrinsic for this needs a type that isn't stable; the instruction is in every processor.
///
/// # Safety
/// The machine has NEON.
#[inline(always)]
unsafe fn widen(halves: uint16x4_t) -> float32x4_t {
    let wide: float32x4_t;
    // SAFETY: the instruction reads and writes these two registers only; it is there by the caller's word.
    unsafe {
        asm!(
            "fcvtl {wide:v}.4s, {halves:v}.4h",
            wide = lateout(vreg) wide,
            halves = in(vreg) halves,
            options(pure, nomem, nostack)
        );
    }
    wide
}

#[allow(unsafe_op_in_unsafe_fn)] // one-line wrappers of intrinsics: the contract is that of the trait
impl Simd for Neon {
    type V = float32x4_t;
    const LANES: usize = 4;
    const MR: usize = 6;
    const NR: usize = 16;

    #[inline(always)]
    unsafe fn splat(x: f32) -> float32x4_t {
        vdupq_n_f32(x)
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> float32x4_t {
        vld1q_f32(p)
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, v: float32x4_t) {
        vst1q_f32(p, v)
    }

    #[inline(always)]
    unsafe fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vaddq_f32(a, b)
    }

    #[inline(always)]
    unsafe fn sub(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vsubq_f32(a, b)
    }

    #[inline(always)]
    unsafe fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vmulq_f32(a, b)
    }

    #[inline(always)]
    unsafe fn div(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vdivq_f32(a, b)
    }

    #[inline(always)]
    unsafe fn fma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        vfmaq_f32(c, a, b)
    }

    #[inline(always)]
    unsafe fn min(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vbslq_f32(vcltq_f32(a, b), a, b)
    }

    #[inline(always)]
    unsafe fn max(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // Not `vmaxq_f32`, which is NaN if either is.
        vbslq_f32(vcgtq_f32(a, b), a, b)
    }

    #[inline(always)]
    unsafe fn sum(v: float32x4_t) -> f32 {
        vaddvq_f32(v)
    }

    #[inline(always)]
    unsafe fn largest(v: float32x4_t) -> f32 {
        vmaxvq_f32(v)
    }

    #[inline(always)]
    unsafe fn any_above(a: float32x4_t, b: float32x4_t) -> bool {
        vmaxvq_u32(vcgtq_f32(a, b)) != 0
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> float32x4_t {
        vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p.cast())))
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> float32x4_t {
        widen(vld1_u16(p.cast()))
    }

    #[inline(always)]
    unsafe fn splat_f16(p: *const u8) -> float32x4_t {
        widen(vdup_n_u16(p.cast::<u16>().read_unaligned()))
    }

    #[inline(always)]
    unsafe fn round_and_power(x: float32x4_t) -> (float32x4_t, float32x4_t) {
        let n = vrndnq_f32(x);
        let bits = vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127));
        (n, vreinterpretq_f32_s32(vshlq_n_s32::<23>(bits)))
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
