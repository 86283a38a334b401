//! Context extension without training: near keys keep the plain rotation, far ones get positions that the model has seen
//! in training. One file per method; [`ExtendConfig`] names them all.
//!
//! `i` is a query's position, `j` a key's, `L` the context that the model was trained for. Each method is a list of
//! [parts](super::Part), so attention costs what plain attention does, and decoding reads each key once. Every method works
//! over any [`RopeConfig`], and [log-n scaling](super::Temperature::LogN) of the queries combines with all of them.
//!
//! | method | keys | query at | key at | copies of the keys |
//! |---|---|---|---|---|
//! | [`SelfExtend`] | nearer than W; the rest | `i`; `i / G + W - W / G` | `j`; `j / G` | 2 |
//! | [`ReRope`] | nearer than W; the rest | `i`; `W` | `j`; 0 | 2 |
//! | [`LeakyReRope`] | nearer than W; the rest | `i`; `(i + W (s - 1)) / s` | `j`; `j / s` | 2 |
//! | [`DualChunk`] | the same chunk; the one before; earlier | `i % n`; `min(i % n + n, c)`; `min(2 n - 1, c)` | `j % n` | 1 |
//! | [`StringShift`] | nearer than S; the rest | `i`; `i - S + W` | `j` | 1 |
//! | [`LmInfinite`] | nearer than W; the first n | `i`; `W` | `j`; 0 | 2 |
//! | [`Streaming`] | nearer than W; the first n | `i`; `min(i, n + W - 1)` | `j` | 1 |
//! | [`Window`] | nearer than W | `i` | `j` | 1 |

mod dual_chunk;
mod leaky_rerope;
mod lm_infinite;
mod rerope;
mod self_extend;
mod setting;
mod streaming;
mod string;
mod window;

pub use dual_chunk::{DualChunk, DualChunkConfig};
pub use leaky_rerope::{LeakyReRope, LeakyReRopeConfig};
pub use lm_infinite::{LmInfinite, LmInfiniteConfig};
pub use rerope::{ReRope, ReRopeConfig};
pub use self_extend::{SelfExtend, SelfExtendConfig};
pub use setting::{ExtendOverride, ExtendedConfig, LOG_N, METHODS, MethodInfo, PositionOverride, Setting, method};
pub use streaming::{Streaming, StreamingConfig};
pub use string::{StringShift, StringShiftConfig};
pub use window::{Window, WindowConfig};

use super::{PositionEncoding, Positions, RopeConfig};
use crate::Mask;
use candle_core::{Result, bail};
use std::{fmt, sync::Arc};

/// A method and its numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum ExtendConfig {
    /// See [`SelfExtend`].
    SelfExtend(SelfExtendConfig),
    /// See [`ReRope`].
    ReRope(ReRopeConfig),
    /// See [`LeakyReRope`].
    LeakyReRope(LeakyReRopeConfig),
    /// See [`DualChunk`].
    DualChunk(DualChunkConfig),
    /// See [`StringShift`].
    StringShift(StringShiftConfig),
    /// See [`LmInfinite`].
    LmInfinite(LmInfiniteConfig),
    /// See [`Streaming`].
    Streaming(StreamingConfig),
    /// See [`Window`].
    Window(WindowConfig),
}

impl ExtendConfig {
    /// The names that [`new`](Self::new) takes.
    pub const NAMES: &[&str] =
        &["self-extend", "rerope", "leaky-rerope", "dual-chunk", "string", "lm-infinite", "streaming", "window"];

    /// The method `name` with its defaults for a model that was trained for `trained` tokens and is to read texts of up to
    /// `longest`.
    ///
    /// # Errors
    /// Another name, a context too short to divide.
    pub fn new(name: &str, trained: usize, longest: usize) -> Result<Self> {
        if trained < 16 {
            bail!("{name}: a trained context of {trained} tokens is too short to extend: it has to be at least 16")
        }
        Ok(match name {
            "self-extend" => Self::SelfExtend(SelfExtendConfig::for_context(trained, longest)?),
            "rerope" => Self::ReRope(ReRopeConfig { window: trained / 2 }),
            "leaky-rerope" => Self::LeakyReRope(LeakyReRopeConfig::for_context(trained, longest)),
            "dual-chunk" => Self::DualChunk(DualChunkConfig { chunk: trained * 3 / 4, local: trained / 16 }),
            "string" => Self::StringShift(StringShiftConfig { shift: trained / 3, local: trained / 8 }),
            "lm-infinite" => Self::LmInfinite(LmInfiniteConfig { first: 4, window: trained - 4 }),
            "streaming" => Self::Streaming(StreamingConfig { first: 4, window: trained - 4 }),
            "window" => Self::Window(WindowConfig { window: trained }),
            other => bail!("unknown method {other}; known: {}", Self::NAMES.join(", ")),
        })
    }

