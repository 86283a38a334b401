//! What an encoding does to a sequence of a given length, as curves and tables ready to be drawn.
//!
//! [`Description`](super::Description) says what an encoding is; this module says what follows from it: which pairs turn
//! fully within the trained context, by what each scaling would divide their frequencies, how far the base reaches, how a
//! bias falls with distance.
//! All of this follows from the configuration (and, for T5, one table): no model is run.

use super::analysis::{decay, discrimination, discrimination_horizon, smallest_base};
use attn_core::position::rope::scaling;
use attn_core::position::{AlibiConfig, ExtendedConfig, PositionConfig, RopeConfig, T5Config, TrainedConfig, build};
use attn_core::position::{BiasContext, Context};
use attn_core::{PositionEncoding, Positions};
use candle_core::{Device, Result};
use candle_nn::VarBuilder;
use serde::Serialize;
use std::f64::consts::LN_2;

/// Distances at which curves are sampled, logarithmically spaced.
const SAMPLES: usize = 96;
/// The product of tokens and pairs up to which the smallest base is computed; past it the search takes too long.
const LARGEST_SEARCH: usize = 1 << 21;
/// The farthest distance at which similar and random keys are compared.
const LONGEST_HORIZON: usize = 1 << 20;

/// The smallest `rope_theta` for a context at rotary width 128, as published: Men et al. 2024, "Base of RoPE Bounds
/// Context Length", table 2. [`smallest_base`] computes the same for any width.
pub const PUBLISHED_BASES: [(usize, f64); 11] = [
    (1 << 10, 4.3e3),
    (1 << 11, 1.2e4),
    (1 << 12, 2.7e4),
    (1 << 13, 8.4e4),
    (1 << 14, 2.3e5),
    (1 << 15, 6.3e5),
    (1 << 16, 2.1e6),
    (1 << 17, 4.9e6),
    (1 << 18, 2.4e7),
    (1 << 19, 5.8e7),
    (1 << 20, 6.5e7),
];

/// What follows from an encoding for sequences of `length` tokens; what doesn't apply is left out of JSON.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Effects {
    /// The length that everything here is about.
    pub length: usize,
    /// The context the model was trained for, if it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trained: Option<usize>,
    /// The effects of a rotary encoding.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope: Option<RopeEffects>,
    /// ALiBi's heads.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub heads: Vec<AlibiHead>,
    /// T5's buckets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bucket_ranges: Vec<Bucket>,
    /// What is added to the scores, by head and distance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bias: Option<BiasMap>,
    /// Llama 4's factor on the queries, by position.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<Curve>,
    /// Of a sinusoidal encoding: the similarity of the vectors of two positions by their distance; 1 is equal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub similarity: Option<Curve>,
}

/// The effects of a rotary encoding and of the scalings that it could have.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RopeEffects {
    /// Every rotated pair, fastest first, under the configured scaling.
    pub pairs: Vec<Pair>,
    /// The configured scaling if there is one, then each scheme that any checkpoint can take, at the factor that
    /// `length` asks for.
    pub scalings: Vec<ScalingEffect>,
    /// [`decay`] by distance: without scaling, then under each of `scalings`.
    pub decay: Vec<Curve>,
    /// How far the base reaches.
    pub bound: BaseBound,
}

/// One pair of rotated lanes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Pair {
    /// Its number, 0 for the fastest.
    pub pair: usize,
    /// Radians per position.
    pub inv_freq: f64,
    /// Positions per full turn; `None` for a pair that does not turn.
    pub wavelength: Option<f64>,
    /// Turns within the trained context without scaling. Below 1 the model has seen only part of the circle, and every
    /// position past the trained context shows it new angles.
    pub trained_turns: Option<f64>,
}

/// What a scaling does to each pair.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ScalingEffect {
    /// The scaling's name; `configured` for the one in effect.
    pub name: String,
    /// Its type.
    pub rope_type: &'static str,
    /// Its factor, if it has a single one.
    pub factor: Option<f64>,
    /// The number by which cosines and sines are multiplied.
    pub attention_factor: f64,
    /// The number by which each pair's frequency is divided: 1 if it is unchanged, `None` for a pair that does not turn.
    pub divided_by: Vec<Option<f64>>,
    /// Pairs that keep their frequency.
    pub kept: usize,
    /// Pairs divided by more than 1 and less than the largest divisor.
    pub between: usize,
    /// Pairs divided by the largest divisor.
    pub divided: usize,
    /// The [`discrimination_horizon`] of these frequencies; `None` if it is past `bound.searched`.
    pub horizon: Option<usize>,
}

