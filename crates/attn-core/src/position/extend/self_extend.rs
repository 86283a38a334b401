//! Self-Extend (Jin et al. 2024, arXiv:2401.01325): far keys are rotated by group of G tokens, so that distances stay within
//! what the model was trained on.

use super::{counts, far, moved, near};
use crate::position::{Context, Part, PositionEncoding, Resolution, Rope, RopeConfig};
use candle_core::{Result, Tensor, bail};

/// Widths in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SelfExtendConfig {
    /// Tokens that share a far position; divides the window.
    pub group: usize,
    /// Keys nearer than this keep their positions.
    pub window: usize,
}

impl SelfExtendConfig {
    /// A window of half the trained context and the smallest groups that keep the distances of `longest` tokens within it.
    pub(super) fn for_context(trained: usize, longest: usize) -> Result<Self> {
        let window = trained / 2;
        let fits = |group: &usize| {
            window.is_multiple_of(*group) && longest.saturating_sub(1) / group + window - window / group < trained
        };
        match (1..=window).find(fits) {
            Some(group) => Ok(Self { group, window }),
            None => bail!("self-extend: {longest} tokens are too many for a model that was trained for {trained}"),
        }
    }
}

/// The encoding, over a rotary one.
#[derive(Debug)]
pub struct SelfExtend {
    rope: Rope,
    config: SelfExtendConfig,
    parts: [Part; 2],
}

impl SelfExtend {
    /// Self-Extend over `rope`.
    ///
    /// # Errors
    /// A window that the group does not divide; whatever [`Rope::new`] refuses.
    pub fn new(rope: RopeConfig, config: SelfExtendConfig) -> Result<Self> {
        let SelfExtendConfig { group, window } = config;
        counts("self-extend", [("group", group), ("window", window)])?;
        if !window.is_multiple_of(group) {
            bail!("self-extend: a window of {window} is not a multiple of the group {group}")
        }
        let parts = [Part::new(near(window)), Part::new(far(window)).with_copy(1)];
        Ok(Self { rope: Rope::new(rope)?, config, parts })
    }
}

impl PositionEncoding for SelfExtend {
    fn queries(&self, q: &Tensor, at: &Context) -> Result<Tensor> {
        let SelfExtendConfig { group, window } = self.config;
        match at.part {
            0 => self.rope.rotate(q, at.positions),
            _ => {
                let to = moved(at.positions, |i| (i / group + window - window / group) as f64);
                self.rope.rotate_at(q, &to, at.positions.length())
            }
        }
    }

    fn keys(&self, k: &Tensor, at: &Context) -> Result<Tensor> {
        match at.copy {
            0 => self.rope.rotate(k, at.positions),
            _ => {
                let to = moved(at.positions, |j| (j / self.config.group) as f64);
                self.rope.rotate_at(k, &to, at.positions.length())
            }
        }
    }

    fn parts(&self) -> &[Part] {
        &self.parts
    }

    fn resolve(&self, len: usize) -> Resolution {
        self.rope.resolve(len)
    }
}
