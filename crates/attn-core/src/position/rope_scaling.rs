//! Every way to stretch RoPE past its trained context, as plain f64 arithmetic.
//!
//! A scaling decides two things and nothing else: the inverse frequency of each rotated pair and one factor on cos and
//! sin. Keeping that free of tensors makes each scheme a few lines that read like its paper, testable against
//! published values. Formulas follow `modeling_rope_utils.py` of transformers 5.23, which is what checkpoints were
//! validated with, also where a paper says otherwise (YaRN's ramp is linear in the dimension index, not in rotations).

use super::{Resolution, RopeConfig};
use candle_core::{Result, bail};
use std::f64::consts::TAU;

/// YaRN's boundaries: a pair that turns more than `beta_fast` times within the trained context keeps its frequency, one
/// that turns less than `beta_slow` times is interpolated, the rest is blended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ramp {
    /// Rotations above which a frequency is kept; 32 in the paper.
    pub beta_fast: f64,
    /// Rotations below which a frequency is divided by the factor; 1 in the paper.
    pub beta_slow: f64,
    /// Rounds the boundaries outwards to whole dimensions. True everywhere but in gpt-oss.
    pub truncate: bool,
}

impl Default for Ramp {
    fn default() -> Self {
        Self { beta_fast: 32.0, beta_slow: 1.0, truncate: true }
    }
}

/// How RoPE's frequencies are changed. `factor` is always the ratio of the wanted context to the trained one.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum RopeScaling {
    /// None: `theta^(-2i/d)`.
    #[default]
    Default,
    /// Position interpolation (Chen et al. 2023): every frequency divided by `factor`.
    Linear {
        /// Divides the positions.
        factor: f64,
    },
    /// Static NTK-aware scaling: `theta * factor^(d/(d-2))`. Not in transformers.
    Ntk {
        /// The slowest pair is interpolated by this much.
        factor: f64,
    },
    /// Dynamic NTK: past the trained context, NTK-aware scaling by how far past it the sequence is.
    Dynamic {
        /// The slope of the growth: at length n the base is that of a factor of `factor * n / M - (factor - 1)`.
        factor: f64,
        /// The trained context M, up to which nothing is scaled.
        original_max_position_embeddings: usize,
    },
    /// NTK-by-parts: YaRN's frequencies without its attention factor.
    NtkByParts {
        /// Divides the slow frequencies.
        factor: f64,
        /// The trained context.
        original_max_position_embeddings: usize,
        /// Which frequencies count as slow.
        ramp: Ramp,
    },
    /// YaRN (Peng et al. 2023).
    Yarn {
        /// Divides the slow frequencies.
        factor: f64,
        /// The trained context.
        original_max_position_embeddings: usize,
        /// Which frequencies count as slow.
        ramp: Ramp,
        /// Multiplies cos and sin; derived from the factor if absent.
        attention_factor: Option<f64>,
        /// DeepSeek: numerator of the derived attention factor. Takes effect together with `mscale_all_dim`.
        mscale: Option<f64>,
        /// DeepSeek: denominator of the derived attention factor.
        mscale_all_dim: Option<f64>,
    },
    /// LongRoPE (Ding et al. 2024), as in Phi-3: one divisor per pair, and another set of them past the trained
    /// context.
    LongRope {
        /// Divisors for sequences of up to `original_max_position_embeddings` tokens, one per rotated pair.
        short_factor: Vec<f64>,
        /// Divisors for longer sequences.
        long_factor: Vec<f64>,
        /// The trained context.
        original_max_position_embeddings: usize,
        /// For the attention factor alone; `max_position_embeddings / original_max_position_embeddings` if absent.
        factor: Option<f64>,
        /// Multiplies cos and sin; derived from the factor if absent.
        attention_factor: Option<f64>,
    },
    /// Llama 3.1: keeps fast frequencies, divides slow ones, blends between.
    Llama3 {
        /// Divides the slow frequencies.
        factor: f64,
        /// Rotations within the trained context below which a frequency is divided by `factor`.
        low_freq_factor: f64,
        /// Rotations within the trained context above which a frequency is kept.
        high_freq_factor: f64,
        /// The trained context.
        original_max_position_embeddings: usize,
    },
    /// Proportional RoPE (Gemma 4): the exponents are those of the full width, the slowest pairs do not turn at all.
    Proportional {
        /// The share of the pairs that turn.
        partial_rotary_factor: f64,
        /// Divides the frequencies.
        factor: f64,
    },
    /// GGUF's `rope_freqs.weight`: each frequency divided by its own number.
    FreqFactors {
        /// One divisor per rotated pair.
        factors: Vec<f64>,
    },
}

