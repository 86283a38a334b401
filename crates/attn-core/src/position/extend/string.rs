//! STRING (An et al. 2024, arXiv:2410.18745): the far distances, which training saw rarely, are shifted down to well-trained
//! ones.

use super::{counts, far, moved, near};
use crate::position::{Context, Part, PositionEncoding, Resolution, Rope, RopeConfig};
use candle_core::{Result, Tensor, bail};

/// Widths in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StringShiftConfig {
    /// Keys nearer than this keep their positions.
    pub shift: usize,
    /// A distance `d` of `shift` or more counts as `d - shift + local`.
    pub local: usize,
}

/// The encoding, over a rotary one.
#[derive(Debug)]
pub struct StringShift {
    rope: Rope,
    config: StringShiftConfig,
    parts: [Part; 2],
}

impl StringShift {
    /// STRING over `rope`.
    ///
    /// # Errors
    /// A shift of 0 or below the local width; whatever [`Rope::new`] refuses.
    pub fn new(rope: RopeConfig, config: StringShiftConfig) -> Result<Self> {
        let StringShiftConfig { shift, local } = config;
        counts("string", [("shift", shift)])?;
        if local > shift {
            bail!("string: local {local} must not be above shift {shift}: it would move far keys farther away")
        }
        Ok(Self { rope: Rope::new(rope)?, config, parts: [near(shift), far(shift)].map(Part::new) })
    }
}

impl PositionEncoding for StringShift {
    fn queries(&self, q: &Tensor, at: &Context) -> Result<Tensor> {
        let StringShiftConfig { shift, local } = self.config;
        match at.part {
            0 => self.rope.rotate(q, at.positions),
            // A query before `shift` has no far keys.
            _ => {
                let to = moved(at.positions, |i| (i + local).saturating_sub(shift) as f64);
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
