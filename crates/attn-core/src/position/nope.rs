//! No position encoding: a causal mask alone lets a decoder count (Kazemnejad et al. 2023).
//!
//! Llama 4 multiplies the queries of its NoPE layers by a temperature that grows with the position, so that the weights of
//! attention do not spread out over a long context.

use super::{Context, PositionEncoding, Temperature};
use candle_core::{Result, Tensor};

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
    /// A temperature that makes no sense.
    pub fn new(config: NopeConfig) -> Result<Self> {
        if let Some(temperature) = &config.temperature {
            temperature.check()?;
        }
        Ok(Self { config })
    }
}

impl PositionEncoding for Nope {
    fn queries(&self, q: &Tensor, at: &Context) -> Result<Tensor> {
        match &self.config.temperature {
            Some(temperature) => temperature.apply(q, at.positions),
            None => Ok(q.clone()),
        }
    }
}
