//! Keys and values as kernels of the CPU read them: rows of bytes that hold numbers of any [`CacheType`].
//!
//! A kernel that depends on the type is a generic function over [`Format`]; [`with_format!`] picks the one for the tokens at
//! hand once per tile, so that one compiled walk over the keys serves all types of keys and values.

use crate::{
    simd::{Element, Simd},
    stored::{BLOCK, CacheType},
};
use candle_core::{CpuStorage, Layout, Result, bail};
use half::{bf16, f16};

/// How the numbers of one token lie in memory.
pub(in crate::attention) trait Format: 'static {
    /// True only for plain f32.
    const IS_F32: bool = false;

    /// `LANES` numbers from number `c` of the token at `row` on, widened. `c` is a multiple of `LANES`.
    ///
    /// # Safety
    /// The token has these numbers, and the machine the instruction set of `S`.
    unsafe fn load<S: Simd>(row: *const u8, c: usize) -> S::V;

    /// The same, and the `LANES` numbers after them. `c` is a multiple of `2 * LANES`.
    ///
    /// # Safety
    /// As [`load`](Self::load).
    #[inline(always)]
    unsafe fn load_two<S: Simd>(row: *const u8, c: usize) -> (S::V, S::V) {
        // SAFETY: guaranteed by the caller.
        unsafe { (Self::load::<S>(row, c), Self::load::<S>(row, c + S::LANES)) }
    }

    /// Number `c` of the token at `row`.
    ///
    /// # Safety
    /// The token has this number.
    unsafe fn number(row: *const u8, c: usize) -> f32;
}

/// Plain numbers.
macro_rules! plain_format {
    ($type:ty) => {
        impl Format for $type {
            const IS_F32: bool = <$type as Element>::IS_F32;

            #[inline(always)]
            unsafe fn load<S: Simd>(row: *const u8, c: usize) -> S::V {
                // SAFETY: guaranteed by the caller; tokens of plain numbers are aligned to them.
                unsafe { <$type as Element>::load::<S>(row.cast::<$type>().add(c)) }
            }

            #[inline(always)]
            unsafe fn number(row: *const u8, c: usize) -> f32 {
                // SAFETY: as above.
                unsafe { (*row.cast::<$type>().add(c)).widen() }
            }
        }
    };
}

plain_format!(f32);
plain_format!(f16);
plain_format!(bf16);

/// ggml's block of 32 signed bytes under one f16.
#[allow(non_camel_case_types)] // ggml's name
pub(in crate::attention) struct Q8_0;

impl Format for Q8_0 {
    #[inline(always)]
    unsafe fn load<S: Simd>(row: *const u8, c: usize) -> S::V {
        // SAFETY: the block is there, and LANES of its bytes, since LANES divides 32; the caller guarantees the
        // instructions.
        unsafe {
            let block = row.add(c / BLOCK * (2 + BLOCK));
            S::mul(S::load_i8(block.add(2 + c % BLOCK)), S::splat(S::widen_first_f16(block)))
        }
    }

    #[inline(always)]
    unsafe fn load_two<S: Simd>(row: *const u8, c: usize) -> (S::V, S::V) {
        // SAFETY: as above; both are of one block, since `2 * LANES` divides 32.
        unsafe {
            let block = row.add(c / BLOCK * (2 + BLOCK));
            let (codes, scale) = (block.add(2 + c % BLOCK), S::splat(S::widen_first_f16(block)));
            (S::mul(S::load_i8(codes), scale), S::mul(S::load_i8(codes.add(S::LANES)), scale))
        }
    }

    #[inline(always)]
    unsafe fn number(row: *const u8, c: usize) -> f32 {
        // SAFETY: the block is there, as the caller guarantees.
        unsafe {
            let block = row.add(c / BLOCK * (2 + BLOCK));
            f32::from(block.add(2 + c % BLOCK).cast::<i8>().read()) * block.cast::<f16>().read_unaligned().to_f32()
        }
    }
}

