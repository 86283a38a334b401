//! Bounds on the norms of cached keys, so that a kernel can tell that a far key cannot matter without reading it.

use super::{tokens::Tokens, view::with_contiguous_rows};
use crate::stored::{CacheType, Stored};
use candle_core::{DType, Device, Result, Storage, Tensor, bail};
use rayon::prelude::*;

/// Keys that share one bound.
pub(in crate::attention) const NORM_BLOCK: usize = 64;

/// Keys below which measuring isn't worth a second thread.
const FEW_KEYS: usize = 4096;

/// The largest norm in every run of 64 keys, per batch row and kv head.
///
/// A cache keeps them up to date as it grows, and under ALiBi [`MultiHeadAttention`](crate::MultiHeadAttention) hands
/// them to [`attend_with`](super::attend_with): the kernel proves from them which far keys have weights below f32
/// rounding, and never reads those.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct KeyNorms {
    len: usize,
    /// Per batch row and kv head, the largest norm of each block.
    blocks: Vec<Vec<f32>>,
}

impl KeyNorms {
    /// The bounds of all keys in `k`, `(b, h_kv, t, d)`.
    ///
    /// # Errors
    /// A tensor without four dimensions.
    pub fn new(k: &Tensor) -> Result<Self> {
        let mut norms = Self::default();
        norms.append(&Stored::from(k))?;
        Ok(norms)
    }

    /// Adds the keys `(b, h_kv, t, d)` that follow those seen so far.
    ///
    /// # Errors
    /// Another number of batch rows or heads than before.
    pub fn append(&mut self, k: &Stored) -> Result<()> {
        let (b, h_kv, t, _) = k.dims4()?;
        if self.blocks.is_empty() {
            self.blocks = vec![Vec::new(); b * h_kv];
        }
        if self.blocks.len() != b * h_kv {
            bail!("key norms of {} rows and heads cannot take {b} x {h_kv} more", self.blocks.len())
        }
        let (data, kind) = match k.kind() {
            Some(kind) => (k.data().clone(), kind),
            None => (k.to_dtype(DType::F32)?, CacheType::F32),
        };
        let data = with_contiguous_rows(&data.detach().to_device(&Device::Cpu)?)?;
        let (storage, layout) = data.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else { bail!("key norms: the keys are not on the CPU") };
        let new = measure(&Tokens::new(storage, layout, kind)?, self.len % NORM_BLOCK);
        for (blocks, new) in self.blocks.iter_mut().zip(new) {
            for (i, norm) in new.into_iter().enumerate() {
                match blocks.get_mut(self.len / NORM_BLOCK + i) {
                    Some(max) => *max = max.max(norm),
                    None => blocks.push(norm),
                }
            }
        }
        self.len += t;
        Ok(())
    }

