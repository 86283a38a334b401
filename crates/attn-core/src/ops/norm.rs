//! RMS and layer norm, forward and backward in one pass each.

use super::rows::{
    Kernel, Matrix, Reduction, compute, is_plain, reduce, size, sum, sum_of_pairs, tensor, with_matrices, with_rows,
};
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, D, DType, Device, Layout, Result, Shape, Tensor, bail};
use half::{bf16, f16};

/// What is taken out of the last dimension before scaling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// `x / sqrt(mean(x^2) + eps)`
    Rms,
    /// `(x - mean) / sqrt(var + eps)`
    Layer,
}

/// A norm over the last dimension of `xs`, times `weight`, plus `bias`; both broadcast from the right, so `(h, d)` scales
/// every head of `(b, t, h, d)` by its own. Computed in f32 (f64 for f64) and rounded once to the dtype of `xs`.
///
/// # Errors
/// A weight or bias that doesn't broadcast.
pub fn norm(kind: NormKind, xs: &Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(out) = super::cuda::norm(kind, xs, weight, bias, eps)? {
        return Ok(out);
    }
    if !is_fused(xs, weight, bias) {
        return plain(kind, xs, weight, bias, eps);
    }
    let op = NormOp { kind, eps: eps as f32 };
    let parameter = |w: &Tensor| w.to_dtype(DType::F32)?.contiguous();
    let xs = with_rows(xs)?;
    match (weight, bias) {
        (None, None) => xs.apply_op1(op),
        (Some(w), None) => xs.apply_op2(&parameter(w)?, op),
        (Some(w), Some(b)) => xs.apply_op3(&parameter(w)?, &parameter(b)?, op),
        (None, Some(_)) => plain(kind, &xs, weight, bias, eps),
    }
}

/// Whether the fused op takes the norm of `xs`.
fn is_fused(xs: &Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>) -> bool {
    let fits = |w: &Tensor| w.device().is_cpu() && xs.dims().ends_with(w.dims()) && w.rank() > 0;
    is_plain(xs) && weight.is_none_or(fits) && bias.is_none_or(fits)
}

