//! Penalties by distance: ALiBi's slopes and T5's buckets.

use crate::within;
use anyhow::Result;
use attn_core::position::{AlibiConfig, PositionConfig, T5Bias, T5Config};
use attn_eval::encoding::effects::effects;
use attn_eval::explain::explain;
use candle_core::{DType, Device, Tensor};
use loader::Checkpoint;
use serde::Deserialize;
use serde_json::{Value, json};

/// Heads that are drawn at most.
const MOST_HEADS: f64 = 64.0;
/// Tokens that are drawn at most.
const LONGEST: f64 = 1_048_576.0;
/// The fraction of a key's weight that is hardly visible any more.
const LITTLE: f64 = 0.01;

/// The heads of ALiBi.
#[derive(Debug, Deserialize)]
pub(crate) struct Alibi {
    heads: usize,
    /// Tokens of the text.
    length: usize,
    /// How far back the key is whose share is asked for.
    distance: usize,
}

impl Alibi {
    /// The slopes, what of a key's weight each head leaves by distance, and the distance at which that is a hundredth.
    pub(crate) fn answer(&self) -> Result<Value> {
        within("the number of heads", self.heads as f64, 1.0..=MOST_HEADS)?;
        within("the length", self.length as f64, 2.0..=LONGEST)?;
        let effects = effects(&PositionConfig::Alibi(AlibiConfig::new(self.heads)), None, None, self.length)?;
        let shares = effects.bias.iter().flat_map(|map| &map.values);
        let shares: Vec<Vec<f64>> = shares.map(|row| row.iter().map(|bias| bias.exp()).collect()).collect();
        let at = |head: &attn_eval::encoding::effects::AlibiHead| (-head.slope * self.distance as f64).exp();
        Ok(json!({
            "reach": effects.heads.iter().map(|head| -LITTLE.ln() / head.slope).collect::<Vec<_>>(),
            "at": effects.heads.iter().map(at).collect::<Vec<_>>(),
            "heads": effects.heads,
            "distances": effects.bias.as_ref().map(|map| map.distances.iter().map(|d| -d).collect::<Vec<_>>()),
            "shares": shares,
        }))
    }
}

/// T5's buckets of a decoder.
#[derive(Debug, Deserialize)]
pub(crate) struct T5 {
    buckets: usize,
    max_distance: usize,
}

impl T5 {
    /// The distances of every bucket, the nearest first.
    pub(crate) fn answer(&self) -> Result<Value> {
        within("the number of buckets", self.buckets as f64, 2.0..=256.0)?;
        within("the largest distance", self.max_distance as f64, 2.0..=65_536.0)?;
        let config = T5Config { buckets: self.buckets, max_distance: self.max_distance, ..T5Config::new(1, false) };
        // Refuses buckets that the distances don't fill.
        T5Bias::from_table(config.clone(), Tensor::zeros((self.buckets, 1), DType::F32, &Device::Cpu)?)?;
        let effects = effects(&PositionConfig::T5(config), None, None, self.max_distance * 2)?;
        let mut ranges = effects.bucket_ranges;
        ranges.reverse();
        Ok(json!({ "buckets": ranges }))
    }
}

/// What a trained model learned for its buckets: the bias of each head by distance.
pub(crate) fn learned(checkpoint: &Checkpoint) -> Result<Value> {
    let spec = attn_models::families::spec(&checkpoint.config)?;
    let explained = explain("tiny-t5", &spec, Some(checkpoint.weights.as_ref()), None, None)?;
    let effects = explained.position.first().map(|group| &group.effects);
    Ok(json!({ "bias": effects.and_then(|effects| effects.bias.as_ref()) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_head_leaves_follows_from_its_slope() {
        let answer = Alibi { heads: 4, length: 512, distance: 4 }.answer().unwrap();
        // Slopes 2^-2, 2^-4, 2^-6, 2^-8.
        for (head, slope) in [0.25f64, 0.0625, 0.015625, 0.00390625].into_iter().enumerate() {
            assert_eq!(answer["heads"][head]["slope"], slope);
            assert!((answer["at"][head].as_f64().unwrap() - (-4.0 * slope).exp()).abs() < 1e-15);
            let reach = answer["reach"][head].as_f64().unwrap();
            assert!(((-slope * reach).exp() - 0.01).abs() < 1e-12);
            // From f32, as the kernels have it.
            let shares: Vec<f64> = serde_json::from_value(answer["shares"][head].clone()).unwrap();
            let distances: Vec<f64> = serde_json::from_value(answer["distances"].clone()).unwrap();
            assert_eq!(shares.len(), distances.len());
            let near = |(share, d): (&f64, &f64)| (share - (-slope * d).exp()).abs() < 1e-4;
            assert!(shares.iter().zip(&distances).all(near));
        }
        assert!(Alibi { heads: 0, length: 9, distance: 1 }.answer().is_err());
    }

    #[test]
    fn buckets_are_exact_near_and_wide_far() {
        let answer = T5 { buckets: 32, max_distance: 128 }.answer().unwrap();
        let ranges = answer["buckets"].as_array().unwrap();
        assert_eq!(ranges.len(), 32);
        assert_eq!(ranges[3], json!({"bucket": 3, "first": -3, "last": -3}));
        assert_eq!(ranges[31], json!({"bucket": 31, "first": null, "last": -113}));
        assert!(T5 { buckets: 32, max_distance: 16 }.answer().is_err());
    }
}
