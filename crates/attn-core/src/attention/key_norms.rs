//! Bounds on the norms of cached keys, so that a kernel can tell that a far key cannot matter without reading it.

use candle_core::{DType, Result, Tensor, bail};

/// Keys that share one bound.
pub(super) const NORM_BLOCK: usize = 64;

/// The largest norm in every run of 64 keys, per batch row and kv head.
///
/// A cache appends the keys as they come in and hands the bounds to
/// [`attend_with`](super::attend_with). Under ALiBi the kernel then proves from them which far keys have weights below
/// f32 rounding, and never reads those.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct KeyNorms {
    len: usize,
    /// Per batch row and kv head, the largest norm of each block.
    blocks: Vec<Vec<f32>>,
}

impl KeyNorms {
    /// The bounds of all keys in `k`, `(b, h_kv, t, d)`.
    pub fn new(k: &Tensor) -> Result<Self> {
        let mut norms = Self::default();
        norms.append(k)?;
        Ok(norms)
    }

    /// Adds the keys `(b, h_kv, t, d)` that follow those seen so far.
    pub fn append(&mut self, k: &Tensor) -> Result<()> {
        let (b, h_kv, t, _) = k.dims4()?;
        if self.blocks.is_empty() {
            self.blocks = vec![Vec::new(); b * h_kv];
        }
        if self.blocks.len() != b * h_kv {
            bail!("key norms of {} rows and heads cannot take {b} x {h_kv} more", self.blocks.len())
        }
        let norms = k.detach().to_dtype(DType::F32)?.sqr()?.sum(3)?.sqrt()?.reshape((b * h_kv, t))?.to_vec2::<f32>()?;
        for (blocks, norms) in self.blocks.iter_mut().zip(norms) {
            for (i, norm) in norms.into_iter().enumerate() {
                let block = (self.len + i) / NORM_BLOCK;
                // A NaN becomes infinity: no bound.
                let norm = if norm.is_nan() { f32::INFINITY } else { norm };
                match blocks.get_mut(block) {
                    Some(max) => *max = max.max(norm),
                    None => blocks.push(norm),
                }
            }
        }
        self.len += t;
        Ok(())
    }

    /// How many keys the bounds cover.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if they cover none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// An error unless these are bounds for as many keys as `k` has.
    pub(super) fn check(&self, k: &Tensor) -> Result<()> {
        let (b, h_kv, tk, _) = k.dims4()?;
        if self.len != tk || self.blocks.len() != b * h_kv {
            bail!("attend: key norms cover {} x {} keys, k is {:?}", self.blocks.len(), self.len, k.dims())
        }
        Ok(())
    }

    /// From bounds computed elsewhere.
    pub(super) fn from_blocks(len: usize, blocks: Vec<Vec<f32>>) -> Self {
        Self { len, blocks }
    }

    pub(super) fn blocks(&self, row: usize) -> &[f32] {
        &self.blocks[row]
    }
}
