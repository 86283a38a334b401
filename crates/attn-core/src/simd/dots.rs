//! Sums of products of bytes, once per instruction set: what products with activations in 8 bits are made of.
//!
//! These are 256-bit vectors everywhere: a line of 32 numbers, the unit that quantised formats have, is one.

use super::{Job, KernelPath, Simd, dispatch};
#[cfg(target_arch = "x86_64")]
use super::{avx2::Avx2, avx512::Avx512};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::marker::PhantomData;

/// Products of lines of 32 bytes.
///
/// The numbers `w` are signed bytes if `signed`, else at most 127, which is known when this is compiled. `x` are signed
/// bytes from -127 on, together with -128 times the sum of every four of them, for instructions that take one factor
/// unsigned.
///
/// # Safety
/// Every function requires that the machine has the instruction set, and that pointers are valid for 32 numbers and the
/// eight sums of them.
pub(crate) trait Dots: 'static {
    /// The other operations of the instruction set.
    type S: Simd;
    /// Eight f32 sums.
    type V: Copy;

    unsafe fn zero() -> Self::V;
    /// `acc` and `scale` times the sums of products.
    unsafe fn add_line(acc: Self::V, w: *const u8, x: (*const i8, *const i32), signed: bool, scale: f32) -> Self::V;
    /// The same with a scale for the first 16 numbers and one for the others.
    unsafe fn add_halves(
        acc: Self::V,
        w: *const u8,
        x: (*const i8, *const i32),
        signed: bool,
        scales: [f32; 2],
    ) -> Self::V;
    /// The sum of all.
    unsafe fn sum(a: Self::V, b: Self::V) -> f32;
}

/// Work that is written once and compiled for every instruction set with its sums of products of bytes.
pub(crate) trait DotJob {
    /// Does the work. Mark it, and what it calls in hot loops, `#[inline(always)]`.
    ///
    /// # Safety
    /// The machine has the instruction set of `D`.
    unsafe fn run<D: Dots>(self);
}

/// Runs the job with the best that the machine has among what `path` allows.
pub(crate) fn dispatch_dots<J: DotJob>(path: KernelPath, job: J) {
    match path {
        #[cfg(target_arch = "x86_64")]
        KernelPath::Amx | KernelPath::Avx512Bf16 | KernelPath::Avx512 if has_vnni() && path.is_available() => {
            // SAFETY: the machine has the path and VNNI.
            unsafe { enter_vnni(job) }
        }
        #[cfg(target_arch = "x86_64")]
        KernelPath::Amx | KernelPath::Avx512Bf16 | KernelPath::Avx512 | KernelPath::Avx2
            if KernelPath::Avx2.is_available() =>
        {
            // SAFETY: the machine has AVX2.
            unsafe { enter_avx2(job) }
        }
        _ => dispatch(path, Plainly(job)),
    }
}

#[cfg(target_arch = "x86_64")]
fn has_vnni() -> bool {
    is_x86_feature_detected!("avx512vnni")
}

/// # Safety
/// The machine has the features.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,avx2,f16c,bmi2")]
unsafe fn enter_vnni<J: DotJob>(job: J) {
    // SAFETY: the features are enabled here, and the caller guarantees them.
    unsafe { job.run::<Vnni>() }
}

/// # Safety
/// The machine has the features.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn enter_avx2<J: DotJob>(job: J) {
    // SAFETY: the features are enabled here, and the caller guarantees them.
    unsafe { job.run::<Pairs>() }
}

struct Plainly<J>(J);

impl<J: DotJob> Job for Plainly<J> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: guaranteed by the caller.
        unsafe { self.0.run::<Plain<S>>() }
    }
}

/// AVX-512 with VNNI: four products and their sum in one instruction, unsigned times signed. Signed numbers are raised
/// by 128, and the sums of the other factor correct for it.
#[cfg(target_arch = "x86_64")]
struct Vnni;

