//! Activation functions, alone and as gates, forward and backward in one pass each.

use super::rows::{Kernel, Matrix, compute, exp, is_plain, size, tensor, with_matrices, with_rows};
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, D, DType, Layout, Result, Shape, Tensor, bail};
use std::marker::PhantomData;

/// An element-wise activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`
    Silu,
    /// GELU with the error function.
    GeluErf,
    /// GELU with its tanh approximation.
    GeluTanh,
    /// `x * sigmoid(1.702 x)`
    QuickGelu,
    /// `max(x, 0)`
    Relu,
    /// `max(x, 0)^2` (So et al. 2021, arXiv:2109.08668)
    Relu2,
}

/// One activation as functions that the compiler sees through.
trait Function: Copy + Sync {
    fn value(x: f32) -> f32;
    fn slope(x: f32) -> f32;
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The error function with an absolute error below 5e-7: a rational approximation on -4..4 (Eigen's). Outside it is 1 or -1
/// in f32, and exactly so here: GELU multiplies what is left of it by `x`, which may be large.
#[allow(clippy::excessive_precision)] // as published
#[inline(always)]
fn erf(x: f32) -> f32 {
    let near = x.clamp(-4.0, 4.0);
    let s = near * near;
    let mut p = -2.726_142_2e-10;
    for c in [2.770_681_4e-8, -2.101_024_1e-6, -5.692_506_6e-5, -7.349_906_4e-4, -2.954_599_8e-3, -1.609_603_3e-2] {
        p = p * s + c;
    }
    let mut q = -1.456_607_2e-5;
    for c in [-2.133_740_6e-4, -1.682_827_e-3, -7.373_329e-3, -1.426_473_9e-2] {
        q = q * s + c;
    }
    if x.abs() >= 4.0 { x.signum() } else { near * p / q }
}

macro_rules! function {
    ($name:ident, |$x:ident| $value:expr, $slope:expr) => {
        #[derive(Clone, Copy)]
        struct $name;
        impl Function for $name {
            #[inline(always)]
            fn value($x: f32) -> f32 {
                $value
            }
            #[inline(always)]
            fn slope($x: f32) -> f32 {
                $slope
            }
        }
    };
}

function!(Silu, |x| x * sigmoid(x), {
    let s = sigmoid(x);
    s * (1.0 + x * (1.0 - s))
});
function!(QuickGelu, |x| x * sigmoid(1.702 * x), {
    let s = sigmoid(1.702 * x);
    s * (1.0 + 1.702 * x * (1.0 - s))
});
function!(Relu, |x| if x < 0.0 { 0.0 } else { x }, if x > 0.0 { 1.0 } else { 0.0 });
function!(Relu2, |x| if x < 0.0 { 0.0 } else { x * x }, if x > 0.0 { 2.0 * x } else { 0.0 });
function!(GeluErf, |x| 0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)), {
    /// `1 / sqrt(2 pi)`
    const DENSITY: f32 = 0.398_942_3;
    0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)) + x * DENSITY * exp(-0.5 * x * x)
});
/// `2 sqrt(2 / pi)`: `(1 + tanh(z)) / 2 = sigmoid(2 z)`.
const TANH: f32 = 1.595_769_2;
function!(GeluTanh, |x| x * sigmoid(TANH * (x + 0.044_715 * x * x * x)), {
    // `1 - sigmoid(z)` is `exp(-z) * sigmoid(z)`, which keeps its digits where the sigmoid is near 1 and the factors after it are
    // large. Beyond e^80 both would be infinity times zero.
    let e = exp((-TANH * (x + 0.044_715 * x * x * x)).min(80.0));
    let s = 1.0 / (1.0 + e);
    s + x * s * (e * s) * TANH * (1.0 + 3.0 * 0.044_715 * x * x)
});

