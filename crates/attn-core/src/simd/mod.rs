//! The vector operations that the kernels are written in, once per instruction set.
//!
//! A kernel is a generic function over [`Simd`] that is inlined into [`dispatch`]'s entry point for the instruction set,
//! so its vector code is compiled with the right target features and chosen once per call, not once per operation.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod dots;
mod isa;
#[cfg(test)]
mod laws;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
#[cfg_attr(all(test, debug_assertions), path = "strict_scratch.rs")]
mod scratch;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
use half::{bf16, f16, slice::HalfFloatSliceExt};
pub use isa::KernelPath;
pub(crate) use isa::is_amd;
pub(crate) use scratch::Scratch;

/// The most keys in a tile, a multiple of every path's panel width.
pub(crate) const KEYS: usize = 256;
/// The most rows of any path's micro-kernels.
pub(crate) const MOST_MR: usize = 16;
/// Distance between the rows of a score tile. Not a power of two, so that a column of rows doesn't share cache sets;
/// a constant, so that a micro-kernel addresses all rows from one pointer.
pub(crate) const TILE_STRIDE: usize = KEYS + 16;

/// 2^x = 2^n 2^f with f in -0.5..=0.5: minimax polynomial for 2^f, relative error 7.5e-8.
const EXP2: [f32; 6] = [1.000_000_1, 0.693_146_94, 0.240_221_2, 0.055_507_13, 0.009_675_541, 0.001_327_647_2];