    /// The method's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::SelfExtend(_) => "self-extend",
            Self::ReRope(_) => "rerope",
            Self::LeakyReRope(_) => "leaky-rerope",
            Self::DualChunk(_) => "dual-chunk",
            Self::StringShift(_) => "string",
            Self::LmInfinite(_) => "lm-infinite",
            Self::Streaming(_) => "streaming",
            Self::Window(_) => "window",
        }
    }

    /// Gives one of the method's numbers another value.
    ///
    /// # Errors
    /// A name that the method doesn't have, a number of tokens that isn't whole.
    pub fn set(&mut self, name: &str, value: f64) -> Result<()> {
        let method = self.name();
        match self.number(name) {
            Some(Number::Tokens(to)) if value >= 1.0 && value.fract() == 0.0 && value < 2f64.powi(40) => {
                *to = value as usize;
            }
            Some(Number::Tokens(_)) => {
                bail!("{method}: {name} must be a whole number of tokens, at least 1, not {value}")
            }
            Some(Number::Ratio(to)) => *to = value,
            None => bail!("{method} has no parameter {name:?}"),
        }
        Ok(())
    }

    /// The method's numbers by name.
    pub fn numbers(&self) -> Vec<(&'static str, f64)> {
        let mut config = *self;
        let names = method(self.name()).map_or(&[][..], |method| method.params);
        let value = |name: &&'static str| match config.number(name)? {
            Number::Tokens(n) => Some((*name, *n as f64)),
            Number::Ratio(x) => Some((*name, *x)),
        };
        names.iter().filter_map(value).collect()
    }

    fn number(&mut self, name: &str) -> Option<Number<'_>> {
        Some(match (self, name) {
            (Self::SelfExtend(c), "group") => Number::Tokens(&mut c.group),
            (Self::SelfExtend(c), "window") => Number::Tokens(&mut c.window),
            (Self::ReRope(c), "window") => Number::Tokens(&mut c.window),
            (Self::LeakyReRope(c), "window") => Number::Tokens(&mut c.window),
            (Self::LeakyReRope(c), "factor") => Number::Ratio(&mut c.factor),
            (Self::DualChunk(c), "chunk") => Number::Tokens(&mut c.chunk),
            (Self::DualChunk(c), "local") => Number::Tokens(&mut c.local),
            (Self::StringShift(c), "shift") => Number::Tokens(&mut c.shift),
            (Self::StringShift(c), "local") => Number::Tokens(&mut c.local),
            (Self::LmInfinite(c), "sinks") => Number::Tokens(&mut c.first),
            (Self::LmInfinite(c), "window") => Number::Tokens(&mut c.window),
            (Self::Streaming(c), "sinks") => Number::Tokens(&mut c.first),
            (Self::Streaming(c), "window") => Number::Tokens(&mut c.window),
            (Self::Window(c), "window") => Number::Tokens(&mut c.window),
            _ => return None,
        })
    }

    /// True if texts of `len` tokens are placed as without the method.
    pub fn is_plain(&self, len: usize) -> bool {
        match self {
            Self::SelfExtend(c) => c.group == 1 || len <= c.window,
            Self::ReRope(c) => len <= c.window,
            Self::LeakyReRope(c) => c.factor == 1.0 || len <= c.window,
            Self::DualChunk(c) => len <= c.chunk.saturating_sub(c.local),
            Self::StringShift(c) => len <= c.shift,
            Self::LmInfinite(c) => len <= c.window,
            Self::Streaming(c) => len <= c.window.saturating_add(c.first),
            Self::Window(c) => len <= c.window,
        }
    }

    /// Copies of the keys that a cache keeps, each placed in its own way.
    pub fn copies(&self) -> usize {
        match self {
            Self::SelfExtend(_) | Self::ReRope(_) | Self::LeakyReRope(_) | Self::LmInfinite(_) => 2,
            Self::DualChunk(_) | Self::StringShift(_) | Self::Streaming(_) | Self::Window(_) => 1,
        }
    }

    /// The method over a rotary encoding.
    ///
    /// # Errors
    /// Numbers that make no sense, in either.
    pub fn build(&self, rope: RopeConfig) -> Result<Arc<dyn PositionEncoding>> {
        Ok(match *self {
            Self::SelfExtend(config) => Arc::new(SelfExtend::new(rope, config)?),
            Self::ReRope(config) => Arc::new(ReRope::new(rope, config)?),
            Self::LeakyReRope(config) => Arc::new(LeakyReRope::new(rope, config)?),
            Self::DualChunk(config) => Arc::new(DualChunk::new(rope, config)?),
            Self::StringShift(config) => Arc::new(StringShift::new(rope, config)?),
            Self::LmInfinite(config) => Arc::new(LmInfinite::new(rope, config)?),
            Self::Streaming(config) => Arc::new(Streaming::new(rope, config)?),
            Self::Window(config) => Arc::new(Window::new(rope, config)?),
        })
    }
}

/// A number of a method, to be read or changed.
enum Number<'a> {
    Tokens(&'a mut usize),
    Ratio(&'a mut f64),
}

impl fmt::Display for ExtendConfig {
    /// As [`Setting`] reads it, all numbers written out: `self-extend:group=4:window=128`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        self.numbers().into_iter().try_for_each(|(name, value)| write!(f, ":{name}={value}"))
    }
}

/// The keys at distances below `width`.
fn near(width: usize) -> Mask {
    Mask::causal().with_window(Some(width))
}

/// The keys at distances of `width` and more.
fn far(width: usize) -> Mask {
    Mask::causal().with_beyond(Some(width))
}

/// The positions of all tokens, row by row, each moved by `to`.
fn moved(positions: &Positions, to: impl Fn(usize) -> f64) -> Vec<f64> {
    positions.all().map(to).collect()
}

/// An error if a number that counts tokens is 0.
fn counts<const N: usize>(method: &str, numbers: [(&str, usize); N]) -> Result<()> {
    match numbers.iter().find(|(_, n)| *n == 0) {
        Some((name, _)) => bail!("{method}: {name} must be at least one token"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
