//! T5's relative position bias (Raffel et al. 2019): a learned number per head and distance, where far distances share
//! logarithmically wide buckets.
//!
//! Only the distances that occur are looked up, `tq + tk - 1` of them per head rather than `tq * tk`. The table belongs
//! to the first layer of a stack and serves all of them; encoder and decoder have one each, and their buckets differ.

use super::{BiasContext, PositionEncoding, TABLE_INIT};
use crate::ScoreBias;
use candle_core::{DType, Result, Tensor, bail};
use candle_nn::VarBuilder;
use std::sync::{Mutex, PoisonError};

/// How distances fall into buckets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct T5Config {
    /// Number of query heads.
    pub heads: usize,
    /// `relative_attention_num_buckets`.
    pub buckets: usize,
    /// `relative_attention_max_distance`: from here on all distances share the last bucket.
    pub max_distance: usize,
    /// True in an encoder: keys after the query have buckets of their own.
    pub bidirectional: bool,
}

impl T5Config {
    /// T5's 32 buckets up to distance 128.
    pub fn new(heads: usize, bidirectional: bool) -> Self {
        Self { heads, buckets: 32, max_distance: 128, bidirectional }
    }

    /// The bucket of the distance `k - q`.
    pub fn bucket(&self, distance: i64) -> usize {
        let (mut first, mut n) = (0, self.buckets);
        let mut back = -distance;
        if self.bidirectional {
            n /= 2;
            if distance > 0 {
                first = n;
            }
            back = distance.abs();
        }
        let back = back.max(0) as usize;
        let exact = n / 2;
        if back < exact {
            return first + back;
        }
        // In f32 and in this order, as in transformers: a boundary may lie within a rounding error.
        let octaves = (self.max_distance as f64 / exact as f64).ln() as f32;
        let log = (back as f32 / exact as f32).ln() / octaves * (n - exact) as f32;
        first + (exact + log as usize).min(n - 1)
    }

    fn validate(&self) -> Result<()> {
        let half = if self.bidirectional { self.buckets / 2 } else { self.buckets };
        if half < 2 || (self.bidirectional && !self.buckets.is_multiple_of(2)) {
            bail!("t5: relative_attention_num_buckets {} is too small or odd", self.buckets)
        }
        if self.max_distance <= half / 2 {
            bail!("t5: relative_attention_max_distance {} must be above {}", self.max_distance, half / 2)
        }
        Ok(())
    }
}

/// The learned bias.
#[derive(Debug)]
pub struct T5Bias {
    config: T5Config,
    /// `(buckets, heads)`, f32 or f64.
    table: Tensor,
    /// The last answer: all layers of a forward pass ask the same question.
    last: Mutex<Option<(i64, usize, Tensor)>>,
}

impl T5Bias {
    /// Takes the table from `vb`, usually at `encoder.block.0.layer.0.SelfAttention.relative_attention_bias`: a tensor
    /// `weight` of shape `(buckets, heads)`, which in a fresh `VarMap` starts as [`candle_nn::embedding()`] does.
    pub fn new(config: T5Config, vb: VarBuilder) -> Result<Self> {
        let table = vb.get_with_hints((config.buckets, config.heads), "weight", TABLE_INIT)?;
        Self::from_table(config, table)
    }

    /// From a table `(buckets, heads)` of any float dtype; gradients flow into it.
    ///
    /// # Errors
    /// A table of another shape, fewer than two buckets per direction, a `max_distance` inside the exact buckets.
    pub fn from_table(config: T5Config, table: Tensor) -> Result<Self> {
        config.validate()?;
        if table.dims() != [config.buckets, config.heads] {
            bail!("t5: expected a table ({}, {}), got {:?}", config.buckets, config.heads, table.dims())
        }
        let table = if table.dtype() == DType::F64 { table } else { table.to_dtype(DType::F32)? };
        Ok(Self { config, table, last: Mutex::default() })
    }

    /// How distances fall into buckets.
    pub fn config(&self) -> &T5Config {
        &self.config
    }

    /// `(heads, n)`: the bias of the distances `first..first + n`.
    fn distances(&self, first: i64, n: usize) -> Result<Tensor> {
        let buckets = (first..first + n as i64).map(|d| self.config.bucket(d) as u32).collect::<Vec<_>>();
        let buckets = Tensor::new(buckets, self.table.device())?;
        self.table.index_select(&buckets, 0)?.t()?.contiguous()
    }
}