/// Numbers by distance or position.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Curve {
    /// What the curve is of.
    pub name: String,
    /// Distances or positions.
    pub at: Vec<usize>,
    /// A value for each.
    pub values: Vec<f64>,
}

/// How far the frequencies let a head tell a similar key from a random one (Men et al. 2024).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BaseBound {
    /// The base, without scaling.
    pub theta: f64,
    /// The first distance at which a random key is preferred, without scaling; `None` if there is none below `searched`.
    pub horizon: Option<usize>,
    /// All distances below this one were tried.
    pub searched: usize,
    /// The smallest base that reaches the trained context.
    pub for_trained: Option<SmallestBase>,
    /// The smallest base that reaches `length`.
    pub for_length: Option<SmallestBase>,
}

/// The smallest base for a context.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct SmallestBase {
    /// Tokens.
    pub context: usize,
    /// The base.
    pub theta: f64,
    /// Taken from [`PUBLISHED_BASES`] (for the next longer context there) rather than computed for this width.
    pub published: bool,
}

/// A head of ALiBi.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct AlibiHead {
    /// Its number.
    pub head: usize,
    /// By how much a score falls per token of distance.
    pub slope: f64,
    /// The distance over which a key's weight halves, scores being equal.
    pub half_distance: f64,
}

/// Distances that share a learned number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Bucket {
    /// Its number: the row of the table.
    pub bucket: usize,
    /// The smallest distance in it, key position minus query position; `None` if there is no smallest.
    pub first: Option<i64>,
    /// The largest distance in it; `None` if there is no largest.
    pub last: Option<i64>,
}

/// A bias by head and distance.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BiasMap {
    /// Key position minus query position, ascending.
    pub distances: Vec<i64>,
    /// One row per head, one value per distance.
    pub values: Vec<Vec<f64>>,
}

/// What `encoding` does to sequences of `length` tokens, in a model trained for `trained`. `vb` points to the encoding's
/// own table as for [`build`]; without it, effects that depend on learned numbers are left out.
///
/// # Errors
/// A configuration that [`build`] refuses.
pub fn effects(
    encoding: &PositionConfig,
    vb: Option<VarBuilder>,
    trained: Option<usize>,
    length: usize,
) -> Result<Effects> {
    let mut out = Effects { length, trained, ..Default::default() };
    match encoding {
        PositionConfig::Rope(config) | PositionConfig::Extended(ExtendedConfig { rope: config, .. }) => {
            out.rope = Some(RopeEffects::new(config, trained, length)?);
        }
        PositionConfig::Alibi(config) => {
            out.heads = alibi(config);
            out.bias = Some(BiasMap::new(&*build(encoding, None)?, length, false)?);
        }
        PositionConfig::Sandwich(_) => out.bias = Some(BiasMap::new(&*build(encoding, None)?, length, false)?),
        PositionConfig::T5(config) => {
            out.bucket_ranges = buckets(config);
            if vb.is_some() {
                // The bias does not change past `max_distance`.
                let reach = length.min(config.max_distance * 2);
                out.bias = Some(BiasMap::new(&*build(encoding, vb)?, reach, config.bidirectional)?);
            }
        }
        PositionConfig::Xpos(config) => out.rope = Some(RopeEffects::new(&config.rope, trained, length)?),
        PositionConfig::Trained(TrainedConfig::Ssmax { rope, .. }) => {
            out.rope = Some(RopeEffects::new(rope, trained, length)?);
        }
        PositionConfig::Trained(_) => {}
        PositionConfig::Nope(config) => {
            out.temperature = config.temperature.map(|t| Curve::new("temperature", length, |p| t.at(p)));
        }
        PositionConfig::Sinusoidal(config) => {
            let inv_freq = config.inv_freq();
            let alike = |m: usize| discrimination(&inv_freq, m as f64) / inv_freq.len() as f64;
            out.similarity = Some(Curve::new("similarity", length, alike));
        }
        PositionConfig::Learned(_) | PositionConfig::RotaryTable(_) => {}
    }
    Ok(out)
}

