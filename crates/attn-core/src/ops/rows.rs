//! Running a kernel over the rows of CPU tensors: cut into tasks, compiled for every instruction set.
//!
//! Kernels are written on rows of f32. Rows of half precision are widened into a buffer that stays in the first-level
//! cache and rounded on the way out, so that each kernel is compiled once per instruction set and not again per dtype.

use crate::parallel::filled;
use crate::simd::KernelPath;
use crate::simd::{Job, Simd, dispatch, round_bf16};
use candle_core::{CpuStorage, DType, Device, Layout, Result, Shape, Storage, Tensor, bail};
use half::{bf16, f16, slice::HalfFloatSliceExt};
use rayon::prelude::*;

/// Numbers below which one thread is faster than several.
pub(super) const PARALLEL_FROM: usize = 1 << 15;
/// Numbers per task.
const TASK: usize = 1 << 14;
/// Independent sums, so that a reduction fills vector registers whatever their width; also fixes its order.
const LANES: usize = 32;

/// A matrix whose rows are contiguous but may lie apart, such as half of a stacked product.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    data: Numbers<'a>,
    stride: usize,
    width: usize,
}

#[derive(Clone, Copy)]
enum Numbers<'a> {
    F32(&'a [f32]),
    BF16(&'a [bf16]),
    F16(&'a [f16]),
}

impl<'a> Matrix<'a> {
    /// `(.., width)` as rows; the leading dimensions must be evenly spaced.
    pub(super) fn new(storage: &'a CpuStorage, layout: &Layout) -> Result<Self> {
        let (dims, strides) = (layout.dims(), layout.stride());
        let (Some(&width), Some(stride)) = (dims.last(), evenly_spaced(dims, strides)) else {
            bail!("expected evenly spaced rows, got strides {strides:?}")
        };
        let from = layout.start_offset();
        let data = match storage {
            CpuStorage::F32(data) => Numbers::F32(&data[from..]),
            CpuStorage::BF16(data) => Numbers::BF16(&data[from..]),
            CpuStorage::F16(data) => Numbers::F16(&data[from..]),
            _ => bail!("expected f32, bf16 or f16, got {:?}", candle_core::backend::BackendStorage::dtype(storage)),
        };
        Ok(Self { data, stride, width })
    }

    /// Columns `from..from + width`.
    pub(super) fn columns(self, from: usize, width: usize) -> Self {
        let data = match self.data {
            Numbers::F32(data) => Numbers::F32(&data[from..]),
            Numbers::BF16(data) => Numbers::BF16(&data[from..]),
            Numbers::F16(data) => Numbers::F16(&data[from..]),
        };
        Self { data, width, ..self }
    }

    /// Row `i`, through `buffer` if it has to be widened.
    #[inline(always)]
    fn row<'b>(&self, i: usize, buffer: &'b mut [f32]) -> &'b [f32]
    where
        'a: 'b,
    {
        let range = i * self.stride..i * self.stride + self.width;
        match self.data {
            Numbers::F32(data) => return &data[range],
            Numbers::BF16(data) => {
                for (to, x) in buffer[..self.width].iter_mut().zip(&data[range]) {
                    *to = f32::from_bits(u32::from(x.to_bits()) << 16);
                }
            }
            Numbers::F16(data) => data[range].convert_to_f32_slice(&mut buffer[..self.width]),
        }
        &buffer[..self.width]
    }
}

/// One row of an element-wise op with `N` inputs and `M` results. Plain Rust loops over slices of equal length: they are
/// inlined into a function that is compiled for the machine's instruction set, where the compiler vectorises them.
pub(super) trait Kernel<const N: usize, const M: usize>: Sync {
    /// Fills row `i` of the results. Mark it `#[inline(always)]`.
    fn row(&self, i: usize, inputs: [&[f32]; N], out: [&mut [f32]; M]);
}

/// Some rows of the results, in their dtype.
enum Rows<'a> {
    F32(&'a mut [f32]),
    BF16(&'a mut [bf16]),
    F16(&'a mut [f16]),
}

/// A dtype of results.
trait Number: Copy + Default + Send + Sync {
    fn rows(part: &mut [Self]) -> Rows<'_>;
}

impl Number for f32 {
    fn rows(part: &mut [Self]) -> Rows<'_> {
        Rows::F32(part)
    }
}

impl Number for bf16 {
    fn rows(part: &mut [Self]) -> Rows<'_> {
        Rows::BF16(part)
    }
}

impl Number for f16 {
    fn rows(part: &mut [Self]) -> Rows<'_> {
        Rows::F16(part)
    }
}