impl PositionEncoding for T5Bias {
    fn bias(&self, at: &BiasContext) -> Result<ScoreBias> {
        let Some((first, n)) = at.distances() else { return Ok(ScoreBias::None) };
        if self.table.track_op() {
            return Ok(ScoreBias::Relative { table: self.distances(first, n)?, first });
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((cached_first, cached_n, table)) = &*last
            && (*cached_first, *cached_n) == (first, n)
        {
            return Ok(ScoreBias::Relative { table: table.clone(), first });
        }
        let table = self.distances(first, n)?;
        *last = Some((first, n, table.clone()));
        Ok(ScoreBias::Relative { table, first })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Context, Positions};
    use super::*;
    use crate::testing::randn;
    use candle_core::{Device, Var};
    use std::ops::Range;

    fn bias(t5: &T5Bias, q: Range<usize>, k: Range<usize>) -> Result<ScoreBias> {
        t5.bias(&BiasContext::new(Context::new(&Positions::new(q)), k))
    }

    #[test]
    fn buckets_are_those_of_transformers() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/t5_buckets.json");
        let golden: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(path).expect(path)).expect("golden data is JSON");
        for case in golden.as_array().expect("a list") {
            let config = T5Config {
                heads: 1,
                buckets: case["num_buckets"].as_u64().expect("number") as usize,
                max_distance: case["max_distance"].as_u64().expect("number") as usize,
                bidirectional: case["bidirectional"].as_bool().expect("bool"),
            };
            let list =
                |key: &str| case[key].as_array().expect("list").iter().filter_map(|x| x.as_i64()).collect::<Vec<_>>();
            for (distance, bucket) in list("relative_position").into_iter().zip(list("bucket")) {
                assert_eq!(config.bucket(distance) as i64, bucket, "{config:?} at {distance}");
            }
        }
        let causal = T5Config::new(1, false);
        for (back, bucket) in [(15, 15), (18, 16), (31, 21), (63, 26), (112, 30), (113, 31)] {
            assert_eq!(causal.bucket(-back), bucket);
        }
    }

    #[test]
    fn the_bias_covers_the_distances_that_occur() -> Result<()> {
        let config = T5Config { heads: 3, buckets: 8, max_distance: 20, bidirectional: true };
        let table = randn(0.0, 1.0, (8, 3))?;
        let t5 = T5Bias::from_table(config.clone(), table.clone())?;
        for (q, k) in [(0..5, 0..5), (7..8, 0..8), (7..8, 0..8), (3..6, 2..9)] {
            let ScoreBias::Relative { table: bias, first } = bias(&t5, q.clone(), k.clone())? else {
                panic!("relative")
            };
            assert_eq!(bias.dims(), [3, q.len() + k.len() - 1]);
            let (table, bias) = (table.to_vec2::<f32>()?, bias.to_vec2::<f32>()?);
            for q in q {
                for k in k.clone() {
                    let distance = k as i64 - q as i64;
                    for head in 0..3 {
                        assert_eq!(bias[head][(distance - first) as usize], table[config.bucket(distance)][head]);
                    }
                }
            }
        }
        Ok(())
    }

    #[test]
    fn a_table_that_is_trained_is_read_afresh() -> Result<()> {
        let table = Var::zeros((4, 1), DType::F32, &Device::Cpu)?;
        let config = T5Config { heads: 1, buckets: 4, max_distance: 8, bidirectional: false };
        let t5 = T5Bias::from_table(config, table.as_tensor().clone())?;
        let sum = || -> Result<f32> {
            let ScoreBias::Relative { table, .. } = bias(&t5, 0..3, 0..3)? else { panic!("relative") };
            table.sum_all()?.to_scalar()
        };
        assert_eq!(sum()?, 0.0);
        table.set(&Tensor::ones((4, 1), DType::F32, &Device::Cpu)?)?;
        assert_eq!(sum()?, 5.0);
        Ok(())
    }

    #[test]
    fn senseless_configurations_are_refused() -> Result<()> {
        let table = Tensor::zeros((32, 2), DType::F32, &Device::Cpu)?;
        assert!(T5Bias::from_table(T5Config::new(3, true), table.clone()).is_err());
        assert!(T5Bias::from_table(T5Config { max_distance: 8, ..T5Config::new(2, true) }, table.clone()).is_err());
        assert!(T5Bias::from_table(T5Config { buckets: 1, ..T5Config::new(2, false) }, table).is_err());
        Ok(())
    }
}
