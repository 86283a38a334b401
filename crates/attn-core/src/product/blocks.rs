//! Products with weights that stay in the blocks of GGUF files.
//!
//! Up to [`FEW_ROWS`] rows, the common formats are widened in registers and multiplied with f32 activations: nothing is
//! rounded on the way, and the weights cross the memory bus as they are stored. More rows take the bf16 kernel, with the
//! weights widened a few outputs at a time, or Candle's f32 product where the machine has no such kernel.

use super::FEW_ROWS;
use super::few_rows;
use crate::parallel::Disjoint;
use crate::simd::KernelPath;
use crate::simd::{Job, Simd, dispatch};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Result, Tensor, bail};
use std::ops::Range;

/// Weights that share a scale in the formats with a kernel here.
const BLOCK: usize = 32;

/// `xs W^T` for `xs` of shape `(rows, in)` and blocks `(out, in)`, in the dtype of `xs`; `None` where Candle's own product
/// is to be taken: off the CPU, and for few rows of a format without a kernel here.
///
/// # Errors
/// Shapes that don't fit each other.
pub(crate) fn matmul_t(xs: &Tensor, w: &QTensor) -> Result<Option<Tensor>> {
    let ((rows, depth), (out, width)) = (xs.dims2()?, w.shape().dims2()?);
    if depth != width {
        bail!("linear: inputs of {depth} numbers, quantised weights for {width}")
    }
    if !xs.device().is_cpu() || !w.device().is_cpu() || rows == 0 || xs.track_op() {
        return Ok(None);
    }
    let ys = if rows <= FEW_ROWS {
        let Some(format) = Format::of(w.dtype()) else { return Ok(None) };
        let flat = xs.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        Tensor::from_vec(few(&flat, format, &w.data()?, (rows, depth, out)), (rows, out), &Device::Cpu)?
    } else {
        many(xs, w)?
    };
    Ok(Some(ys.to_dtype(xs.dtype())?))
}

/// Many rows, as f32.
fn many(xs: &Tensor, w: &QTensor) -> Result<Tensor> {
    #[cfg(target_arch = "x86_64")]
    if let Some(ys) = super::bf16::of_blocks(xs, w)? {
        return Ok(ys);
    }
    xs.to_dtype(DType::F32)?.matmul(&w.dequantize(&Device::Cpu)?.t()?)
}

/// The formats of 32 weights to a scale that have a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// Scale, 32 signed bytes.
    Q8_0,
    /// Scale, 16 bytes of two numbers of four bits, less 8: the first sixteen below, the others above.
    Q4_0,
    /// Scale, offset, 16 bytes as in `Q4_0`, not lessened.
    Q4_1,
}

impl Format {
    fn of(dtype: GgmlDType) -> Option<Self> {
        match dtype {
            GgmlDType::Q8_0 => Some(Self::Q8_0),
            GgmlDType::Q4_0 => Some(Self::Q4_0),
            GgmlDType::Q4_1 => Some(Self::Q4_1),
            _ => None,
        }
    }

    fn bytes(self) -> usize {
        match self {
            Self::Q8_0 => Q8_0::BYTES,
            Self::Q4_0 => Q4_0::BYTES,
            Self::Q4_1 => Q4_1::BYTES,
        }
    }
}

/// `(rows, out)` sums for `(rows, depth, out)`.
fn few(xs: &[f32], format: Format, data: &[u8], (rows, depth, out): (usize, usize, usize)) -> Vec<f32> {
    let blocks = depth / BLOCK;
    assert!(depth.is_multiple_of(BLOCK) && xs.len() == rows * depth && data.len() == out * blocks * format.bytes());
    let path = KernelPath::choose(None).unwrap_or(KernelPath::Portable);
    let mut lanes = vec![0f32; rows * blocks * BLOCK];
    dispatch(path, Sums { xs, sums: &mut lanes });
    few_rows::columns((rows, out), |outs: Range<usize>, target: &Disjoint<'_, f32>| {
        let data = &data[outs.start * blocks * format.bytes()..outs.end * blocks * format.bytes()];
        // SAFETY: the target is zeroed, and every range of outputs is handed out once.
        let ys = unsafe { target.part(outs.start * rows, outs.len() * rows) };
        dispatch(path, Rows { xs, sums: &lanes, format, data, depth, ys });
    })
}

/// Sums of the inputs of each block, still spread over the lanes of one vector: `LANES` numbers from `block * BLOCK` on.
struct Sums<'a> {
    xs: &'a [f32],
    sums: &'a mut [f32],
}

impl Job for Sums<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for (xs, sums) in self.xs.chunks_exact(BLOCK).zip(self.sums.chunks_exact_mut(BLOCK)) {
            // SAFETY: both hold BLOCK numbers, a multiple of LANES; the instruction set is there by this function's
            // contract.
            unsafe {
                let mut sum = S::splat(0.0);
                for k in (0..BLOCK).step_by(S::LANES) {
                    sum = S::add(sum, S::load(xs.as_ptr().add(k)));
                }
                S::store(sums.as_mut_ptr(), sum);
            }
        }
    }
}

