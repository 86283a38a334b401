//! NEON: 32 registers of 4 lanes, so micro-kernels of 6 rows by 4 vectors.
//!
//! So far it was only run under emulation (`scripts/ci/check_aarch64.sh`), so its speed is not known.

use super::{Job, Simd, accumulate, accumulate_transposed, product};
use half::{bf16, f16};
use std::arch::{aarch64::*, asm};

#[derive(Clone, Copy)]
pub(super) struct Neon;

/// # Safety
/// The machine has NEON.
#[target_feature(enable = "neon")]
pub(super) unsafe fn enter<J: Job>(job: J) {
    // SAFETY: the feature is enabled here, and the caller guarantees it.
    unsafe { job.run::<Neon>() }
}

#[target_feature(enable = "neon")]
unsafe fn scores(depth: usize, a: *const f32, b: *const f32, c: *mut f32) {
    // SAFETY: guaranteed by the caller.
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
    // SAFETY: guaranteed by the caller.
    unsafe { accumulate::<Neon, 6, 4, 4>(size, depth, a, b, c) }
}

#[target_feature(enable = "neon")]
unsafe fn accumulate_columns(cols: usize, depth: usize, a: *const f32, b: (*const f32, usize), c: (*mut f32, usize)) {
    // SAFETY: guaranteed by the caller.
    unsafe { accumulate_transposed::<Neon, 6, 4>(cols, depth, a, b, c) }
}

/// Four f16 numbers as f32. The intrinsic for this needs a type that isn't stable; the instruction is in every processor.
///
/// # Safety
/// The machine has NEON.
#[inline(always)]
unsafe fn widen(halves: uint16x4_t) -> float32x4_t {
    let wide: float32x4_t;
    // SAFETY: the instruction reads and writes these two registers only; the caller guarantees that it exists.
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

/// [`Simd::apart`].
///
/// # Safety
/// The machine has the features.
#[target_feature(enable = "neon")]
#[inline(never)]
unsafe fn apart<J: Job>(job: J) {
    // SAFETY: the features are enabled here, and the caller guarantees them.
    unsafe { job.run::<Neon>() }
}

#[allow(unsafe_op_in_unsafe_fn)] // one-line wrappers of intrinsics: the contract is that of the trait
impl Simd for Neon {
    type V = float32x4_t;
    type Bytes = uint8x16x2_t;
    const LANES: usize = 4;
    const MR: usize = 6;
    const NR: usize = 16;

    #[inline(always)]
    unsafe fn apart<J: Job>(job: J) {
        apart(job)
    }

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
    unsafe fn sums([a, b, c, d]: [float32x4_t; 4]) -> [f32; 4] {
        let mut to = [0f32; 4];
        vst1q_f32(to.as_mut_ptr(), vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
        to
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
    unsafe fn widen_f16(p: *const u8) -> f32 {
        vgetq_lane_f32::<0>(widen(vdup_n_u16(p.cast::<u16>().read_unaligned())))
    }

    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> float32x4_t {
        let bytes = vcreate_s8(u64::from(p.cast::<u32>().read_unaligned()));
        vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))))
    }

    #[inline(always)]
    unsafe fn load_low_nibbles(p: *const u8) -> float32x4_t {
        let bytes = vcreate_u8(u64::from(p.cast::<u32>().read_unaligned() & 0x0f0f_0f0f));
        vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(bytes))))
    }

    #[inline(always)]
    unsafe fn load_high_nibbles(p: *const u8) -> float32x4_t {
        let bytes = vcreate_u8(u64::from(p.cast::<u32>().read_unaligned() >> 4 & 0x0f0f_0f0f));
        vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(bytes))))
    }

    #[inline(always)]
    unsafe fn load_bf16_in_turn(p: *const bf16) -> (float32x4_t, float32x4_t) {
        let pairs = vreinterpretq_u32_u16(vld1q_u16(p.cast()));
        let odd = vandq_u32(pairs, vdupq_n_u32(0xffff_0000));
        (vreinterpretq_f32_u32(vshlq_n_u32::<16>(pairs)), vreinterpretq_f32_u32(odd))
    }

    #[inline(always)]
    unsafe fn nibbles(from: *const u8, fifth: u32, bias: u8, to: *mut u8) {
        const OWN: [u8; 8] = [1, 2, 4, 8, 16, 32, 64, 128];
        let (bytes, own, bits) = (vld1q_u8(from), vld1_u8(OWN.as_ptr()), fifth.to_le_bytes());
        let own = vcombine_u8(own, own);
        for (half, low) in [vandq_u8(bytes, vdupq_n_u8(15)), vshrq_n_u8::<4>(bytes)].into_iter().enumerate() {
            let spread = vcombine_u8(vdup_n_u8(bits[2 * half]), vdup_n_u8(bits[2 * half + 1]));
            let sixteens = vandq_u8(vtstq_u8(spread, own), vdupq_n_u8(16));
            vst1q_u8(to.add(16 * half), vsubq_u8(vorrq_u8(low, sixteens), vdupq_n_u8(bias)));
        }
    }

    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> uint8x16x2_t {
        vld1q_u8_x2(p)
    }

    #[inline(always)]
    unsafe fn store_bytes(p: *mut u8, v: uint8x16x2_t) {
        vst1q_u8_x2(p, v)
    }

    #[inline(always)]
    unsafe fn shift_bytes(v: uint8x16x2_t, left: i32, mask: u8) -> uint8x16x2_t {
        let (by, mask) = (vdupq_n_s8(left as i8), vdupq_n_u8(mask));
        uint8x16x2_t(vandq_u8(vshlq_u8(v.0, by), mask), vandq_u8(vshlq_u8(v.1, by), mask))
    }

    #[inline(always)]
    unsafe fn or_bytes(a: uint8x16x2_t, b: uint8x16x2_t) -> uint8x16x2_t {
        uint8x16x2_t(vorrq_u8(a.0, b.0), vorrq_u8(a.1, b.1))
    }

    #[inline(always)]
    unsafe fn lower_bytes(v: uint8x16x2_t, by: u8) -> uint8x16x2_t {
        uint8x16x2_t(vsubq_u8(v.0, vdupq_n_u8(by)), vsubq_u8(v.1, vdupq_n_u8(by)))
    }

    #[inline(always)]
    unsafe fn look_up(table: &[i8; 16], v: uint8x16x2_t) -> uint8x16x2_t {
        let table = vld1q_u8(table.as_ptr().cast());
        uint8x16x2_t(vqtbl1q_u8(table, v.0), vqtbl1q_u8(table, v.1))
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
