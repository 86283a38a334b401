//! Static NTK-aware scaling: the base `theta * factor^(d/(d-2))`. transformers doesn't know it by name, but it is
//! nothing but a larger base.

use super::scheme::{HfRope, Info, LlamaCpp, Rotary, Scheme, dict};
use super::source::{Dict, Source};
use candle_core::Result;

/// Static NTK-aware scaling.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ntk {
    /// The slowest pair is interpolated by this much.
    pub factor: f64,
}

impl Ntk {
    fn scaled(self, rotary: Rotary) -> Rotary {
        Rotary { theta: rotary.ntk_theta(self.factor), ..rotary }
    }
}

impl Scheme for Ntk {
    const INFO: Info =
        Info { compared: true, ..Info::new("ntk", "A larger base: the slowest pair is slowed down by the factor.") };

    fn read(source: &mut Source) -> Result<Self> {
        Ok(Self { factor: source.factor()? })
    }

    fn write(&self) -> Dict {
        dict([("factor", Some(self.factor.into()))])
    }

    fn frequencies(&self, rotary: Rotary, _len: usize) -> Vec<f64> {
        self.scaled(rotary).plain()
    }

    fn validate(&self, rotary: Rotary) -> Result<()> {
        rotary.check_ntk(Self::INFO.name)
    }

    fn factor(&self) -> Option<f64> {
        Some(self.factor)
    }

    fn to_hf(&self, rotary: Rotary) -> Result<HfRope> {
        Ok(HfRope { rope_type: "default", theta: self.scaled(rotary).theta, keys: Dict::new() })
    }

    fn to_llama_cpp(&self, rotary: Rotary) -> std::result::Result<LlamaCpp, String> {
        Ok(LlamaCpp { flags: "--rope-scaling none".into(), theta: self.scaled(rotary).theta })
    }
}
