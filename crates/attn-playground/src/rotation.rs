//! Rotation: a query and a key of two numbers each, turned by their positions.

use crate::within;
use anyhow::Result;
use attn_core::Positions;
use attn_core::position::{Rope, RopeConfig, rope::scaling::Linear};
use candle_core::{Device, Tensor};
use serde::Deserialize;
use serde_json::{Value, json};

/// Positions that can be asked for.
const LONGEST: f64 = 4096.0;

/// A query, a key, and how fast positions turn them.
#[derive(Debug, Deserialize)]
pub(crate) struct Rotation {
    /// Radians per position.
    speed: f64,
    /// The query's position.
    query: usize,
    /// The key's position.
    key: usize,
    /// The angle from the key to the query before they are turned, in radians; 0 for words that fit perfectly.
    apart: f64,
    /// Gaps of the curve.
    gaps: usize,
}

impl Rotation {
    /// The two vectors where they stand, their product, and the product by gap.
    pub(crate) fn answer(&self) -> Result<Value> {
        within("the speed", self.speed, 1e-6..=10.0)?;
        within("a position", self.query.max(self.key) as f64, 0.0..=LONGEST)?;
        within("the number of gaps", self.gaps as f64, 1.0..=LONGEST)?;
        // One pair, whose own speed is one radian per position: interpolation makes it any other.
        let scaling = Linear { factor: 1.0 / self.speed }.into();
        let rope = Rope::new(RopeConfig { scaling, ..RopeConfig::new(2, 10_000.0) })?;
        let turned = |vector: [f64; 2], positions: &Positions| -> Result<Vec<Vec<f64>>> {
            let all = Tensor::new(&vector, &Device::Cpu)?.expand((1, 1, positions.len(), 2))?.contiguous()?;
            Ok(rope.rotate(&all, positions)?.squeeze(0)?.squeeze(0)?.to_vec2()?)
        };
        let (query, key) = ([self.apart.cos(), self.apart.sin()], [1.0, 0.0]);
        let one = |vector, position: usize| -> Result<Vec<f64>> {
            Ok(turned(vector, &Positions::new(position..position + 1))?.remove(0))
        };
        let (q, k) = (one(query, self.query)?, one(key, self.key)?);
        let product = |q: &[f64], k: &[f64]| q.iter().zip(k).map(|(a, b)| a * b).sum::<f64>();
        let curve = turned(query, &Positions::new(0..self.gaps + 1))?;
        Ok(json!({
            "query": q, "key": k, "dot": product(&q, &k),
            "angles": [self.speed * self.query as f64 + self.apart, self.speed * self.key as f64],
            "curve": curve.iter().map(|q| product(q, &key)).collect::<Vec<_>>(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(speed: f64, query: usize, key: usize, apart: f64) -> Value {
        Rotation { speed, query, key, apart, gaps: 40 }.answer().unwrap()
    }

    fn number(value: &Value) -> f64 {
        value.as_f64().unwrap()
    }

    #[test]
    fn the_product_is_the_cosine_of_the_gap_and_of_nothing_else() {
        for (speed, apart) in [(1.0, 0.0), (0.31, 0.4), (0.002, -1.0)] {
            let first = of(speed, 9, 4, apart);
            assert!((number(&first["dot"]) - (speed * 5.0 + apart).cos()).abs() < 1e-12);
            assert!((number(&first["dot"]) - number(&first["curve"][5])).abs() < 1e-12);
            for shift in [1, 100, 3000] {
                let shifted = of(speed, 9 + shift, 4 + shift, apart);
                assert!((number(&shifted["dot"]) - number(&first["dot"])).abs() < 1e-9, "{shift}");
            }
            let tip = &first["query"];
            let angle = number(&first["angles"][0]);
            assert!((number(&tip[0]) - angle.cos()).abs() < 1e-12 && (number(&tip[1]) - angle.sin()).abs() < 1e-12);
        }
    }

    #[test]
    fn what_does_not_turn_is_refused() {
        assert!(Rotation { speed: 0.0, query: 1, key: 0, apart: 0.0, gaps: 9 }.answer().is_err());
        assert!(Rotation { speed: 1.0, query: 1 << 20, key: 0, apart: 0.0, gaps: 9 }.answer().is_err());
    }
}