/// `1..=last`, at most `n` of them, logarithmically spaced and without repeats.
pub fn log_spaced(last: usize, n: usize) -> Vec<usize> {
    let last = last.max(1);
    let step = (last as f64).ln() / (n.max(2) - 1) as f64;
    let mut at: Vec<usize> = (0..n.max(2)).map(|i| ((step * i as f64).exp().round() as usize).min(last)).collect();
    at.dedup();
    at
}

impl Curve {
    fn new(name: &str, length: usize, value: impl Fn(usize) -> f64) -> Self {
        let mut at = vec![0];
        at.extend(log_spaced(length.saturating_sub(1), SAMPLES));
        Self { name: name.to_string(), values: at.iter().map(|&m| value(m)).collect(), at }
    }
}

impl RopeEffects {
    fn new(config: &RopeConfig, trained: Option<usize>, length: usize) -> Result<Self> {
        config.validate()?;
        let plain = config.for_mode("none", 1.0)?;
        let trained = trained.unwrap_or(config.original_context());
        let unscaled = plain.frequencies(length).inv_freq;
        let searched = length.saturating_mul(8).clamp(1 << 14, LONGEST_HORIZON);
        let (scalings, decay) = scalings(config, &plain, trained, length, searched);
        Ok(Self {
            pairs: pairs(&config.frequencies(length).inv_freq, &unscaled, trained),
            scalings,
            decay,
            bound: BaseBound::new(&plain, &unscaled, trained, length, searched),
        })
    }
}

/// The configured scaling if it differs from `plain`, then each that any checkpoint can take, and the decay without and
/// with them.
fn scalings(
    config: &RopeConfig,
    plain: &RopeConfig,
    trained: usize,
    length: usize,
    searched: usize,
) -> (Vec<ScalingEffect>, Vec<Curve>) {
    let mut named = vec![];
    if config.scaling != plain.scaling {
        named.push(("configured", config.clone()));
    }
    let factor = length as f64 / trained as f64;
    if factor > 1.0 {
        let any = scaling::named().filter(|scheme| scheme.takes_factor && scheme.any_checkpoint);
        // Scalings that are not defined on top of this configuration are not shown; where pairs stand still that is most of them.
        named.extend(any.filter_map(|scheme| Some((scheme.name, config.for_mode(scheme.name, factor).ok()?))));
    }
    let unscaled = plain.frequencies(length).inv_freq;
    let curve = |name: &str, inv_freq: &[f64]| Curve::new(name, length, |m| decay(inv_freq, m as f64));
    let mut curves = vec![curve("none", &unscaled)];
    curves.extend(named.iter().map(|(name, scaled)| curve(name, &scaled.frequencies(length).inv_freq)));
    let effect = |(name, scaled): &(&str, RopeConfig)| ScalingEffect::new(name, scaled, &unscaled, length, searched);
    (named.iter().map(effect).collect(), curves)
}

/// The pairs of frequencies `current` in a model trained for `trained` tokens under the frequencies `unscaled`.
pub fn pairs(current: &[f64], unscaled: &[f64], trained: usize) -> Vec<Pair> {
    let turning = |f: f64| (f > 0.0).then_some(std::f64::consts::TAU / f);
    let pair = |(pair, (&inv_freq, &plain)): (usize, (&f64, &f64))| Pair {
        pair,
        inv_freq,
        wavelength: turning(inv_freq),
        trained_turns: turning(plain).map(|wavelength| trained as f64 / wavelength),
    };
    current.iter().zip(unscaled).enumerate().map(pair).collect()
}

