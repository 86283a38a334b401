//! RMS and layer norm, forward and backward in one pass each.

use super::rows::{
    self, Kernel, Matrix, PairKernel, Reduction, compute, compute_pair, is_plain, reduce, sum, with_rows,
};
use crate::attention::fused_cpu::simd::Element;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, D, DType, Device, Layout, Result, Shape, Storage, Tensor, bail,
};
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
    let fits = |w: &Tensor| w.device().is_cpu() && xs.dims().ends_with(w.dims()) && w.rank() > 0;
    if !is_plain(xs) || !weight.is_none_or(fits) || !bias.is_none_or(fits) {
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
    let fits = |w: &Tensor| w.device().is_cpu() && a.dims().ends_with(w.dims()) && w.rank() > 0;
    let alike = a.dims() == b.dims() && a.dtype() == b.dtype();
    if tracks || !alike || !is_plain(a) || !is_plain(b) || !weight.is_none_or(fits) || !bias.is_none_or(fits) {
        let sum = (a + b)?;
        let normed = norm(kind, &sum, weight, bias, eps)?;
        return Ok((sum, normed));
    }
    let op = NormOp { kind, eps: eps as f32 };
    let parameter = |w: Option<&Tensor>| w.map(|w| w.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()).transpose();
    let (weight, bias) = (parameter(weight)?, parameter(bias)?);
    let parameters = (weight.as_deref(), bias.as_deref());
    let (a, b) = (with_rows(a)?, with_rows(b)?);
    match a.dtype() {
        DType::BF16 => sums::<bf16>(op, &a, &b, parameters),
        DType::F16 => sums::<f16>(op, &a, &b, parameters),
        _ => sums::<f32>(op, &a, &b, parameters),
    }
}

fn sums<E: Element>(
    op: NormOp,
    a: &Tensor,
    b: &Tensor,
    (weight, bias): (Option<&[f32]>, Option<&[f32]>),
) -> Result<(Tensor, Tensor)> {
    let ((left, left_layout), (right, right_layout)) = (a.storage_and_layout(), b.storage_and_layout());
    let (Storage::Cpu(left), Storage::Cpu(right)) = (&*left, &*right) else { bail!("add_norm: not on the CPU") };
    let (left, right) = (Matrix::<E>::new(left, left_layout)?, Matrix::<E>::new(right, right_layout)?);
    let width = a.dim(D::Minus1)?;
    let kernel = SumAndNorm { op, left, right, weight, bias };
    let [sum, normed] = compute_pair(a.elem_count() / width, width, &kernel)?;
    let tensor = |data| Tensor::from_vec(data, a.shape(), &Device::Cpu);
    Ok((tensor(sum)?, tensor(normed)?))
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
    fn statistics<E: Element>(self, x: &[E]) -> (f32, f32) {
        let n = x.len() as f32;
        let mean = match self.kind {
            NormKind::Rms => 0.0,
            NormKind::Layer => sum(x.len(), |i| x[i].widen()) / n,
        };
        let square = sum(x.len(), |i| {
            let x = x[i].widen() - mean;
            x * x
        });
        (mean, 1.0 / (square / n + self.eps).sqrt())
    }

    fn forward(
        self,
        xs: (&CpuStorage, &Layout),
        weight: Option<(&CpuStorage, &Layout)>,
        bias: Option<(&CpuStorage, &Layout)>,
    ) -> Result<(CpuStorage, Shape)> {
        let parameter =
            |p: Option<(&CpuStorage, &Layout)>| p.map(|(s, l)| rows::slice::<f32>(s, l).map(<[f32]>::to_vec));
        let (weight, bias) = (parameter(weight).transpose()?, parameter(bias).transpose()?);
        let (weight, bias) = (weight.as_deref(), bias.as_deref());
        let out = match xs.0 {
            CpuStorage::F32(_) => CpuStorage::F32(self.run(xs, weight, bias)?),
            CpuStorage::BF16(_) => CpuStorage::BF16(self.run::<bf16>(xs, weight, bias)?),
            CpuStorage::F16(_) => CpuStorage::F16(self.run::<f16>(xs, weight, bias)?),
            _ => bail!("norm: the fused op takes f32, bf16 and f16"),
        };
        Ok((out, xs.1.shape().clone()))
    }

    fn run<E: Element>(
        self,
        (storage, layout): (&CpuStorage, &Layout),
        weight: Option<&[f32]>,
        bias: Option<&[f32]>,
    ) -> Result<Vec<E>> {
        let width = layout.dims()[layout.dims().len() - 1];
        let kernel = Forward { op: self, xs: Matrix::<E>::new(storage, layout)?, weight, bias };
        compute(layout.shape().elem_count() / width, width, &kernel)
    }

    fn backward(self, xs: &Tensor, weight: Option<&Tensor>, grad: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
        let (xs, grad) = (with_rows(xs)?, with_rows(grad)?);
        match xs.dtype() {
            DType::F32 => self.gradients::<f32>(&xs, weight, &grad),
            DType::BF16 => self.gradients::<bf16>(&xs, weight, &grad),
            DType::F16 => self.gradients::<f16>(&xs, weight, &grad),
            other => bail!("norm: no gradients in {other:?}"),
        }
    }

    fn gradients<E: Element>(
        self,
        xs: &Tensor,
        weight: Option<&Tensor>,
        grad: &Tensor,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let weights = weight.map(|w| w.flatten_all()?.to_vec1::<f32>()).transpose()?;
        let ((x, x_layout), (g, g_layout)) = (xs.storage_and_layout(), grad.storage_and_layout());
        let (Storage::Cpu(x), Storage::Cpu(g)) = (&*x, &*g) else { bail!("norm: not on the CPU") };
        let width = xs.dim(D::Minus1)?;
        let rows = xs.elem_count() / width;
        let (xs_rows, grad_rows) = (Matrix::<E>::new(x, x_layout)?, Matrix::<E>::new(g, g_layout)?);
        let kernel = Backward { op: self, xs: xs_rows, grad: grad_rows, weight: weights.as_deref() };
        let to_xs = Tensor::from_vec(compute(rows, width, &kernel)?, xs.shape(), &Device::Cpu)?;
        let to_weight = match weight {
            Some(w) => {
                let sums = reduce(rows, w.elem_count(), &WeightGradient(&kernel))?;
                Some(Tensor::from_vec(sums, w.shape(), &Device::Cpu)?)
            }
            None => None,
        };
        Ok((to_xs, to_weight))
    }
}

