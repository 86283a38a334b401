//! The scalings a comparison knows, and the factor they are given.

use attn_core::position::rope::scaling::{self, SchemeInfo};
use std::fmt;
use std::str::FromStr;

/// A column of a comparison: a RoPE scaling by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// What the checkpoint's own config says, scaling included.
    Checkpoint,
    /// A scheme put over the checkpoint in place of its own.
    Scaling(&'static SchemeInfo),
}

impl Mode {
    /// Every mode: the checkpoint's own scaling, and each scheme that the command line can name.
    pub fn all() -> impl Iterator<Item = Self> {
        std::iter::once(Self::Checkpoint).chain(scaling::named().map(Self::Scaling))
    }

    /// The modes that any RoPE model can be compared across.
    pub fn defaults() -> Vec<Self> {
        scaling::named().filter(|scheme| scheme.compared).map(Self::Scaling).collect()
    }

    /// The checkpoint without any scaling.
    pub fn none() -> Self {
        Self::Scaling(scaling::RopeScaling::default().scheme())
    }

    /// Its name, as the command line and the reports spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Checkpoint => "checkpoint",
            Self::Scaling(scheme) => scheme.called(),
        }
    }

    /// What it does, in a sentence.
    pub fn summary(self) -> &'static str {
        match self {
            Self::Checkpoint => "Whatever scaling the model's own config asks for.",
            Self::Scaling(scheme) => scheme.summary,
        }
    }

    /// Whether its frequencies depend on a factor.
    pub(crate) fn takes_factor(self) -> bool {
        matches!(self, Self::Scaling(scheme) if scheme.takes_factor)
    }

    /// Whether it reads a parameter of this name.
    pub(super) fn takes(self, key: &str) -> bool {
        match self {
            Self::Checkpoint => true,
            Self::Scaling(scheme) => scheme.keys.contains(&key),
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
        if text == Self::Checkpoint.name() {
            return Ok(Self::Checkpoint);
        }
        scaling::scheme(text).map(Self::Scaling).ok_or_else(|| {
            let known: Vec<_> = Self::all().map(Self::name).collect();
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
        for mode in Mode::all() {
            assert_eq!(mode.name().parse(), Ok(mode));
        }
        assert_eq!("ntk_by_parts".parse::<Mode>().map(Mode::name), Ok("ntk-by-parts"));
        let error = "yarm".parse::<Mode>().unwrap_err();
        assert!(error.contains("unknown mode") && error.contains("ntk-by-parts"), "{error}");
    }

    #[test]
    fn the_modes_are_the_schemes_that_have_names() {
        let names: Vec<_> = Mode::all().skip(1).map(Mode::name).collect();
        assert_eq!(names, scaling::named().map(|scheme| scheme.called()).collect::<Vec<_>>());
        assert_eq!((names[0], Mode::none().name()), ("none", "none"));
        assert!(Mode::defaults().iter().all(|mode| names.contains(&mode.name())));
        assert!(!names.contains(&"freq-factors"), "comes from tensors alone");
    }
}
