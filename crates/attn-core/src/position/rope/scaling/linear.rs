//! Position interpolation (Chen et al. 2023): every frequency divided by the factor.

use super::scheme::{Info, LlamaCpp, Rotary, Scheme, dict};
use super::source::{Dict, Source};
use candle_core::Result;

/// Position interpolation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Linear {
    /// Divides the positions.
    pub factor: f64,
}

impl Scheme for Linear {
    const INFO: Info = Info {
        compared: true,
        aliases: &["pi"],
        ..Info::new("linear", "Position interpolation: all positions are divided by the factor.")
    };

    fn read(source: &mut Source) -> Result<Self> {
        Ok(Self { factor: source.factor()? })
    }

    fn write(&self) -> Dict {
        dict([("factor", Some(self.factor.into()))])
    }

    fn frequencies(&self, rotary: Rotary, _len: usize) -> Vec<f64> {
        rotary.plain().iter().map(|f| f / self.factor).collect()
    }

    fn factor(&self) -> Option<f64> {
        Some(self.factor)
    }

    fn to_llama_cpp(&self, rotary: Rotary) -> std::result::Result<LlamaCpp, String> {
        let flags = format!("--rope-scaling linear --rope-scale {}", self.factor);
        Ok(LlamaCpp { flags, theta: rotary.theta })
    }
}
