//! Position encodings: the open trait, its explicit positions, and the closed set that configs name.
//!
//! A model never asks which encoding it has: it calls every hook and most do nothing. That is what makes encodings
//! interchangeable on a loaded model.
//!
//! A new encoding is one file, then a `mod`, a variant and an arm here. A new scaling of RoPE is one file and one line in
//! [`rope::scaling`].

pub mod alibi;
pub mod frequencies;
#[cfg(test)]
mod laws;
pub mod learned;
pub mod nope;
pub mod rope;
pub mod sinusoidal;
pub mod t5;
mod temperature;

pub use alibi::{Alibi, AlibiConfig};
pub use frequencies::Frequencies;
pub use learned::{Learned, LearnedConfig};
pub use nope::{Nope, NopeConfig};
pub use rope::{Layout, Rope, RopeConfig, RopeDefaults, RopeOverride, RopeReading, RopeScaling, yarn_mscale};
pub use sinusoidal::{Sinusoidal, SinusoidalConfig, SinusoidalLayout};
pub use t5::{T5Bias, T5Config};
pub use temperature::Temperature;

use crate::ScoreBias;
use candle_core::{Device, Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};
use std::{fmt::Debug, ops::Range, sync::Arc};

/// How a learned table starts in a fresh `VarMap`: as candle-nn's embeddings do.
const TABLE_INIT: Init = Init::Randn { mean: 0.0, stdev: 1.0 };

/// Where a block of tokens stands: the slots it fills and, for left-padded batches, how far each row's positions lag
/// behind its slots. Never "the current length": every token's absolute position is explicit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Positions {
    slots: Range<usize>,
    pads: Option<Arc<[usize]>>,
    ends: Option<Arc<[usize]>>,
    length: usize,
}

impl Positions {
    /// Tokens in `slots`, with positions equal to slots and frequencies resolved for a sequence of `slots.end` tokens.
    pub fn new(slots: Range<usize>) -> Self {
        let length = slots.end;
        Self { slots, pads: None, ends: None, length }
    }

    /// Declares the sequence length that length-dependent scalings (dynamic NTK, LongRoPE) resolve their frequencies
    /// for. It has to stay the same for the lifetime of a cache.
    #[must_use]
    pub fn with_length(mut self, length: usize) -> Self {
        self.length = length;
        self
    }

    /// Row `i` of the batch starts with `pads[i]` padding tokens: position = slot - pad, and 0 on the padding.
    #[must_use]
    pub fn with_pads(mut self, pads: Option<Arc<[usize]>>) -> Self {
        self.pads = pads;
        self
    }

    /// Row `i` of the batch has its last real token before slot `ends[i]`; right padding follows. For encoders.
    #[must_use]
    pub fn with_ends(mut self, ends: Option<Arc<[usize]>>) -> Self {
        self.ends = ends;
        self
    }

    /// The slots of each row that hold real tokens, if any row is padded.
    pub fn keys(&self) -> Option<Arc<[Range<usize>]>> {
        let rows = self.pads.as_ref().or(self.ends.as_ref())?.len();
        let start = |row: usize| self.pads.as_ref().map_or(0, |pads| pads[row]);
        let end = |row: usize| self.ends.as_ref().map_or(usize::MAX, |ends| ends[row]);
        Some((0..rows).map(|row| start(row)..end(row)).collect())
    }

    /// The slots the tokens fill.
    pub fn slots(&self) -> Range<usize> {
        self.slots.clone()
    }

    /// Number of tokens per row.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// True if there is no token.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The sequence length that frequencies are resolved for.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Padding tokens at the start of each row, if any row has some.
    pub fn pads(&self) -> Option<&[usize]> {
        self.pads.as_deref()
    }

    /// The padding of each row as the encoding has to see it: one entry that stands for all rows if none is padded.
    pub fn rows(&self) -> &[usize] {
        self.pads.as_deref().unwrap_or(&[0])
    }