/// What a scaling comes to for one sequence length.
#[derive(Debug, Clone, PartialEq)]
pub struct Frequencies {
    /// Radians per position, one entry per rotated pair.
    pub inv_freq: Vec<f64>,
    /// Multiplies cos and sin, so scores scale by its square.
    pub attention_factor: f64,
}

impl Frequencies {
    /// Positions per full turn of each pair; infinite for a pair that does not turn.
    pub fn wavelengths(&self) -> Vec<f64> {
        self.inv_freq.iter().map(|f| TAU / f).collect()
    }
}

/// `theta^(-2i/width)` for the first `pairs` pairs.
pub(crate) fn plain_frequencies(theta: f64, width: usize, pairs: usize) -> Vec<f64> {
    (0..pairs).map(|i| theta.powf(-2.0 * i as f64 / width as f64)).collect()
}

impl RopeScaling {
    /// The name that configs use.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Linear { .. } => "linear",
            Self::Ntk { .. } => "ntk",
            Self::Dynamic { .. } => "dynamic",
            Self::NtkByParts { .. } => "ntk-by-parts",
            Self::Yarn { .. } => "yarn",
            Self::LongRope { .. } => "longrope",
            Self::Llama3 { .. } => "llama3",
            Self::Proportional { .. } => "proportional",
            Self::FreqFactors { .. } => "freq-factors",
        }
    }

    /// The scaling's factor, if it has a single one.
    pub fn factor(&self) -> Option<f64> {
        match self {
            Self::Default | Self::FreqFactors { .. } => None,
            Self::LongRope { factor, .. } => *factor,
            Self::Linear { factor }
            | Self::Ntk { factor }
            | Self::Dynamic { factor, .. }
            | Self::NtkByParts { factor, .. }
            | Self::Yarn { factor, .. }
            | Self::Llama3 { factor, .. }
            | Self::Proportional { factor, .. } => Some(*factor),
        }
    }

    /// The trained context that the scaling starts from, if it depends on one.
    pub fn original_max_position_embeddings(&self) -> Option<usize> {
        match self {
            Self::Dynamic { original_max_position_embeddings: n, .. }
            | Self::NtkByParts { original_max_position_embeddings: n, .. }
            | Self::Yarn { original_max_position_embeddings: n, .. }
            | Self::LongRope { original_max_position_embeddings: n, .. }
            | Self::Llama3 { original_max_position_embeddings: n, .. } => Some(*n),
            _ => None,
        }
    }

    /// Which frequencies a sequence of `len` tokens uses: constant but for LongRoPE, which switches once, and dynamic
    /// NTK, which changes with every token past the trained context.
    pub fn resolve(&self, len: usize) -> Resolution {
        match self {
            Self::Dynamic { original_max_position_embeddings: original, .. } if len > *original => {
                Resolution::Length(len)
            }
            Self::LongRope { original_max_position_embeddings: original, .. } => {
                if len > *original {
                    Resolution::Long
                } else {
                    Resolution::Short
                }
            }
            _ => Resolution::Fixed,
        }
    }

    /// The frequencies and the attention factor for a sequence of `len` tokens. Infallible for a configuration that
    /// [`RopeConfig::validate`] accepts.
    pub fn frequencies(&self, config: &RopeConfig, len: usize) -> Frequencies {
        let (theta, d) = (config.theta, config.rotary_dim);
        let plain = plain_frequencies(theta, d, d / 2);
        let mut attention = 1.0;
        let inv_freq = match self {
            Self::Default => plain,
            Self::Linear { factor } => plain.iter().map(|f| f / factor).collect(),
            Self::Ntk { factor } => plain_frequencies(config.ntk_theta(*factor), d, d / 2),
            Self::Dynamic { factor, original_max_position_embeddings: original } => {
                plain_frequencies(config.dynamic_theta(*factor, *original, len), d, d / 2)
            }
            Self::NtkByParts { factor, original_max_position_embeddings: original, ramp } => {
                by_parts(&plain, theta, d, *factor, *original, ramp)
            }
            Self::Yarn { factor, original_max_position_embeddings: original, ramp, .. } => {
                attention = self.attention_factor(config);
                by_parts(&plain, theta, d, *factor, *original, ramp)
            }
            Self::LongRope { short_factor, long_factor, .. } => {
                attention = self.attention_factor(config);
                let long = self.resolve(len) == Resolution::Long;
                divide(&plain, if long { long_factor } else { short_factor })
            }
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let original = *original_max_position_embeddings as f64;
                plain.iter().map(|&f| llama3(f, *factor, *low_freq_factor, *high_freq_factor, original)).collect()
            }
            Self::Proportional { partial_rotary_factor, factor } => {
                let turning = (partial_rotary_factor * d as f64 / 2.0).floor() as usize;
                (0..d / 2).map(|i| if i < turning { plain[i] / factor } else { 0.0 }).collect()
            }
            Self::FreqFactors { factors } => divide(&plain, factors),
        };
        Frequencies { inv_freq, attention_factor: attention }
    }

    /// What multiplies cos and sin; does not depend on the length.
    pub fn attention_factor(&self, config: &RopeConfig) -> f64 {
        match self {
            Self::Yarn { attention_factor: Some(a), .. } | Self::LongRope { attention_factor: Some(a), .. } => *a,
            Self::Yarn { factor, mscale, mscale_all_dim, .. } => match (mscale, mscale_all_dim) {
                // A zero counts as absent, as in transformers.
                (Some(m), Some(all)) if *m != 0.0 && *all != 0.0 => {
                    yarn_mscale(*factor, *m) / yarn_mscale(*factor, *all)
                }
                _ => yarn_mscale(*factor, 1.0),
            },
            Self::LongRope { original_max_position_embeddings, factor, .. } => {
                let original = *original_max_position_embeddings as f64;
                let factor = factor.unwrap_or(config.max_position_embeddings as f64 / original);
                if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() }
            }
            _ => 1.0,
        }
    }

    /// Refuses values that no formula can take, naming the key.
    pub(crate) fn validate(&self, config: &RopeConfig) -> Result<()> {
        let pairs = config.rotary_dim / 2;
        if let Some(factor) = self.factor() {
            positive("factor", factor)?;
        }
        if self.original_max_position_embeddings() == Some(0) {
            bail!("original_max_position_embeddings must be positive, got 0")
        }
        match self {
            Self::Ntk { .. } | Self::Dynamic { .. } if config.rotary_dim <= 2 => {
                bail!("rope type {} needs a rotary width above 2, got {}", self.name(), config.rotary_dim)
            }
            Self::NtkByParts { ramp, .. } => ramp.validate(),
            Self::Yarn { ramp, attention_factor, mscale, mscale_all_dim, .. } => {
                ramp.validate()?;
                attention_factor.map_or(Ok(()), |a| positive("attention_factor", a))?;
                mscale.map_or(Ok(()), |m| not_negative("mscale", m))?;
                mscale_all_dim.map_or(Ok(()), |m| not_negative("mscale_all_dim", m))
            }
            Self::LongRope {
                short_factor, long_factor, attention_factor, original_max_position_embeddings, ..
            } => {
                if *original_max_position_embeddings < 2 {
                    bail!("original_max_position_embeddings must be above 1 for longrope")
                }
                attention_factor.map_or(Ok(()), |a| positive("attention_factor", a))?;
                divisors("short_factor", short_factor, pairs)?;
                divisors("long_factor", long_factor, pairs)
            }
            Self::Llama3 { low_freq_factor, high_freq_factor, .. } => {
                positive("low_freq_factor", *low_freq_factor)?;
                positive("high_freq_factor", *high_freq_factor)?;
                if high_freq_factor <= low_freq_factor {
                    bail!("high_freq_factor {high_freq_factor} must be above low_freq_factor {low_freq_factor}")
                }
                Ok(())
            }
            Self::Proportional { partial_rotary_factor: p, .. } if !(0.0..=1.0).contains(p) => {
                bail!("partial_rotary_factor must lie in 0..=1, got {p}")
            }
            Self::FreqFactors { factors } => divisors("rope_freqs", factors, pairs),
            _ => Ok(()),
        }
    }
}

