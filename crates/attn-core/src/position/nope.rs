//! No position encoding: a causal mask alone lets a decoder count (Kazemnejad et al. 2023).
//!
//! Llama 4 tempers the queries of its NoPE layers, so that attention over a long context does not go flat.

use super::rope_scaling::positive;
use super::{PositionEncoding, Positions};
use candle_core::{DType, Result, Tensor};

/// Llama 4's `q * (attn_scale * ln(1 + floor((p + 1) / floor_scale)) + 1)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Temperature {
    /// Positions per step of the temperature; 8192 in Llama 4.
    pub floor_scale: f64,
    /// How steeply it grows; 0.1 in Llama 4.
    pub attn_scale: f64,
}

impl Temperature {
    /// What a query at `position` is multiplied by.
    pub fn at(&self, position: usize) -> f64 {
        ((position as f64 + 1.0) / self.floor_scale).floor().ln_1p() * self.attn_scale + 1.0
    }
}

/// Whether the queries are tempered.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NopeConfig {
    /// Llama 4's temperature tuning.
    pub temperature: Option<Temperature>,
}

/// The encoding that does nothing, but for the temperature if there is one.
#[derive(Debug, Clone, Default)]
pub struct Nope {
    config: NopeConfig,
}

impl Nope {
    /// No encoding, tempered or not.
    ///
    /// # Errors
    /// A `floor_scale` that is not a positive number.
    pub fn new(config: NopeConfig) -> Result<Self> {
        if let Some(temperature) = &config.temperature {
            positive("floor_scale", temperature.floor_scale)?;
        }
        Ok(Self { config })
    }
}

impl PositionEncoding for Nope {
    fn temper(&self, q: &Tensor, positions: &Positions) -> Result<Tensor> {
        let Some(temperature) = &self.config.temperature else { return Ok(q.clone()) };
        let dtype = if q.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let rows = positions.rows();
        let factors = rows.iter().flat_map(|&pad| positions.row(pad)).map(|p| temperature.at(p)).collect::<Vec<_>>();
        let factors = Tensor::from_vec(factors, (rows.len(), 1, positions.len(), 1), q.device())?.to_dtype(dtype)?;
        q.to_dtype(dtype)?.broadcast_mul(&factors)?.to_dtype(q.dtype())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn temperature_is_that_of_llama_4() -> Result<()> {
        let nope = Nope::new(NopeConfig { temperature: Some(Temperature { floor_scale: 8.0, attn_scale: 0.1 }) })?;
        let q = Tensor::ones((2, 1, 3, 1), DType::F32, &Device::Cpu)?;
        let positions = Positions::new(6..9).with_pads(Some([0, 1].into()));
        let got = nope.temper(&q, &positions)?.flatten_all()?.to_vec1::<f32>()?;
        let grown = 1.0 + 0.1 * 2f32.ln();
        assert_eq!(got, [1.0, grown, grown, 1.0, 1.0, grown]);
        assert!(
            Nope::new(NopeConfig { temperature: Some(Temperature { floor_scale: 0.0, attn_scale: 0.1 }) }).is_err()
        );
        Ok(())
    }
}
