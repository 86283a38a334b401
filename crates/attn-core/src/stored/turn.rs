//! The turn that numbers go through before they become blocks: a Hadamard matrix.
//!
//! A block has one scale, so one number of a large magnitude takes the digits of the other 31, and heads of many models have
//! a few such numbers in every key, always in the same places. The matrix, `(-1)^popcount(i & j) / sqrt(n)`, spreads each of
//! them over the whole head (QuaRot, arXiv:2404.00456). It is symmetric and its own inverse, and scores are what they
//! were if queries are turned like the keys; an average of turned values is turned back once, after the sum.

use super::BLOCK;
use crate::simd::{Element, Job, KernelPath, Simd, dispatch};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// Rows of the largest matrix.
pub(super) const LARGEST: usize = 256;
/// Numbers below which a second thread isn't worth waking.
const FEW: usize = 1 << 15;

/// How many numbers of a token of `width` are turned at once: the largest power of two that divides it, up to [`LARGEST`]. Whole
/// blocks, if the token is.
pub(super) fn size(width: usize) -> usize {
    (1 << width.trailing_zeros().min(LARGEST.trailing_zeros())).max(BLOCK)
}

/// `xs`, as many as the matrix has rows, times the matrix; in an order of additions that no instruction set changes.
#[inline(always)]
pub(super) fn turn(xs: &mut [f32]) {
    for block in xs.as_chunks_mut().0 {
        sums_and_differences::<16>(block);
        sums_and_differences::<8>(block);
        sums_and_differences::<4>(block);
        sums_and_differences::<2>(block);
        sums_and_differences::<1>(block);
    }
    let mut step = BLOCK;
    while step < xs.len() {
        for both in xs.chunks_exact_mut(2 * step) {
            let (first, second) = both.split_at_mut(step);
            for (a, b) in first.iter_mut().zip(second) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        step *= 2;
    }
    let scale = (1.0 / xs.len() as f32).sqrt();
    for x in xs {
        *x *= scale;
    }
}

/// Of every two numbers whose places differ in the bit `STEP`.
#[inline(always)]
fn sums_and_differences<const STEP: usize>(xs: &mut [f32; BLOCK]) {
    for start in (0..BLOCK).step_by(2 * STEP) {
        for i in start..start + STEP {
            let (a, b) = (xs[i], xs[i + STEP]);
            (xs[i], xs[i + STEP]) = (a + b, a - b);
        }
    }
}

/// Every `size` numbers of the last dimension of `xs`, a tensor of f32, bf16 or f16 on the CPU, turned; in f32, rounded to the
/// dtype of `xs` at the end. No gradient flows through it, as none flows through blocks.
///
/// # Errors
/// A last dimension that is no multiple of `size`; another dtype or device.
pub(crate) fn turned(xs: &Tensor, size: usize) -> Result<Tensor> {
    xs.contiguous()?.apply_op1_no_bwd(&Turn(size))
}

struct Turn(usize);

impl CustomOp1 for Turn {
    fn name(&self) -> &'static str {
        "hadamard"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (path, size) = (KernelPath::choose(None)?, self.0);
        let numbers = layout.start_offset()..layout.start_offset() + layout.shape().elem_count();
        if !layout.dims().last().is_some_and(|last| last.is_multiple_of(size)) {
            bail!("hadamard: {:?} is no whole number of turns of {size}", layout.dims())
        }
        let out = match storage {
            CpuStorage::F32(xs) => CpuStorage::F32(all(path, size, &xs[numbers])),
            CpuStorage::BF16(xs) => CpuStorage::BF16(all(path, size, &xs[numbers])),
            CpuStorage::F16(xs) => CpuStorage::F16(all(path, size, &xs[numbers])),
            _ => bail!("hadamard: expected f32, bf16 or f16"),
        };
        Ok((out, layout.shape().clone()))
    }
}

fn all<T: Element>(path: KernelPath, size: usize, from: &[T]) -> Vec<T> {
    let mut to = vec![T::zero(); from.len()];
    if from.len() < FEW {
        dispatch(path, Turns { size, from, to: &mut to });
    } else {
        let parts = to.par_chunks_mut(FEW / 2).zip(from.par_chunks(FEW / 2));
        parts.for_each(|(to, from)| dispatch(path, Turns { size, from, to }));
    }
    to
}

/// Numbers to be turned, `size` at a time.
struct Turns<'a, T> {
    size: usize,
    from: &'a [T],
    to: &'a mut [T],
}

impl<T: Element> Job for Turns<'_, T> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut buffer = [0f32; LARGEST];
        let xs = &mut buffer[..self.size];
        for (from, to) in self.from.chunks_exact(self.size).zip(self.to.chunks_exact_mut(self.size)) {
            for (x, from) in xs.iter_mut().zip(from) {
                *x = from.widen();
            }
            turn(xs);
            T::narrow_all(xs, to);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::randn;
    use candle_core::DType;

    #[test]
    fn it_is_the_matrix_and_its_own_inverse_on_every_path() -> Result<()> {
        for n in [32, 64, 256] {
            let xs = randn(0.0, 1.0, 3 * n)?.to_vec1::<f32>()?;
            for path in KernelPath::available() {
                let there = all(path, n, &xs);
                for (xs, there) in xs.chunks(n).zip(there.chunks(n)) {
                    for (i, y) in there.iter().enumerate() {
                        let sign = |j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
                        let sum: f64 = xs.iter().enumerate().map(|(j, x)| sign(j) * f64::from(*x)).sum();
                        assert!((f64::from(*y) - sum / (n as f64).sqrt()).abs() < 1e-6, "{path}, {n}: {i}");
                    }
                }
                assert_eq!(there, all(KernelPath::Portable, n, &xs), "{path}, {n}: other bits");
                let off = all(path, n, &there).iter().zip(&xs).fold(0f32, |off, (a, b)| off.max((a - b).abs()));
                assert!(off < 1e-6, "{path}, {n}: {off:e}");
            }
        }
        Ok(())
    }

    #[test]
    fn tensors_of_any_strides_and_dtype_are_turned_along_their_last_dimension() -> Result<()> {
        // More than a thread takes, and a transposed view.
        let xs = randn(0.0, 1.0, &[3, 70, 5, 64])?;
        let wanted = turned(&xs.transpose(1, 2)?.contiguous()?, 64)?;
        for (dtype, most) in [(DType::F32, 0.0), (DType::BF16, 0.03), (DType::F16, 0.004)] {
            let made = turned(&xs.to_dtype(dtype)?.transpose(1, 2)?, 64)?;
            assert_eq!((made.dtype(), made.dims()), (dtype, &[3, 5, 70, 64][..]));
            let off = (made.to_dtype(DType::F32)? - &wanted)?.abs()?.max_all()?.to_scalar::<f32>()?;
            assert!(off <= most, "{dtype:?}: {off:e}");
        }
        assert!(turned(&randn(0.0, 1.0, &[2, 40])?, 32).expect_err("refused").to_string().contains("32"));
        Ok(())
    }

    #[test]
    fn the_size_is_a_power_of_two_of_whole_blocks() {
        for (width, wanted) in [(32, 32), (64, 64), (96, 32), (128, 128), (192, 64), (576, 64), (2048, 256)] {
            assert_eq!(size(width), wanted);
        }
    }
}