/// The vector operations of one instruction set.
///
/// # Safety
/// Every function requires that the machine has the instruction set, which [`dispatch`] ensures, and that pointers are
/// valid for the elements that its name or comment says.
pub(crate) trait Simd: Copy + 'static {
    /// A vector of `LANES` f32 numbers.
    type V: Copy;
    /// 32 bytes.
    type Bytes: Copy;
    /// Numbers per vector.
    const LANES: usize;
    /// Rows of the micro-kernels; divides `ROWS`.
    const MR: usize;
    /// Width of a packed panel of keys; divides `KEYS`.
    const NR: usize;

    /// Runs the job as a function of its own rather than as part of its caller: what many callers share is compiled once.
    unsafe fn apart<J: Job>(job: J);

    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The smaller; `b` if either is NaN.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// The larger; `b` if either is NaN.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sum(v: Self::V) -> f32;
    /// The sums of four vectors at once, which takes a third of the time.
    unsafe fn sums(v: [Self::V; 4]) -> [f32; 4];
    unsafe fn largest(v: Self::V) -> f32;
    /// Whether a lane of `a` is larger than that of `b`.
    unsafe fn any_above(a: Self::V, b: Self::V) -> bool;
    /// `LANES` numbers, widened.
    unsafe fn load_bf16(p: *const bf16) -> Self::V;
    /// `LANES` numbers, widened.
    unsafe fn load_f16(p: *const f16) -> Self::V;
    /// `2 * LANES` numbers, widened: the even ones, and the odd ones.
    unsafe fn load_bf16_in_turn(p: *const bf16) -> (Self::V, Self::V);

    /// `f(0)` to `f(LANES - 1)`.
    #[inline(always)]
    unsafe fn from_fn(f: impl Fn(usize) -> f32) -> Self::V {
        let mut buffer = [0f32; 16];
        for (i, x) in buffer.iter_mut().enumerate().take(Self::LANES) {
            *x = f(i);
        }
        // SAFETY: LANES <= 16 numbers are in the buffer; the caller guarantees the instruction set.
        unsafe { Self::load(buffer.as_ptr()) }
    }
    /// `LANES` signed bytes.
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> Self::V {
        // SAFETY: LANES bytes are readable at p, as the caller guarantees.
        unsafe { Self::from_fn(|i| f32::from(*p.cast::<i8>().add(i))) }
    }
    /// The lower four bits of each of `LANES` bytes.
    #[inline(always)]
    unsafe fn load_low_nibbles(p: *const u8) -> Self::V {
        // SAFETY: LANES bytes are readable at p, as the caller guarantees.
        unsafe { Self::from_fn(|i| f32::from(*p.add(i) & 15)) }
    }
    /// The upper four bits of each of `LANES` bytes.
    #[inline(always)]
    unsafe fn load_high_nibbles(p: *const u8) -> Self::V {
        // SAFETY: LANES bytes are readable at p, as the caller guarantees.
        unsafe { Self::from_fn(|i| f32::from(*p.add(i) >> 4)) }
    }
    /// One f16, which need not be aligned.
    #[inline(always)]
    unsafe fn widen_f16(p: *const u8) -> f32 {
        // SAFETY: two bytes are readable at p, as the caller guarantees.
        unsafe { p.cast::<f16>().read_unaligned().to_f32() }
    }
    /// The same for the first of eight readable bytes.
    #[inline(always)]
    unsafe fn widen_first_f16(p: *const u8) -> f32 {
        // SAFETY: two of the bytes are readable at p, as the caller guarantees.
        unsafe { Self::widen_f16(p) }
    }
    /// Widens the f16 that each of eight items of `size` bytes begins with.
    #[inline(always)]
    unsafe fn widen_f16_each(from: *const u8, size: usize, to: &mut [f32; 8]) {
        for (i, to) in to.iter_mut().enumerate() {
            // SAFETY: eight items are readable, as the caller guarantees.
            *to = unsafe { Self::widen_f16(from.add(i * size)) };
        }
    }
    /// Widens the two f16 that each of eight items of `size` bytes begins with: the first ones, then the second ones.
    #[inline(always)]
    unsafe fn widen_f16_pairs(from: *const u8, size: usize, first: &mut [f32; 8], second: &mut [f32; 8]) {
        // SAFETY: eight items of at least four bytes are readable, as the caller guarantees.
        unsafe {
            Self::widen_f16_each(from, size, first);
            Self::widen_f16_each(from.add(2), size, second);
        }
    }
    /// Writes 32 bytes: the lower four bits of each of 16 bytes, then the upper ones, plus 16 where `fifth` has a bit,
    /// the first number's lowest, minus `bias`.
    #[inline(always)]
    unsafe fn nibbles(from: *const u8, fifth: u32, bias: u8, to: *mut u8) {
        for i in 0..16 {
            // SAFETY: 16 bytes are readable and 32 writable, as the caller guarantees.
            unsafe {
                let (byte, bits) = (*from.add(i), fifth >> i);
                *to.add(i) = (byte & 15 | (bits as u8 & 1) << 4).wrapping_sub(bias);
                *to.add(i + 16) = (byte >> 4 | ((bits >> 16) as u8 & 1) << 4).wrapping_sub(bias);
            }
        }
    }

    /// 32 bytes.
    unsafe fn load_bytes(p: *const u8) -> Self::Bytes;
    unsafe fn store_bytes(p: *mut u8, v: Self::Bytes);
    /// Every byte moved left by `left` bits, right if that is negative, and what `mask` keeps of it. The bits that a byte
    /// loses are not in the mask.
    unsafe fn shift_bytes(v: Self::Bytes, left: i32, mask: u8) -> Self::Bytes;
    unsafe fn or_bytes(a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// Every byte minus `by`, modulo 256.
    unsafe fn lower_bytes(v: Self::Bytes, by: u8) -> Self::Bytes;
    /// What the table has at each byte, all of which are below 16.
    unsafe fn look_up(table: &[i8; 16], v: Self::Bytes) -> Self::Bytes;

    /// Splits x into the integer n nearest to it and 2^n, for -127 <= x <= 127; 2^n is 0 for n = -127.
    unsafe fn round_and_power(x: Self::V) -> (Self::V, Self::V);

    /// 2^x; possibly 0 below -126.5, 0 from -150 down, NaN for NaN.
    #[inline(always)]
    unsafe fn exp2(x: Self::V) -> Self::V {
        // SAFETY: the caller guarantees the instruction set.
        unsafe {
            let x = Self::max(Self::splat(-127.0), x);
            let (n, power) = Self::round_and_power(x);
            let f = Self::sub(x, n);
            let mut y = Self::splat(EXP2[5]);
            y = Self::fma(y, f, Self::splat(EXP2[4]));
            y = Self::fma(y, f, Self::splat(EXP2[3]));
            y = Self::fma(y, f, Self::splat(EXP2[2]));
            y = Self::fma(y, f, Self::splat(EXP2[1]));
            y = Self::fma(y, f, Self::splat(EXP2[0]));
            Self::mul(y, power)
        }
    }

    /// 2^x, and 0 from -100 down: products of numbers too small for f32's normal form take a hundred times as long.
    #[inline(always)]
    unsafe fn exp2_cut(x: Self::V) -> Self::V {
        // SAFETY: the caller guarantees the instruction set.
        unsafe {
            // What `exp2` makes of -100, to the last bit: the polynomial at 0 times an exact power of two.
            let least = Self::splat(EXP2[0] * f32::from_bits((127 - 100) << 23));
            Self::sub(Self::exp2(Self::max(Self::splat(-100.0), x)), least)
        }
    }

    /// `n < LANES` numbers, the rest zero.
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self::V {
        let mut buffer = [0f32; 16];
        // SAFETY: n < LANES <= 16 numbers are readable at p.
        unsafe {
            std::ptr::copy_nonoverlapping(p, buffer.as_mut_ptr(), n);
            Self::load(buffer.as_ptr())
        }
    }

    /// Prefetches the cache line at `p`, if the instruction set can; the address need not exist.
    #[inline(always)]
    unsafe fn prefetch(_p: *const u8) {}

    /// The same, but only into the second-level cache: data that is needed later then does not delay the first level's
    /// misses.
    #[inline(always)]
    unsafe fn prefetch_early(_p: *const u8) {}

    /// `dst[j * dst_stride + i] = src[i * src_stride + j]` for `LANES` rows and columns; written line after line, so that
    /// the end of a line may be overwritten by the next.
    #[inline(always)]
    unsafe fn transpose(src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize) {
        for j in 0..Self::LANES {
            for i in 0..Self::LANES {
                // SAFETY: both blocks are LANES x LANES and valid, as the caller guarantees.
                unsafe { *dst.add(j * dst_stride + i) = *src.add(i * src_stride + j) };
            }
        }
    }

    /// `c[i][j] = sum_k a[k * MR + i] * b[k * NR + j]` for `MR` rows of a score tile and at least the first `cols <= NR`
    /// columns; the others, up to `NR`, may be left as they are.
    unsafe fn scores(cols: usize, depth: usize, a: *const f32, b: *const f32, c: *mut f32);

    /// `c[i][j] += sum_k a[i * TILE_STRIDE + k] * b[k * b_stride + j]` for `size`, which is `rows x cols`, numbers:
    /// `rows` is `MR` or at most 4, `cols` a multiple of `LANES`.
    unsafe fn accumulate(
        size: (usize, usize),
        depth: usize,
        a: *const f32,
        b: (*const f32, usize),
        c: (*mut f32, usize),
    );

    /// `c[i][j] += sum_k a[k * TILE_STRIDE + i] * b[k * b_stride + j]` for `MR x cols` numbers, `cols` a multiple of
    /// `LANES`.
    unsafe fn accumulate_transposed(
        cols: usize,
        depth: usize,
        a: *const f32,
        b: (*const f32, usize),
        c: (*mut f32, usize),
    );
}