/// `a + b`, rounded to their dtype, and its [`norm`](fn@norm): where no gradients are tracked both in one pass.
///
/// # Errors
/// Shapes or dtypes that differ.
pub fn add_norm(
    kind: NormKind,
    a: &Tensor,
    b: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<(Tensor, Tensor)> {
    let tracks = [Some(a), Some(b), weight, bias].into_iter().flatten().any(Tensor::track_op);
    let alike = a.dims() == b.dims() && a.dtype() == b.dtype();
    if tracks || !alike || !is_plain(b) || !is_fused(a, weight, bias) {
        let sum = (a + b)?;
        let normed = norm(kind, &sum, weight, bias, eps)?;
        return Ok((sum, normed));
    }
    let op = NormOp { kind, eps: eps as f32 };
    let parameters = Parameters::read(weight, bias)?;
    let (a, b) = (with_rows(a)?, with_rows(b)?);
    let size = size(a.dims());
    let [sum, normed] = with_matrices([&a, &b], |rows| {
        compute(a.dtype(), size, rows, &SumAndNorm { norm: Forward { op, parameters: &parameters }, dtype: a.dtype() })
    })?;
    Ok((tensor(sum, a.shape())?, tensor(normed, a.shape())?))
}

/// Weight and bias in f32.
struct Parameters {
    weight: Option<Vec<f32>>,
    bias: Option<Vec<f32>>,
}

impl Parameters {
    fn read(weight: Option<&Tensor>, bias: Option<&Tensor>) -> Result<Self> {
        let values = |w: Option<&Tensor>| w.map(|w| w.to_dtype(DType::F32)?.flatten_all()?.to_vec1()).transpose();
        Ok(Self { weight: values(weight)?, bias: values(bias)? })
    }

    fn of(weight: Option<(&CpuStorage, &Layout)>, bias: Option<(&CpuStorage, &Layout)>) -> Result<Self> {
        let values = |p: Option<(&CpuStorage, &Layout)>| match p {
            Some((CpuStorage::F32(data), layout)) => match layout.contiguous_offsets() {
                Some((start, end)) => Ok(Some(data[start..end].to_vec())),
                None => bail!("norm: the weight is not contiguous"),
            },
            Some(_) => bail!("norm: the weight is not f32"),
            None => Ok(None),
        };
        Ok(Self { weight: values(weight)?, bias: values(bias)? })
    }
}

/// The same in Candle's own ops: any device and dtype.
fn plain(kind: NormKind, xs: &Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    let compute = if xs.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let mut x = xs.to_dtype(compute)?;
    if kind == NormKind::Layer {
        x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    }
    let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    let mut x = x.broadcast_div(&scale)?;
    if let Some(weight) = weight {
        x = x.broadcast_mul(&weight.to_dtype(compute)?)?;
    }
    if let Some(bias) = bias {
        x = x.broadcast_add(&bias.to_dtype(compute)?)?;
    }
    x.to_dtype(xs.dtype())
}

#[derive(Debug, Clone, Copy)]
struct NormOp {
    kind: NormKind,
    eps: f32,
}

impl NormOp {
    /// The mean that is taken out and `1 / sqrt(.. + eps)`.
    #[inline(always)]
    fn statistics(self, x: &[f32]) -> (f32, f32) {
        let n = x.len() as f32;
        let mean = match self.kind {
            NormKind::Rms => 0.0,
            NormKind::Layer => sum(x, |x| x) / n,
        };
        let square = sum(x, |x| (x - mean) * (x - mean));
        (mean, 1.0 / (square / n + self.eps).sqrt())
    }

    fn forward(
        self,
        (xs, layout): (&CpuStorage, &Layout),
        weight: Option<(&CpuStorage, &Layout)>,
        bias: Option<(&CpuStorage, &Layout)>,
    ) -> Result<(CpuStorage, Shape)> {
        let parameters = Parameters::of(weight, bias)?;
        let kernel = Forward { op: self, parameters: &parameters };
        let [out] = compute(xs.dtype(), size(layout.dims()), [Matrix::new(xs, layout)?], &kernel)?;
        Ok((out, layout.shape().clone()))
    }

    fn backward(self, xs: &Tensor, weight: Option<&Tensor>, grad: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
        let (xs, grad) = (with_rows(xs)?, with_rows(grad)?);
        let parameters = Parameters::read(weight, None)?;
        let kernel = Backward { op: self, weight: parameters.weight.as_deref() };
        let (rows, width) = size(xs.dims());
        with_matrices([&xs, &grad], |inputs| {
            let [to_xs] = compute(xs.dtype(), (rows, width), inputs, &kernel)?;
            let to_weight = match weight {
                Some(w) => {
                    let sums = reduce((rows, w.elem_count()), inputs, &WeightGradient(self))?;
                    Some(Tensor::from_vec(sums, w.shape(), &Device::Cpu)?)
                }
                None => None,
            };
            Ok((tensor(to_xs, xs.shape())?, to_weight))
        })
    }
}

/// The row of a weight `(.., width)` that row `i` of the input meets.
#[inline(always)]
fn parameter(all: &[f32], i: usize, width: usize) -> &[f32] {
    let rows = all.len() / width;
    &all[i % rows * width..][..width]
}

struct Forward<'a> {
    op: NormOp,
    parameters: &'a Parameters,
}

impl Forward<'_> {
    /// The norm of row `i`.
    #[inline(always)]
    fn apply(&self, i: usize, x: &[f32], out: &mut [f32]) {
        let x = &x[..out.len()];
        let (mean, scale) = self.op.statistics(x);
        match (&self.parameters.weight, &self.parameters.bias) {
            (Some(w), Some(b)) => {
                let (w, b) = (parameter(w, i, x.len()), parameter(b, i, x.len()));
                for (j, out) in out.iter_mut().enumerate() {
                    *out = (x[j] - mean) * scale * w[j] + b[j];
                }
            }
            (Some(w), None) => {
                let w = parameter(w, i, x.len());
                for (j, out) in out.iter_mut().enumerate() {
                    *out = (x[j] - mean) * scale * w[j];
                }
            }
            _ => {
                for (j, out) in out.iter_mut().enumerate() {
                    *out = (x[j] - mean) * scale;
                }
            }
        }
    }
}