/// `ys[o][r]` for the outputs whose blocks are in `data`.
struct Rows<'a> {
    xs: &'a [f32],
    sums: &'a [f32],
    format: Format,
    data: &'a [u8],
    depth: usize,
    ys: &'a mut [f32],
}

impl Job for Rows<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: by this function's contract.
        unsafe {
            match self.format {
                Format::Q8_0 => self.each::<S, Q8_0>(),
                Format::Q4_0 => self.each::<S, Q4_0>(),
                Format::Q4_1 => self.each::<S, Q4_1>(),
            }
        }
    }
}

impl Rows<'_> {
    /// # Safety
    /// The machine has the instruction set of `S`.
    #[inline(always)]
    unsafe fn each<S: Simd, B: Blocks>(self) {
        let rows = self.xs.len() / self.depth;
        let bytes = self.depth / BLOCK * B::BYTES;
        let outs = self.data.len() / bytes;
        let mut o = 0;
        while o < outs {
            let n = if outs - o >= 4 { 4 } else { 1 };
            let data = &self.data[o * bytes..(o + n) * bytes];
            let mut r = 0;
            while r < rows {
                let m = if rows - r >= 2 { 2 } else { 1 };
                let span = r * self.depth..(r + m) * self.depth;
                let (xs, sums) = (&self.xs[span.clone()], &self.sums[span]);
                let ys = &mut self.ys[o * rows + r..];
                // SAFETY: the instruction set is there; the slices hold m rows of inputs and n of blocks.
                unsafe {
                    match (m, n) {
                        (1, 4) => tile::<S, B, 1, 4>(xs, sums, data, self.depth, ys, rows),
                        (2, 4) => tile::<S, B, 2, 4>(xs, sums, data, self.depth, ys, rows),
                        (2, _) => tile::<S, B, 2, 1>(xs, sums, data, self.depth, ys, rows),
                        _ => tile::<S, B, 1, 1>(xs, sums, data, self.depth, ys, rows),
                    }
                }
                r += m;
            }
            o += n;
        }
    }
}

/// How the 32 weights of a block are stored: `scale * number(i) + offset`, the scale an f16 at its beginning.
trait Blocks {
    const BYTES: usize;
    /// Bytes before the numbers.
    const HEAD: usize;

    /// The number `k` and those after it: of four bits each, the first sixteen below and the others above, unless the
    /// format has others.
    ///
    /// # Safety
    /// As [`Simd::load`], of a block at `block`; `k` is a multiple of `LANES` below [`BLOCK`].
    #[inline(always)]
    unsafe fn numbers<S: Simd>(block: *const u8, k: usize) -> S::V {
        // SAFETY: by the caller's word; LANES divides 16.
        unsafe {
            let bytes = block.add(Self::HEAD);
            if k < BLOCK / 2 { S::load_low(bytes.add(k)) } else { S::load_high(bytes.add(k - BLOCK / 2)) }
        }
    }

    /// What is added to every weight, if anything.
    ///
    /// # Safety
    /// As `numbers`.
    unsafe fn offset<S: Simd>(block: *const u8, scale: S::V) -> Option<S::V>;
}

struct Q8_0;

impl Blocks for Q8_0 {
    const BYTES: usize = 34;
    const HEAD: usize = 2;

    #[inline(always)]
    unsafe fn numbers<S: Simd>(block: *const u8, k: usize) -> S::V {
        // SAFETY: by the caller's word.
        unsafe { S::load_i8(block.add(Self::HEAD + k)) }
    }

    #[inline(always)]
    unsafe fn offset<S: Simd>(_: *const u8, _: S::V) -> Option<S::V> {
        None
    }
}

struct Q4_0;

impl Blocks for Q4_0 {
    const BYTES: usize = 18;
    const HEAD: usize = 2;

    #[inline(always)]
    unsafe fn offset<S: Simd>(_: *const u8, scale: S::V) -> Option<S::V> {
        // SAFETY: by the caller's word.
        unsafe { Some(S::mul(scale, S::splat(-8.0))) }
    }
}

struct Q4_1;

impl Blocks for Q4_1 {
    const BYTES: usize = 20;
    const HEAD: usize = 4;

    #[inline(always)]
    unsafe fn offset<S: Simd>(block: *const u8, _: S::V) -> Option<S::V> {
        // SAFETY: by the caller's word.
        unsafe { Some(S::splat_f16(block.add(2))) }
    }
}

