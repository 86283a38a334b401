//! ALiBi (Press et al. 2021): a penalty on the score that grows linearly with distance, with a slope per head.
//!
//! Nothing is learned and there is no table, so there is no maximal length. Kernels take the slopes alone.

use super::frequencies::positive;
use super::{BiasContext, PositionEncoding};
use crate::ScoreBias;
use candle_core::{Device, Result, Tensor, bail};
use half::bf16;

/// How the slopes are made.
#[derive(Debug, Clone, PartialEq)]
pub struct AlibiConfig {
    /// Number of query heads.
    pub heads: usize,
    /// The exponent of the flattest slope, `2^-bias_max`: 8 in the paper, MPT's `alibi_bias_max`.
    pub bias_max: f64,
    /// Multiplies the bias: 1, or `head_dim^-1/2` for Falcon, which adds it before scaling the scores.
    pub scale: f64,
    /// Falcon: slopes and slope times position are rounded to bf16, whatever the dtype of the model.
    pub round_bf16: bool,
}

impl AlibiConfig {
    /// The paper's slopes, as in BLOOM and MPT.
    pub fn new(heads: usize) -> Self {
        Self { heads, bias_max: 8.0, scale: 1.0, round_bf16: false }
    }

    /// Falcon's variant for heads of this width.
    pub fn falcon(heads: usize, head_dim: usize) -> Self {
        Self { scale: (head_dim as f64).powf(-0.5), round_bf16: true, ..Self::new(heads) }
    }

    /// One slope per head, before `scale`: powers `2^(-bias_max i/n)` for n heads, if n is a power of two. Else those
    /// of the next lower power of two, then every other one of twice as many.
    pub fn slopes(&self) -> Vec<f64> {
        let wide = self.heads.next_power_of_two();
        let slope = |i: usize| (-self.bias_max * i as f64 / wide as f64).exp2();
        let slopes: Vec<f64> = if wide == self.heads {
            (1..=wide).map(slope).collect()
        } else {
            (1..=wide)
                .filter(|i| i % 2 == 0)
                .chain((1..=wide).filter(|i| i % 2 == 1))
                .take(self.heads)
                .map(slope)
                .collect()
        };
        if self.round_bf16 { slopes.into_iter().map(|s| bf16::from_f64(s).to_f64()).collect() } else { slopes }
    }
}

/// The linear bias.
#[derive(Debug)]
pub struct Alibi {
    config: AlibiConfig,
    slopes: Vec<f64>,
    tensor: Tensor,
}

impl Alibi {
    /// Slopes on `device`.
    ///
    /// # Errors
    /// No heads; a `bias_max` or `scale` that is not a positive number.
    pub fn new(config: AlibiConfig, device: &Device) -> Result<Self> {
        if config.heads == 0 {
            bail!("alibi: heads must be positive, got 0")
        }
        positive("alibi_bias_max", config.bias_max)?;
        positive("scale", config.scale)?;
        let slopes = config.slopes();
        let scaled = slopes.iter().map(|s| (s * config.scale) as f32).collect::<Vec<_>>();
        Ok(Self { tensor: Tensor::new(scaled, device)?, slopes, config })
    }

    /// One slope per head as the model sees it, `scale` multiplied in.
    pub fn slopes(&self) -> Vec<f64> {
        self.slopes.iter().map(|s| s * self.config.scale).collect()
    }

    /// The error that rounding to bf16 makes in `slope * position`, one row per head, or `None` if it makes none.
    ///
    /// Falcon computes `slope * k` in bf16, which from position 257 on moves the scores of near keys by whole units: it
    /// is part of the model. The bias stays a function of the key alone, `(b or 1, h, 1, tk)`; positions are counted
    /// from the first real token of a row.
    fn rounded(&self, at: &BiasContext) -> Result<Option<Tensor>> {
        let rows = at.at.positions.rows();
        let mut exact = true;
        let mut bias = Vec::with_capacity(rows * self.slopes.len() * at.keys.len());
        for row in 0..rows {
            let keys = at.key_positions(row)?;
            for slope in &self.slopes {
                for &k in &keys {
                    // torch rounds the position to bf16 too before it multiplies.
                    let product = slope * bf16::from_f64(k as f64).to_f64();
                    let rounded = bf16::from_f32(product as f32).to_f64();
                    exact &= rounded == slope * k as f64;
                    bias.push((rounded * self.config.scale) as f32);
                }
            }
        }
        if exact {
            return Ok(None);
        }
        Tensor::from_vec(bias, (rows, self.slopes.len(), 1, at.keys.len()), self.tensor.device()).map(Some)
    }
}

