//! GGUF's `rope_freqs.weight`: each frequency divided by its own number. Llama 3's and LongRoPE's scalings come like
//! this, worked out beforehand.

use super::scheme::{HfRope, Info, LlamaCpp, Rotary, Scheme, TENSORS_OF_GGUF, dict, divisors};
use super::source::{Dict, ORIGINAL, Source};
use candle_core::Result;

/// GGUF's frequency factors.
#[derive(Debug, Clone, PartialEq)]
pub struct FreqFactors {
    /// One divisor per rotated pair.
    pub factors: Vec<f64>,
}

impl Scheme for FreqFactors {
    const INFO: Info = Info {
        takes_factor: false,
        any_checkpoint: false,
        named: false,
        ..Info::new("freq-factors", "One factor per frequency, stored in the file.")
    };

    fn read(source: &mut Source) -> Result<Self> {
        source.refuse_factor("can't be applied to the checkpoint's frequency factors; give a scaling too")?;
        Ok(Self { factors: source.list("factors")? })
    }

    fn write(&self) -> Dict {
        dict([("factors", Some(self.factors.clone().into()))])
    }

    fn frequencies(&self, rotary: Rotary, _len: usize) -> Vec<f64> {
        rotary.divided(&self.factors)
    }

    fn validate(&self, rotary: Rotary) -> Result<()> {
        divisors("rope_freqs", &self.factors, rotary)
    }

    fn to_hf(&self, rotary: Rotary) -> Result<HfRope> {
        let keys = dict([
            ("short_factor", Some(self.factors.clone().into())),
            ("long_factor", Some(self.factors.clone().into())),
            ("attention_factor", Some(1.0.into())),
            (ORIGINAL, Some(rotary.max_position_embeddings.into())),
        ]);
        Ok(HfRope { rope_type: "longrope", theta: rotary.theta, keys })
    }

    fn to_llama_cpp(&self, _rotary: Rotary) -> std::result::Result<LlamaCpp, String> {
        Err(TENSORS_OF_GGUF.into())
    }
}
