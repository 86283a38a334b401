//! Many speeds: the pairs of one head, and the curve that they add up to.

use crate::within;
use anyhow::{Result, ensure};
use attn_core::Positions;
use attn_core::position::{Layout, Rope, RopeConfig};
use attn_eval::encoding::analysis::{decay, discrimination_horizon};
use attn_eval::encoding::effects::pairs;
use candle_core::{Device, Tensor};
use serde::Deserialize;
use serde_json::{Value, json};

/// The farthest distance at which a similar key is compared with a random one.
const FARTHEST: usize = 1 << 14;

/// A head, and how much each of its pairs counts.
#[derive(Debug, Deserialize)]
pub(crate) struct Speeds {
    /// One per pair, 0 or more.
    weights: Vec<f64>,
    theta: f64,
    /// The context that the model was trained for.
    trained: usize,
    /// Where the hands of the clocks are drawn.
    gap: usize,
    /// Gaps of the curve.
    gaps: usize,
}

impl Speeds {
    /// Every pair's speed and wavelength, the angle it shows at the gap, and the score by gap of a query and a key that are
    /// equal, so that the score shows only what the encoding does.
    pub(crate) fn answer(&self) -> Result<Value> {
        let count = self.weights.len();
        within("the number of pairs", count as f64, 2.0..=256.0)?;
        within("the trained context", self.trained as f64, 2.0..=65_536.0)?;
        within("the number of gaps", self.gaps.max(self.gap) as f64, 1.0..=65_536.0)?;
        ensure!(self.weights.iter().all(|w| w.is_finite() && *w >= 0.0), "weights are numbers from 0 on");
        let total: f64 = self.weights.iter().sum();
        ensure!(total > 0.0, "at least one pair has to count");
        let config = RopeConfig {
            layout: Layout::Interleaved,
            max_position_embeddings: self.trained,
            ..RopeConfig::new(2 * count, self.theta)
        };
        config.validate()?;
        let inv_freq = config.frequencies(self.trained).inv_freq;
        let all = pairs(&inv_freq, &inv_freq, self.trained);
        let products = self.products(config, self.gaps.max(self.gap))?;
        let decays: Vec<f64> = (0..=self.gaps).map(|gap| decay(&inv_freq, gap as f64)).collect();
        let score = |gap: usize| products[gap].iter().sum::<f64>() / total;
        Ok(json!({
            "pairs": all,
            "unfinished": all.iter().filter(|p| p.trained_turns.is_some_and(|turns| turns < 1.0)).count(),
            "angles": inv_freq.iter().map(|f| f * self.gap as f64).collect::<Vec<_>>(),
            "parts": products[self.gap],
            "score": score(self.gap),
            "curve": (0..=self.gaps).map(score).collect::<Vec<_>>(),
            "decay": decays,
            "decay_share": decays.iter().map(|decay| decay / decays[0]).collect::<Vec<_>>(),
            "horizon": discrimination_horizon(&inv_freq, FARTHEST),
        }))
    }

    /// What each pair adds to the product of a query and the same vector as a key, by gap: the query is turned, the key
    /// stays at position 0.
    fn products(&self, config: RopeConfig, gaps: usize) -> Result<Vec<Vec<f64>>> {
        let lanes: Vec<f64> = self.weights.iter().flat_map(|w| [w.sqrt(), 0.0]).collect();
        let key = Tensor::new(lanes, &Device::Cpu)?;
        let width = key.dims1()?;
        let all = key.expand((1, 1, gaps + 1, width))?.contiguous()?;
        let turned = Rope::new(config)?.rotate(&all, &Positions::new(0..gaps + 1))?;
        let products = turned.broadcast_mul(&key)?.reshape((gaps + 1, width / 2, 2))?.sum(2)?;
        Ok(products.to_vec2()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use attn_eval::encoding::analysis::discrimination;

    fn of(weights: Vec<f64>) -> Value {
        Speeds { weights, theta: 10_000.0, trained: 256, gap: 12, gaps: 300 }.answer().unwrap()
    }

    #[test]
    fn equal_weights_add_up_to_what_tells_similar_keys_from_random_ones() {
        let answer = of(vec![1.0; 16]);
        let frequencies: Vec<f64> =
            answer["pairs"].as_array().unwrap().iter().map(|pair| pair["inv_freq"].as_f64().unwrap()).collect();
        for gap in [0, 1, 12, 299] {
            let score = answer["curve"][gap].as_f64().unwrap();
            assert!((score - discrimination(&frequencies, gap as f64) / 16.0).abs() < 1e-9, "{gap}");
        }
        assert_eq!(answer["score"], answer["curve"][12]);
    }

    #[test]
    fn one_pair_alone_is_a_cosine() {
        let mut weights = vec![0.0; 16];
        weights[3] = 0.5;
        let answer = of(weights);
        let f = answer["pairs"][3]["inv_freq"].as_f64().unwrap();
        for gap in [1, 100] {
            assert!((answer["curve"][gap].as_f64().unwrap() - (f * gap as f64).cos()).abs() < 1e-9);
        }
        assert_eq!(answer["parts"][2], 0.0);
    }

    #[test]
    fn pairs_that_never_come_round_are_counted() {
        // Wavelengths of 2 pi 10000^(i / 16): those of pairs 0 to 6 are at most 256.
        assert_eq!(of(vec![1.0; 16])["unfinished"], 9);
        assert!(Speeds { weights: vec![0.0; 4], theta: 1e4, trained: 9, gap: 1, gaps: 2 }.answer().is_err());
    }
}
