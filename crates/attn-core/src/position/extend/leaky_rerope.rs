//! Leaky ReRoPE (Su 2023, <https://kexue.fm/archives/9708>): past a window, distances grow more slowly.

use super::{counts, far, moved, near};
use crate::position::{Context, Part, PositionEncoding, Resolution, Rope, RopeConfig};
use candle_core::{Result, Tensor, bail};

/// The window in tokens and the slope past it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LeakyReRopeConfig {
    /// Keys nearer than this keep their positions.
    pub window: usize,
    /// Past the window a distance `d` counts as `window + (d - window) / factor`.
    pub factor: f64,
}

impl LeakyReRopeConfig {
    /// A window of half the trained context and the smallest factor that keeps the distances of `longest` tokens within it.
    pub(super) fn for_context(trained: usize, longest: usize) -> Self {
        let window = trained / 2;
        let (far, room) = (longest.saturating_sub(1 + window) as f64, (trained - 1 - window) as f64);
        Self { window, factor: (far / room).max(1.0) }
    }
}

/// The encoding, over a rotary one.
#[derive(Debug)]
pub struct LeakyReRope {
    rope: Rope,
    config: LeakyReRopeConfig,
    parts: [Part; 2],
}

impl LeakyReRope {
    /// Leaky ReRoPE over `rope`.
    ///
    /// # Errors
    /// A window of 0, a factor below 1; whatever [`Rope::new`] refuses.
    pub fn new(rope: RopeConfig, config: LeakyReRopeConfig) -> Result<Self> {
        counts("leaky-rerope", [("window", config.window)])?;
        if !(config.factor.is_finite() && config.factor >= 1.0) {
            bail!("leaky-rerope: factor must be 1 or more, got {}", config.factor)
        }
        let parts = [Part::new(near(config.window)), Part::new(far(config.window)).with_copy(1)];
        Ok(Self { rope: Rope::new(rope)?, config, parts })
    }
}

impl PositionEncoding for LeakyReRope {
    fn queries(&self, q: &Tensor, at: &Context) -> Result<Tensor> {
        let LeakyReRopeConfig { window, factor } = self.config;
        match at.part {
            0 => self.rope.rotate(q, at.positions),
            _ => {
                let to = moved(at.positions, |i| (i as f64 + window as f64 * (factor - 1.0)) / factor);
                self.rope.rotate_at(q, &to, at.positions.length())
            }
        }
    }

    fn keys(&self, k: &Tensor, at: &Context) -> Result<Tensor> {
        match at.copy {
            0 => self.rope.rotate(k, at.positions),
            _ => {
                let to = moved(at.positions, |j| j as f64 / self.config.factor);
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
