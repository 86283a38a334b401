//! Dual chunk attention (An et al. 2024, arXiv:2402.17463; Qwen2.5-1M): positions start anew in every chunk, and queries are
//! placed by whether a key is in their chunk, the one before or an earlier one.

use super::{counts, moved};
use crate::Mask;
use crate::position::{Context, Part, PositionEncoding, Resolution, Rope, RopeConfig};
use candle_core::{Result, Tensor, bail};

/// Widths in tokens, in the names of Qwen's `dual_chunk_attention_config`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DualChunkConfig {
    /// `chunk_size`: the largest position a query is placed at.
    pub chunk: usize,
    /// `local_size`: keys at least so near keep their distance across the border of two chunks, which are of
    /// `chunk - local` tokens.
    pub local: usize,
}

/// The encoding, over a rotary one.
#[derive(Debug)]
pub struct DualChunk {
    rope: Rope,
    chunk: usize,
    /// Tokens per chunk.
    size: usize,
    parts: [Part; 3],
}

impl DualChunk {
    /// Dual chunk attention over `rope`.
    ///
    /// # Errors
    /// A chunk not longer than its local part; whatever [`Rope::new`] refuses.
    pub fn new(rope: RopeConfig, config: DualChunkConfig) -> Result<Self> {
        let DualChunkConfig { chunk, local } = config;
        counts("dual-chunk", [("chunk", chunk)])?;
        if local >= chunk {
            bail!("dual-chunk: local {local} must be smaller than chunk {chunk}")
        }
        let size = chunk - local;
        let causal = Mask::causal;
        let regions =
            [causal().with_chunk(Some(size)), causal().with_previous_chunk(size), causal().with_earlier_chunks(size)];
        Ok(Self { rope: Rope::new(rope)?, chunk, size, parts: regions.map(Part::new) })
    }
}

impl PositionEncoding for DualChunk {
    fn queries(&self, q: &Tensor, at: &Context) -> Result<Tensor> {
        let Self { chunk, size, .. } = *self;
        let to = moved(at.positions, |i| match at.part {
            0 => (i % size) as f64,
            1 => (i % size + size).min(chunk) as f64,
            _ => (2 * size - 1).min(chunk) as f64,
        });
        self.rope.rotate_at(q, &to, at.positions.length())
    }

    fn keys(&self, k: &Tensor, at: &Context) -> Result<Tensor> {
        self.rope.rotate_at(k, &moved(at.positions, |j| (j % self.size) as f64), at.positions.length())
    }

    fn parts(&self) -> &[Part] {
        &self.parts
    }

    fn resolve(&self, len: usize) -> Resolution {
        self.rope.resolve(len)
    }
}
