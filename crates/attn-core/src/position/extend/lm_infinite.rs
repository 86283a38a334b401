//! LM-Infinite (Han et al. 2023, arXiv:2308.16137): a window, and the first few keys at the distance where it ends. Other
//! keys are not seen.

use super::{counts, far, moved, near};
use crate::position::{Context, Part, PositionEncoding, Resolution, Rope, RopeConfig};
use candle_core::{Result, Tensor};

/// Widths in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LmInfiniteConfig {
    /// Keys at the start of the text that every query sees.
    pub first: usize,
    /// Keys nearer than this keep their positions; the first ones are at this distance.
    pub window: usize,
}

/// The encoding, over a rotary one.
#[derive(Debug)]
pub struct LmInfinite {
    rope: Rope,
    config: LmInfiniteConfig,
    parts: [Part; 2],
}

impl LmInfinite {
    /// LM-Infinite over `rope`.
    ///
    /// # Errors
    /// A number of 0; whatever [`Rope::new`] refuses.
    pub fn new(rope: RopeConfig, config: LmInfiniteConfig) -> Result<Self> {
        counts("lm-infinite", [("first", config.first), ("window", config.window)])?;
        let first = Part::new(far(config.window).with_first(Some(config.first))).with_copy(1);
        Ok(Self { rope: Rope::new(rope)?, config, parts: [Part::new(near(config.window)), first] })
    }
}

impl PositionEncoding for LmInfinite {
    fn queries(&self, q: &Tensor, at: &Context) -> Result<Tensor> {
        match at.part {
            0 => self.rope.rotate(q, at.positions),
            _ => {
                let to = moved(at.positions, |_| self.config.window as f64);
                self.rope.rotate_at(q, &to, at.positions.length())
            }
        }
    }

    fn keys(&self, k: &Tensor, at: &Context) -> Result<Tensor> {
        match at.copy {
            0 => self.rope.rotate(k, at.positions),
            _ => self.rope.rotate_at(k, &moved(at.positions, |_| 0.0), at.positions.length()),
        }
    }

    fn parts(&self) -> &[Part] {
        &self.parts
    }

    fn resolve(&self, len: usize) -> Resolution {
        self.rope.resolve(len)
    }
}
