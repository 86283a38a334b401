//! The scalings a comparison knows, and the factor they are given.

use std::fmt;
use std::str::FromStr;

/// A column of a comparison: a RoPE scaling by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// What the checkpoint's own config says, scaling included.
    Checkpoint,
    /// The checkpoint without any scaling.
    None,
    /// Position interpolation: every frequency divided by the factor.
    Linear,
    /// A larger base, the same for every length.
    Ntk,
    /// A base that grows with the length.
    Dynamic,
    /// YaRN's blend of frequencies without its temperature.
    NtkByParts,
    /// YaRN.
    Yarn,
    /// Separately searched factors per frequency, from the checkpoint or from parameters.
    LongRope,
    /// Llama 3.1's blend.
    Llama3,
    /// Gemma's proportional encoding.
    Proportional,
}

use Mode::{Checkpoint, Dynamic, Linear, Llama3, LongRope, None as Unscaled, Ntk, NtkByParts, Proportional, Yarn};

impl Mode {
    /// Every mode.
    pub const ALL: [Self; 10] =
        [Checkpoint, Unscaled, Linear, Ntk, Dynamic, NtkByParts, Yarn, LongRope, Llama3, Proportional];

    /// The modes that any RoPE model can be compared across.
    pub const DEFAULT: [Self; 6] = [Unscaled, Linear, Ntk, Dynamic, NtkByParts, Yarn];

    /// Its name, as the command line and the reports spell it.
    pub fn name(self) -> &'static str {
        match self {
            Checkpoint => "checkpoint",
            Unscaled => "none",
            Linear => "linear",
            Ntk => "ntk",
            Dynamic => "dynamic",
            NtkByParts => "ntk-by-parts",
            Yarn => "yarn",
            LongRope => "longrope",
            Llama3 => "llama3",
            Proportional => "proportional",
        }
    }

    /// Whether its frequencies depend on a factor.
    pub(crate) fn takes_factor(self) -> bool {
        !matches!(self, Checkpoint | Unscaled | LongRope)
    }

    /// The config keys it reads beside the factor.
    pub(super) fn params(self) -> &'static [&'static str] {
        match self {
            NtkByParts => &["beta_fast", "beta_slow", "truncate"],
            Yarn => &["beta_fast", "beta_slow", "truncate", "attention_factor", "mscale", "mscale_all_dim"],
            LongRope => &["short_factor", "long_factor", "attention_factor"],
            Llama3 => &["low_freq_factor", "high_freq_factor"],
            Proportional => &["partial_rotary_factor"],
            _ => &[],
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let same = |mode: &Self| mode.name() == text || mode.name().replace('-', "_") == text;
        Self::ALL.into_iter().find(same).ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|mode| mode.name()).collect();
            format!("unknown mode; known: {}", known.join(", "))
        })
    }
}

/// The factor of a comparison's scalings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Factor {
    /// The context over the trained context, at least 1.
    Auto,
    /// The same for every context.
    Fixed(f64),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_known_by_either_spelling_and_unknown_ones_refused_by_list() {
        for mode in Mode::ALL {
            assert_eq!(mode.name().parse(), Ok(mode));
        }
        assert_eq!("ntk_by_parts".parse(), Ok(NtkByParts));
        let error = "yarm".parse::<Mode>().unwrap_err();
        assert!(error.contains("unknown mode") && error.contains("ntk-by-parts"), "{error}");
    }
}