/// The micro-kernel: a product of `MR x depth` and `depth x NV * LANES`, with every accumulator in a register.
/// `a` is read at `i * ROW + k * STEP`.
///
/// # Safety
/// `a`, `b` and `c` are valid at all those places.
#[inline(always)]
unsafe fn product<S: Simd, const MR: usize, const NV: usize, const ROW: usize, const STEP: usize, const ADD: bool>(
    depth: usize,
    a: *const f32,
    (b, b_stride): (*const f32, usize),
    (c, c_stride): (*mut f32, usize),
) {
    // SAFETY: the caller guarantees the pointers and the instruction set.
    unsafe {
        let mut acc = [[S::splat(0.0); NV]; MR];
        if ADD {
            for (i, row) in acc.iter_mut().enumerate() {
                for (j, acc) in row.iter_mut().enumerate() {
                    *acc = S::load(c.add(i * c_stride + j * S::LANES));
                }
            }
        }
        let (mut a, mut b) = (a, b);
        for _ in 0..depth / 4 {
            multiply_add::<S, MR, NV, ROW>(&mut acc, a, b);
            multiply_add::<S, MR, NV, ROW>(&mut acc, a.add(STEP), b.add(b_stride));
            multiply_add::<S, MR, NV, ROW>(&mut acc, a.add(2 * STEP), b.add(2 * b_stride));
            multiply_add::<S, MR, NV, ROW>(&mut acc, a.add(3 * STEP), b.add(3 * b_stride));
            (a, b) = (a.add(4 * STEP), b.add(4 * b_stride));
        }
        for _ in 0..depth % 4 {
            multiply_add::<S, MR, NV, ROW>(&mut acc, a, b);
            (a, b) = (a.add(STEP), b.add(b_stride));
        }
        for (i, row) in acc.iter().enumerate() {
            for (j, acc) in row.iter().enumerate() {
                S::store(c.add(i * c_stride + j * S::LANES), *acc);
            }
        }
    }
}