impl Ramp {
    fn validate(&self) -> Result<()> {
        positive("beta_fast", self.beta_fast)?;
        positive("beta_slow", self.beta_slow)?;
        if self.beta_fast < self.beta_slow {
            bail!("beta_fast {} must not be below beta_slow {}", self.beta_fast, self.beta_slow)
        }
        Ok(())
    }
}

/// Refuses zero, negative numbers, NaN and infinity.
pub(crate) fn positive(key: &str, value: f64) -> Result<()> {
    if !(value.is_finite() && value > 0.0) {
        bail!("{key} must be a positive number, got {value}")
    }
    Ok(())
}

fn not_negative(key: &str, value: f64) -> Result<()> {
    if value == 0.0 { Ok(()) } else { positive(key, value) }
}

fn divisors(key: &str, values: &[f64], pairs: usize) -> Result<()> {
    if values.len() != pairs {
        bail!("{key} has {} entries, {pairs} pairs are rotated", values.len())
    }
    values.iter().try_for_each(|&v| positive(key, v))
}

fn divide(plain: &[f64], by: &[f64]) -> Vec<f64> {
    plain.iter().zip(by).map(|(f, ext)| f / ext).collect()
}

impl RopeConfig {
    /// The base of NTK-aware scaling, under which the slowest pair turns `stretch` times as slowly.
    pub fn ntk_theta(&self, stretch: f64) -> f64 {
        let d = self.rotary_dim as f64;
        self.theta * stretch.powf(d / (d - 2.0))
    }

