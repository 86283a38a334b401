//! YaRN (Peng et al. 2023): fast frequencies are kept, slow ones interpolated, and attention is sharpened.

use super::ramp::{Ramp, yarn_mscale};
use super::scheme::{Info, LlamaCpp, Rotary, Scheme, dict};
use super::source::{Dict, Source};
use crate::position::frequencies::positive;
use candle_core::Result;

/// YaRN.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Yarn {
    /// Divides the slow frequencies.
    pub factor: f64,
    /// The trained context.
    pub original_max_position_embeddings: usize,
    /// Which frequencies count as slow.
    pub ramp: Ramp,
    /// Multiplies cos and sin; derived from the factor if absent.
    pub attention_factor: Option<f64>,
    /// DeepSeek: numerator of the derived attention factor. Takes effect together with `mscale_all_dim`.
    pub mscale: Option<f64>,
    /// DeepSeek: denominator of the derived attention factor.
    pub mscale_all_dim: Option<f64>,
}

impl Yarn {
    /// The paper's scaling by `factor` from a trained context.
    pub fn new(factor: f64, original_max_position_embeddings: usize) -> Self {
        Self {
            factor,
            original_max_position_embeddings,
            ramp: Ramp::default(),
            attention_factor: None,
            mscale: None,
            mscale_all_dim: None,
        }
    }

    /// What multiplies cos and sin.
    fn attention(&self) -> f64 {
        if let Some(given) = self.attention_factor {
            return given;
        }
        match (self.mscale, self.mscale_all_dim) {
            // A zero counts as absent, as in transformers.
            (Some(m), Some(all)) if m != 0.0 && all != 0.0 => {
                yarn_mscale(self.factor, m) / yarn_mscale(self.factor, all)
            }
            _ => yarn_mscale(self.factor, 1.0),
        }
    }
}

fn not_negative(key: &str, value: f64) -> Result<()> {
    if value == 0.0 { Ok(()) } else { positive(key, value) }
}

impl Scheme for Yarn {
    const INFO: Info = Info {
        keys: &["beta_fast", "beta_slow", "truncate", "attention_factor", "mscale", "mscale_all_dim"],
        ignored: &["attn_factor"],
        compared: true,
        ..Info::new("yarn", "Like ntk-by-parts, with sharper attention for longer texts.")
    };

    fn read(source: &mut Source) -> Result<Self> {
        let original_max_position_embeddings = source.original()?;
        Ok(Self {
            // DeepSeek: a factor of null stands for the ratio of the contexts; an absent one is an error.
            factor: source.factor_or_ratio(original_max_position_embeddings)?,
            original_max_position_embeddings,
            ramp: Ramp::read(source)?,
            attention_factor: source.attention_factor()?,
            mscale: source.number("mscale")?,
            mscale_all_dim: source.number("mscale_all_dim")?,
        })
    }

    fn write(&self) -> Dict {
        let mut keys = dict([
            ("factor", Some(self.factor.into())),
            ("attention_factor", self.attention_factor.map(Into::into)),
            ("mscale", self.mscale.map(Into::into)),
            ("mscale_all_dim", self.mscale_all_dim.map(Into::into)),
        ]);
        keys.extend(self.ramp.write());
        keys
    }

    fn frequencies(&self, rotary: Rotary, _len: usize) -> Vec<f64> {
        self.ramp.frequencies(rotary, self.factor, self.original_max_position_embeddings)
    }

    fn validate(&self, _rotary: Rotary) -> Result<()> {
        self.ramp.validate()?;
        self.attention_factor.map_or(Ok(()), |a| positive("attention_factor", a))?;
        self.mscale.map_or(Ok(()), |m| not_negative("mscale", m))?;
        self.mscale_all_dim.map_or(Ok(()), |m| not_negative("mscale_all_dim", m))
    }

    fn factor(&self) -> Option<f64> {
        Some(self.factor)
    }

    fn original_context(&self) -> Option<usize> {
        Some(self.original_max_position_embeddings)
    }

    fn attention_factor(&self, _rotary: Rotary, _len: usize) -> f64 {
        self.attention()
    }

    fn latent_score_factor(&self) -> f64 {
        self.mscale_all_dim.filter(|all| *all != 0.0).map_or(1.0, |all| yarn_mscale(self.factor, all).powi(2))
    }

    fn to_llama_cpp(&self, rotary: Rotary) -> std::result::Result<LlamaCpp, String> {
        self.ramp.to_llama_cpp(rotary, self.factor, self.original_max_position_embeddings, self.attention())
    }

    fn to_vllm(&self, _rotary: Rotary, _context: usize) -> std::result::Result<Dict, String> {
        Ok(Ramp::to_vllm(self.factor, self.attention()))
    }
}
