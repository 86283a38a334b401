//! Points of YaRN's space, and the steps between them.

use attn_core::RopeOverride;
use attn_core::position::RopeConfig;
use attn_core::position::frequencies::plain_frequencies;

/// A point of YaRN's space.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Point {
    pub(super) theta: f64,
    pub(super) factor: f64,
    pub(super) beta_fast: f64,
    pub(super) beta_slow: f64,
    pub(super) attention: f64,
}

/// For each coordinate, the ratio of its first step.
pub(super) const STEPS: [f64; 5] = [1.5, 1.25, 2.0, 2.0, 1.04];

impl Point {
    /// The point that an encoding is for sequences of `len` tokens; `None` if it lies outside the space.
    pub(super) fn of(rope: &RopeConfig, len: usize) -> Option<Self> {
        let found = rope.frequencies(len);
        let near = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-9;
        // The base that gives the second frequency without scaling. If it gives all the others too, the point is a plain base.
        let base = found.inv_freq.get(1).map_or(rope.theta, |f| f.powf(-(rope.rotary_dim as f64) / 2.0));
        let theta = if near(base, rope.theta) { rope.theta } else { base };
        let plain = plain_frequencies(theta, rope.rotary_dim, found.inv_freq.len());
        if found.attention_factor == 1.0 && plain.iter().zip(&found.inv_freq).all(|(a, b)| near(*a, *b)) {
            return Some(Self { theta, factor: 1.0, beta_fast: 32.0, beta_slow: 1.0, attention: 1.0 });
        }
        let hf = rope.to_hf().ok()?;
        let number = |key: &str| hf.get(key).and_then(serde_json::Value::as_f64);
        // In this space ramps end at whole dimensions.
        (hf["rope_type"] == "yarn" && !hf.contains_key("truncate")).then_some(Self {
            theta: rope.theta,
            factor: number("factor")?,
            beta_fast: number("beta_fast")?,
            beta_slow: number("beta_slow")?,
            attention: found.attention_factor,
        })
    }

    fn coordinate(&mut self, index: usize) -> &mut f64 {
        match index {
            0 => &mut self.theta,
            1 => &mut self.factor,
            2 => &mut self.beta_fast,
            3 => &mut self.beta_slow,
            _ => &mut self.attention,
        }
    }

    /// This point with one coordinate multiplied, and rounded so that it can be typed; `None` if YaRN has no such
    /// point, or it is this one.
    pub(super) fn moved(self, index: usize, by: f64) -> Option<Self> {
        let mut point = self;
        let value = point.coordinate(index);
        *value = short(*value * by);
        point.factor = point.factor.max(1.0);
        let ramp = point.beta_slow <= point.beta_fast;
        // Without a factor there is no ramp to move.
        let acts = point.factor > 1.0 || !matches!(index, 2 | 3);
        (point != self && ramp && acts && point.theta > 1.0).then_some(point)
    }

    /// The override for this point; a point without a factor and an attention factor is only a base.
    pub(super) fn to_override(self, original: Option<usize>) -> RopeOverride {
        let base = RopeOverride { theta: Some(self.theta), original_context: original, ..RopeOverride::default() };
        if self.factor == 1.0 && self.attention == 1.0 {
            return RopeOverride { scaling: Some("none".into()), ..base };
        }
        let keys = [("beta_fast", self.beta_fast), ("beta_slow", self.beta_slow), ("attention_factor", self.attention)];
        RopeOverride {
            scaling: Some("yarn".into()),
            factor: Some(self.factor),
            params: keys.map(|(key, value)| (key.to_string(), value.to_string())).to_vec(),
            ..base
        }
    }
}

/// Four significant digits.
pub(super) fn short(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}