impl Kernel<1, 1> for Forward<'_> {
    #[inline(always)]
    fn row(&self, i: usize, [x]: [&[f32]; 1], [out]: [&mut [f32]; 1]) {
        self.apply(i, x, out);
    }
}

struct SumAndNorm<'a> {
    norm: Forward<'a>,
    /// What the sum is stored in.
    dtype: DType,
}

impl Kernel<2, 2> for SumAndNorm<'_> {
    #[inline(always)]
    fn row(&self, i: usize, [a, b]: [&[f32]; 2], [sum, normed]: [&mut [f32]; 2]) {
        let (a, b) = (&a[..sum.len()], &b[..sum.len()]);
        for (j, sum) in sum.iter_mut().enumerate() {
            *sum = a[j] + b[j];
        }
        // The norm is that of the sum as it is stored.
        match self.dtype {
            DType::BF16 => sum.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32()),
            DType::F16 => sum.iter_mut().for_each(|x| *x = f16::from_f32(*x).to_f32()),
            _ => {}
        }
        self.norm.apply(i, sum, normed);
    }
}

/// With `n = (x - mean) scale` and `g` the gradient of `n`: `scale (g - mean(g) - n mean(g n))`, where RMS norm has no
/// `mean(g)`.
struct Backward<'a> {
    op: NormOp,
    weight: Option<&'a [f32]>,
}

impl Kernel<2, 1> for Backward<'_> {
    #[inline(always)]
    fn row(&self, i: usize, [x, g]: [&[f32]; 2], [out]: [&mut [f32]; 1]) {
        let width = out.len();
        let (x, g) = (&x[..width], &g[..width]);
        let (mean, scale) = self.op.statistics(x);
        match self.weight {
            Some(w) => {
                let w = parameter(w, i, width);
                out.iter_mut().enumerate().for_each(|(j, out)| *out = g[j] * w[j]);
            }
            None => out.copy_from_slice(g),
        }
        let along = sum_of_pairs(out, x, |g, x| g * (x - mean)) * scale / width as f32;
        let level = match self.op.kind {
            NormKind::Rms => 0.0,
            NormKind::Layer => sum(out, |g| g) / width as f32,
        };
        for (j, out) in out.iter_mut().enumerate() {
            *out = scale * (*out - level - (x[j] - mean) * scale * along);
        }
    }
}

/// `sum over rows of g n`.
struct WeightGradient(NormOp);

impl Reduction<2> for WeightGradient {
    #[inline(always)]
    fn add(&self, i: usize, [x, g]: [&[f32]; 2], sums: &mut [f32]) {
        let (mean, scale) = self.0.statistics(x);
        let (width, rows) = (x.len(), sums.len() / x.len());
        let (g, sums) = (&g[..width], &mut sums[i % rows * width..][..width]);
        for (j, sum) in sums.iter_mut().enumerate() {
            *sum += g[j] * (x[j] - mean) * scale;
        }
    }
}

impl CustomOp1 for NormOp {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward((xs, layout), None, None)
    }

    fn bwd(&self, xs: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.backward(xs, None, grad)?.0))
    }
}

impl CustomOp2 for NormOp {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, l: &Layout, w: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward((xs, l), Some((w, wl)), None)
    }

    fn bwd(&self, xs: &Tensor, w: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (to_xs, to_weight) = self.backward(xs, Some(w), grad)?;
        Ok((Some(to_xs), to_weight))
    }
}