#[cfg(target_arch = "x86_64")]
impl Vnni {
    #[inline(always)]
    unsafe fn dots(w: *const u8, (x, shift): (*const i8, *const i32), signed: bool) -> __m256 {
        // SAFETY: guaranteed by the caller.
        unsafe {
            let (w, x) = (_mm256_loadu_si256(w.cast()), _mm256_loadu_si256(x.cast()));
            _mm256_cvtepi32_ps(match signed {
                true => {
                    let lifted = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
                    _mm256_dpbusd_epi32(_mm256_loadu_si256(shift.cast()), lifted, x)
                }
                false => _mm256_dpbusd_epi32(_mm256_setzero_si256(), w, x),
            })
        }
    }
}

/// AVX2: products in pairs, unsigned times signed, so that signed numbers give their sign to the other factor. Neither
/// pair overflows 16 bits: the largest is 2 * 128 * 127.
#[cfg(target_arch = "x86_64")]
struct Pairs;

#[cfg(target_arch = "x86_64")]
impl Pairs {
    #[inline(always)]
    unsafe fn dots(w: *const u8, (x, _): (*const i8, *const i32), signed: bool) -> __m256 {
        // SAFETY: guaranteed by the caller.
        unsafe {
            let (w, x) = (_mm256_loadu_si256(w.cast()), _mm256_loadu_si256(x.cast()));
            let pairs = match signed {
                true => _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)),
                false => _mm256_maddubs_epi16(w, x),
            };
            _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    }
}

#[cfg(target_arch = "x86_64")]
macro_rules! with_ymm {
    ($name:ident, $simd:ident) => {
        #[allow(unsafe_op_in_unsafe_fn)] // one-line wrappers of intrinsics: the contract is that of the trait
        impl Dots for $name {
            type S = $simd;
            type V = __m256;

            #[inline(always)]
            unsafe fn zero() -> __m256 {
                _mm256_setzero_ps()
            }

            #[inline(always)]
            unsafe fn add_line(
                acc: __m256,
                w: *const u8,
                x: (*const i8, *const i32),
                signed: bool,
                scale: f32,
            ) -> __m256 {
                _mm256_fmadd_ps(Self::dots(w, x, signed), _mm256_set1_ps(scale), acc)
            }

            #[inline(always)]
            unsafe fn add_halves(
                acc: __m256,
                w: *const u8,
                x: (*const i8, *const i32),
                signed: bool,
                scales: [f32; 2],
            ) -> __m256 {
                let scales = _mm256_insertf128_ps::<1>(_mm256_set1_ps(scales[0]), _mm_set1_ps(scales[1]));
                _mm256_fmadd_ps(Self::dots(w, x, signed), scales, acc)
            }

            #[inline(always)]
            unsafe fn sum(a: __m256, b: __m256) -> f32 {
                Avx2::sum(_mm256_add_ps(a, b))
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
with_ymm!(Vnni, Avx512);
#[cfg(target_arch = "x86_64")]
with_ymm!(Pairs, Avx2);

/// Plain Rust, which the compiler vectorises for the instruction set.
struct Plain<S>(PhantomData<S>);

impl<S: Simd> Dots for Plain<S> {
    type S = S;
    type V = [f32; 8];

    #[inline(always)]
    unsafe fn zero() -> [f32; 8] {
        [0.0; 8]
    }

    #[inline(always)]
    unsafe fn add_line(acc: [f32; 8], w: *const u8, x: (*const i8, *const i32), signed: bool, scale: f32) -> [f32; 8] {
        // SAFETY: guaranteed by the caller.
        unsafe { Self::add_halves(acc, w, x, signed, [scale; 2]) }
    }

    #[inline(always)]
    unsafe fn add_halves(
        mut acc: [f32; 8],
        w: *const u8,
        (x, _): (*const i8, *const i32),
        _: bool,
        scales: [f32; 2],
    ) -> [f32; 8] {
        for (i, acc) in acc.iter_mut().enumerate() {
            // SAFETY: number 4 i + j is among the 32. Bytes up to 127 are the same signed.
            let dot = |j: usize| unsafe { i32::from(*w.cast::<i8>().add(4 * i + j)) * i32::from(*x.add(4 * i + j)) };
            *acc += scales[i / 4] * (dot(0) + dot(1) + dot(2) + dot(3)) as f32;
        }
        acc
    }

    #[inline(always)]
    unsafe fn sum(a: [f32; 8], b: [f32; 8]) -> f32 {
        a.iter().chain(&b).sum()
    }
}
