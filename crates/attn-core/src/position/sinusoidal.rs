//! Fixed sinusoids added to the token embeddings (Vaswani et al. 2017). They are computed for the positions that occur,
//! so there is no maximal length.

use super::frequencies::{plain_frequencies, positive};
use super::{EmbeddingEncoding, Positions};
use candle_core::{DType, Result, Tensor, bail};

/// Where sines and cosines go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SinusoidalLayout {
    /// `sin, cos, sin, cos, ...`: the paper.
    #[default]
    Interleaved,
    /// All sines, then all cosines: tensor2tensor, Marian.
    Concatenated,
}

/// The shape of the sinusoids.
#[derive(Debug, Clone, PartialEq)]
pub struct SinusoidalConfig {
    /// Width of the token embeddings; even.
    pub hidden: usize,
    /// Base of the wavelengths; 10000 in the paper.
    pub base: f64,
    /// Where sines and cosines go.
    pub layout: SinusoidalLayout,
    /// Added to every position: 2 in XGLM, else 0.
    pub offset: usize,
    /// The last wavelength is `base` itself, as tensor2tensor has it, rather than one step short of it.
    pub ends_at_base: bool,
}

impl SinusoidalConfig {
    /// The paper's.
    pub fn new(hidden: usize) -> Self {
        Self { hidden, base: 10_000.0, layout: SinusoidalLayout::Interleaved, offset: 0, ends_at_base: false }
    }

    /// tensor2tensor's, with position 0 in row `offset` (XGLM).
    pub fn tensor2tensor(hidden: usize, offset: usize) -> Self {
        Self { layout: SinusoidalLayout::Concatenated, offset, ends_at_base: true, ..Self::new(hidden) }
    }

    /// Radians per position of each pair of a sine and a cosine.
    pub fn inv_freq(&self) -> Vec<f64> {
        let width = if self.ends_at_base { self.hidden.saturating_sub(2).max(1) } else { self.hidden };
        plain_frequencies(self.base, width, self.hidden / 2)
    }
}

/// The fixed encoding.
#[derive(Debug, Clone)]
pub struct Sinusoidal {
    config: SinusoidalConfig,
    inv_freq: Vec<f64>,
}

impl Sinusoidal {
    /// The sinusoids of this shape.
    ///
    /// # Errors
    /// A width that is zero or odd, a base that is not a positive number.
    pub fn new(config: SinusoidalConfig) -> Result<Self> {
        if config.hidden == 0 || !config.hidden.is_multiple_of(2) {
            bail!("sinusoidal positions: the width must be even and positive, got {}", config.hidden)
        }
        positive("base", config.base)?;
        let inv_freq = config.inv_freq();
        Ok(Self { config, inv_freq })
    }

    /// The vector of one position.
    pub fn at(&self, position: usize) -> Vec<f64> {
        let angles = self.inv_freq.iter().map(|f| (position + self.config.offset) as f64 * f);
        match self.config.layout {
            SinusoidalLayout::Interleaved => angles.flat_map(|a| [a.sin(), a.cos()]).collect(),
            SinusoidalLayout::Concatenated => angles.clone().map(f64::sin).chain(angles.map(f64::cos)).collect(),
        }
    }
}

impl EmbeddingEncoding for Sinusoidal {
    fn embed(&self, xs: &Tensor, positions: &Positions) -> Result<Tensor> {
        let data = positions.all().flat_map(|p| self.at(p)).collect::<Vec<f64>>();
        let added = Tensor::from_vec(data, (positions.rows(), positions.len(), self.config.hidden), xs.device())?;
        // The sum is rounded once: a sinusoid that was rounded to bf16 on its own would be off by as much again.
        let dtype = if xs.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        xs.to_dtype(dtype)?.broadcast_add(&added.to_dtype(dtype)?)?.to_dtype(xs.dtype())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn the_paper_s_formula_in_both_layouts() -> Result<()> {
        let angles = [3.0f64, 3.0 / 100.0];
        let interleaved = Sinusoidal::new(SinusoidalConfig::new(4))?;
        let expected = [angles[0].sin(), angles[0].cos(), angles[1].sin(), angles[1].cos()];
        assert!(interleaved.at(3).iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12));
        let layout = SinusoidalLayout::Concatenated;
        let concatenated = Sinusoidal::new(SinusoidalConfig { layout, ..SinusoidalConfig::new(4) })?;
        let expected = [angles[0].sin(), angles[1].sin(), angles[0].cos(), angles[1].cos()];
        assert!(concatenated.at(3).iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12));
        assert!(Sinusoidal::new(SinusoidalConfig::new(5)).is_err());
        let shifted = Sinusoidal::new(SinusoidalConfig::tensor2tensor(4, 2))?;
        let angles = [5.0f64, 5.0 / 10_000.0];
        let expected = [angles[0].sin(), angles[1].sin(), angles[0].cos(), angles[1].cos()];
        assert!(shifted.at(3).iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12));
        Ok(())
    }

    #[test]
    fn embeddings_are_added_per_row() -> Result<()> {
        let sinusoidal = Sinusoidal::new(SinusoidalConfig::new(4))?;
        let positions = Positions::new(1..3).with_pads(Some([0, 1].into()));
        let xs = Tensor::zeros((2, 2, 4), DType::F64, &Device::Cpu)?;
        let got = sinusoidal.embed(&xs, &positions)?.to_vec3::<f64>()?;
        let at = |p| sinusoidal.at(p);
        assert_eq!(got, [[at(1), at(2)], [at(0), at(1)]]);
        Ok(())
    }
}