/// The row of a weight `(.., width)` that row `i` of the input meets.
#[inline(always)]
fn parameter(all: &[f32], i: usize, width: usize) -> &[f32] {
    let rows = all.len() / width;
    &all[i % rows * width..][..width]
}

struct Forward<'a, E> {
    op: NormOp,
    xs: Matrix<'a, E>,
    weight: Option<&'a [f32]>,
    bias: Option<&'a [f32]>,
}

impl NormOp {
    /// The norm of one row, which meets `weight` and `bias`.
    #[inline(always)]
    fn apply<E: Element>(self, x: &[E], weight: Option<&[f32]>, bias: Option<&[f32]>, out: &mut [E]) {
        let x = &x[..out.len()];
        let (mean, scale) = self.statistics(x);
        match (weight, bias) {
            (Some(w), Some(b)) => {
                let (w, b) = (&w[..x.len()], &b[..x.len()]);
                for (j, out) in out.iter_mut().enumerate() {
                    *out = E::narrow((x[j].widen() - mean) * scale * w[j] + b[j]);
                }
            }
            (Some(w), None) => {
                let w = &w[..x.len()];
                for (j, out) in out.iter_mut().enumerate() {
                    *out = E::narrow((x[j].widen() - mean) * scale * w[j]);
                }
            }
            _ => {
                for (j, out) in out.iter_mut().enumerate() {
                    *out = E::narrow((x[j].widen() - mean) * scale);
                }
            }
        }
    }
}

impl<E: Element + Sync> Kernel<E> for Forward<'_, E> {
    #[inline(always)]
    fn row(&self, i: usize, out: &mut [E]) {
        let width = out.len();
        let weight = self.weight.map(|w| parameter(w, i, width));
        let bias = self.bias.map(|b| parameter(b, i, width));
        self.op.apply(self.xs.row(i), weight, bias, out);
    }
}

struct SumAndNorm<'a, E> {
    op: NormOp,
    left: Matrix<'a, E>,
    right: Matrix<'a, E>,
    weight: Option<&'a [f32]>,
    bias: Option<&'a [f32]>,
}

