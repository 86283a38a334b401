//! Kerple (Chi et al. 2022, arXiv:2205.09921): a bias that falls with the distance along a learned curve per head. Trained on
//! short texts it keeps its perplexity on longer ones.

use super::{BiasContext, PositionEncoding};
use crate::ScoreBias;
use candle_core::{Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};

/// The curve, for the distance `D` between query and key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KerpleKernel {
    /// `-r1 ln(1 + r2 D)`
    Logarithmic,
    /// `-r1 D^r2`, with `r2` at most 2.
    Power,
}

/// The learned bias.
#[derive(Debug, Clone)]
pub struct Kerple {
    kernel: KerpleKernel,
    r1: Tensor,
    r2: Tensor,
}

/// Both parameters are at least this, as in the authors' code.
const LEAST: f64 = 1e-2;

impl Kerple {
    /// Takes the tensors `r1` and `r2` of shape `(heads,)` from `vb`; in a fresh `VarMap` they start as in the authors' code.
    ///
    /// # Errors
    /// Tensors that are missing or of another shape.
    pub fn new(kernel: KerpleKernel, heads: usize, vb: VarBuilder) -> Result<Self> {
        let (one, two) = (Init::Uniform { lo: 0.0, up: 1.0 }, Init::Uniform { lo: 0.0, up: 2.0 });
        let [first, second] = match kernel {
            KerpleKernel::Logarithmic => [two, one],
            KerpleKernel::Power => [one, two],
        };
        Self::from_tensors(kernel, vb.get_with_hints(heads, "r1", first)?, vb.get_with_hints(heads, "r2", second)?)
    }

    /// From `r1` and `r2`, `(heads,)` each; gradients flow into them.
    ///
    /// # Errors
    /// Other shapes.
    pub fn from_tensors(kernel: KerpleKernel, r1: Tensor, r2: Tensor) -> Result<Self> {
        if r1.dims1()? != r2.dims1()? {
            bail!("kerple: r1 {:?} and r2 {:?} must have the same shape", r1.dims(), r2.dims())
        }
        Ok(Self { kernel, r1, r2 })
    }
}

impl PositionEncoding for Kerple {
    fn bias(&self, at: &BiasContext) -> Result<ScoreBias> {
        let Some((first, n)) = at.distances() else { return Ok(ScoreBias::None) };
        let distances = (first..first + n as i64).map(|d| d.unsigned_abs() as f64);
        let distances = Tensor::from_iter(distances, self.r1.device())?.to_dtype(self.r1.dtype())?.unsqueeze(0)?;
        let (r1, r2) = (self.r1.maximum(LEAST)?.unsqueeze(1)?, self.r2.maximum(LEAST)?.unsqueeze(1)?);
        let curve = match self.kernel {
            KerpleKernel::Logarithmic => (r2.broadcast_mul(&distances)? + 1.0)?.log()?,
            KerpleKernel::Power => {
                // 0 at distance 0, whose logarithm has no gradient to give.
                let some = distances.gt(0f64)?.to_dtype(distances.dtype())?;
                let power = r2.minimum(2.0)?.broadcast_mul(&distances.maximum(1.0)?.log()?)?.exp()?;
                power.broadcast_mul(&some)?
            }
        };
        Ok(ScoreBias::Relative { table: r1.broadcast_mul(&curve)?.neg()?, first })
    }
}
