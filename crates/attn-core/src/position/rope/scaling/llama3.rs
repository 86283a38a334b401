//! Llama 3.1's scaling: keeps fast frequencies, divides slow ones, blends between.

use super::scheme::{Info, LlamaCpp, Rotary, Scheme, TENSORS_OF_GGUF, dict};
use super::source::{Dict, Source};
use crate::position::frequencies::positive;
use candle_core::{Result, bail};
use std::f64::consts::TAU;

/// Llama 3.1's scaling.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Llama3 {
    /// Divides the slow frequencies.
    pub factor: f64,
    /// Rotations within the trained context below which a frequency is divided by `factor`.
    pub low_freq_factor: f64,
    /// Rotations within the trained context above which a frequency is kept. Equal to `low_freq_factor` in Llama 4 Scout:
    /// nothing is blended then.
    pub high_freq_factor: f64,
    /// The trained context.
    pub original_max_position_embeddings: usize,
}

impl Scheme for Llama3 {
    const INFO: Info = Info {
        keys: &["low_freq_factor", "high_freq_factor"],
        ..Info::new("llama3", "Llama 3.1's variant of ntk-by-parts.")
    };

    fn read(source: &mut Source) -> Result<Self> {
        Ok(Self {
            factor: source.factor()?,
            // The original implementation's boundaries.
            low_freq_factor: source.required_or("low_freq_factor", 1.0)?,
            high_freq_factor: source.required_or("high_freq_factor", 4.0)?,
            original_max_position_embeddings: source.original()?,
        })
    }

    fn write(&self) -> Dict {
        dict([
            ("factor", Some(self.factor.into())),
            ("low_freq_factor", Some(self.low_freq_factor.into())),
            ("high_freq_factor", Some(self.high_freq_factor.into())),
        ])
    }

    fn frequencies(&self, rotary: Rotary, _len: usize) -> Vec<f64> {
        let original = self.original_max_position_embeddings as f64;
        let (low, high) = (self.low_freq_factor, self.high_freq_factor);
        let scaled = |f: &f64| {
            let wavelength = TAU / f;
            if wavelength > original / low {
                f / self.factor
            } else if wavelength < original / high || low == high {
                *f
            } else {
                let t = (original / wavelength - low) / (high - low);
                (1.0 - t) * f / self.factor + t * f
            }
        };
        rotary.plain().iter().map(scaled).collect()
    }

    fn validate(&self, _rotary: Rotary) -> Result<()> {
        let Self { low_freq_factor: low, high_freq_factor: high, .. } = *self;
        positive("low_freq_factor", low)?;
        positive("high_freq_factor", high)?;
        if high < low {
            bail!("high_freq_factor {high} must not be below low_freq_factor {low}")
        }
        Ok(())
    }

    fn factor(&self) -> Option<f64> {
        Some(self.factor)
    }

    fn original_context(&self) -> Option<usize> {
        Some(self.original_max_position_embeddings)
    }

    fn to_llama_cpp(&self, _rotary: Rotary) -> std::result::Result<LlamaCpp, String> {
        Err(TENSORS_OF_GGUF.into())
    }
}