/// Runs `$body` with `$f` standing for the function's type.
macro_rules! with_function {
    ($activation:expr, $f:ident => $body:expr) => {
        match $activation {
            Activation::Silu => {
                type $f = Silu;
                $body
            }
            Activation::GeluErf => {
                type $f = GeluErf;
                $body
            }
            Activation::GeluTanh => {
                type $f = GeluTanh;
                $body
            }
            Activation::QuickGelu => {
                type $f = QuickGelu;
                $body
            }
            Activation::Relu => {
                type $f = Relu;
                $body
            }
            Activation::Relu2 => {
                type $f = Relu2;
                $body
            }
        }
    };
}

impl Activation {
    /// Applies it, in the dtype of `xs`.
    pub fn forward(self, xs: &Tensor) -> Result<Tensor> {
        if is_plain(xs) { with_rows(xs)?.apply_op1(Unary(self)) } else { self.plain(xs) }
    }

    /// The same in Candle's own ops: any device and dtype.
    fn plain(self, xs: &Tensor) -> Result<Tensor> {
        match self {
            Self::Silu => xs.silu(),
            Self::GeluErf => xs.gelu_erf(),
            Self::GeluTanh => xs.gelu(),
            Self::QuickGelu => xs * candle_nn::ops::sigmoid(&(xs * 1.702)?)?,
            Self::Relu => xs.relu(),
            Self::Relu2 => xs.relu()?.sqr(),
        }
    }
}

/// `act(gate) * up` for both side by side, gate first: `(.., 2 w)` to `(.., w)`.
///
/// # Errors
/// A last dimension that is odd.
pub fn gated(activation: Activation, gate_up: &Tensor) -> Result<Tensor> {
    let width = gate_up.dim(D::Minus1)?;
    if !width.is_multiple_of(2) {
        bail!("gated: {width} columns are no gate and up of equal width")
    }
    if is_plain(gate_up) {
        return with_rows(gate_up)?.apply_op1(Gated(activation));
    }
    #[cfg(feature = "cuda")]
    if let Some(out) = super::cuda::gated(activation, gate_up)? {
        return Ok(out);
    }
    let half = |i| gate_up.narrow(D::Minus1, i * width / 2, width / 2);
    activation.plain(&half(0)?)? * half(1)?
}

/// `act(gate) * up` for two tensors of one shape and dtype.
///
/// # Errors
/// Shapes or dtypes that differ.
pub fn gated_pair(activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let alike = gate.dims() == up.dims() && gate.dtype() == up.dtype();
    if alike && is_plain(gate) && is_plain(up) {
        return with_rows(gate)?.apply_op2(&with_rows(up)?, Gated(activation));
    }
    #[cfg(feature = "cuda")]
    if let Some(out) = super::cuda::gated_pair(activation, gate, up)? {
        return Ok(out);
    }
    activation.plain(gate)? * up
}

struct Unary(Activation);

struct Value<F>(PhantomData<F>);

impl<F: Function> Kernel<1, 1> for Value<F> {
    #[inline(always)]
    fn row(&self, _: usize, [x]: [&[f32]; 1], [out]: [&mut [f32]; 1]) {
        out.iter_mut().zip(x).for_each(|(out, x)| *out = F::value(*x));
    }
}

struct Slope<F>(PhantomData<F>);

impl<F: Function> Kernel<2, 1> for Slope<F> {
    #[inline(always)]
    fn row(&self, _: usize, [x, g]: [&[f32]; 2], [out]: [&mut [f32]; 1]) {
        out.iter_mut().zip(x).zip(g).for_each(|((out, x), g)| *out = F::slope(*x) * g);
    }
}

impl CustomOp1 for Unary {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, size) = ([Matrix::new(xs, layout)?], size(layout.dims()));
        let [out] = with_function!(self.0, F => compute(xs.dtype(), size, rows, &Value::<F>(PhantomData)))?;
        Ok((out, layout.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (xs, grad) = (with_rows(xs)?, with_rows(grad)?);
        let [out] = with_matrices(
            [&xs, &grad],
            |rows| with_function!(self.0, F => compute(xs.dtype(), size(xs.dims()), rows, &Slope::<F>(PhantomData))),
        )?;
        tensor(out, xs.shape()).map(Some)
    }
}