impl ScalingEffect {
    /// What the scaling of `config`, called `name`, does to the frequencies `unscaled` in sequences of `length` tokens. Its
    /// horizon is searched below `searched`.
    pub fn new(name: &str, config: &RopeConfig, unscaled: &[f64], length: usize, searched: usize) -> Self {
        let frequencies = config.frequencies(length);
        let divided_by: Vec<Option<f64>> = unscaled
            .iter()
            .zip(&frequencies.inv_freq)
            .map(|(plain, scaled)| (*plain > 0.0 && *scaled > 0.0).then(|| plain / scaled))
            .collect();
        let largest = divided_by.iter().flatten().copied().fold(1.0, f64::max);
        let near = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-9;
        let count = |test: &dyn Fn(f64) -> bool| divided_by.iter().flatten().filter(|&&by| test(by)).count();
        let kept = count(&|by| near(by, 1.0));
        let divided = if near(largest, 1.0) { 0 } else { count(&|by| near(by, largest)) };
        Self {
            name: name.to_string(),
            rope_type: config.scaling.name(),
            factor: config.scaling.factor(),
            attention_factor: frequencies.attention_factor,
            between: count(&|_| true) - kept - divided,
            kept,
            divided,
            divided_by,
            horizon: discrimination_horizon(&frequencies.inv_freq, searched),
        }
    }
}

impl BaseBound {
    fn new(plain: &RopeConfig, unscaled: &[f64], trained: usize, length: usize, searched: usize) -> Self {
        let smallest = |context: usize| {
            if context.saturating_mul(plain.rotary_dim / 2) <= LARGEST_SEARCH {
                let theta = smallest_base(context, plain.rotary_dim);
                return Some(SmallestBase { context, theta, published: false });
            }
            let found = PUBLISHED_BASES.iter().find(|(k, _)| *k >= context && plain.rotary_dim == 128);
            found.map(|&(_, theta)| SmallestBase { context, theta, published: true })
        };
        Self {
            theta: plain.theta,
            horizon: discrimination_horizon(unscaled, searched),
            searched,
            for_trained: smallest(trained),
            for_length: if length == trained { None } else { smallest(length) },
        }
    }
}

fn alibi(config: &AlibiConfig) -> Vec<AlibiHead> {
    let slopes = config.slopes().into_iter().map(|slope| slope * config.scale).enumerate();
    slopes.map(|(head, slope)| AlibiHead { head, slope, half_distance: LN_2 / slope }).collect()
}

/// The distances of every bucket, in the order of the distances from far behind to far ahead; a bucket that no distance
/// falls into is left out.
fn buckets(config: &T5Config) -> Vec<Bucket> {
    let reach = config.max_distance as i64 + 1;
    let ahead = if config.bidirectional { reach } else { 0 };
    let mut ranges: Vec<Bucket> = vec![];
    for distance in -reach..=ahead {
        let bucket = config.bucket(distance);
        match ranges.last_mut() {
            Some(range) if range.bucket == bucket => range.last = Some(distance),
            _ => ranges.push(Bucket { bucket, first: Some(distance), last: Some(distance) }),
        }
    }
    if let Some(far) = ranges.first_mut() {
        far.first = None;
    }
    if let Some(far) = ranges.last_mut().filter(|_| config.bidirectional) {
        far.last = None;
    }
    ranges
}

impl BiasMap {
    /// The bias of the last query of `length` tokens, and with `ahead` also on the keys after a query.
    fn new(encoding: &dyn PositionEncoding, length: usize, ahead: bool) -> Result<Self> {
        let reach = length.saturating_sub(1);
        let samples = log_spaced(reach, SAMPLES / 2).into_iter().filter(|&m| m <= reach).map(|m| m as i64);
        let mut distances: Vec<i64> = samples.clone().map(|m| -m).collect();
        distances.push(0);
        if ahead {
            distances.extend(samples);
        }
        distances.sort_unstable();
        let mut values: Vec<Vec<f64>> = vec![];
        for &distance in &distances {
            let q = if distance > 0 { 0 } else { reach };
            let k = (q as i64 + distance) as usize;
            let positions = Positions::new(q..q + 1);
            let bias = encoding.bias(&BiasContext::new(Context::new(&positions), k..k + 1))?;
            let Some(bias) = bias.to_dense(q..q + 1, k..k + 1, &Device::Cpu)? else {
                continue;
            };
            let column = bias.flatten_all()?.to_dtype(candle_core::DType::F64)?.to_vec1::<f64>()?;
            values.resize(column.len(), vec![]);
            values.iter_mut().zip(column).for_each(|(row, value)| row.push(value));
        }
        Ok(Self { distances, values })
    }
}

#[cfg(test)]
#[path = "effects_tests.rs"]
mod tests;
