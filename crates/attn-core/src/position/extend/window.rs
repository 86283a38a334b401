//! A sliding window over a model that was trained without one. It is the baseline of all other methods.

use super::{counts, near};
use crate::position::{Context, Part, PositionEncoding, Resolution, Rope, RopeConfig};
use candle_core::{Result, Tensor};

/// Widths in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowConfig {
    /// Keys nearer than this are seen.
    pub window: usize,
}

/// The encoding, over a rotary one.
#[derive(Debug)]
pub struct Window {
    rope: Rope,
    parts: [Part; 1],
}

impl Window {
    /// A window over `rope`.
    ///
    /// # Errors
    /// A window of 0; whatever [`Rope::new`] refuses.
    pub fn new(rope: RopeConfig, config: WindowConfig) -> Result<Self> {
        counts("window", [("window", config.window)])?;
        Ok(Self { rope: Rope::new(rope)?, parts: [Part::new(near(config.window))] })
    }
}

impl PositionEncoding for Window {
    fn queries(&self, q: &Tensor, at: &Context) -> Result<Tensor> {
        self.rope.rotate(q, at.positions)
    }

    fn keys(&self, k: &Tensor, at: &Context) -> Result<Tensor> {
        self.rope.rotate(k, at.positions)
    }

    fn parts(&self) -> &[Part] {
        &self.parts
    }

    fn resolve(&self, len: usize) -> Resolution {
        self.rope.resolve(len)
    }
}