struct Task<'a, K, const N: usize, const M: usize> {
    kernel: &'a K,
    inputs: &'a [Matrix<'a>; N],
    first: usize,
    width: usize,
    out: [Rows<'a>; M],
}

impl<K: Kernel<N, M>, const N: usize, const M: usize> Job for Task<'_, K, N, M> {
    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) {
        let width = self.width;
        let longest = self.inputs.iter().map(|m| m.width).max().unwrap_or(0);
        let half = |m: &Matrix| !matches!(m.data, Numbers::F32(_));
        let mut buffers: [Vec<f32>; N] =
            std::array::from_fn(|i| if half(&self.inputs[i]) { vec![0.0; longest] } else { Vec::new() });
        let mut results: [Vec<f32>; M] =
            std::array::from_fn(|i| if matches!(self.out[i], Rows::F32(_)) { Vec::new() } else { vec![0.0; width] });
        let count = match &self.out[0] {
            Rows::F32(out) => out.len(),
            Rows::BF16(out) => out.len(),
            Rows::F16(out) => out.len(),
        } / width;
        for i in 0..count {
            let range = i * width..(i + 1) * width;
            // Loops rather than closures, which would be compiled without the machine's instruction set.
            let mut inputs: [&[f32]; N] = [&[]; N];
            for ((input, matrix), buffer) in inputs.iter_mut().zip(self.inputs).zip(&mut buffers) {
                *input = matrix.row(self.first + i, buffer);
            }
            let mut rows: [&mut [f32]; M] = std::array::from_fn(|_| <&mut [f32]>::default());
            for ((row, out), scratch) in rows.iter_mut().zip(&mut self.out).zip(&mut results) {
                *row = match out {
                    Rows::F32(out) => &mut out[range.clone()],
                    _ => scratch,
                };
            }
            self.kernel.row(self.first + i, inputs, rows);
            for (out, scratch) in self.out.iter_mut().zip(&results) {
                match out {
                    Rows::F32(_) => {}
                    Rows::BF16(out) => round_bf16(scratch, &mut out[range.clone()]),
                    Rows::F16(out) => out[range.clone()].convert_from_f32_slice(scratch),
                }
            }
        }
    }
}

/// `M` results of `rows` rows of `width` numbers in `dtype`, computed by `kernel`.
pub(super) fn compute<K: Kernel<N, M>, const N: usize, const M: usize>(
    dtype: DType,
    (rows, width): (usize, usize),
    inputs: [Matrix<'_>; N],
    kernel: &K,
) -> Result<[CpuStorage; M]> {
    Ok(match dtype {
        DType::F32 => run::<f32, K, N, M>((rows, width), inputs, kernel)?.map(CpuStorage::F32),
        DType::BF16 => run::<bf16, K, N, M>((rows, width), inputs, kernel)?.map(CpuStorage::BF16),
        DType::F16 => run::<f16, K, N, M>((rows, width), inputs, kernel)?.map(CpuStorage::F16),
        other => bail!("the fused ops compute f32, bf16 and f16, not {other:?}"),
    })
}

fn run<E: Number, K: Kernel<N, M>, const N: usize, const M: usize>(
    (rows, width): (usize, usize),
    inputs: [Matrix<'_>; N],
    kernel: &K,
) -> Result<[Vec<E>; M]> {
    let path = KernelPath::choose(None)?;
    let serial = rows * width < PARALLEL_FROM;
    let rows_per_task = if serial { rows } else { (TASK / width).max(1) };
    Ok(filled(rows * width, rows_per_task * width, serial, |i, out: [&mut [E]; M]| {
        let (first, out) = (i * rows_per_task, out.map(E::rows));
        dispatch(path, Task { kernel, inputs: &inputs, first, width, out });
    }))
}

/// A sum over rows, for the gradients of weights: every task adds its rows into a vector of f32 numbers, and the vectors
/// are added in order, so that the result does not depend on the number of threads.
pub(super) trait Reduction<const N: usize>: Sync {
    /// Adds what row `i` contributes. Mark it `#[inline(always)]`.
    fn add(&self, i: usize, inputs: [&[f32]; N], sums: &mut [f32]);
}

struct Reduce<'a, R, const N: usize> {
    reduction: &'a R,
    inputs: &'a [Matrix<'a>; N],
    rows: std::ops::Range<usize>,
    sums: &'a mut [f32],
}