/// `M` rows by `N` outputs, all sums in registers.
///
/// # Safety
/// The machine has the instruction set of `S`; `xs` and `sums` hold `M` rows of `depth`, `data` `N` rows of blocks.
#[inline(always)]
unsafe fn tile<S: Simd, B: Blocks, const M: usize, const N: usize>(
    xs: &[f32],
    sums: &[f32],
    data: &[u8],
    depth: usize,
    ys: &mut [f32],
    stride: usize,
) {
    let ahead = few_rows::ahead(N, depth / BLOCK * B::BYTES);
    // SAFETY: block b of output n is inside `data`, inputs 32 b to 32 b + 31 of row m are inside `xs` and `sums`.
    unsafe {
        let mut acc = [[S::splat(0.0); M]; N];
        for b in 0..depth / BLOCK {
            for (n, acc) in acc.iter_mut().enumerate() {
                let block = data.as_ptr().add((n * (depth / BLOCK) + b) * B::BYTES);
                S::prefetch(block.wrapping_add(ahead));
                let mut dots = [S::splat(0.0); M];
                for k in (0..BLOCK).step_by(S::LANES) {
                    let numbers = B::numbers::<S>(block, k);
                    for (m, dot) in dots.iter_mut().enumerate() {
                        *dot = S::fma(S::load(xs.as_ptr().add(m * depth + b * BLOCK + k)), numbers, *dot);
                    }
                }
                let scale = S::splat_f16(block);
                let offset = B::offset::<S>(block, scale);
                for (m, (acc, dot)) in acc.iter_mut().zip(dots).enumerate() {
                    *acc = S::fma(dot, scale, *acc);
                    if let Some(offset) = offset {
                        *acc = S::fma(offset, S::load(sums.as_ptr().add(m * depth + b * BLOCK)), *acc);
                    }
                }
            }
        }
        for (n, acc) in acc.iter().enumerate() {
            for (m, acc) in acc.iter().enumerate() {
                ys[n * stride + m] = S::sum(*acc);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every format on few and many rows against its own weights, widened by Candle, in f64.
    #[test]
    fn blocks_agree_with_their_widened_weights() -> Result<()> {
        let dev = Device::Cpu;
        let numbers = |n: usize, step: f32| Tensor::from_iter((0..n).map(|i| (i as f32 * step).sin()), &dev);
        for dtype in
            [GgmlDType::Q8_0, GgmlDType::Q4_0, GgmlDType::Q4_1, GgmlDType::Q5_0, GgmlDType::Q4K, GgmlDType::Q6K]
        {
            for (rows, depth, out) in [(1, 256, 1), (1, 512, 7), (2, 256, 6), (5, 256, 9), (8, 768, 4), (40, 256, 70)] {
                let w = QTensor::quantize(&numbers(out * depth, 0.37)?.reshape((out, depth))?, dtype)?;
                let xs = numbers(rows * depth, 1.7)?.reshape((rows, depth))?;
                let Some(ys) = matmul_t(&xs, &w)? else {
                    assert!(Format::of(dtype).is_none() && rows <= FEW_ROWS, "{dtype:?}");
                    continue;
                };
                let (wide, xs) = (w.dequantize(&dev)?.to_dtype(DType::F64)?.t()?, xs.to_dtype(DType::F64)?);
                let worst = (ys.to_dtype(DType::F64)? - xs.matmul(&wide)?)?.abs()?.max_all()?.to_scalar::<f64>()?;
                let largest = xs.abs()?.matmul(&wide.abs()?)?.max_all()?.to_scalar::<f64>()?;
                // Of the sum of magnitudes: f32 sums for few rows; half a bf16 unit of either operand for many.
                let tolerance = if rows <= FEW_ROWS { 1e-6 } else { 2f64.powi(-8) };
                assert!(worst <= tolerance * largest, "{dtype:?} {rows} x {depth} x {out}: {worst} of {largest}");
            }
        }
        Ok(())
    }

    #[test]
    fn every_path_widens_alike() {
        let xs: Vec<f32> = (0..3 * 64).map(|i| (i as f32 * 0.3).cos()).collect();
        for (format, dtype) in
            [(Format::Q8_0, GgmlDType::Q8_0), (Format::Q4_0, GgmlDType::Q4_0), (Format::Q4_1, GgmlDType::Q4_1)]
        {
            let w = Tensor::from_iter((0..5 * 64).map(|i| (i as f32 * 0.7).sin()), &Device::Cpu).unwrap();
            let w = QTensor::quantize(&w.reshape((5, 64)).unwrap(), dtype).unwrap();
            let data = w.data().unwrap();
            let mut results = vec![];
            for path in KernelPath::ALL.into_iter().filter(|path| path.is_available()) {
                let (mut sums, mut ys) = (vec![0f32; xs.len()], vec![0f32; 15]);
                dispatch(path, Sums { xs: &xs, sums: &mut sums });
                dispatch(path, Rows { xs: &xs, sums: &sums, format, data: &data, depth: 64, ys: &mut ys });
                results.push(ys);
            }
            for ys in &results[1..] {
                assert!(ys.iter().zip(&results[0]).all(|(a, b)| (a - b).abs() < 1e-4), "{format:?}");
            }
        }
    }
}
