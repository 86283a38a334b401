//! The negative log-likelihood of one token per row, without a tensor of probabilities.

use super::rows::{Kernel, compute, exp, is_plain, slice, sum};
use crate::attention::fused_cpu::simd::Element;
use candle_core::{CpuStorage, CustomOp2, D, Device, Layout, Result, Shape, Storage, Tensor, bail};
use half::{bf16, f16};

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

struct Forward<'a, E> {
    logits: &'a [E],
    targets: &'a [u32],
    vocab: usize,
}

/// The largest of a row, in 32 independent maxima; NaN if any is.
#[inline(always)]
fn largest<E: Element>(row: &[E]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 32];
    let (whole, rest) = row.as_chunks::<32>();
    for chunk in whole {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            let x = x.widen();
            *lane = if x < *lane { *lane } else { x };
        }
    }
    rest.iter().map(|x| x.widen()).chain(lanes).fold(f32::NEG_INFINITY, |a, b| if b < a { a } else { b })
}

impl<E: Element + Sync> Kernel<f32> for Forward<'_, E> {
    #[inline(always)]
    fn row(&self, i: usize, out: &mut [f32]) {
        let row = &self.logits[i * self.vocab..][..self.vocab];
        let top = largest(row);
        let total = sum(row.len(), |j| exp(row[j].widen() - top));
        out[0] = total.ln() + top - row[self.targets[i] as usize].widen();
    }
}

/// `(softmax - onehot) grad`. The row's log-sum is the result plus the target's logit.
struct Backward<'a, E> {
    logits: &'a [E],
    targets: &'a [u32],
    nll: &'a [f32],
    grad: &'a [f32],
    vocab: usize,
}

impl<E: Element + Sync> Kernel<E> for Backward<'_, E> {
    #[inline(always)]
    fn row(&self, i: usize, out: &mut [E]) {
        let row = &self.logits[i * self.vocab..][..out.len()];
        let target = self.targets[i] as usize;
        let log_sum = self.nll[i] + row[target].widen();
        let grad = self.grad[i];
        for (out, x) in out.iter_mut().zip(row) {
            *out = E::narrow(exp(x.widen() - log_sum) * grad);
        }
        out[target] = E::narrow((exp(row[target].widen() - log_sum) - 1.0) * grad);
    }
}

impl Nll {
    fn forward<E: Element + Sync>(
        (logits, layout): (&CpuStorage, &Layout),
        (targets, targets_layout): (&CpuStorage, &Layout),
    ) -> Result<Vec<f32>> {
        let (n, vocab) = layout.shape().dims2()?;
        let targets = match targets_layout.contiguous_offsets() {
            Some((start, end)) => &targets.as_slice::<u32>()?[start..end],
            None => bail!("nll: targets are not contiguous"),
        };
        compute(n, 1, &Forward { logits: slice::<E>(logits, layout)?, targets, vocab })
    }

    fn gradient<E: Element + Sync>(logits: &Tensor, targets: &[u32], nll: &[f32], grad: &[f32]) -> Result<Tensor> {
        let (n, vocab) = logits.dims2()?;
        let (storage, layout) = logits.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else { bail!("nll: not on the CPU") };
        let kernel = Backward { logits: slice::<E>(storage, layout)?, targets, nll, grad, vocab };
        Tensor::from_vec(compute(n, vocab, &kernel)?, (n, vocab), &Device::Cpu)
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
        let out = match logits {
            CpuStorage::F32(_) => Self::forward::<f32>((logits, l), (targets, tl))?,
            CpuStorage::BF16(_) => Self::forward::<bf16>((logits, l), (targets, tl))?,
            CpuStorage::F16(_) => Self::forward::<f16>((logits, l), (targets, tl))?,
            _ => bail!("nll: the fused op takes f32, bf16 and f16"),
        };
        let n = out.len();
        Ok((CpuStorage::F32(out), Shape::from(n)))
    }

    fn bwd(
        &self,
        logits: &Tensor,
        targets: &Tensor,
        res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (targets, nll, grad) = (targets.to_vec1::<u32>()?, res.to_vec1::<f32>()?, grad.to_vec1::<f32>()?);
        let to_logits = match logits.dtype() {
            candle_core::DType::F32 => Self::gradient::<f32>(logits, &targets, &nll, &grad)?,
            candle_core::DType::BF16 => Self::gradient::<bf16>(logits, &targets, &nll, &grad)?,
            _ => Self::gradient::<f16>(logits, &targets, &nll, &grad)?,
        };
        Ok((Some(to_logits), None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Var};

    #[test]
    fn value_and_gradient_are_those_of_plain_ops() -> Result<()> {
        for (n, vocab) in [(1, 1), (3, 7), (5, 100), (40, 1024)] {
            let logits = (Tensor::randn(0f32, 1., (n, vocab), &Device::Cpu)? * 10.0)?;
            let targets = Tensor::from_iter((0..n).map(|i| (i * 31 % vocab) as u32), &Device::Cpu)?;
            let weights = Tensor::randn(0f32, 1., n, &Device::Cpu)?;
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
