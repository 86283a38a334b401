//! The negative log-likelihood of one token per row, without a tensor of probabilities.

use super::rows::{Kernel, Matrix, compute, exp, is_plain, sum, tensor, with_matrices};
use candle_core::{CpuStorage, CustomOp2, D, DType, Layout, Result, Shape, Tensor, bail};

/// `log(sum(exp(logits))) - logits[target]` per row of logits `(n, vocab)`, for targets `(n,)` u32: `(n,)` f32 (f64 for
/// f64). Gradients flow into the logits.
///
/// # Errors
/// Shapes that don't fit, a target outside the vocabulary.
pub fn nll(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let (n, vocab) = logits.dims2()?;
    if targets.dims() != [n] {
        bail!("nll: {n} rows of logits, targets of shape {:?}", targets.dims())
    }
    if n > 0 && targets.max(0)?.to_scalar::<u32>()? as usize >= vocab {
        bail!("nll: a target is outside the vocabulary of {vocab}")
    }
    if !is_plain(logits) {
        let picked = logits.gather(&targets.unsqueeze(1)?, 1)?.squeeze(1)?;
        return logits.log_sum_exp(D::Minus1)? - picked;
    }
    logits.contiguous()?.apply_op2(&targets.contiguous()?, Nll)
}

struct Nll;

struct Forward<'a> {
    targets: &'a [u32],
}

/// The largest of a row, in 32 independent maxima; NaN if any is.
#[inline(always)]
pub(super) fn largest(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 32];
    let (whole, rest) = row.as_chunks::<32>();
    for chunk in whole {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = if *x < *lane { *lane } else { *x };
        }
    }
    rest.iter().copied().chain(lanes).fold(f32::NEG_INFINITY, |a, b| if b < a { a } else { b })
}

impl Kernel<1, 1> for Forward<'_> {
    #[inline(always)]
    fn row(&self, i: usize, [row]: [&[f32]; 1], [out]: [&mut [f32]; 1]) {
        let top = largest(row);
        let total = sum(row, |x| exp(x - top));
        out[0] = total.ln() + (top - row[self.targets[i] as usize]);
    }
}

/// `(softmax - onehot) grad`. The sum is taken again relative to the row's largest logit: a log-sum rebuilt from the result
/// would carry the rounding of a number as large as the logits into every probability.
struct Backward<'a> {
    targets: &'a [u32],
    grad: &'a [f32],
}

impl Kernel<1, 1> for Backward<'_> {
    #[inline(always)]
    fn row(&self, i: usize, [row]: [&[f32]; 1], [out]: [&mut [f32]; 1]) {
        let top = largest(row);
        let scale = self.grad[i] / sum(row, |x| exp(x - top));
        for (out, x) in out.iter_mut().zip(row) {
            *out = exp(x - top) * scale;
        }
        out[self.targets[i] as usize] -= self.grad[i];
    }
}

impl CustomOp2 for Nll {
    fn name(&self) -> &'static str {
        "nll"
    }

    fn cpu_fwd(
        &self,
        logits: &CpuStorage,
        l: &Layout,
        targets: &CpuStorage,
        tl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let targets = match tl.contiguous_offsets() {
            Some((start, end)) => &targets.as_slice::<u32>()?[start..end],
            None => bail!("nll: targets are not contiguous"),
        };
        let n = targets.len();
        let [out] = compute(DType::F32, (n, 1), [Matrix::new(logits, l)?], &Forward { targets })?;
        Ok((out, Shape::from(n)))
    }

    fn bwd(
        &self,
        logits: &Tensor,
        targets: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (targets, grad) = (targets.to_vec1::<u32>()?, grad.to_vec1::<f32>()?);
        let kernel = Backward { targets: &targets, grad: &grad };
        let size = logits.dims2()?;
        let [out] = with_matrices([logits], |rows| compute(logits.dtype(), size, rows, &kernel))?;
        Ok((Some(tensor(out, size)?), None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn value_and_gradient_are_those_of_plain_ops() -> Result<()> {
        for (n, vocab) in [(1, 1), (3, 7), (5, 100), (40, 1024)] {
            let logits = Tensor::from_iter((0..n * vocab).map(|i| 30.0 * (i as f32 * 0.7).sin()), &Device::Cpu)?
                .reshape((n, vocab))?;
            let targets = Tensor::from_iter((0..n).map(|i| (i * 31 % vocab) as u32), &Device::Cpu)?;
            let weights = Tensor::from_iter((0..n).map(|i| (i as f32 * 1.3).cos()), &Device::Cpu)?;
            let run = |dtype| -> Result<(Tensor, Tensor)> {
                let logits = Var::from_tensor(&logits.to_dtype(dtype)?)?;
                let values = nll(&logits, &targets)?;
                let grads = (&values * weights.to_dtype(dtype)?)?.sum_all()?.backward()?;
                Ok((values.to_dtype(DType::F64)?, grads.get(&logits).expect("a gradient").to_dtype(DType::F64)?))
            };
            let (ours, exact) = (run(DType::F32)?, run(DType::F64)?);
            for (a, b) in [(ours.0, exact.0), (ours.1, exact.1)] {
                let worst = (a - b)?.abs()?.max_all()?.to_scalar::<f64>()?;
                assert!(worst < 1e-5, "{n} x {vocab}: {worst}");
            }
        }
        Ok(())
    }

    #[test]
    fn extreme_logits_stay_finite_and_nan_shows() -> Result<()> {
        let logits =
            Tensor::new(&[[1e30f32, -1e30, 0.0], [f32::NEG_INFINITY, 5.0, 5.0], [f32::NAN, 1.0, 2.0]], &Device::Cpu)?;
        let values = nll(&logits, &Tensor::new(&[0u32, 1, 2], &Device::Cpu)?)?.to_vec1::<f32>()?;
        assert_eq!(values[0], 0.0);
        assert!((values[1] - 2f32.ln()).abs() < 1e-6);
        assert!(values[2].is_nan());
        assert!(nll(&logits, &Tensor::new(&[0u32, 1, 3], &Device::Cpu)?).is_err(), "outside the vocabulary");
        Ok(())
    }
}