impl PositionEncoding for Alibi {
    /// `slope[h] * (k - q)`. Under softmax this equals the `slope * k` of BLOOM and the `slope * (k - n + 1)` of MPT.
    fn bias(&self, at: &BiasContext) -> Result<ScoreBias> {
        if self.config.round_bf16
            && let Some(bias) = self.rounded(at)?
        {
            return Ok(ScoreBias::Dense(bias));
        }
        Ok(ScoreBias::Linear { slopes: self.tensor.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Context, Positions};
    use super::*;

    fn golden() -> serde_json::Value {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/alibi.json");
        serde_json::from_str(&std::fs::read_to_string(path).expect(path)).expect("golden data is JSON")
    }

    #[test]
    fn slopes_are_those_of_transformers() {
        for (heads, expected) in golden().as_object().expect("an object") {
            let slopes = AlibiConfig::new(heads.parse().expect("a number")).slopes();
            let expected: Vec<f64> = expected.as_array().expect("a list").iter().filter_map(|x| x.as_f64()).collect();
            assert_eq!(slopes.len(), expected.len(), "{heads} heads");
            for (got, want) in slopes.iter().zip(&expected) {
                assert!((got - want).abs() <= 1e-6 * want, "{heads} heads: {got} instead of {want}");
            }
        }
    }

    #[test]
    fn twelve_heads_and_another_maximum() {
        let log2 = |c: AlibiConfig| c.slopes().iter().map(|s| s.log2()).collect::<Vec<_>>();
        let expected = [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -7.0, -8.0, -0.5, -1.5, -2.5, -3.5];
        assert!(log2(AlibiConfig::new(12)).iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12));
        assert_eq!(log2(AlibiConfig { bias_max: 16.0, ..AlibiConfig::new(4) }), [-4.0, -8.0, -12.0, -16.0]);
    }

    fn bias(alibi: &Alibi, t: usize) -> Result<ScoreBias> {
        alibi.bias(&BiasContext::new(Context::new(&Positions::new(0..t)), 0..t))
    }

    #[test]
    fn falcon_rounds_to_bf16_where_that_changes_something() -> Result<()> {
        // Powers of two times small positions are exact: no tensor of keys is needed.
        let four = Alibi::new(AlibiConfig::falcon(4, 16), &Device::Cpu)?;
        assert_eq!(four.slopes()[0], 0.25 / 4.0);
        assert!(matches!(bias(&four, 9)?, ScoreBias::Linear { .. }));
        // 2^-0.5 is 0.70703125 in bf16; times 3 that is 2.12109375, in bf16 2.125.
        let twelve = Alibi::new(AlibiConfig { scale: 1.0, ..AlibiConfig::falcon(12, 16) }, &Device::Cpu)?;
        let ScoreBias::Dense(bias) = bias(&twelve, 4)? else { panic!("expected a rounded bias") };
        assert_eq!(bias.dims(), [1, 12, 1, 4]);
        assert_eq!(bias.get(0)?.get(8)?.get(0)?.to_vec1::<f32>()?, [0.0, 0.70703125, 1.4140625, 2.125]);
        Ok(())
    }

    #[test]
    fn senseless_configurations_are_refused() {
        assert!(Alibi::new(AlibiConfig::new(0), &Device::Cpu).is_err());
        assert!(Alibi::new(AlibiConfig { bias_max: 0.0, ..AlibiConfig::new(4) }, &Device::Cpu).is_err());
    }
}
