//! A factor on queries that depends only on their position. Without it the weights of attention spread out over
//! a long text. It can be combined with every encoding.

use super::{Positions, frequencies::positive};
use candle_core::{DType, Result, Tensor, bail};

/// A factor on each query.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Temperature {
    /// `1 + attn_scale * ln(1 + floor((p + offset) / floor_scale))` at position `p`: Llama 4 with an offset of 1 (only in
    /// its NoPE layers), Ministral 3 with 0.
    Steps {
        /// Positions per step of the temperature; 8192 in Llama 4.
        floor_scale: f64,
        /// How steeply it grows; 0.1 in Llama 4.
        attn_scale: f64,
        /// Added to the position.
        offset: f64,
    },
    /// `max(1, ln(p + 1) / ln(trained_context))`: log-n scaling (Su 2021, <https://kexue.fm/archives/8823>), which leaves
    /// texts within the trained context as they are.
    LogN {
        /// The context that the model was trained for.
        trained_context: usize,
    },
}

impl Temperature {
    /// Llama 4's.
    pub fn llama4(floor_scale: f64, attn_scale: f64) -> Self {
        Self::Steps { floor_scale, attn_scale, offset: 1.0 }
    }

    /// What a query at `position` is multiplied by.
    pub fn at(&self, position: usize) -> f64 {
        match *self {
            Self::Steps { floor_scale, attn_scale, offset } => {
                ((position as f64 + offset) / floor_scale).floor().ln_1p() * attn_scale + 1.0
            }
            Self::LogN { trained_context } => ((position as f64).ln_1p() / (trained_context as f64).ln()).max(1.0),
        }
    }

    /// # Errors
    /// A `floor_scale` that is not a positive number, a trained context of less than two tokens.
    pub(crate) fn check(&self) -> Result<()> {
        match *self {
            Self::Steps { floor_scale, .. } => positive("floor_scale", floor_scale),
            Self::LogN { trained_context: 0 | 1 } => bail!("log-n: the trained context must be two tokens or more"),
            Self::LogN { .. } => Ok(()),
        }
    }

    /// `q`, `(b, h, t, d)`, times the factors of its positions, in its dtype.
    pub fn apply(&self, q: &Tensor, positions: &Positions) -> Result<Tensor> {
        let dtype = if q.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let factors = positions.all().map(|p| self.at(p)).collect::<Vec<_>>();
        if factors.iter().all(|factor| *factor == 1.0) {
            return Ok(q.clone());
        }
        let factors =
            Tensor::from_vec(factors, (positions.rows(), 1, positions.len(), 1), q.device())?.to_dtype(dtype)?;
        q.to_dtype(dtype)?.broadcast_mul(&factors)?.to_dtype(q.dtype())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn steps_are_those_of_llama_4_and_ministral_3() -> Result<()> {
        let q = Tensor::ones((2, 1, 3, 1), DType::F32, &Device::Cpu)?;
        let positions = Positions::new(6..9).with_pads(Some([0, 1].into()));
        let got = Temperature::llama4(8.0, 0.1).apply(&q, &positions)?.flatten_all()?.to_vec1::<f32>()?;
        let grown = 1.0 + 0.1 * 2f32.ln();
        assert_eq!(got, [1.0, grown, grown, 1.0, 1.0, grown]);
        let ministral = Temperature::Steps { floor_scale: 8.0, attn_scale: 0.1, offset: 0.0 };
        assert_eq!((ministral.at(7), ministral.at(8)), (1.0, f64::from(2f32).ln() * 0.1 + 1.0));
        assert!(Temperature::llama4(0.0, 0.1).check().is_err());
        Ok(())
    }

    #[test]
    fn log_n_starts_past_the_trained_context() {
        let log_n = Temperature::LogN { trained_context: 256 };
        assert_eq!((log_n.at(0), log_n.at(255)), (1.0, 1.0));
        assert!((log_n.at(65535) - 2.0).abs() < 1e-12);
        assert!(Temperature::LogN { trained_context: 1 }.check().is_err());
    }
}
