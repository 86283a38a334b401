//! NTK-RoPE-mixed (Su 2023, <https://kexue.fm/archives/9706>, and `ntk_patch.py` of his repository rerope): pair `m` of `n`, counted
//! from 1, is divided by `exp(a m^b)`, with `a` such that the slowest is divided by the factor. It spares fast pairs less than
//! NTK-aware scaling does, and slow ones more: `b = 0` is linear interpolation, `b = 1` nearly NTK's larger base.
//!
//! For transformers and vLLM it is a LongRoPE with the same divisors at every length.

use super::longrope::LongRope;
use super::scheme::{HfRope, Info, LlamaCpp, Rotary, Scheme, TENSORS_OF_GGUF, dict};
use super::source::{Dict, Source};
use candle_core::{Result, bail};

/// NTK-RoPE-mixed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NtkMixed {
    /// The slowest pair is divided by this.
    pub factor: f64,
    /// `b`, from 0 to 1: 0.625 in the article, 0.75 in the repository.
    pub exponent: f64,
}

const EXPONENT: &str = "exponent";

impl NtkMixed {
    /// With the article's exponent.
    pub fn new(factor: f64) -> Self {
        Self { factor, exponent: 0.625 }
    }

    /// What each pair's frequency is divided by.
    fn divisors(self, pairs: usize) -> Vec<f64> {
        let divisor = |m: usize| (self.factor.ln() * (m as f64 / pairs as f64).powf(self.exponent)).exp();
        (1..=pairs).map(divisor).collect()
    }

    /// The same encoding as LongRoPE.
    fn longrope(self, rotary: Rotary) -> LongRope {
        let divisors = self.divisors(rotary.pairs());
        LongRope {
            short_factor: divisors.clone(),
            long_factor: divisors,
            original_max_position_embeddings: rotary.max_position_embeddings,
            factor: Some(self.factor),
            attention_factor: Some(1.0),
            mscale: None,
        }
    }
}

impl Scheme for NtkMixed {
    const INFO: Info = Info {
        keys: &[EXPONENT],
        ..Info::new("ntk-mixed", "Between linear and ntk: every frequency is squeezed, slow ones by up to the factor.")
    };

    fn read(source: &mut Source) -> Result<Self> {
        let default = Self::new(source.factor()?);
        Ok(Self { exponent: source.number(EXPONENT)?.unwrap_or(default.exponent), ..default })
    }

    fn write(&self) -> Dict {
        dict([("factor", Some(self.factor.into())), (EXPONENT, Some(self.exponent.into()))])
    }

    fn frequencies(&self, rotary: Rotary, _len: usize) -> Vec<f64> {
        rotary.divided(&self.divisors(rotary.pairs()))
    }

    fn validate(&self, _rotary: Rotary) -> Result<()> {
        if !(0.0..=1.0).contains(&self.exponent) {
            bail!("{EXPONENT} must lie in 0..=1 for ntk-mixed, got {}", self.exponent)
        }
        Ok(())
    }

    fn factor(&self) -> Option<f64> {
        Some(self.factor)
    }

    fn to_hf(&self, rotary: Rotary) -> Result<HfRope> {
        self.longrope(rotary).to_hf(rotary)
    }

    fn to_llama_cpp(&self, _rotary: Rotary) -> std::result::Result<LlamaCpp, String> {
        Err(TENSORS_OF_GGUF.into())
    }

    /// vLLM chooses between equal divisors, so LongRoPE's limit on the context does not matter.
    fn to_vllm(&self, rotary: Rotary, _context: usize) -> std::result::Result<Dict, String> {
        self.longrope(rotary).to_vllm(rotary, rotary.max_position_embeddings)
    }
}
