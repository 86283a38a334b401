//! What YaRN and NTK-by-parts share: which frequencies count as slow, and how those between are mixed.

use super::scheme::{LlamaCpp, Rotary, dict};
use super::source::{Dict, Source};
use crate::position::frequencies::positive;
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

/// YaRN's `m(s, x)`: the growth of the attention temperature with the factor. DeepSeek also multiplies its softmax
/// scale by `yarn_mscale(factor, mscale_all_dim)` squared.
pub fn yarn_mscale(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

impl Default for Ramp {
    fn default() -> Self {
        Self { beta_fast: 32.0, beta_slow: 1.0, truncate: true }
    }
}

impl Ramp {
    pub(super) fn read(source: &mut Source) -> Result<Self> {
        let default = Self::default();
        // As transformers reads them: zero and null are no boundary, but a null for truncate is false.
        let set = |value: Option<f64>, default| value.filter(|v| *v != 0.0).unwrap_or(default);
        Ok(Self {
            beta_fast: set(source.inherited_number("beta_fast")?, default.beta_fast),
            beta_slow: set(source.inherited_number("beta_slow")?, default.beta_slow),
            truncate: source.inherited_flag("truncate", default.truncate, false)?,
        })
    }

    pub(super) fn write(self) -> Dict {
        dict([
            ("beta_fast", Some(self.beta_fast.into())),
            ("beta_slow", Some(self.beta_slow.into())),
            ("truncate", (!self.truncate).then(|| false.into())),
        ])
    }

    pub(super) fn validate(&self) -> Result<()> {
        positive("beta_fast", self.beta_fast)?;
        positive("beta_slow", self.beta_slow)?;
        if self.beta_fast < self.beta_slow {
            bail!("beta_fast {} must not be below beta_slow {}", self.beta_fast, self.beta_slow)
        }
        Ok(())
    }

    pub(super) fn frequencies(&self, rotary: Rotary, factor: f64, original: usize) -> Vec<f64> {
        let (d, theta) = (rotary.rotary_dim as f64, rotary.theta);
        // The dimension whose pair turns `rotations` times within the original context.
        let dimension = |rotations: f64| d * (original as f64 / (rotations * TAU)).ln() / (2.0 * theta.ln());
        let (mut low, mut high) = (dimension(self.beta_fast), dimension(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let low = low.max(0.0);
        let mut high = high.min(d - 1.0);
        if low == high {
            high += 0.001;
        }
        let blend = |(i, f): (usize, &f64)| {
            let slow = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            f * (1.0 - slow) + f / factor * slow
        };
        rotary.plain().iter().enumerate().map(blend).collect()
    }

    /// Beside `attention_factor`, which some versions of vLLM's YaRN read and others ignore without a warning, the factor that
    /// those multiply their own by, and that newer ones drop.
    pub(super) fn to_vllm(factor: f64, attention: f64) -> Dict {
        let own = yarn_mscale(factor, 1.0);
        if (attention / own - 1.0).abs() <= 1e-9 {
            return Dict::new();
        }
        dict([("attention_factor", Some(attention.into())), ("attn_factor", Some((attention / own).into()))])
    }

    /// llama.cpp's YaRN, which has an attention factor of its own (`llama_context`'s constructor overwrites
    /// `--yarn-attn-factor`) and rounds the ramp's ends.
    pub(super) fn to_llama_cpp(
        self,
        rotary: Rotary,
        factor: f64,
        original: usize,
        attention: f64,
    ) -> std::result::Result<LlamaCpp, String> {
        let mut differs = vec![];
        let own = yarn_mscale(factor, 1.0);
        if (attention / own - 1.0).abs() > 1e-9 {
            differs.push(format!(
                "llama.cpp computes its own attention factor, {own:.6}, but this scaling has {attention:.6}"
            ));
        }
        if !self.truncate {
            differs.push("llama.cpp rounds the ramp's ends to whole dimensions".to_string());
        }
        if !differs.is_empty() {
            return Err(differs.join("; "));
        }
        let flags = format!(
            "--rope-scaling yarn --rope-scale {factor} --yarn-orig-ctx {original} --yarn-beta-fast {} \
             --yarn-beta-slow {}",
            self.beta_fast, self.beta_slow
        );
        Ok(LlamaCpp { flags, theta: rotary.theta })
    }
}
