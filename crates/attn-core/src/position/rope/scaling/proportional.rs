//! Proportional RoPE (Gemma 4): the exponents are those of the full width, the slowest pairs do not turn at all.

use super::scheme::{HfRope, Info, LlamaCpp, Rotary, Scheme, dict};
use super::source::{Dict, Source};
use candle_core::{Result, bail};

/// Proportional RoPE.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Proportional {
    /// The share of the pairs that turn.
    pub partial_rotary_factor: f64,
    /// Divides the frequencies.
    pub factor: f64,
}

const SHARE: &str = "partial_rotary_factor";
const OF_THE_ARCHITECTURE: &str =
    "a proportional encoding belongs to the model's architecture and can't be exported as a scaling";

impl Scheme for Proportional {
    const INFO: Info = Info {
        keys: &[SHARE],
        // On another checkpoint its factor does what linear's does.
        any_checkpoint: false,
        whole_head: true,
        ..Info::new("proportional", "Gemma's encoding, with its frequencies divided by the factor.")
    };

    fn read(source: &mut Source) -> Result<Self> {
        Ok(Self {
            partial_rotary_factor: source.number_or_beside(SHARE)?.unwrap_or(1.0),
            factor: source.factor_opt()?.unwrap_or(1.0),
        })
    }

    fn write(&self) -> Dict {
        dict([(SHARE, Some(self.partial_rotary_factor.into())), ("factor", Some(self.factor.into()))])
    }

    fn frequencies(&self, rotary: Rotary, _len: usize) -> Vec<f64> {
        let turning = (self.partial_rotary_factor * rotary.rotary_dim as f64 / 2.0).floor() as usize;
        let plain = rotary.plain().into_iter().enumerate();
        plain.map(|(i, f)| if i < turning { f / self.factor } else { 0.0 }).collect()
    }

    fn validate(&self, _rotary: Rotary) -> Result<()> {
        let share = self.partial_rotary_factor;
        if !(0.0..=1.0).contains(&share) {
            bail!("{SHARE} must lie in 0..=1, got {share}")
        }
        Ok(())
    }

    fn factor(&self) -> Option<f64> {
        Some(self.factor)
    }

    fn to_hf(&self, _rotary: Rotary) -> Result<HfRope> {
        bail!("rope: {OF_THE_ARCHITECTURE}")
    }

    fn to_llama_cpp(&self, _rotary: Rotary) -> std::result::Result<LlamaCpp, String> {
        Err(OF_THE_ARCHITECTURE.into())
    }

    /// The share of turning pairs survives any override.
    fn under(&self, wanted: &Info, source: &mut Source) -> Result<Option<Self>> {
        let factor = match wanted.name {
            "default" => 1.0,
            "linear" => source.factor()?,
            name if name == Self::INFO.name => source.factor_opt()?.unwrap_or(1.0),
            other => bail!("rope: {other} is not defined on top of this checkpoint's proportional encoding"),
        };
        let share = source.inherited_number(SHARE)?.unwrap_or(self.partial_rotary_factor);
        Ok(Some(Self { partial_rotary_factor: share, factor }))
    }
}
