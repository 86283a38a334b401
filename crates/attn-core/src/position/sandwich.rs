//! Sandwich (Chi et al. 2023, arXiv:2212.10356): the inner product of the sinusoids of two positions, added to the scores. It
//! falls roughly with the logarithm of the distance, at a pace of its own in every head, and nothing is learned.

use super::frequencies::{plain_frequencies, positive};
use super::{BiasContext, PositionEncoding};
use crate::ScoreBias;
use candle_core::{Device, Result, Tensor, bail};
use std::sync::{Mutex, PoisonError};

/// Distances that the shared table may reach; farther ones are computed for each call that does not ask for all up to there.
const MAX_TABLE: usize = 1 << 18;

/// The shape of the bias.
#[derive(Debug, Clone, PartialEq)]
pub struct SandwichConfig {
    /// Query heads.
    pub heads: usize,
    /// Numbers in the vector of a position, half of them sines; the paper takes 128 whatever the width of a head.
    pub width: usize,
    /// Base of the wavelengths; 10000 in the paper.
    pub base: f64,
}

impl SandwichConfig {
    /// The paper's.
    pub fn new(heads: usize) -> Self {
        Self { heads, width: 128, base: 10_000.0 }
    }

    /// Radians per position of each pair of a sine and a cosine.
    pub fn inv_freq(&self) -> Vec<f64> {
        plain_frequencies(self.base, self.width, self.width / 2)
    }

    /// What each head multiplies the inner product by: the inverse of the paper's compression ratio, `heads / (8 (h + 1))`
    /// for head `h`.
    pub fn scales(&self) -> Vec<f64> {
        (1..=self.heads).map(|head| self.heads as f64 / (8 * head) as f64).collect()
    }
}

/// The fixed bias.
#[derive(Debug)]
pub struct Sandwich {
    inv_freq: Vec<f64>,
    scales: Vec<f64>,
    device: Device,
    /// `(heads, 2n - 1)`, for the distances from `1 - n` to `n - 1`.
    table: Mutex<Option<Tensor>>,
}

impl Sandwich {
    /// The bias of this shape, on `device`.
    ///
    /// # Errors
    /// No heads, a width that is zero or odd, a base that is not a positive number.
    pub fn new(config: SandwichConfig, device: &Device) -> Result<Self> {
        if config.heads == 0 {
            bail!("sandwich: heads must be positive, got 0")
        }
        if config.width == 0 || !config.width.is_multiple_of(2) {
            bail!("sandwich: the width must be even and positive, got {}", config.width)
        }
        positive("base", config.base)?;
        let (inv_freq, scales) = (config.inv_freq(), config.scales());
        Ok(Self { inv_freq, scales, device: device.clone(), table: Mutex::default() })
    }

    /// The inner product of the vectors of two positions: `sum cos(distance * inv_freq)`.
    pub fn product(&self, distance: u64) -> f64 {
        self.inv_freq.iter().map(|f| (distance as f64 * f).cos()).sum()
    }

    /// `(heads, distances)` in f32.
    fn rows(&self, distances: impl Iterator<Item = i64>) -> Result<Tensor> {
        let products: Vec<f64> = distances.map(|d| self.product(d.unsigned_abs())).collect();
        let scaled = |scale: &f64| products.iter().map(|p| (p * scale) as f32).collect::<Vec<_>>();
        let rows: Vec<f32> = self.scales.iter().flat_map(scaled).collect();
        Tensor::from_vec(rows, (self.scales.len(), products.len()), &self.device)
    }

    /// The table of all distances below `reach` either way, or of more.
    fn table(&self, reach: usize) -> Result<Tensor> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = &*table
            && table.dim(1)? >= 2 * reach - 1
        {
            return Ok(table.clone());
        }
        let n = reach.next_power_of_two() as i64;
        let half = self.rows(0..n)?;
        let grown = match n {
            1 => half,
            _ => Tensor::cat(&[half.narrow(1, 1, n as usize - 1)?.contiguous()?.flip(&[1])?, half], 1)?,
        };
        *table = Some(grown.clone());
        Ok(grown)
    }
}

impl PositionEncoding for Sandwich {
    fn bias(&self, at: &BiasContext) -> Result<ScoreBias> {
        let Some((first, n)) = at.distances() else { return Ok(ScoreBias::None) };
        let last = first + n as i64 - 1;
        let reach = first.unsigned_abs().max(last.unsigned_abs()) as usize + 1;
        let table = if reach > MAX_TABLE && n < reach {
            self.rows(first..=last)?
        } else {
            let table = self.table(reach)?;
            let zero = (table.dim(1)? / 2) as i64;
            table.narrow(1, (zero + first) as usize, n)?.contiguous()?
        };
        Ok(ScoreBias::Relative { table, first })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Context, Positions, Sinusoidal, SinusoidalConfig};
    use super::*;

    fn bias(sandwich: &Sandwich, queries: std::ops::Range<usize>, keys: std::ops::Range<usize>) -> Result<Tensor> {
        let bias = sandwich.bias(&BiasContext::new(Context::new(&Positions::new(queries.clone())), keys.clone()))?;
        bias.to_dense(queries, keys, &Device::Cpu)?.expect("a bias").reshape(((), 1))?.squeeze(1)
    }

    #[test]
    fn it_is_the_product_of_two_positions_sinusoids() -> Result<()> {
        let config = SandwichConfig { width: 16, ..SandwichConfig::new(2) };
        let sandwich = Sandwich::new(config, &Device::Cpu)?;
        let sinusoids = Sinusoidal::new(SinusoidalConfig::new(16))?;
        let product =
            |i: usize, j: usize| -> f64 { sinusoids.at(i).iter().zip(sinusoids.at(j)).map(|(a, b)| a * b).sum() };
        for (i, j) in [(0, 0), (5, 5), (9, 2), (2, 9), (300, 17)] {
            let expected = [product(i, j) / 4.0, product(i, j) / 8.0];
            let found = bias(&sandwich, i..i + 1, j..j + 1)?.to_vec1::<f32>()?;
            for (found, expected) in found.iter().zip(expected) {
                assert!((f64::from(*found) - expected).abs() < 1e-6, "{i}, {j}: {found} is not {expected}");
            }
        }
        Ok(())
    }

    #[test]
    fn far_distances_and_a_grown_table_are_the_same_bias() -> Result<()> {
        let new = || Sandwich::new(SandwichConfig::new(3), &Device::Cpu);
        let (grown, far) = (new()?, MAX_TABLE + 77);
        for (queries, keys) in [(0..1, 0..1), (3..5, 0..5), (40..41, 0..41), (7..9, 0..30), (far..far + 2, 5..8)] {
            let (a, b) = (bias(&grown, queries.clone(), keys.clone())?, bias(&new()?, queries.clone(), keys.clone())?);
            assert_eq!(a.to_vec1::<f32>()?, b.to_vec1::<f32>()?);
            let first = grown.product(queries.start.abs_diff(keys.start) as u64) * 3.0 / 8.0;
            assert!((f64::from(a.to_vec1::<f32>()?[0]) - first).abs() < 1e-5, "{queries:?} and {keys:?}");
        }
        Ok(())
    }

    #[test]
    fn senseless_configurations_are_refused() {
        let refused = |config| Sandwich::new(config, &Device::Cpu).unwrap_err().to_string();
        assert!(refused(SandwichConfig::new(0)).contains("heads"));
        assert!(refused(SandwichConfig { width: 7, ..SandwichConfig::new(2) }).contains("even"));
        assert!(refused(SandwichConfig { base: -1.0, ..SandwichConfig::new(2) }).contains("base"));
    }
}
