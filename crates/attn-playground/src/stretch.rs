//! Past the trained length: how every scaling changes the frequencies, and every method the distances.

use crate::within;
use anyhow::Result;
use attn_core::PositionOverride;
use attn_core::position::{ExtendedConfig, PositionConfig, RopeConfig, RopeOverride};
use attn_eval::compare::{self, Mode, Plan};
use attn_eval::encoding::effects::{ScalingEffect, pairs};
use attn_eval::encoding::seen_distances;
use serde::Deserialize;
use serde_json::{Value, json};

/// The farthest distance at which a similar key is compared with a random one.
const FARTHEST: usize = 1 << 14;

/// A rotary encoding under a mode.
#[derive(Debug, Deserialize)]
pub(crate) struct Stretch {
    mode: String,
    factor: f64,
    /// Replaces the base that the model was trained with.
    theta: f64,
    /// The base that it was trained with.
    trained_theta: f64,
    head_dim: usize,
    /// The context that it was trained for.
    trained: usize,
    /// Tokens of the text.
    length: usize,
}

/// Every mode: its name, what it does, and whether it has a factor.
pub(crate) fn modes() -> Value {
    let usual = Mode::defaults();
    let described = Mode::all().filter(|mode| *mode != Mode::Checkpoint).filter(applies).map(|mode| {
        json!({
            "name": mode.to_string(), "summary": mode.summary(), "takes_factor": mode.takes_factor(),
            "moves_positions": !mode.extend().is_none(), "usual": usual.contains(&mode),
        })
    });
    Value::Array(described.collect())
}

/// Whether a mode works on a plain checkpoint: LongRoPE needs lists of factors, and one encoding needs the layout of
/// Gemma 4.
fn applies(mode: &Mode) -> bool {
    let plain = RopeConfig { max_position_embeddings: 256, ..RopeConfig::new(32, 1e4) };
    let change = compare::change(&plan(1024, None), *mode, 4.0);
    let keeps_width = !matches!(mode, Mode::Setting(setting) if setting.scheme.is_some_and(|scheme| scheme.whole_head));
    keeps_width && change.is_ok_and(|change| change.over(&plain).is_ok())
}

/// The plan of a comparison at the one length `length`, from which methods take their numbers.
fn plan(length: usize, theta: Option<f64>) -> Plan {
    let rope = RopeOverride { theta, ..RopeOverride::default() };
    Plan { rope, ..Plan::new(vec![length], vec![]) }
}

/// The change that a mode makes to a model for a text of `length` tokens, as `attn compare --contexts LENGTH --factor
/// FACTOR` makes it.
pub(crate) fn change(mode: Mode, factor: f64, length: usize, theta: Option<f64>) -> Result<PositionOverride> {
    Ok(compare::change(&plan(length, theta), mode, factor)?)
}

/// The mode of a name.
pub(crate) fn mode(name: &str) -> Result<Mode> {
    name.parse().map_err(anyhow::Error::msg)
}

