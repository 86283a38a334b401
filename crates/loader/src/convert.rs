//! From the bytes of a file to a tensor of the dtype that is wanted, in one pass.
//!
//! The target is filled straight from the file's bytes: a bf16 checkpoint loaded as f32 never exists as a second copy
//! in bf16. Bytes may lie at any alignment, which safetensors does not rule out.

use crate::{blob::Blob, error::Result};
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16, slice::HalfFloatSliceExt};
use rayon::prelude::*;
use std::ops::Range;

/// Elements converted at a time; small enough that the intermediate f32 stay in the first-level cache.
const BLOCK: usize = 2048;

/// A type tensors can be made of, read from little-endian bytes.
pub(crate) trait Element: candle_core::WithDType + bytemuck::Zeroable {
    /// One element from exactly `size_of::<Self>()` bytes.
    fn from_le(bytes: &[u8]) -> Self;
}

macro_rules! element {
    ($($t:ty),*) => { $(
        impl Element for $t {
            fn from_le(bytes: &[u8]) -> Self {
                let mut raw = [0; size_of::<$t>()];
                raw.copy_from_slice(bytes);
                <$t>::from_le_bytes(raw)
            }
        }
    )* };
}
element!(u8, u32, i16, i32, i64, f32, f64, f16, bf16);

/// Floats that can be decoded to f32 a block at a time.
trait Widen: Element {
    fn widen(bytes: &[u8], out: &mut [f32]);
}

impl Widen for f32 {
    fn widen(bytes: &[u8], out: &mut [f32]) {
        copy_le(bytes, out);
    }
}

impl Widen for bf16 {
    fn widen(bytes: &[u8], out: &mut [f32]) {
        for (out, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
            *out = f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16);
        }
    }
}

impl Widen for f16 {
    fn widen(bytes: &[u8], out: &mut [f32]) {
        let mut block = [f16::ZERO; BLOCK];
        let block = &mut block[..out.len()];
        copy_le(bytes, block);
        block.convert_to_f32_slice(out);
    }
}

/// Floats that can be encoded from f32 a block at a time.
trait Narrow: Element {
    fn narrow(values: &[f32], out: &mut [Self]);
}

impl Narrow for f32 {
    fn narrow(values: &[f32], out: &mut [f32]) {
        out.copy_from_slice(values);
    }
}

impl Narrow for bf16 {
    fn narrow(values: &[f32], out: &mut [bf16]) {
        out.convert_from_f32_slice(values);
    }
}

impl Narrow for f16 {
    fn narrow(values: &[f32], out: &mut [f16]) {
        out.convert_from_f32_slice(values);
    }
}

fn copy_le<T: Element>(bytes: &[u8], out: &mut [T]) {
    for (out, b) in out.iter_mut().zip(bytes.chunks_exact(size_of::<T>())) {
        *out = T::from_le(b);
    }
}

/// Bytes of a file that hold elements.
pub(crate) type Piece<'a> = (&'a Blob, Range<u64>);

/// Reads `pieces`, one after the other, as a tensor of `dims` and `dtype`; they hold elements of `stored`.
///
/// The caller has checked that they are as long as the shape and the stored dtype say.
pub(crate) fn read_tensor(
    pieces: &[Piece],
    stored: DType,
    dims: &[usize],
    dtype: DType,
    device: &Device,
) -> Result<candle_core::Result<Tensor>> {
    use DType as D;
    let plain = |t: candle_core::Result<Tensor>| t.and_then(|t| t.to_dtype(dtype));
    Ok(match (stored, dtype) {
        (D::F32, D::F16) => convert::<f32, f16>(pieces, dims, device)?,
        (D::F32, D::BF16) => convert::<f32, bf16>(pieces, dims, device)?,
        (D::F16, D::F32) => convert::<f16, f32>(pieces, dims, device)?,
        (D::F16, D::BF16) => convert::<f16, bf16>(pieces, dims, device)?,
        (D::BF16, D::F32) => convert::<bf16, f32>(pieces, dims, device)?,
        (D::BF16, D::F16) => convert::<bf16, f16>(pieces, dims, device)?,
        (D::F32, _) => plain(copy::<f32>(pieces, dims, device)?),
        (D::F16, _) => plain(copy::<f16>(pieces, dims, device)?),
        (D::BF16, _) => plain(copy::<bf16>(pieces, dims, device)?),
        (D::F64, _) => plain(copy::<f64>(pieces, dims, device)?),
        (D::I64, _) => plain(copy::<i64>(pieces, dims, device)?),
        (D::I32, _) => plain(copy::<i32>(pieces, dims, device)?),
        (D::I16, _) => plain(copy::<i16>(pieces, dims, device)?),
        (D::U32, _) => plain(copy::<u32>(pieces, dims, device)?),
        (D::U8, _) => plain(copy::<u8>(pieces, dims, device)?),
        (other, _) => Err(candle_core::Error::Msg(format!("{other:?} can't be read from a file"))),
    })
}

/// The same elements, no conversion.
fn copy<T: Element>(pieces: &[Piece], dims: &[usize], device: &Device) -> Result<candle_core::Result<Tensor>> {
    fill(pieces, size_of::<T>(), dims, device, copy_le::<T>)
}

/// Elements of `S` as elements of `T`, through f32, which holds either exactly.
fn convert<S: Widen, T: Narrow>(
    pieces: &[Piece],
    dims: &[usize],
    device: &Device,
) -> Result<candle_core::Result<Tensor>> {
    fill(pieces, size_of::<S>(), dims, device, |bytes, out: &mut [T]| {
        let mut wide = [0f32; BLOCK];
        for (bytes, out) in bytes.chunks(BLOCK * size_of::<S>()).zip(out.chunks_mut(BLOCK)) {
            let wide = &mut wide[..out.len()];
            S::widen(bytes, wide);
            T::narrow(wide, out);
        }
    })
}

/// Allocates the target once and fills it in parallel from consecutive parts of the files.
fn fill<T: Element>(
    pieces: &[Piece],
    unit: usize,
    dims: &[usize],
    device: &Device,
    f: impl Fn(&[u8], &mut [T]) + Sync,
) -> Result<candle_core::Result<Tensor>> {
    let bytes: u64 = pieces.iter().map(|(_, range)| range.end - range.start).sum();
    // Zeros that the system hands out: each page is first touched, and made, by the thread that fills it.
    let mut data: Vec<T> = bytemuck::zeroed_vec((bytes / unit as u64) as usize);
    let mut done = 0;
    for (blob, range) in pieces {
        blob.for_each_chunk(range.clone(), unit, |bytes| {
            let out = &mut data[done..done + bytes.len() / unit];
            done += out.len();
            const GRAIN: usize = 64 * BLOCK;
            out.par_chunks_mut(GRAIN).zip(bytes.par_chunks(GRAIN * unit)).for_each(|(out, bytes)| f(bytes, out));
        })?;
    }
    Ok(Tensor::from_vec(data, dims, device))
}