impl CustomOp3 for NormOp {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        l: &Layout,
        w: &CpuStorage,
        wl: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward((xs, l), Some((w, wl)), Some((b, bl)))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (to_xs, to_weight) = self.backward(xs, Some(w), grad)?;
        let to_bias = grad.to_dtype(DType::F32)?.reshape(((), b.elem_count()))?.sum(0)?.reshape(b.shape())?;
        Ok((Some(to_xs), to_weight, Some(to_bias)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::randn;
    use candle_core::Var;

    /// Value and gradients of the fused op against plain ops in f64, weighting the outputs at random.
    fn check(kind: NormKind, dims: &[usize], weight: Option<&[usize]>, bias: bool, dtype: DType) -> Result<()> {
        let random = |dims: &[usize]| randn(0.0, 1.0, dims)?.to_dtype(dtype);
        let xs = random(dims)?;
        let w = weight.map(random).transpose()?;
        let b = weight.filter(|_| bias).map(random).transpose()?;
        let pick = random(dims)?;
        let run = |to: DType| -> Result<Vec<Tensor>> {
            let var = |t: &Tensor| Var::from_tensor(&t.to_dtype(to)?);
            let (x, w, b) = (var(&xs)?, w.as_ref().map(var).transpose()?, b.as_ref().map(var).transpose()?);
            let ys = norm(kind, &x, w.as_deref(), b.as_deref(), 1e-3)?;
            let grads = (&ys * pick.to_dtype(to)?)?.to_dtype(DType::F64)?.sum_all()?.backward()?;
            let mut all = vec![ys];
            for var in [Some(x), w, b].into_iter().flatten() {
                all.push(grads.get(&var).cloned().expect("a gradient"));
            }
            Ok(all)
        };
        let tolerance = if dtype == DType::F32 { 2e-5 } else { 2e-2 };
        for (i, (ours, exact)) in run(dtype)?.iter().zip(run(DType::F64)?).enumerate() {
            assert_eq!(ours.dims(), exact.dims());
            let largest = exact.abs()?.max_all()?.to_scalar::<f64>()?;
            let worst = (ours.to_dtype(DType::F64)? - exact)?.abs()?.max_all()?.to_scalar::<f64>()?;
            assert!(
                worst <= tolerance * largest,
                "{kind:?} {dims:?} {dtype:?} tensor {i}: off by {worst} of {largest}"
            );
        }
        Ok(())
    }

    #[test]
    fn values_and_gradients_are_those_of_plain_ops() -> Result<()> {
        for kind in [NormKind::Rms, NormKind::Layer] {
            for dtype in [DType::F32, DType::BF16, DType::F16] {
                check(kind, &[3, 5, 40], Some(&[40]), false, dtype)?;
                check(kind, &[3, 5, 40], None, false, dtype)?;
                check(kind, &[2, 3, 4, 33], Some(&[4, 33]), true, dtype)?;
                check(kind, &[2, 200, 192], Some(&[192]), true, dtype)?;
            }
        }
        Ok(())
    }

    #[test]
    fn a_sum_and_its_norm_are_the_same_in_one_pass() -> Result<()> {
        for dtype in [DType::F32, DType::BF16] {
            for dims in [[1, 3, 20], [4, 90, 130]] {
                let random = || randn(0.0, 1.0, &dims)?.to_dtype(dtype);
                let (a, b, w) = (random()?, random()?, random()?.get(0)?.get(0)?);
                let (sum, normed) = add_norm(NormKind::Layer, &a, &b, Some(&w), Some(&w), 1e-5)?;
                // Not Candle's sum in bf16, which on Arm is cut off rather than rounded.
                let expected = (a.to_dtype(DType::F32)? + b.to_dtype(DType::F32)?)?.to_dtype(dtype)?;
                let values = |t: &Tensor| t.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
                assert_eq!(values(&sum)?, values(&expected)?);
                assert_eq!(values(&normed)?, values(&norm(NormKind::Layer, &expected, Some(&w), Some(&w), 1e-5)?)?);
            }
        }
        Ok(())
    }

    #[test]
    fn views_are_read_in_place() -> Result<()> {
        let xs = randn(0.0, 1.0, (2, 6, 20))?;
        for view in [xs.narrow(2, 3, 9)?, xs.narrow(1, 1, 4)?, xs.transpose(1, 2)?] {
            let (a, b) = (norm(NormKind::Rms, &view, None, None, 0.1)?, plain(NormKind::Rms, &view, None, None, 0.1)?);
            let worst = (a - b)?.abs()?.max_all()?.to_scalar::<f32>()?;
            assert!(worst < 1e-6, "{:?}: {worst}", view.stride());
        }
        Ok(())
    }
}