/// One step of [`product`]: adds `a[i * ROW] * b[j]` to every accumulator.
///
/// # Safety
/// As [`product`].
#[inline(always)]
unsafe fn multiply_add<S: Simd, const MR: usize, const NV: usize, const ROW: usize>(
    acc: &mut [[S::V; NV]; MR],
    a: *const f32,
    b: *const f32,
) {
    // SAFETY: the caller guarantees the pointers and the instruction set.
    unsafe {
        let mut right = [S::splat(0.0); NV];
        for (j, right) in right.iter_mut().enumerate() {
            *right = S::load(b.add(j * S::LANES));
        }
        for (i, row) in acc.iter_mut().enumerate() {
            let left = S::splat(*a.add(i * ROW));
            for (acc, right) in row.iter_mut().zip(right) {
                *acc = S::fma(left, right, *acc);
            }
        }
    }
}

/// [`Simd::accumulate`] for a path whose micro-kernels are `MR` rows by `WIDE` vectors, or 4 rows by `FEW` vectors.
///
/// # Safety
/// As [`Simd::accumulate`].
#[inline(always)]
unsafe fn accumulate<S: Simd, const MR: usize, const WIDE: usize, const FEW: usize>(
    (rows, cols): (usize, usize),
    depth: usize,
    a: *const f32,
    (b, b_stride): (*const f32, usize),
    (c, c_stride): (*mut f32, usize),
) {
    let mut col = 0;
    while col < cols {
        let left = (cols - col) / S::LANES;
        // SAFETY: columns col.. of b and c are in bounds, and each step stays within `cols`.
        unsafe {
            let (b, c) = ((b.add(col), b_stride), (c.add(col), c_stride));
            if rows > 4 {
                if left >= WIDE {
                    product::<S, MR, WIDE, TILE_STRIDE, 1, true>(depth, a, b, c);
                    col += WIDE * S::LANES;
                } else {
                    product::<S, MR, 1, TILE_STRIDE, 1, true>(depth, a, b, c);
                    col += S::LANES;
                }
            } else if rows > 1 {
                let wide = left >= FEW;
                match (rows, wide) {
                    (2, true) => product::<S, 2, FEW, TILE_STRIDE, 1, true>(depth, a, b, c),
                    (2, false) => product::<S, 2, 1, TILE_STRIDE, 1, true>(depth, a, b, c),
                    (3, true) => product::<S, 3, FEW, TILE_STRIDE, 1, true>(depth, a, b, c),
                    (3, false) => product::<S, 3, 1, TILE_STRIDE, 1, true>(depth, a, b, c),
                    (_, true) => product::<S, 4, FEW, TILE_STRIDE, 1, true>(depth, a, b, c),
                    (_, false) => product::<S, 4, 1, TILE_STRIDE, 1, true>(depth, a, b, c),
                }
                col += if wide { FEW * S::LANES } else { S::LANES };
            } else if left >= 4 {
                product::<S, 1, 4, TILE_STRIDE, 1, true>(depth, a, b, c);
                col += 4 * S::LANES;
            } else {
                product::<S, 1, 1, TILE_STRIDE, 1, true>(depth, a, b, c);
                col += S::LANES;
            }
        }
    }
}

/// [`Simd::accumulate_transposed`] for a path whose micro-kernels are `MR` rows by `WIDE` vectors.
///
/// # Safety
/// As [`Simd::accumulate_transposed`].
#[inline(always)]
unsafe fn accumulate_transposed<S: Simd, const MR: usize, const WIDE: usize>(
    cols: usize,
    depth: usize,
    a: *const f32,
    (b, b_stride): (*const f32, usize),
    (c, c_stride): (*mut f32, usize),
) {
    let mut col = 0;
    while col < cols {
        // SAFETY: columns col.. of b and c are in bounds, and each step stays within `cols`.
        unsafe {
            let (b, c) = ((b.add(col), b_stride), (c.add(col), c_stride));
            if (cols - col) / S::LANES >= WIDE {
                product::<S, MR, WIDE, 1, TILE_STRIDE, true>(depth, a, b, c);
                col += WIDE * S::LANES;
            } else {
                product::<S, MR, 1, 1, TILE_STRIDE, true>(depth, a, b, c);
                col += S::LANES;
            }
        }
    }
}

