//! Plain Rust over arrays of eight, for machines without a path of their own and for Miri.

use super::{Job, Simd, accumulate, accumulate_transposed, product};
use half::{bf16, f16};

#[derive(Clone, Copy)]
pub(super) struct Portable;

type V = [f32; 8];

#[inline(always)]
fn zip(a: V, b: V, f: impl Fn(f32, f32) -> f32) -> V {
    std::array::from_fn(|i| f(a[i], b[i]))
}

/// [`Simd::apart`].
///
/// # Safety
/// The machine has the features.
#[inline(never)]
unsafe fn apart<J: Job>(job: J) {
    // SAFETY: the features are enabled here, and the caller guarantees them.
    unsafe { job.run::<Portable>() }
}

impl Simd for Portable {
    type V = V;
    type Bytes = [u8; 32];
    const LANES: usize = 8;
    const MR: usize = 4;
    const NR: usize = 8;

    #[inline(always)]
    unsafe fn apart<J: Job>(job: J) {
        // SAFETY: guaranteed by the caller.
        unsafe { apart(job) }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> V {
        [x; 8]
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> V {
        // SAFETY: eight numbers are readable at p, as the caller guarantees; arrays are only aligned to their elements.
        unsafe { p.cast::<V>().read() }
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, v: V) {
        // SAFETY: as for `load`.
        unsafe { p.cast::<V>().write(v) }
    }

    #[inline(always)]
    unsafe fn add(a: V, b: V) -> V {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn sub(a: V, b: V) -> V {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    unsafe fn mul(a: V, b: V) -> V {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    unsafe fn div(a: V, b: V) -> V {
        zip(a, b, |a, b| a / b)
    }

    #[inline(always)]
    unsafe fn fma(a: V, b: V, c: V) -> V {
        // Not `mul_add`, which is a library call on targets without the instruction.
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    unsafe fn min(a: V, b: V) -> V {
        zip(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    unsafe fn max(a: V, b: V) -> V {
        zip(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn sum(v: V) -> f32 {
        ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]))
    }

    #[inline(always)]
    unsafe fn sums(v: [V; 4]) -> [f32; 4] {
        // SAFETY: plain arithmetic.
        v.map(|v| unsafe { Self::sum(v) })
    }

    #[inline(always)]
    unsafe fn largest(v: V) -> f32 {
        v.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
    }

    #[inline(always)]
    unsafe fn any_above(a: V, b: V) -> bool {
        a.iter().zip(b).any(|(a, b)| *a > b)
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> V {
        // SAFETY: eight numbers are readable at p, as the caller guarantees.
        let raw = unsafe { p.cast::<[u16; 8]>().read() };
        raw.map(|x| f32::from_bits((x as u32) << 16))
    }

    #[inline(always)]
    unsafe fn load_bf16_in_turn(p: *const bf16) -> (V, V) {
        // SAFETY: sixteen numbers are readable at p, as the caller guarantees.
        let at = |i: usize| unsafe { (*p.add(i)).to_f32() };
        (std::array::from_fn(|i| at(2 * i)), std::array::from_fn(|i| at(2 * i + 1)))
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> V {
        // SAFETY: eight numbers are readable at p, as the caller guarantees.
        let raw = unsafe { p.cast::<[f16; 8]>().read() };
        raw.map(f16::to_f32)
    }

    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> [u8; 32] {
        // SAFETY: 32 bytes are readable at p, as the caller guarantees.
        unsafe { p.cast::<[u8; 32]>().read() }
    }

    #[inline(always)]
    unsafe fn store_bytes(p: *mut u8, v: [u8; 32]) {
        // SAFETY: 32 bytes are writable at p, as the caller guarantees.
        unsafe { p.cast::<[u8; 32]>().write(v) }
    }

    #[inline(always)]
    unsafe fn shift_bytes(v: [u8; 32], left: i32, mask: u8) -> [u8; 32] {
        v.map(|x| if left < 0 { x >> -left } else { x << left } & mask)
    }

    #[inline(always)]
    unsafe fn or_bytes(a: [u8; 32], b: [u8; 32]) -> [u8; 32] {
        std::array::from_fn(|i| a[i] | b[i])
    }

    #[inline(always)]
    unsafe fn lower_bytes(v: [u8; 32], by: u8) -> [u8; 32] {
        v.map(|x| x.wrapping_sub(by))
    }

    #[inline(always)]
    unsafe fn look_up(table: &[i8; 16], v: [u8; 32]) -> [u8; 32] {
        v.map(|x| table[usize::from(x & 15)] as u8)
    }

    #[inline(always)]
    unsafe fn round_and_power(x: V) -> (V, V) {
        // Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
        const MAGIC: f32 = 12_582_912.0;
        let shifted = x.map(|x| x + MAGIC);
        let power = shifted.map(|s| f32::from_bits(s.to_bits().wrapping_sub(MAGIC.to_bits()).wrapping_add(127) << 23));
        (shifted.map(|s| s - MAGIC), power)
    }

    #[inline(never)]
    unsafe fn scores(_cols: usize, depth: usize, a: *const f32, b: *const f32, c: *mut f32) {
        // SAFETY: guaranteed by the caller.
        unsafe { product::<Self, 4, 1, 1, 4, false>(depth, a, (b, 8), (c, super::TILE_STRIDE)) }
    }

    #[inline(never)]
    unsafe fn accumulate(
        size: (usize, usize),
        depth: usize,
        a: *const f32,
        b: (*const f32, usize),
        c: (*mut f32, usize),
    ) {
        // SAFETY: guaranteed by the caller. Four rows by one vector is this path's only shape.
        unsafe { accumulate::<Self, 4, 1, 1>(size, depth, a, b, c) }
    }
    #[inline(never)]
    unsafe fn accumulate_transposed(
        cols: usize,
        depth: usize,
        a: *const f32,
        b: (*const f32, usize),
        c: (*mut f32, usize),
    ) {
        // SAFETY: guaranteed by the caller.
        unsafe { accumulate_transposed::<Self, 4, 1>(cols, depth, a, b, c) }
    }
}