impl<E: Element + Sync> PairKernel<E> for SumAndNorm<'_, E> {
    #[inline(always)]
    fn row(&self, i: usize, sum: &mut [E], normed: &mut [E]) {
        let width = sum.len();
        let (left, right) = (&self.left.row(i)[..width], &self.right.row(i)[..width]);
        for (j, sum) in sum.iter_mut().enumerate() {
            *sum = E::narrow(left[j].widen() + right[j].widen());
        }
        let weight = self.weight.map(|w| parameter(w, i, width));
        let bias = self.bias.map(|b| parameter(b, i, width));
        self.op.apply(sum, weight, bias, normed);
    }
}

/// With `n = (x - mean) scale` and `g` the gradient of `n`: `scale (g - mean(g) - n mean(g n))`, where RMS norm has no
/// `mean(g)`.
struct Backward<'a, E> {
    op: NormOp,
    xs: Matrix<'a, E>,
    grad: Matrix<'a, E>,
    weight: Option<&'a [f32]>,
}

impl<E: Element + Sync> Kernel<E> for Backward<'_, E> {
    #[inline(always)]
    fn row(&self, i: usize, out: &mut [E]) {
        let width = out.len();
        let (x, g) = (&self.xs.row(i)[..width], &self.grad.row(i)[..width]);
        let (mean, scale) = self.op.statistics(x);
        let weight = self.weight.map(|w| parameter(w, i, width));
        let grad = |j: usize| match weight {
            Some(w) => g[j].widen() * w[j],
            None => g[j].widen(),
        };
        let along = sum(width, |j| grad(j) * (x[j].widen() - mean)) * scale / width as f32;
        let level = match self.op.kind {
            NormKind::Rms => 0.0,
            NormKind::Layer => sum(width, grad) / width as f32,
        };
        for (j, out) in out.iter_mut().enumerate() {
            *out = E::narrow(scale * (grad(j) - level - (x[j].widen() - mean) * scale * along));
        }
    }
}

/// `sum over rows of g n`.
struct WeightGradient<'a, E>(&'a Backward<'a, E>);

impl<E: Element + Sync> Reduction for WeightGradient<'_, E> {
    #[inline(always)]
    fn add(&self, i: usize, sums: &mut [f32]) {
        let (x, g) = (self.0.xs.row(i), self.0.grad.row(i));
        let (mean, scale) = self.0.op.statistics(x);
        let (width, rows) = (x.len(), sums.len() / x.len());
        let sums = &mut sums[i % rows * width..][..width];
        for (j, sum) in sums.iter_mut().enumerate() {
            *sum += g[j].widen() * (x[j].widen() - mean) * scale;
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
    use candle_core::Var;

    /// Value and gradients of the fused op against plain ops in f64, weighting the outputs at random.
    fn check(kind: NormKind, dims: &[usize], weight: Option<&[usize]>, bias: bool, dtype: DType) -> Result<()> {
        let dev = Device::Cpu;
        let random = |dims: &[usize]| Tensor::randn(0f32, 1., dims, &dev)?.to_dtype(dtype);
        let xs = random(dims)?;
        let w = weight.map(|d| random(d)).transpose()?;
        let b = weight.filter(|_| bias).map(|d| random(d)).transpose()?;
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
                let random = || Tensor::randn(0f32, 1., &dims, &Device::Cpu)?.to_dtype(dtype);
                let (a, b, w) = (random()?, random()?, random()?.get(0)?.get(0)?);
                let (sum, normed) = add_norm(NormKind::Layer, &a, &b, Some(&w), Some(&w), 1e-5)?;
                let expected = (&a + &b)?;
                let values = |t: &Tensor| t.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
                assert_eq!(values(&sum)?, values(&expected)?);
                assert_eq!(values(&normed)?, values(&norm(NormKind::Layer, &expected, Some(&w), Some(&w), 1e-5)?)?);
            }
        }
        Ok(())
    }

    #[test]
    fn views_are_read_in_place() -> Result<()> {
        let xs = Tensor::randn(0f32, 1., (2, 6, 20), &Device::Cpu)?;
        for view in [xs.narrow(2, 3, 9)?, xs.narrow(1, 1, 4)?, xs.transpose(1, 2)?] {
            let (a, b) = (norm(NormKind::Rms, &view, None, None, 0.1)?, plain(NormKind::Rms, &view, None, None, 0.1)?);
            let worst = (a - b)?.abs()?.max_all()?.to_scalar::<f32>()?;
            assert!(worst < 1e-6, "{:?}: {worst}", view.stride());
        }
        Ok(())
    }
}