    /// The base of dynamic NTK scaling from a trained context of `original` tokens, at `len` tokens.
    pub fn dynamic_theta(&self, factor: f64, original: usize, len: usize) -> f64 {
        let (n, original) = (len.max(original) as f64, original as f64);
        self.ntk_theta(factor * n / original - (factor - 1.0))
    }
}

/// YaRN's `m(s, x)`: the growth of the attention temperature with the factor. DeepSeek also multiplies its softmax
/// scale by `yarn_mscale(factor, mscale_all_dim)` squared.
pub fn yarn_mscale(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

fn by_parts(plain: &[f64], theta: f64, d: usize, factor: f64, original: usize, ramp: &Ramp) -> Vec<f64> {
    // The dimension whose pair turns `rotations` times within the original context.
    let dimension = |rotations: f64| d as f64 * (original as f64 / (rotations * TAU)).ln() / (2.0 * theta.ln());
    let (mut low, mut high) = (dimension(ramp.beta_fast), dimension(ramp.beta_slow));
    if ramp.truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    let low = low.max(0.0);
    let mut high = high.min(d as f64 - 1.0);
    if low == high {
        high += 0.001;
    }
    let blend = |(i, f): (usize, &f64)| {
        let slow = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        f * (1.0 - slow) + f / factor * slow
    };
    plain.iter().enumerate().map(blend).collect()
}

fn llama3(f: f64, factor: f64, low: f64, high: f64, original: f64) -> f64 {
    let wavelength = TAU / f;
    if wavelength < original / high {
        f
    } else if wavelength > original / low {
        f / factor
    } else {
        let t = (original / wavelength - low) / (high - low);
        (1.0 - t) * f / factor + t * f
    }
}