    /// The positions of a row with `pad` padding tokens, one per slot.
    pub fn row(&self, pad: usize) -> impl Iterator<Item = usize> + use<> {
        self.slots.clone().map(move |slot| slot.saturating_sub(pad))
    }
}

/// Which frequencies a sequence of a given length uses. Two lengths with the same resolution may share a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Resolution {
    /// The same for every length.
    Fixed,
    /// LongRoPE up to its original context.
    Short,
    /// LongRoPE past its original context.
    Long,
    /// Dynamic NTK past its trained context: frequencies of exactly this length.
    Length(usize),
}

/// A way to tell attention where tokens are. Each hook has a default that does nothing, so an encoding implements the
/// one it works through; the empty implementation is NoPE.
pub trait PositionEncoding: Debug + Send + Sync {
    /// Added to the token embeddings before the first layer: sinusoidal, learned. `xs` is `(b, t, hidden)`.
    fn embed(&self, xs: &Tensor, _positions: &Positions) -> Result<Tensor> {
        Ok(xs.clone())
    }

    /// Applied to queries and keys, never to values: RoPE. `xs` is `(b, h, t, d)`.
    fn rotate(&self, xs: &Tensor, _positions: &Positions) -> Result<Tensor> {
        Ok(xs.clone())
    }

    /// Applied to queries alone after [`rotate`](Self::rotate): Llama 4's attention temperature. `q` is `(b, h, t, d)`.
    fn temper(&self, q: &Tensor, _positions: &Positions) -> Result<Tensor> {
        Ok(q.clone())
    }

    /// Added to the scores of the queries in slots `q` against the keys in slots `k`: ALiBi, T5.
    fn bias(&self, _q: Range<usize>, _k: Range<usize>) -> Result<ScoreBias> {
        Ok(ScoreBias::None)
    }

    /// Which frequencies a sequence of `len` tokens uses.
    fn resolve(&self, _len: usize) -> Resolution {
        Resolution::Fixed
    }

    /// The longest sequence the encoding can represent at all (learned tables), `None` if it has no end.
    fn max_positions(&self) -> Option<usize> {
        None
    }
}

/// The encodings that come with this crate, as data.
#[derive(Debug, Clone, PartialEq)]
pub enum PositionConfig {
    /// None, or Llama 4's tempered none.
    Nope(NopeConfig),
    /// Fixed sinusoids on the embeddings.
    Sinusoidal(SinusoidalConfig),
    /// A learned table on the embeddings.
    Learned(LearnedConfig),
    /// Rotated queries and keys.
    Rope(RopeConfig),
    /// A linear bias on the scores.
    Alibi(AlibiConfig),
    /// A learned bias on the scores by bucketed distance.
    T5(T5Config),
}

/// Builds an encoding. `vb` stands at the encoding's own table for those that learn one (`transformer.wpe`,
/// `...relative_attention_bias`); for the others its device is all that matters, and without it they live on the CPU.
///
/// # Errors
/// Values out of range, and a learned encoding without a `vb` or without its tensor there.
pub fn build(config: &PositionConfig, vb: Option<VarBuilder>) -> Result<Arc<dyn PositionEncoding>> {
    let table = |name: &str| match &vb {
        Some(vb) => Ok(vb.clone()),
        None => bail!("{name} positions are learned: they need weights"),
    };
    Ok(match config.clone() {
        PositionConfig::Nope(config) => Arc::new(Nope::new(config)?),
        PositionConfig::Sinusoidal(config) => Arc::new(Sinusoidal::new(config)?),
        PositionConfig::Learned(config) => Arc::new(Learned::new(config, table("learned")?)?),
        PositionConfig::Rope(config) => Arc::new(Rope::new(config)?),
        PositionConfig::Alibi(config) => {
            Arc::new(Alibi::new(config, vb.as_ref().map_or(&Device::Cpu, |vb| vb.device()))?)
        }
        PositionConfig::T5(config) => Arc::new(T5Bias::new(config, table("T5")?)?),
    })
}
