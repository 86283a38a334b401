//! Heads cut out of rows and put back, as one op each where a gradient is wanted.
//!
//! Without gradients both are views. With them Candle adds up the gradient of every reshape and transpose on the way, a
//! strided pass over the whole tensor each; these move every number once, both ways, on every core.

use super::rows::{PARALLEL_FROM, is_plain};
use crate::parallel::filled;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use half::{bf16, f16};

/// `(b, t, n * d)` to `(b, n, t, d)` for `n` heads. Gradients flow.
///
/// # Errors
/// A last dimension that `n` does not divide.
pub fn split_heads(xs: &Tensor, n: usize) -> Result<Tensor> {
    let (b, t, width) = xs.dims3()?;
    if n == 0 || !width.is_multiple_of(n) {
        bail!("split_heads: {width} numbers are no {n} heads")
    }
    let heads = |xs: &Tensor| xs.reshape((b, t, n, width / n))?.transpose(1, 2);
    if xs.track_op() && is_plain(xs) { xs.contiguous()?.apply_op1(Split { n }) } else { heads(xs) }
}

/// `(b, n, t, d)` to `(b, t, n * d)`. Gradients flow.
pub fn merge_heads(xs: &Tensor) -> Result<Tensor> {
    let (_, n, _, d) = xs.dims4()?;
    if xs.track_op() && is_plain(xs) && d > 0 {
        return xs.contiguous()?.apply_op1(Merge { n });
    }
    xs.transpose(1, 2)?.flatten_from(2)
}

struct Split {
    n: usize,
}

struct Merge {
    n: usize,
}

impl CustomOp1 for Split {
    fn name(&self) -> &'static str {
        "split_heads"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (b, t, width) = layout.shape().dims3()?;
        let d = width / self.n;
        Ok((moved(xs, layout, (b, t, self.n, d))?, (b, self.n, t, d).into()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        grad.contiguous()?.apply_op1_no_bwd(&Merge { n: self.n }).map(Some)
    }
}

impl CustomOp1 for Merge {
    fn name(&self) -> &'static str {
        "merge_heads"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (b, n, t, d) = layout.shape().dims4()?;
        Ok((moved(xs, layout, (b, n, t, d))?, (b, t, n * d).into()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        grad.contiguous()?.apply_op1_no_bwd(&Split { n: self.n }).map(Some)
    }
}

/// Contiguous `(b, i, j, d)` as `(b, j, i, d)`.
fn moved(xs: &CpuStorage, layout: &Layout, size: (usize, usize, usize, usize)) -> Result<CpuStorage> {
    let Some((from, to)) = layout.contiguous_offsets() else { bail!("heads: expected a contiguous tensor") };
    Ok(match xs {
        CpuStorage::F32(xs) => CpuStorage::F32(transposed(&xs[from..to], size)),
        CpuStorage::BF16(xs) => CpuStorage::BF16(transposed::<bf16>(&xs[from..to], size)),
        CpuStorage::F16(xs) => CpuStorage::F16(transposed::<f16>(&xs[from..to], size)),
        _ => bail!("heads: expected f32, bf16 or f16, got {:?}", xs.dtype()),
    })
}

fn transposed<T: Copy + Default + Send + Sync>(xs: &[T], (b, i, j, d): (usize, usize, usize, usize)) -> Vec<T> {
    let len = b * i * j * d;
    let [out] = filled(len, i * d, len < PARALLEL_FROM, |at, [rows]: [&mut [T]; 1]| {
        let (b, j_at) = (at / j, at % j);
        for (i_at, row) in rows.chunks_exact_mut(d).enumerate() {
            row.copy_from_slice(&xs[((b * i + i_at) * j + j_at) * d..][..d]);
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Var};

    /// Values and gradients are those of Candle's reshape and transpose.
    #[test]
    fn heads_are_those_of_views() -> Result<()> {
        for dtype in [DType::F32, DType::BF16, DType::F16, DType::F64] {
            for (b, t, n, d) in [(1, 1, 1, 1), (2, 5, 3, 4), (3, 1, 2, 8), (1, 7, 4, 3)] {
                let numbers = Tensor::arange(0f32, (b * t * n * d) as f32, &Device::Cpu)?.to_dtype(dtype)?;
                let xs = Var::from_tensor(&numbers.reshape((b, t, n * d))?)?;
                let pick = Tensor::arange(1f32, (b * t * n * d + 1) as f32, &Device::Cpu)?.cos()?.to_dtype(dtype)?;
                let split = split_heads(&xs, n)?;
                let views = xs.as_detached_tensor().reshape((b, t, n, d))?.transpose(1, 2)?;
                same(&split, &views)?;
                same(&merge_heads(&split)?, &xs)?;

                let grads = (&split * pick.reshape((b, n, t, d))?)?.sum_all()?.backward()?;
                let expected = pick.reshape((b, n, t, d))?.transpose(1, 2)?.reshape((b, t, n * d))?;
                same(grads.get(&xs).expect("a gradient"), &expected)?;

                let xs = Var::from_tensor(&views.contiguous()?)?;
                let pick = pick.reshape((b, t, n * d))?;
                let grads = (merge_heads(&xs)? * &pick)?.sum_all()?.backward()?;
                same(grads.get(&xs).expect("a gradient"), &pick.reshape((b, t, n, d))?.transpose(1, 2)?)?;
            }
        }
        let odd = Tensor::zeros((1, 2, 6), DType::F32, &Device::Cpu)?;
        assert!(split_heads(&odd, 4).is_err() && split_heads(&odd, 0).is_err());
        Ok(())
    }

    fn same(a: &Tensor, b: &Tensor) -> Result<()> {
        assert_eq!(a.dims(), b.dims());
        let bits = |x: &Tensor| x.contiguous()?.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>();
        assert_eq!(bits(a)?, bits(b)?);
        Ok(())
    }
}
