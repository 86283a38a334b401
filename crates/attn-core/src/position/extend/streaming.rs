//! StreamingLLM (Xiao et al. 2023, arXiv:2309.17453): a window, and the first few keys, on which trained models put the
//! weight that no other key needs. Positions are counted in the cache, so that distances never exceed its size. Other
//! keys are not seen.

use super::{counts, far, moved, near};
use crate::position::{Context, Part, PositionEncoding, Resolution, Rope, RopeConfig};
use candle_core::{Result, Tensor};

/// Widths in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamingConfig {
    /// Keys at the start of the text that every query sees.
    pub first: usize,
    /// Keys nearer than this are seen.
    pub window: usize,
}

/// The encoding, over a rotary one.
#[derive(Debug)]
pub struct Streaming {
    rope: Rope,
    config: StreamingConfig,
    parts: [Part; 2],
}

impl Streaming {
    /// StreamingLLM over `rope`.
    ///
    /// # Errors
    /// A number of 0; whatever [`Rope::new`] refuses.
    pub fn new(rope: RopeConfig, config: StreamingConfig) -> Result<Self> {
        counts("streaming", [("first", config.first), ("window", config.window)])?;
        let regions = [near(config.window), far(config.window).with_first(Some(config.first))];
        Ok(Self { rope: Rope::new(rope)?, config, parts: regions.map(Part::new) })
    }
}

impl PositionEncoding for Streaming {
    fn queries(&self, q: &Tensor, at: &Context) -> Result<Tensor> {
        match at.part {
            0 => self.rope.rotate(q, at.positions),
            _ => {
                let last = self.config.first + self.config.window - 1;
                let to = moved(at.positions, |i| i.min(last) as f64);
                self.rope.rotate_at(q, &to, at.positions.length())
            }
        }
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
