//! The activation functions that configs name.

use crate::builder::Builder;
pub use attn_core::ops::Activation;
use candle_core::{DType, Result, Tensor, bail};

/// Reads a name as transformers spells it.
///
/// # Errors
/// A name that is not known, by name.
pub(crate) fn parse(key: &str, name: &str) -> Result<Activation> {
    Ok(match name {
        "silu" | "swish" => Activation::Silu,
        "gelu" | "gelu_python" => Activation::GeluErf,
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_accurate" | "gelu_python_tanh" => Activation::GeluTanh,
        "quick_gelu" => Activation::QuickGelu,
        "relu" => Activation::Relu,
        "relu2" => Activation::Relu2,
        _ => bail!("config.json: {key}: unknown activation `{name}`"),
    })
}

/// xIELU (arXiv:2411.13010): a parabola above zero, an exponential below, each with a learned slope.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Xielu {
    alpha_p: f64,
    alpha_n: f64,
    beta: f64,
    eps: f64,
}

impl Xielu {
    /// Reads the slopes, and the two constants where the checkpoint has others than transformers' defaults.
    pub(crate) fn load(prefix: &str, weights: &Builder) -> Result<Self> {
        let slope = |name: &str| -> Result<f64> {
            let raw = weights.tensor_as(&format!("{prefix}{name}"), &[1], DType::F32)?.to_vec1::<f32>()?[0];
            Ok(softplus(f64::from(raw)))
        };
        let constant = |name: &str, default: f64| -> Result<f64> {
            let name = format!("{prefix}{name}");
            if !weights.contains(&name) {
                return Ok(default);
            }
            Ok(f64::from(weights.tensor_as(&name, &[], DType::F32)?.to_scalar::<f32>()?))
        };
        let (beta, eps) = (constant("beta", 0.5)?, constant("eps", -1e-6)?);
        Ok(Self { alpha_p: slope("alpha_p")?, alpha_n: beta + slope("alpha_n")?, beta, eps })
    }

    /// Applies it, in the dtype of `xs`.
    pub(crate) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let x = xs.to_dtype(DType::F32)?;
        let line = (&x * self.beta)?;
        let above = (x.sqr()? * self.alpha_p)?;
        let below = (((x.minimum(self.eps)?.exp()? - 1.0)? - &x)? * self.alpha_n)?;
        (x.gt(0f32)?.where_cond(&above, &below)? + line)?.to_dtype(xs.dtype())
    }
}

/// `ln(1 + e^x)`
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn xielu_by_hand() {
        let xielu = Xielu { alpha_p: 0.8, alpha_n: 1.1, beta: 0.5, eps: -1e-6 };
        let xs = Tensor::new(&[-3f32, -0.5, 0.0, 2.0], &Device::Cpu).unwrap();
        let ys = xielu.forward(&xs).unwrap().to_vec1::<f32>().unwrap();
        let below = |x: f64| (x.exp() - 1.0 - x) * 1.1 + 0.5 * x;
        for (y, want) in ys.iter().zip([below(-3.0), below(-0.5), -1.1e-6, 0.8 * 4.0 + 1.0]) {
            assert!((f64::from(*y) - want).abs() < 1e-6, "{y} is not {want}");
        }
        assert!((softplus(0.0) - 2f64.ln()).abs() < 1e-12 && (softplus(800.0) - 800.0).abs() < 1e-12);
    }
}