impl Stretch {
    /// The frequencies before and after, and the distances at which the last token of the text sees every other.
    pub(crate) fn answer(&self) -> Result<Value> {
        within("the factor", self.factor, 1.0..=1024.0)?;
        within("the length", self.length as f64, 2.0..=65_536.0)?;
        within("the trained context", self.trained as f64, 16.0..=65_536.0)?;
        within("the width of a head", self.head_dim as f64, 4.0..=512.0)?;
        let mode = mode(&self.mode)?;
        let stock =
            RopeConfig { max_position_embeddings: self.trained, ..RopeConfig::new(self.head_dim, self.trained_theta) };
        stock.validate()?;
        let theta = (self.theta != self.trained_theta).then_some(self.theta);
        let changed = change(mode, self.factor, self.length, theta)?.over(&stock)?;
        let (rope, method) = match &changed {
            PositionConfig::Extended(ExtendedConfig { rope, method, .. }) => (rope.clone(), *method),
            PositionConfig::Rope(rope) => (rope.clone(), None),
            other => anyhow::bail!("{other:?} does not rotate"),
        };
        let before = stock.frequencies(self.length).inv_freq;
        let after = rope.frequencies(self.length).inv_freq;
        let effect = ScalingEffect::new(&self.mode, &rope, &before, self.length, FARTHEST);
        let seen = seen_distances(method, self.length - 1)?;
        // A pair that turns half as fast shows the angles of half the distance.
        let by_pair = |pair: usize| -> Vec<Option<f64>> {
            let slower = after[pair] / before[pair];
            seen.iter().rev().map(|distance| distance.map(|distance| distance * slower)).collect()
        };
        let (fastest, slowest) = (by_pair(0), by_pair(before.len() - 1));
        let farthest = slowest.iter().chain(&fastest).flatten().copied().fold(0.0, f64::max);
        Ok(json!({
            "method": method.map(|method| method.to_string()),
            "summary": mode.summary(),
            "takes_factor": mode.takes_factor(),
            "theta": rope.theta,
            "before": pairs(&before, &before, self.trained),
            "after": pairs(&after, &before, self.trained),
            "scaling": effect,
            "fastest": fastest,
            "slowest": slowest,
            "farthest": farthest,
            "unseen": slowest.iter().flatten().filter(|distance| **distance >= self.trained as f64).count(),
            "dropped": slowest.iter().filter(|distance| distance.is_none()).count(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(mode: &str, factor: f64) -> Value {
        let stretch = Stretch {
            mode: mode.into(),
            factor,
            theta: 1e4,
            trained_theta: 1e4,
            head_dim: 32,
            trained: 256,
            length: 1024,
        };
        stretch.answer().unwrap()
    }

    #[test]
    fn without_scaling_three_quarters_of_the_distances_were_never_trained() {
        let answer = of("none", 4.0);
        assert_eq!((answer["unseen"].as_u64(), answer["dropped"].as_u64()), (Some(768), Some(0)));
        assert_eq!(answer["before"], answer["after"]);
        assert_eq!(answer["slowest"][1000], answer["fastest"][1000]);
    }

    #[test]
    fn interpolation_squeezes_all_distances_and_yarn_the_slow_pairs_alone() {
        let linear = of("linear", 4.0);
        assert_eq!(linear["unseen"], 0);
        assert!((linear["fastest"][1000].as_f64().unwrap() - 250.0).abs() < 1e-6);
        let yarn = of("yarn", 4.0);
        assert!((yarn["fastest"][1000].as_f64().unwrap() - 1000.0).abs() < 1e-6);
        assert!((yarn["slowest"][1000].as_f64().unwrap() - 250.0).abs() < 1e-6);
        assert!(yarn["scaling"]["attention_factor"].as_f64().unwrap() > 1.1);
    }

    #[test]
    fn methods_keep_near_distances_and_limit_or_drop_far_ones() {
        let rerope = of("rerope", 4.0);
        assert_eq!((rerope["unseen"].as_u64(), rerope["method"].as_str()), (Some(0), Some("rerope:window=128")));
        assert!((rerope["slowest"][1000].as_f64().unwrap() - 128.0).abs() < 1e-6);
        let streaming = of("streaming", 4.0);
        assert_eq!(streaming["dropped"].as_u64(), Some(1024 - 256));
        assert_eq!(streaming["slowest"][500], Value::Null);
    }

    #[test]
    fn every_mode_that_is_listed_can_be_drawn() {
        let modes = modes();
        let names: Vec<&str> = modes.as_array().unwrap().iter().map(|mode| mode["name"].as_str().unwrap()).collect();
        assert!(names.len() >= 14 && names.contains(&"log-n") && !names.contains(&"longrope"), "{names:?}");
        for name in names {
            assert_eq!(of(name, 4.0)["slowest"].as_array().unwrap().len(), 1024, "{name}");
        }
    }
}