    /// Forgets keys from `len` on, and as many before them as share a block with one: those have to be appended again.
    pub(crate) fn truncate(&mut self, len: usize) {
        if len < self.len {
            let kept = len / NORM_BLOCK;
            self.len = kept * NORM_BLOCK;
            self.blocks.iter_mut().for_each(|blocks| blocks.truncate(kept));
        }
        if self.len == 0 {
            self.blocks.clear();
        }
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
    pub(super) fn check(&self, k: &Stored) -> Result<()> {
        let (b, h_kv, tk, d) = k.dims4()?;
        if self.len != tk || self.blocks.len() != b * h_kv {
            bail!("attend: key norms cover {} x {} keys, k is ({b}, {h_kv}, {tk}, {d})", self.blocks.len(), self.len)
        }
        Ok(())
    }

    /// From bounds computed elsewhere.
    pub(in crate::attention) fn from_blocks(len: usize, blocks: Vec<Vec<f32>>) -> Self {
        Self { len, blocks }
    }

    pub(in crate::attention) fn blocks(&self, row: usize) -> &[f32] {
        &self.blocks[row]
    }
}

/// The largest norm in each run of keys that shares a bound, per batch row and head; the first run already holds `filled`
/// keys.
pub(in crate::attention) fn measure(k: &Tokens, filled: usize) -> Vec<Vec<f32>> {
    let [b, h_kv, tokens, _] = k.dims;
    let per_row = (filled + tokens).div_ceil(NORM_BLOCK);
    let block = |i: usize| {
        let (row, end) = (i / per_row, (i % per_row + 1) * NORM_BLOCK - filled);
        let range = (end.saturating_sub(NORM_BLOCK))..end.min(tokens);
        range.map(|t| k.norm(row / h_kv, row % h_kv, t)).fold(0f32, f32::max)
    };
    let n = b * h_kv * per_row;
    let all: Vec<f32> = if b * h_kv * tokens < FEW_KEYS {
        (0..n).map(block).collect()
    } else {
        (0..n).into_par_iter().with_min_len(16).map(block).collect()
    };
    all.chunks(per_row.max(1)).map(<[f32]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use super::super::laws::{difference, noise};
    use super::*;
    use crate::position::{Alibi, AlibiConfig, BiasContext};
    use crate::{
        AttentionConfig, AttentionParts, LayerCache, Linear, Mask, MultiHeadAttention, PositionEncoding, Positions,
        Projections, Resolution, ScoreBias,
    };
    use std::sync::Arc;

    #[test]
    fn blocks_appended_in_any_pieces_have_the_norms_of_the_whole() -> Result<()> {
        for dtype in [DType::F32, DType::BF16, DType::F64] {
            let k = noise(5, 3.0, &[2, 3, 300, 20])?.to_dtype(dtype)?;
            let whole = KeyNorms::new(&k)?;
            let plain = k.to_dtype(DType::F32)?.sqr()?.sum(3)?.sqrt()?.reshape((6, 300))?.to_vec2::<f32>()?;
            for (row, norms) in plain.iter().enumerate() {
                for (bound, norms) in whole.blocks(row).iter().zip(norms.chunks(NORM_BLOCK)) {
                    let largest = norms.iter().fold(0f32, |a, b| a.max(*b));
                    assert!((bound - largest).abs() <= 1e-6 * largest);
                }
            }
            let (mut pieces, mut at) = (KeyNorms::default(), 0);
            for n in [1, 1, 62, 1, 130, 5, 100] {
                pieces.append(&Stored::from(&k.narrow(2, at, n)?))?;
                at += n;
            }
            assert_eq!(pieces, whole);
            pieces.truncate(200);
            pieces.append(&Stored::from(&k.narrow(2, pieces.len(), 300 - pieces.len())?))?;
            assert_eq!(pieces, whole);
        }
        Ok(())
    }

    #[test]
    fn a_key_that_is_not_a_number_has_no_bound() -> Result<()> {
        let k = Tensor::cat(&[noise(1, 1.0, &[1, 1, 70, 4])?, Tensor::full(f32::NAN, (1, 1, 1, 4), &Device::Cpu)?], 2)?;
        let norms = KeyNorms::new(&k)?;
        assert!(norms.blocks(0)[0].is_finite() && norms.blocks(0)[1] == f32::INFINITY);
        Ok(())
    }

    /// Whatever happens to a cache, its bounds are those of the keys it holds.
    #[test]
    fn a_cache_keeps_the_norms_of_the_keys_it_holds() -> Result<()> {
        let all = noise(3, 2.0, &[2, 2, 2000, 8])?;
        for mask in [Mask::causal(), Mask::causal().with_window(Some(70)), Mask::causal().with_chunk(Some(150))] {
            let mut cache = LayerCache::new(&mask, 16);
            let mut slot = 0;
            for (round, n) in [1, 1, 100, 3, 64, 1, 700, 1, 1, 90, 33, 1].into_iter().enumerate() {
                let new = all.narrow(2, slot, n)?;
                let ([k, _], _) = cache.append([&new, &new], Resolution::Fixed)?;
                slot += n;
                // Not asked for at every step, as when prompts and single tokens take turns.
                if round % 3 != 1
                    && let Some(norms) = cache.key_norms(k.dims4()?.2)?
                {
                    assert_eq!(*norms, KeyNorms::new(k.data())?, "{mask:?} at {slot}");
                }
                // A window may have dropped what going back would need.
                if round % 4 == 3 && cache.truncate(slot - 2).is_ok() {
                    slot -= 2;
                }
            }
            assert_eq!(cache.len(), slot);
        }
        Ok(())
    }

    /// ALiBi as any other bias: every key is read.
    #[derive(Debug)]
    struct Dense(Alibi);

    impl PositionEncoding for Dense {
        fn bias(&self, at: &BiasContext) -> Result<ScoreBias> {
            let bias = self.0.bias(at)?.to_dense(at.queries(), at.keys.clone(), &Device::Cpu)?;
            Ok(ScoreBias::Dense(bias.expect("ALiBi has a bias")))
        }
    }

    fn layer(heads: usize, d: usize) -> Result<MultiHeadAttention> {
        let hidden = heads * d;
        let linear = |seed| Linear::new(noise(seed, (1.0 / hidden as f32).sqrt(), &[hidden, hidden])?, None);
        let projections = Projections::Separate { q: linear(1)?, k: linear(2)?, v: linear(3)? };
        let alibi = Arc::new(Alibi::new(AlibiConfig::new(heads), &Device::Cpu)?);
        let parts = AttentionParts::new(projections, linear(4)?);
        MultiHeadAttention::from_parts(AttentionConfig::new(hidden, heads, heads), parts, alibi)
    }

    /// Decodes the tokens after `prompt` one by one, and counts the tiles that the last one visited.
    fn decode(layer: &MultiHeadAttention, xs: &Tensor, prompt: usize) -> Result<(Tensor, usize)> {
        let t = xs.dim(1)?;
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool of one thread");
        one.install(|| {
            let mut cache = layer.new_cache(t);
            let positions = Positions::new;
            layer.forward(&xs.narrow(1, 0, prompt)?, &positions(0..prompt), Some(&mut cache))?;
            let (mut out, mut visited) = (Vec::new(), 0);
            for i in prompt..t {
                super::super::backends::tiles_visited();
                out.push(layer.forward(&xs.narrow(1, i, 1)?, &positions(i..i + 1), Some(&mut cache))?);
                visited = super::super::backends::tiles_visited();
            }
            Ok((Tensor::cat(&out, 1)?, visited))
        })
    }

    #[test]
    fn decoding_under_alibi_through_the_layer_skips_and_changes_nothing() -> Result<()> {
        let (b, heads, d, t) = (2, 8, 16, 2100);
        let layer = layer(heads, d)?;
        let full = layer.with_position(Arc::new(Dense(Alibi::new(AlibiConfig::new(heads), &Device::Cpu)?)));
        let plain = noise(11, 1.0, &[b, t, heads * d])?;
        // A token far back whose keys outweigh every near one, in one row of the batch.
        let mut spiked = vec![1f32; b * t];
        spiked[40] = 3000.0;
        let spiked = plain.broadcast_mul(&Tensor::from_vec(spiked, (b, t, 1), &Device::Cpu)?)?;
        let mut visits = Vec::new();
        for xs in [&plain, &spiked] {
            let (ours, visited) = decode(&layer, xs, 2000)?;
            let (theirs, all) = decode(&full, xs, 2000)?;
            let off = difference(&ours, &theirs)?;
            assert!(off < 2e-5, "off by {off:e}");
            assert_eq!(all, b * heads * t.div_ceil(128));
            visits.push((visited, all));
        }
        // The steep half of the heads sees a few tiles at most; the spike costs its own row and nothing else.
        assert!(visits[0].0 < visits[0].1 / 2, "{visits:?}");
        assert!(visits[1].0 > visits[0].0 && visits[1].0 < visits[1].1, "{visits:?}");
        Ok(())
    }
}
