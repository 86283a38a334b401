//! Running a kernel over the rows of contiguous CPU tensors: cut into tasks, compiled for every instruction set.

use crate::attention::KernelPath;
use crate::attention::fused_cpu::simd::{Element, Job, Simd, dispatch};
use candle_core::{CpuStorage, DType, Layout, Result, Tensor, bail};
use rayon::prelude::*;

/// Numbers below which one thread is faster than several.
const PARALLEL_FROM: usize = 1 << 15;
/// Numbers per task.
const TASK: usize = 1 << 14;
/// Independent sums, so that a reduction fills vector registers whatever their width; also fixes its order.
const LANES: usize = 32;

/// One row of an element-wise op. Plain Rust loops over slices of equal length: they are inlined into a function that is
/// compiled for the machine's instruction set, where the compiler vectorises them.
pub(super) trait Kernel<E>: Sync {
    /// Fills row `i` of the result. Mark it `#[inline(always)]`.
    fn row(&self, i: usize, out: &mut [E]);
}

struct Rows<'a, E, K> {
    kernel: &'a K,
    first: usize,
    width: usize,
    out: &'a mut [E],
}

impl<E: Element, K: Kernel<E>> Job for Rows<'_, E, K> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for (i, row) in self.out.chunks_exact_mut(self.width).enumerate() {
            self.kernel.row(self.first + i, row);
        }
    }
}

/// `rows` rows of `width` numbers, computed by `kernel`.
pub(super) fn compute<E: Element, K: Kernel<E>>(rows: usize, width: usize, kernel: &K) -> Result<Vec<E>> {
    let path = KernelPath::choose(None)?;
    let mut out = vec![E::zero(); rows * width];
    if rows * width == 0 {
        return Ok(out);
    }
    if out.len() < PARALLEL_FROM {
        dispatch(path, Rows { kernel, first: 0, width, out: &mut out });
        return Ok(out);
    }
    let task = (TASK / width).max(1);
    out.par_chunks_mut(task * width).enumerate().for_each(|(i, out)| {
        dispatch(path, Rows { kernel, first: i * task, width, out });
    });
    Ok(out)
}

/// One row of an op with two results.
pub(super) trait PairKernel<E>: Sync {
    /// Fills row `i` of both. Mark it `#[inline(always)]`.
    fn row(&self, i: usize, first: &mut [E], second: &mut [E]);
}

struct Pairs<'a, E, K> {
    kernel: &'a K,
    start: usize,
    width: usize,
    first: &'a mut [E],
    second: &'a mut [E],
}

impl<E: Element, K: PairKernel<E>> Job for Pairs<'_, E, K> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let rows = self.first.chunks_exact_mut(self.width).zip(self.second.chunks_exact_mut(self.width));
        for (i, (first, second)) in rows.enumerate() {
            self.kernel.row(self.start + i, first, second);
        }
    }
}

/// [`compute`] for two results of the same shape.
pub(super) fn compute_pair<E: Element, K: PairKernel<E>>(rows: usize, width: usize, kernel: &K) -> Result<[Vec<E>; 2]> {
    let path = KernelPath::choose(None)?;
    let (mut first, mut second) = (vec![E::zero(); rows * width], vec![E::zero(); rows * width]);
    if rows * width < PARALLEL_FROM {
        if width > 0 {
            dispatch(path, Pairs { kernel, start: 0, width, first: &mut first, second: &mut second });
        }
        return Ok([first, second]);
    }
    let task = (TASK / width).max(1);
    let parts = first.par_chunks_mut(task * width).zip(second.par_chunks_mut(task * width));
    parts.enumerate().for_each(|(i, (first, second))| {
        dispatch(path, Pairs { kernel, start: i * task, width, first, second });
    });
    Ok([first, second])
}

/// A sum over rows, for the gradients of weights: every task adds its rows into a vector of `width` f32 numbers, and the
/// vectors are added in order, so that the result does not depend on the number of threads.
pub(super) trait Reduction: Sync {
    /// Adds what row `i` contributes. Mark it `#[inline(always)]`.
    fn add(&self, i: usize, sums: &mut [f32]);
}

struct Reduce<'a, R> {
    reduction: &'a R,
    rows: std::ops::Range<usize>,
    sums: &'a mut [f32],
}

impl<R: Reduction> Job for Reduce<'_, R> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for i in self.rows {
            self.reduction.add(i, self.sums);
        }
    }
}

/// The sum over `rows` rows of what `reduction` adds.
pub(super) fn reduce<R: Reduction>(rows: usize, width: usize, reduction: &R) -> Result<Vec<f32>> {
    const TASKS: usize = 16;
    let path = KernelPath::choose(None)?;
    let task = rows.div_ceil(TASKS).max(1);
    let parts = (0..rows.div_ceil(task)).into_par_iter().map(|i| {
        let mut sums = vec![0f32; width];
        dispatch(path, Reduce { reduction, rows: i * task..rows.min((i + 1) * task), sums: &mut sums });
        sums
    });
    let mut total = vec![0f32; width];
    for part in parts.collect::<Vec<_>>() {
        total.iter_mut().zip(part).for_each(|(total, part)| *total += part);
    }
    Ok(total)
}