/// ggml's block of 32 numbers of four bits, minus 8, under one f16: the first half in the lower bits of 16 bytes.
#[allow(non_camel_case_types)] // ggml's name
pub(in crate::attention) struct Q4_0;

/// Bytes of the codes of a block of [`Q4_0`].
const HALF: usize = BLOCK / 2;

impl Format for Q4_0 {
    #[inline(always)]
    unsafe fn load<S: Simd>(row: *const u8, c: usize) -> S::V {
        // SAFETY: the block is there, and LANES of its bytes from the place in its half on, since LANES divides 16; the
        // caller guarantees the instructions.
        unsafe {
            let (block, at) = (row.add(c / BLOCK * (2 + HALF)), c % BLOCK);
            let codes = block.add(2 + at % HALF);
            let numbers = if at < HALF { S::load_low_nibbles(codes) } else { S::load_high_nibbles(codes) };
            S::mul(S::sub(numbers, S::splat(8.0)), S::splat(S::widen_first_f16(block)))
        }
    }

    #[inline(always)]
    unsafe fn load_two<S: Simd>(row: *const u8, c: usize) -> (S::V, S::V) {
        if 2 * S::LANES < BLOCK {
            // SAFETY: guaranteed by the caller.
            return unsafe { (Self::load::<S>(row, c), Self::load::<S>(row, c + S::LANES)) };
        }
        // SAFETY: a whole block: the lower bits of all its codes, then the upper ones.
        unsafe {
            let block = row.add(c / BLOCK * (2 + HALF));
            let (codes, scale, middle) = (block.add(2), S::splat(S::widen_first_f16(block)), S::splat(8.0));
            let (low, high) = (S::load_low_nibbles(codes), S::load_high_nibbles(codes));
            (S::mul(S::sub(low, middle), scale), S::mul(S::sub(high, middle), scale))
        }
    }

    #[inline(always)]
    unsafe fn number(row: *const u8, c: usize) -> f32 {
        // SAFETY: the block is there, as the caller guarantees.
        unsafe {
            let (block, at) = (row.add(c / BLOCK * (2 + HALF)), c % BLOCK);
            let code = block.add(2 + at % HALF).read() >> (at / HALF * 4) & 15;
            f32::from(code as i8 - 8) * block.cast::<f16>().read_unaligned().to_f32()
        }
    }
}

/// Evaluates an expression with the [`Format`] of a cache type.
macro_rules! with_format {
    ($kind:expr, $format:ident => $value:expr) => {
        with_format!($kind, $format => $value;
            F32: f32, F16: ::half::f16, BF16: ::half::bf16,
            Q8_0: $crate::attention::tokens::Q8_0, Q4_0: $crate::attention::tokens::Q4_0)
    };
    ($kind:expr, $format:ident => $value:expr; $($name:ident: $type:ty),*) => {
        match $kind {
            $($crate::stored::CacheType::$name => {
                type $format = $type;
                $value
            })*
        }
    };
}
pub(in crate::attention) use with_format;

/// `(b, h, t, d)` keys or values with any strides but a contiguous last dimension.
#[derive(Clone, Copy)]
pub(in crate::attention) struct Tokens<'a> {
    pub(in crate::attention) kind: CacheType,
    /// `(b, h, t, d)`, in numbers.
    pub(in crate::attention) dims: [usize; 4],
    data: &'a [u8],
    /// In bytes.
    strides: [usize; 3],
    /// Bytes of a token.
    pub(in crate::attention) bytes: usize,
}

