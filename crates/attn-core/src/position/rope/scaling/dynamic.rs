//! Dynamic NTK: past the trained context, NTK-aware scaling by how far past it the sequence is.

use super::scheme::{HfRope, Info, LlamaCpp, Rotary, Scheme, dict};
use super::source::{Dict, Source};
use crate::position::Resolution;
use candle_core::Result;

/// Dynamic NTK.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dynamic {
    /// The slope of the growth: at length n the base is that of a factor of `factor * n / M - (factor - 1)`.
    pub factor: f64,
    /// The trained context M, up to which nothing is scaled.
    pub original_max_position_embeddings: usize,
}

impl Scheme for Dynamic {
    const INFO: Info =
        Info { compared: true, ..Info::new("dynamic", "Like ntk, with a base that grows beyond the trained length.") };

    fn read(source: &mut Source) -> Result<Self> {
        // As in transformers, which leaves an original_max_position_embeddings beside it unread.
        let original_max_position_embeddings = source.declared(Self::INFO.name)?;
        Ok(Self { factor: source.factor()?, original_max_position_embeddings })
    }

    fn write(&self) -> Dict {
        dict([("factor", Some(self.factor.into()))])
    }

    fn frequencies(&self, rotary: Rotary, len: usize) -> Vec<f64> {
        let original = self.original_max_position_embeddings;
        let (n, original) = (len.max(original) as f64, original as f64);
        let theta = rotary.ntk_theta(self.factor * n / original - (self.factor - 1.0));
        Rotary { theta, ..rotary }.plain()
    }

    fn validate(&self, rotary: Rotary) -> Result<()> {
        rotary.check_ntk(Self::INFO.name)
    }

    fn factor(&self) -> Option<f64> {
        Some(self.factor)
    }

    fn original_context(&self) -> Option<usize> {
        Some(self.original_max_position_embeddings)
    }

    /// The trained context itself: the formula starts from what the config declares.
    fn extended(&self, original: usize) -> usize {
        original
    }

    fn resolve(&self, len: usize) -> Resolution {
        if len > self.original_max_position_embeddings { Resolution::Length(len) } else { Resolution::Fixed }
    }

    fn to_hf(&self, rotary: Rotary) -> Result<HfRope> {
        // Without the trained context, about which transformers warns: it starts from max_position_embeddings.
        Ok(HfRope { rope_type: Self::INFO.name, theta: rotary.theta, keys: self.write() })
    }

    fn to_llama_cpp(&self, _rotary: Rotary) -> std::result::Result<LlamaCpp, String> {
        Err("llama.cpp has no scaling that grows with the length".into())
    }

    fn to_vllm(&self, _rotary: Rotary, _context: usize) -> std::result::Result<Dict, String> {
        Err("vLLM's dynamic scaling uses one base for all lengths, that of the longest".into())
    }
}