struct Gated(Activation);

struct Gate<F>(PhantomData<F>);

impl<F: Function> Kernel<2, 1> for Gate<F> {
    #[inline(always)]
    fn row(&self, _: usize, [gate, up]: [&[f32]; 2], [out]: [&mut [f32]; 1]) {
        out.iter_mut().zip(gate).zip(up).for_each(|((out, gate), up)| *out = F::value(*gate) * up);
    }
}

/// The gradients of gate and up, side by side.
struct GateGradient<F>(PhantomData<F>);

impl<F: Function> Kernel<3, 1> for GateGradient<F> {
    #[inline(always)]
    fn row(&self, _: usize, [gate, up, grad]: [&[f32]; 3], [out]: [&mut [f32]; 1]) {
        let (to_gate, to_up) = out.split_at_mut(grad.len());
        let n = to_gate.len();
        let (gate, up, grad, to_up) = (&gate[..n], &up[..n], &grad[..n], &mut to_up[..n]);
        for (j, to_gate) in to_gate.iter_mut().enumerate() {
            *to_gate = F::slope(gate[j]) * up[j] * grad[j];
            to_up[j] = F::value(gate[j]) * grad[j];
        }
    }
}

impl Gated {
    fn value(&self, dtype: DType, halves: [Matrix<'_>; 2], size: (usize, usize)) -> Result<CpuStorage> {
        let [out] = with_function!(self.0, F => compute(dtype, size, halves, &Gate::<F>(PhantomData)))?;
        Ok(out)
    }

    /// The gradients of gate and up, side by side, for the gradient `grad` of the result.
    fn gradient(&self, dtype: DType, [gate, up, grad]: [Matrix<'_>; 3], dims: &[usize]) -> Result<Tensor> {
        let (rows, width) = size(dims);
        let [out] = with_function!(self.0, F => {
            compute(dtype, (rows, 2 * width), [gate, up, grad], &GateGradient::<F>(PhantomData))
        })?;
        let mut dims = dims.to_vec();
        if let Some(last) = dims.last_mut() {
            *last = 2 * width;
        }
        tensor(out, dims)
    }
}

impl CustomOp1 for Gated {
    fn name(&self) -> &'static str {
        "gated"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut dims = layout.dims().to_vec();
        let Some(last) = dims.last_mut() else { bail!("gated: expected at least one dimension") };
        *last /= 2;
        let (both, size) = (Matrix::new(xs, layout)?, size(&dims));
        let out = self.value(xs.dtype(), [both.columns(0, size.1), both.columns(size.1, size.1)], size)?;
        Ok((out, Shape::from(dims)))
    }

    fn bwd(&self, xs: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (xs, grad) = (with_rows(xs)?, with_rows(grad)?);
        let width = grad.dim(D::Minus1)?;
        let both = with_matrices([&xs, &grad], |[both, g]| {
            self.gradient(xs.dtype(), [both.columns(0, width), both.columns(width, width), g], grad.dims())
        });
        both.map(Some)
    }
}

impl CustomOp2 for Gated {
    fn name(&self) -> &'static str {
        "gated"
    }

    fn cpu_fwd(&self, g: &CpuStorage, gl: &Layout, u: &CpuStorage, ul: &Layout) -> Result<(CpuStorage, Shape)> {
        let out = self.value(g.dtype(), [Matrix::new(g, gl)?, Matrix::new(u, ul)?], size(gl.dims()))?;
        Ok((out, gl.shape().clone()))
    }

