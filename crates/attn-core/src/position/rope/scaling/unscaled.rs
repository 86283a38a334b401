//! No scaling: `theta^(-2i/d)`.

use super::scheme::{Info, LlamaCpp, Rotary, Scheme};
use super::source::{Dict, Source};
use candle_core::Result;

/// No scaling.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unscaled;

impl Scheme for Unscaled {
    const INFO: Info = Info {
        called: Some("none"),
        // M-RoPE shares its lanes between three axes, whose positions are equal for text.
        aliases: &["mrope"],
        takes_factor: false,
        compared: true,
        ..Info::new("default", "The positions that the model was trained with, without scaling.")
    };

    fn read(source: &mut Source) -> Result<Self> {
        source.refuse_factor("needs a scaling to apply it to, such as yarn")?;
        Ok(Self)
    }

    fn write(&self) -> Dict {
        Dict::new()
    }

    fn frequencies(&self, rotary: Rotary, _len: usize) -> Vec<f64> {
        rotary.plain()
    }

    fn to_llama_cpp(&self, rotary: Rotary) -> std::result::Result<LlamaCpp, String> {
        Ok(LlamaCpp { flags: "--rope-scaling none".into(), theta: rotary.theta })
    }
}
