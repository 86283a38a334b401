//! NTK-by-parts: YaRN's frequencies without its attention factor, and written as that for transformers.

use super::ramp::Ramp;
use super::scheme::{HfRope, Info, LlamaCpp, Rotary, Scheme, dict};
use super::source::{Dict, ORIGINAL, Source};
use candle_core::Result;

/// NTK-by-parts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NtkByParts {
    /// Divides the slow frequencies.
    pub factor: f64,
    /// The trained context.
    pub original_max_position_embeddings: usize,
    /// Which frequencies count as slow.
    pub ramp: Ramp,
}

impl Scheme for NtkByParts {
    const INFO: Info = Info {
        keys: &["beta_fast", "beta_slow", "truncate"],
        compared: true,
        ..Info::new("ntk-by-parts", "Fast pairs unchanged, slow ones slowed down, a blend between.")
    };

    fn read(source: &mut Source) -> Result<Self> {
        Ok(Self {
            original_max_position_embeddings: source.original()?,
            factor: source.factor()?,
            ramp: Ramp::read(source)?,
        })
    }

    fn write(&self) -> Dict {
        let mut keys = dict([("factor", Some(self.factor.into()))]);
        keys.extend(self.ramp.write());
        keys
    }

    fn frequencies(&self, rotary: Rotary, _len: usize) -> Vec<f64> {
        self.ramp.frequencies(rotary, self.factor, self.original_max_position_embeddings)
    }

    fn validate(&self, _rotary: Rotary) -> Result<()> {
        self.ramp.validate()
    }

    fn factor(&self) -> Option<f64> {
        Some(self.factor)
    }

    fn original_context(&self) -> Option<usize> {
        Some(self.original_max_position_embeddings)
    }

    fn to_hf(&self, rotary: Rotary) -> Result<HfRope> {
        let mut keys = self.write();
        keys.insert("attention_factor".into(), 1.0.into());
        keys.insert(ORIGINAL.into(), self.original_max_position_embeddings.into());
        Ok(HfRope { rope_type: "yarn", theta: rotary.theta, keys })
    }

    fn to_llama_cpp(&self, rotary: Rotary) -> std::result::Result<LlamaCpp, String> {
        self.ramp.to_llama_cpp(rotary, self.factor, self.original_max_position_embeddings, 1.0)
    }

    fn to_vllm(&self, _rotary: Rotary, _context: usize) -> std::result::Result<Dict, String> {
        Ok(Ramp::to_vllm(self.factor, 1.0))
    }
}