impl<'a> Tokens<'a> {
    /// Those of a tensor of plain numbers, or of one of bytes that hold blocks of `kind`.
    ///
    /// # Errors
    /// A tensor that isn't of this kind, or whose rows are scattered.
    pub(in crate::attention) fn new(storage: &'a CpuStorage, layout: &Layout, kind: CacheType) -> Result<Self> {
        let (data, size) = bytes(storage, kind)?;
        let (&[b, h, t, row], &[sb, sh, st, last]) = (layout.dims(), layout.stride()) else {
            bail!("attend: expected four dimensions, got {:?}", layout.dims())
        };
        if row > 1 && last != 1 {
            bail!("attend: the last dimension must be contiguous")
        }
        let width = if kind.dtype().is_some() { row } else { row / kind.row_bytes(BLOCK) * BLOCK };
        let strides = [sb, sh, st].map(|stride| stride * size);
        // The kernels go through pointers, so that every place is in bounds is established here.
        let len = if [b, h, t, row].contains(&0) {
            0
        } else {
            (b - 1) * strides[0] + (h - 1) * strides[1] + (t - 1) * strides[2] + row * size
        };
        let start = layout.start_offset() * size;
        match data.get(start..start + len) {
            Some(data) => Ok(Self { kind, dims: [b, h, t, width], data, strides, bytes: row * size }),
            None => bail!("attend: layout {layout:?} leaves its storage of {}", data.len() / size),
        }
    }

    /// The bytes of one token.
    fn row(&self, b: usize, h: usize, t: usize) -> &'a [u8] {
        let start = b * self.strides[0] + h * self.strides[1] + t * self.strides[2];
        &self.data[start..start + self.bytes]
    }

    /// Where token `t` starts, and the bytes from there to the next token.
    pub(in crate::attention) fn at(&self, b: usize, h: usize, t: usize) -> (*const u8, usize) {
        (self.row(b, h, t).as_ptr(), self.strides[2])
    }

    /// The product of a token with `q`, in f64.
    pub(in crate::attention) fn dot<T: Element>(&self, q: &[T], b: usize, h: usize, t: usize) -> f64 {
        let row = self.row(b, h, t).as_ptr();
        let q = q[..self.dims[3]].iter().enumerate();
        // SAFETY: the row's bytes are those of as many numbers.
        with_format!(self.kind, F => q.map(|(c, q)| f64::from(q.widen()) * f64::from(unsafe { F::number(row, c) })).sum())
    }

    /// The norm of a token; infinite if it isn't a number.
    pub(in crate::attention) fn norm(&self, b: usize, h: usize, t: usize) -> f32 {
        let row = self.row(b, h, t).as_ptr();
        // SAFETY: the row's bytes are those of as many numbers.
        with_format!(self.kind, F => unsafe { norm::<F>(row, self.dims[3]) })
    }
}

/// # Safety
/// The token at `row` has `width` numbers.
unsafe fn norm<F: Format>(row: *const u8, width: usize) -> f32 {
    let (mut sums, whole) = ([0f32; 16], width / 16 * 16);
    // SAFETY: c + i < width.
    let square = |c: usize| unsafe { F::number(row, c) }.powi(2);
    for c in (0..whole).step_by(16) {
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum += square(c + i);
        }
    }
    let norm = (sums.iter().sum::<f32>() + (whole..width).map(square).sum::<f32>()).sqrt();
    if norm.is_nan() { f32::INFINITY } else { norm }
}

/// A storage's bytes, and the bytes of one of its elements.
fn bytes(storage: &CpuStorage, kind: CacheType) -> Result<(&[u8], usize)> {
    Ok(match kind {
        CacheType::F32 => (as_bytes(storage.as_slice::<f32>()?), 4),
        CacheType::F16 => (as_bytes(storage.as_slice::<f16>()?), 2),
        CacheType::BF16 => (as_bytes(storage.as_slice::<bf16>()?), 2),
        CacheType::Q8_0 | CacheType::Q4_0 => (storage.as_slice::<u8>()?, 1),
    })
}

fn as_bytes<T: Element>(xs: &[T]) -> &[u8] {
    // SAFETY: plain numbers without padding, as long as they are, and bytes have no alignment.
    unsafe { std::slice::from_raw_parts(xs.as_ptr().cast(), size_of_val(xs)) }
}