impl<R: Reduction<N>, const N: usize> Job for Reduce<'_, R, N> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut buffers: [Vec<f32>; N] = std::array::from_fn(|i| vec![0.0; self.inputs[i].width]);
        for i in self.rows {
            let mut buffers = buffers.iter_mut();
            let inputs = self.inputs.each_ref().map(|m| m.row(i, buffers.next().map_or(&mut [], |b| b)));
            self.reduction.add(i, inputs, self.sums);
        }
    }
}

/// The sum over `rows` rows of what `reduction` adds, `width` numbers.
pub(super) fn reduce<R: Reduction<N>, const N: usize>(
    (rows, width): (usize, usize),
    inputs: [Matrix<'_>; N],
    reduction: &R,
) -> Result<Vec<f32>> {
    const TASKS: usize = 16;
    let path = KernelPath::choose(None)?;
    let task = rows.div_ceil(TASKS).max(1);
    let parts = (0..rows.div_ceil(task)).into_par_iter().map(|i| {
        let mut sums = vec![0f32; width];
        let rows = i * task..rows.min((i + 1) * task);
        dispatch(path, Reduce { reduction, inputs: &inputs, rows, sums: &mut sums });
        sums
    });
    let mut total = vec![0f32; width];
    for part in parts.collect::<Vec<_>>() {
        total.iter_mut().zip(part).for_each(|(total, part)| *total += part);
    }
    Ok(total)
}

/// Runs `f` on the rows of CPU tensors.
pub(super) fn with_matrices<const N: usize, R>(
    tensors: [&Tensor; N],
    f: impl FnOnce([Matrix<'_>; N]) -> Result<R>,
) -> Result<R> {
    let held = tensors.map(Tensor::storage_and_layout);
    let mut matrices = Vec::with_capacity(N);
    for (storage, layout) in &held {
        let Storage::Cpu(storage) = &**storage else { bail!("expected a tensor on the CPU") };
        matrices.push(Matrix::new(storage, layout)?);
    }
    match matrices.try_into() {
        Ok(matrices) => f(matrices),
        Err(_) => bail!("the number of tensors changed"),
    }
}

/// A CPU tensor of computed numbers.
pub(super) fn tensor(storage: CpuStorage, shape: impl Into<Shape>) -> Result<Tensor> {
    match storage {
        CpuStorage::F32(data) => Tensor::from_vec(data, shape.into(), &Device::Cpu),
        CpuStorage::BF16(data) => Tensor::from_vec(data, shape.into(), &Device::Cpu),
        CpuStorage::F16(data) => Tensor::from_vec(data, shape.into(), &Device::Cpu),
        _ => bail!("the fused ops compute f32, bf16 and f16"),
    }
}

/// Rows and their width.
pub(super) fn size(dims: &[usize]) -> (usize, usize) {
    let width = dims.last().copied().unwrap_or(1).max(1);
    (dims.iter().product::<usize>() / width, width)
}

/// True if the rows of `x` can be read as slices on the CPU, in a dtype that the ops compute in.
pub(super) fn is_plain(x: &Tensor) -> bool {
    x.device().is_cpu() && matches!(x.dtype(), DType::F32 | DType::BF16 | DType::F16) && x.elem_count() > 0
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

/// The sum of `f` over the numbers of a row, in [`LANES`] independent sums.
///
/// Over arrays of a known length rather than indices: with a bounds check in it, the loop would not become vectors.
#[inline(always)]
pub(super) fn sum(xs: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0f32; LANES];
    let (whole, rest) = xs.as_chunks::<LANES>();
    for xs in whole {
        sums.iter_mut().zip(xs).for_each(|(sum, x)| *sum += f(*x));
    }
    sums.iter_mut().zip(rest).for_each(|(sum, x)| *sum += f(*x));
    total(sums)
}

/// The sum of `f` over two rows side by side, as far as both reach.
#[inline(always)]
pub(super) fn sum_of_pairs(xs: &[f32], ys: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut sums = [0f32; LANES];
    let n = xs.len().min(ys.len());
    let ((xs, more_xs), (ys, more_ys)) = (xs[..n].as_chunks::<LANES>(), ys[..n].as_chunks::<LANES>());
    for (xs, ys) in xs.iter().zip(ys) {
        sums.iter_mut().zip(xs).zip(ys).for_each(|((sum, x), y)| *sum += f(*x, *y));
    }
    sums.iter_mut().zip(more_xs).zip(more_ys).for_each(|((sum, x), y)| *sum += f(*x, *y));
    total(sums)
}

/// All lanes added up, half of them to the other half each time.
#[inline(always)]
fn total(mut sums: [f32; LANES]) -> f32 {
    let mut n = LANES / 2;
    while n > 0 {
        for i in 0..n {
            sums[i] += sums[i + n];
        }
        n /= 2;
    }
    sums[0]
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
    fn sums_of_whole_numbers_are_exact() {
        for n in [0, 1, 31, 32, 33, 200] {
            let xs: Vec<f32> = (0..n).map(|i| (i * 7 % 13) as f32 - 6.0).collect();
            let ys: Vec<f32> = (0..n + n % 3).map(|i| (i * 5 % 11) as f32 - 4.0).collect();
            assert_eq!(sum(&xs, |x| 2.0 * x), xs.iter().map(|x| 2.0 * x).sum::<f32>(), "{n}");
            let dot: f32 = xs.iter().zip(&ys).map(|(x, y)| x * y).sum();
            assert_eq!((sum_of_pairs(&xs, &ys, |x, y| x * y), sum_of_pairs(&ys, &xs, |y, x| x * y)), (dot, dot), "{n}");
        }
    }

    #[test]
    fn rows_of_views() {
        let x = Tensor::arange(0f32, 48., &Device::Cpu).and_then(|x| x.reshape((2, 3, 8))).unwrap();
        for view in [x.narrow(2, 2, 4).unwrap(), x.narrow(0, 1, 1).unwrap(), x.clone()] {
            let rows = view.flatten_to(1).unwrap().to_vec2::<f32>().unwrap();
            for dtype in [DType::F32, DType::BF16] {
                let view = view.to_dtype(dtype).unwrap();
                let check = |[matrix]: [Matrix; 1]| {
                    for (i, row) in rows.iter().enumerate() {
                        assert_eq!(matrix.row(i, &mut [0.0; 8]), row);
                        assert_eq!(matrix.columns(1, 2).row(i, &mut [0.0; 8]), &row[1..3]);
                    }
                    Ok(())
                };
                with_matrices([&view], check).unwrap();
            }
        }
        assert!(with_rows(&x.transpose(1, 2).unwrap()).unwrap().is_contiguous());
        assert!(with_rows(&x.narrow(1, 0, 2).unwrap()).unwrap().is_contiguous(), "rows that are not evenly spaced");
    }
}
