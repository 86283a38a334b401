//! ReRoPE (Su 2023, <https://kexue.fm/archives/9708>): keys further than a window are all at its distance.

use super::{counts, far, moved, near};
use crate::position::{Context, Part, PositionEncoding, Resolution, Rope, RopeConfig};
use candle_core::{Result, Tensor};

/// Widths in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReRopeConfig {
    /// Keys nearer than this keep their positions, all others are at this distance.
    pub window: usize,
}

/// The encoding, over a rotary one.
#[derive(Debug)]
pub struct ReRope {
    rope: Rope,
    config: ReRopeConfig,
    parts: [Part; 2],
}

impl ReRope {
    /// ReRoPE over `rope`.
    ///
    /// # Errors
    /// A window of 0; whatever [`Rope::new`] refuses.
    pub fn new(rope: RopeConfig, config: ReRopeConfig) -> Result<Self> {
        counts("rerope", [("window", config.window)])?;
        let parts = [Part::new(near(config.window)), Part::new(far(config.window)).with_copy(1)];
        Ok(Self { rope: Rope::new(rope)?, config, parts })
    }
}

impl PositionEncoding for ReRope {
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