/// True if the rows of `x` can be read as slices on the CPU, in a dtype that the ops compute in.
pub(super) fn is_plain(x: &Tensor) -> bool {
    x.device().is_cpu() && matches!(x.dtype(), DType::F32 | DType::BF16 | DType::F16) && x.elem_count() > 0
}

/// The numbers of a contiguous tensor.
pub(super) fn slice<'a, E: Element>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [E]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<E>()?[start..end]),
        None => bail!("expected a contiguous tensor, got strides {:?}", layout.stride()),
    }
}

/// A matrix whose rows are contiguous but may lie apart, such as half of a stacked product.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a, E> {
    data: &'a [E],
    stride: usize,
    width: usize,
}

impl<'a, E: Element> Matrix<'a, E> {
    /// `(.., width)` as rows; the leading dimensions must be evenly spaced.
    pub(super) fn new(storage: &'a CpuStorage, layout: &Layout) -> Result<Self> {
        let (dims, strides) = (layout.dims(), layout.stride());
        let Some(width) = dims.last().copied() else { bail!("expected at least one dimension") };
        let stride = evenly_spaced(dims, strides).unwrap_or(width);
        if evenly_spaced(dims, strides).is_none() {
            bail!("expected evenly spaced rows, got strides {strides:?}")
        }
        Ok(Self { data: &storage.as_slice::<E>()?[layout.start_offset()..], stride, width })
    }

    /// Row `i`.
    #[inline(always)]
    pub(super) fn row(&self, i: usize) -> &'a [E] {
        &self.data[i * self.stride..][..self.width]
    }
}

/// The distance between rows, if lanes are contiguous and rows evenly spaced.
fn evenly_spaced(dims: &[usize], strides: &[usize]) -> Option<usize> {
    let n = dims.len();
    if dims[n - 1] > 1 && strides[n - 1] != 1 {
        return None;
    }
    let mut rows = (0..n - 1).rev().filter(|&i| dims[i] > 1);
    let Some(first) = rows.next() else { return Some(dims[n - 1]) };
    let mut expected = strides[first] * dims[first];
    for i in rows {
        if strides[i] != expected {
            return None;
        }
        expected = strides[i] * dims[i];
    }
    Some(strides[first])
}

/// `x`, with rows that [`Matrix`] can read.
pub(super) fn with_rows(x: &Tensor) -> Result<Tensor> {
    if evenly_spaced(x.dims(), x.stride()).is_some() { Ok(x.clone()) } else { x.contiguous() }
}

/// The sum of `f(i)` for `i` in `0..n`, in [`LANES`] independent sums.
#[inline(always)]
pub(super) fn sum(n: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut sums = [0f32; LANES];
    let whole = n / LANES * LANES;
    let mut i = 0;
    while i < whole {
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum += f(i + lane);
        }
        i += LANES;
    }
    for i in whole..n {
        sums[i - whole] += f(i);
    }
    sums.iter().sum()
}

/// `e^x` with a relative error below 2e-7; 0 below -87.3, NaN for NaN, infinity above 88.7.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    /// Adding this leaves the nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_145_75;
    const LN2_LOW: f32 = 1.428_606_8e-6;
    // NaN passes through both comparisons.
    let clamped = if x < -88.0 { -88.0 } else { x };
    let clamped = if clamped > 89.0 { 89.0 } else { clamped };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    // Minimax for e^r on -ln2/2..ln2/2 (Cephes).
    let mut y = 1.987_569_1e-4;
    y = y * r + 1.398_2e-3;
    y = y * r + 8.333_452e-3;
    y = y * r + 4.166_579_6e-2;
    y = y * r + 1.666_666_5e-1;
    y = y * r + 0.5;
    y = y * (r * r) + r + 1.0;
    // 2^n in two factors, since n = 128 does not fit one exponent.
    let bits = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let half = bits >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    let result = y * power(half) * power(bits.wrapping_sub(half));
    if x < -87.3 { 0.0 } else { result }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn exp_is_exact_to_rounding() {
        for i in -873_000..887_000 {
            let x = i as f32 * 1e-4;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 2e-7, "exp({x}) is off by {error}");
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-200.0), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn rows_of_views() {
        let x = Tensor::arange(0f32, 48., &Device::Cpu).and_then(|x| x.reshape((2, 3, 8))).unwrap();
        for view in [x.narrow(2, 2, 4).unwrap(), x.narrow(0, 1, 1).unwrap(), x.clone()] {
            let (storage, layout) = view.storage_and_layout();
            let candle_core::Storage::Cpu(storage) = &*storage else { panic!("not on the CPU") };
            let matrix = Matrix::<f32>::new(storage, layout).unwrap();
            for (i, row) in view.flatten_to(1).unwrap().to_vec2::<f32>().unwrap().iter().enumerate() {
                assert_eq!(matrix.row(i), row);
            }
        }
        assert!(with_rows(&x.transpose(1, 2).unwrap()).unwrap().is_contiguous());
        assert!(with_rows(&x.narrow(1, 0, 2).unwrap()).unwrap().is_contiguous(), "rows that are not evenly spaced");
    }
}
