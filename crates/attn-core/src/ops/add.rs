//! The residual sum.

use super::rows::{Kernel, compute, is_plain, size, tensor, with_matrices, with_rows};
use candle_core::{Result, Tensor};

/// `a + b` of one shape and dtype, rounded once. Gradients flow into both.
///
/// # Errors
/// Shapes or dtypes that differ.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let alike = a.dims() == b.dims() && a.dtype() == b.dtype() && a.rank() > 0;
    if a.track_op() || b.track_op() || !alike || !is_plain(a) || !is_plain(b) {
        return a + b;
    }
    let (a, b) = (with_rows(a)?, with_rows(b)?);
    let [sum] = with_matrices([&a, &b], |rows| compute(a.dtype(), size(a.dims()), rows, &Sum))?;
    tensor(sum, a.shape())
}

struct Sum;

impl Kernel<2, 1> for Sum {
    #[inline(always)]
    fn row(&self, _: usize, [a, b]: [&[f32]; 2], [out]: [&mut [f32]; 1]) {
        out.iter_mut().zip(a).zip(b).for_each(|((out, a), b)| *out = a + b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::round_bf16;
    use candle_core::{DType, Device, Var};
    use half::bf16;

    #[test]
    fn sums_are_those_of_candle_in_every_dtype_and_view() -> Result<()> {
        let numbers = |step: f32| {
            Tensor::from_iter((0..6 * 50).map(|i| 3.0 * (i as f32 * step).sin()), &Device::Cpu)?.reshape((2, 3, 50))
        };
        let (a, b) = (numbers(0.3)?, numbers(1.1)?);
        for dtype in [DType::F32, DType::BF16, DType::F16, DType::F64] {
            let (a, b) = (a.to_dtype(dtype)?, b.to_dtype(dtype)?);
            for (a, b) in [(a.clone(), b.clone()), (a.narrow(2, 4, 30)?, b.narrow(2, 4, 30)?)] {
                let exact = (a.to_dtype(DType::F64)? + b.to_dtype(DType::F64)?)?.to_dtype(dtype)?;
                let difference = (add(&a, &b)?.to_dtype(DType::F64)? - exact.to_dtype(DType::F64)?)?;
                assert!(difference.abs()?.max_all()?.to_scalar::<f64>()? < 1e-6, "{dtype:?}");
            }
        }
        assert!(add(&a, &b.narrow(0, 0, 1)?).is_err() && add(&a, &b.to_dtype(DType::BF16)?).is_err());
        let var = Var::from_tensor(&a)?;
        let grads = add(&var, &b)?.sum_all()?.backward()?;
        assert_eq!(grads.get(&var).expect("a gradient").sum_all()?.to_scalar::<f32>()?, 300.0);
        Ok(())
    }

    /// Rounding to bf16 is to nearest, ties to even, whatever the sign; NaN and infinities stay what they are.
    #[test]
    fn rounding_is_that_of_half() {
        let hard =
            [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, -0.0, 1e-40, 1.003_906_2, 1.011_718_8];
        let numbers: Vec<f32> =
            hard.into_iter().chain((0..5000u32).map(|i| f32::from_bits(i.wrapping_mul(859_433)))).collect();
        let mut rounded = vec![bf16::ZERO; numbers.len()];
        round_bf16(&numbers, &mut rounded);
        for (ours, x) in rounded.iter().zip(&numbers) {
            let exact = bf16::from_f32(*x);
            assert!(ours.to_bits() == exact.to_bits(), "{x}: {ours} {exact}");
        }
    }
}