/// Work that is written once and compiled for every instruction set.
pub(crate) trait Job {
    /// Does the work. Mark it, and what it calls in hot loops, `#[inline(always)]`.
    ///
    /// # Safety
    /// The machine has the instruction set of `S`.
    unsafe fn run<S: Simd>(self);
}

/// Runs the job with the instruction set of `path`, which [`KernelPath::choose`] has checked.
pub(crate) fn dispatch<J: Job>(path: KernelPath, job: J) {
    assert!(path.is_available(), "this machine has no {path} kernel");
    match path {
        // SAFETY: the machine has the path's instruction set, as asserted above.
        #[cfg(target_arch = "x86_64")]
        KernelPath::Amx | KernelPath::Avx512Bf16 | KernelPath::Avx512 => unsafe { avx512::enter(job) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        KernelPath::Avx2 => unsafe { avx2::enter(job) },
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        KernelPath::Neon => unsafe { neon::enter(job) },
        // SAFETY: the portable path needs nothing from the machine.
        _ => unsafe { job.run::<portable::Portable>() },
    }
}

/// A dtype that q, k and v may have.
pub(crate) trait Element: candle_core::WithDType + Default {
    /// True for f32 alone.
    const IS_F32: bool;
    /// Widens.
    fn widen(self) -> f32;
    /// Rounds to the nearest.
    fn narrow(x: f32) -> Self;
    /// Rounds all of `xs` to the nearest.
    fn narrow_all(xs: &[f32], to: &mut [Self]);
    /// Whether [`load_two`](Self::load_two) gives the even numbers and the odd ones.
    const IN_TURN: bool = false;
    /// `LANES` numbers, widened.
    ///
    /// # Safety
    /// As [`Simd::load`].
    unsafe fn load<S: Simd>(p: *const Self) -> S::V;
    /// `2 * LANES` numbers, widened, in the order that takes the least time.
    ///
    /// # Safety
    /// As [`Simd::load`].
    #[inline(always)]
    unsafe fn load_two<S: Simd>(p: *const Self) -> (S::V, S::V) {
        // SAFETY: guaranteed by the caller.
        unsafe { (Self::load::<S>(p), Self::load::<S>(p.add(S::LANES))) }
    }
}

impl Element for f32 {
    const IS_F32: bool = true;

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn narrow(x: f32) -> Self {
        x
    }

    #[inline(always)]
    fn narrow_all(xs: &[f32], to: &mut [Self]) {
        to.copy_from_slice(xs);
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const Self) -> S::V {
        // SAFETY: guaranteed by the caller.
        unsafe { S::load(p) }
    }
}

macro_rules! half_element {
    ($type:ty, $load:ident, $narrow_all:expr $(, $more:item)*) => {
        impl Element for $type {
            const IS_F32: bool = false;

            #[inline(always)]
            fn widen(self) -> f32 {
                self.to_f32()
            }

            #[inline(always)]
            fn narrow(x: f32) -> Self {
                Self::from_f32(x)
            }

            #[inline(always)]
            fn narrow_all(xs: &[f32], to: &mut [Self]) {
                $narrow_all(xs, to)
            }

            #[inline(always)]
            unsafe fn load<S: Simd>(p: *const Self) -> S::V {
                // SAFETY: guaranteed by the caller.
                unsafe { S::$load(p) }
            }

            $($more)*
        }
    };
}

half_element!(
    bf16,
    load_bf16,
    round_bf16,
    const IN_TURN: bool = true;,
    #[inline(always)]
    unsafe fn load_two<S: Simd>(p: *const Self) -> (S::V, S::V) {
        // SAFETY: guaranteed by the caller.
        unsafe { S::load_bf16_in_turn(p) }
    }
);
half_element!(f16, load_f16, |xs: &[f32], to: &mut [f16]| to.convert_from_f32_slice(xs));

/// Rounds to nearest, ties to even, without a branch, so that the compiler vectorises it for the instruction set it is
/// inlined into.
#[inline(always)]
pub(crate) fn round_bf16(xs: &[f32], to: &mut [bf16]) {
    for (to, x) in to.iter_mut().zip(xs) {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        let quiet = bits >> 16 | 0x40;
        *to = bf16::from_bits(if x.is_nan() { quiet } else { rounded } as u16);
    }
}