    fn bwd(&self, g: &Tensor, u: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (g, u, grad) = (with_rows(g)?, with_rows(u)?, with_rows(grad)?);
        let both = with_matrices([&g, &u, &grad], |rows| self.gradient(g.dtype(), rows, grad.dims()))?;
        let width = grad.dim(D::Minus1)?;
        Ok((Some(both.narrow(D::Minus1, 0, width)?), Some(both.narrow(D::Minus1, width, width)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::laws::noise;
    use crate::testing::randn;
    use candle_core::{Device, Var};

    const ALL: [Activation; 6] = [
        Activation::Silu,
        Activation::GeluErf,
        Activation::GeluTanh,
        Activation::QuickGelu,
        Activation::Relu,
        Activation::Relu2,
    ];

    /// Results and gradients in `dtype` against plain ops in f64.
    fn check(dtype: DType, inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) -> Result<()> {
        let run = |to: DType| -> Result<Vec<Tensor>> {
            let vars = inputs.iter().map(|t| Var::from_tensor(&t.to_dtype(to)?)).collect::<Result<Vec<_>>>()?;
            let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
            let ys = f(&tensors)?;
            let weights = Tensor::arange(0f32, ys.elem_count() as f32, &Device::Cpu)?.cos()?.reshape(ys.shape())?;
            let grads = (&ys * weights.to_dtype(to)?)?.to_dtype(DType::F64)?.sum_all()?.backward()?;
            let grads = vars.iter().map(|v| grads.get(v).cloned().expect("a gradient"));
            std::iter::once(ys).chain(grads.collect::<Vec<_>>()).map(|t| t.to_dtype(DType::F64)).collect()
        };
        let tolerance = if dtype == DType::F32 { 2e-6 } else { 1e-2 };
        for (ours, exact) in run(dtype)?.iter().zip(run(DType::F64)?) {
            let largest = exact.abs()?.max_all()?.to_scalar::<f64>()?;
            let worst = (ours - exact)?.abs()?.max_all()?.to_scalar::<f64>()?;
            assert!(worst <= tolerance * largest.max(1.0), "{dtype:?}: off by {worst} of {largest}");
        }
        Ok(())
    }

    #[test]
    fn far_below_zero_nothing_is_left() -> Result<()> {
        let xs = Tensor::new(&[[-1e4f32, -120.0, -35.0, -8.0], [-1e4, -120.0, -35.0, 1e4]], &Device::Cpu)?;
        for activation in [Activation::GeluErf, Activation::GeluTanh, Activation::Silu] {
            let found = activation.forward(&xs)?.to_vec2::<f32>()?;
            assert!(found[0][..3].iter().all(|x| x.abs() < 1e-12), "{activation:?}: {found:?}");
            assert_eq!(found[1][3], 1e4, "{activation:?}");
        }
        Ok(())
    }

    #[test]
    fn values_and_gradients_are_those_of_plain_ops() -> Result<()> {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            for (seed, (dims, scale)) in (1..).zip([([2, 3, 10], 1.0), ([1, 1, 2], 30.0), ([4, 100, 130], 4.0)]) {
                // The cube of what is large has to stay below f16's 65504.
                let scale = if dtype == DType::F16 { f32::min(scale, 8.0) } else { scale };
                let a = noise(seed, 4.0 * scale, &dims)?.to_dtype(dtype)?;
                let b = noise(seed + 10, 3.0, &dims)?.to_dtype(dtype)?;
                for act in ALL {
                    check(dtype, std::slice::from_ref(&a), |x| act.forward(&x[0]))?;
                    check(dtype, std::slice::from_ref(&a), |x| gated(act, &x[0]))?;
                    check(dtype, &[a.clone(), b.clone()], |x| gated_pair(act, &x[0], &x[1]))?;
                }
            }
        }
        Ok(())
    }

    #[test]
    fn views_and_odd_widths() -> Result<()> {
        let xs = randn(0.0, 1.0, (3, 4, 12))?;
        for view in [xs.narrow(2, 2, 6)?, xs.transpose(0, 1)?, xs.narrow(1, 1, 2)?] {
            let (a, b) = (gated(Activation::Silu, &view)?, gated(Activation::Silu, &view.contiguous()?)?);
            assert_eq!(a.flatten_all()?.to_vec1::<f32>()?, b.flatten_all()?.to_vec1::<f32>()?);
        }
        assert!(gated(Activation::Silu, &xs.narrow(2, 0, 3)?).is_err());
        Ok(())
    }
}
