//! Keys and values of the tokens already seen: allocated ahead, appended in place, never concatenated per token.
//!
//! A windowed layer keeps only what its window can still see. Its buffer is a little longer than the window, and when it
//! is full its tail moves to the front. Other than in a ring, keys are always contiguous and in order for the kernels; on
//! average this costs one copy per token.

mod buffer;
#[cfg(test)]
mod laws;

use crate::{CacheType, CacheTypes, Mask, Resolution, attention::KeyNorms, profile, stored::Stored};
use buffer::Buffer;
use candle_core::{Result, Tensor, bail};
use std::sync::Arc;

/// The keys and values of one layer (for latent attention: the one latent that both are made from), with what the
/// position encoding needs beside them: further copies of the keys, numbers it remembers.
///
/// A clone is a cache of its own: a prefix that many continuations share is cloned, and its memory with it when the first
/// of them grows. [`select_rows`](Self::select_rows) reorders beams.
///
/// Gradients: keys that track one stay in the graph of every later call, at the cost of a copy per call. Detach the
/// weights where that is not wanted.
#[derive(Debug, Clone, Default)]
pub struct LayerCache {
    buffers: Vec<Buffer>,
    /// Slot of the first token kept.
    start: usize,
    /// Slot after the last token.
    end: usize,
    /// Keys a query can see, its own included; `None` for full attention.
    window: Option<usize>,
    /// Tokens to allocate for at the first append.
    expected: usize,
    /// What keys and values are stored as.
    types: CacheTypes,
    resolution: Option<Resolution>,
    /// Bounds on the norms of the first so many of the keys held.
    norms: Arc<KeyNorms>,
}

impl LayerCache {
    /// An empty cache that allocates room for `expected` tokens at once and grows past it. Masks that can only see back
    /// so far make it keep only so much.
    pub fn new(mask: &Mask, expected: usize) -> Self {
        Self { window: mask.reach(), expected, ..Self::default() }
    }

    /// Stores keys and values as these types, such as f16 or blocks under a model in f32. What an encoding remembers
    /// beside them stays as it is; a latent is a key. A head that is no whole number of blocks is refused when the first
    /// keys come, and so are keys with a gradient where they would become blocks.
    #[must_use]
    pub fn with_types(mut self, types: CacheTypes) -> Self {
        self.types = types;
        self
    }

    /// Tokens seen so far, those that a window has dropped included: the slot of the next token.
    pub fn len(&self) -> usize {
        self.end
    }

    /// True if nothing was appended yet.
    pub fn is_empty(&self) -> bool {
        self.end == 0
    }

    /// Memory the buffers take.
    pub fn size_in_bytes(&self) -> usize {
        self.buffers.iter().map(Buffer::size_in_bytes).sum()
    }

    /// Appends what new tokens bring, usually keys `(b, h_kv, t, d)` and values `(b, h_kv, t, dv)`, computed under the
    /// frequencies `resolution`; the last of several tensors are values, the others keys. Returns the same with everything
    /// a query among the new tokens may see in front, as [stored](Self::with_types) and as views of the cache that are good
    /// until the next tokens come, and the slot of the first.
    /// [`attend_stored`](crate::attention::attend_stored) takes them.
    ///
    /// # Errors
    /// Keys of another resolution than those in the cache: scores between them would be wrong, and look fine. Tensors of
    /// another shape or dtype than those in the cache.
    pub fn append<const N: usize>(
        &mut self,
        new: [&Tensor; N],
        resolution: Resolution,
    ) -> Result<([Stored; N], usize)> {
        let stored =
            |(i, x): (usize, &Tensor)| if i > 0 && i + 1 == N { self.stored_values(x) } else { self.stored_keys(x) };
        let new = new.into_iter().enumerate().map(stored).collect::<Result<Vec<_>>>()?;
        let (all, start) = self.append_all(&new, resolution)?;
        match all.try_into() {
            Ok(all) => Ok((all, start)),
            Err(_) => bail!("kv cache: the number of tensors changed"),
        }
    }

    /// [`append`](Self::append) of any number of tensors, as they are stored.
    pub(crate) fn append_all(&mut self, new: &[Stored], resolution: Resolution) -> Result<(Vec<Stored>, usize)> {
        let _scope = profile::scope(profile::Op::Cache);
        if let Some(known) = self.resolution
            && known != resolution
        {
            bail!(
                "kv cache: filled under rotary frequencies {known:?}, now asked for {resolution:?}; recompute it, or \
                 declare the final length up front"
            )
        }
        if new.is_empty() || (self.end > 0 && new.len() != self.buffers.len()) {
            bail!("kv cache: {} tensors a token in a cache of {}", new.len(), self.buffers.len())
        }
        self.buffers.resize_with(new.len(), Buffer::default);
        let held = self.end - self.start;
        if held > 0 {
            self.buffers.iter().zip(new).try_for_each(|(buffer, new)| buffer.check(new))?;
        }
        self.resolution = Some(resolution);
        let (_, _, tokens, _) = new[0].dims4()?;
        let keep = self.window.map_or(held, |w| held.min(w - 1));
        if self.window.is_some_and(|w| keep + tokens > 2 * w) {
            return self.append_long(new, keep);
        }
        let fits = held + tokens <= self.buffers[0].capacity();
        let (from, at) = if fits { (0, held) } else { (held - keep, keep) };
        let capacity = if fits { self.buffers[0].capacity() } else { self.grown(keep + tokens) };
        for (buffer, new) in self.buffers.iter_mut().zip(new) {
            buffer.write(new, at, from..held, capacity)?;
        }
        if from > 0 {
            // Blocks are counted from the first key held, which is another one now.
            self.norms = Arc::default();
        }
        self.start += from;
        self.end += tokens;
        let views = self.buffers.iter().map(|b| b.view(0..self.end - self.start)).collect::<Result<Vec<_>>>()?;
        Ok((views, self.start))
    }

    /// Keys as they are stored.
    pub(crate) fn stored_keys(&self, xs: &Tensor) -> Result<Stored> {
        stored(xs, self.types.k)
    }

    /// Values as they are stored.
    pub(crate) fn stored_values(&self, xs: &Tensor) -> Result<Stored> {
        stored(xs, self.types.v)
    }

    /// A block much longer than the window: attend to all of it, keep only its end.
    fn append_long(&mut self, new: &[Stored], keep: usize) -> Result<(Vec<Stored>, usize)> {
        let held = self.end - self.start;
        let first = self.end - keep;
        let tokens = keep + new[0].dims4()?.2;
        let tail = tokens.min(self.window.map_or(tokens, |w| (w - 1).max(1)));
        let capacity = self.grown(tail);
        let mut all = Vec::with_capacity(new.len());
        for (buffer, new) in self.buffers.iter_mut().zip(new) {
            let joined = match keep {
                0 => new.clone(),
                _ => buffer.view(held - keep..held)?.followed_by(new)?,
            };
            buffer.write(&joined.tokens(tokens - tail..tokens)?, 0, 0..0, capacity)?;
            all.push(joined);
        }
        self.norms = Arc::default();
        self.end = first + tokens;
        self.start = self.end - tail;
        Ok((all, first))
    }

    fn grown(&self, needed: usize) -> usize {
        match self.window {
            Some(w) => (2 * w).max(needed),
            None => match self.buffers[0].capacity() {
                0 => needed.max(self.expected),
                full => needed.max(full * 2),
            },
        }
    }

    /// Tensor number `index` of the last token, `(b, h, 1, w)`, if there is one.
    pub(crate) fn last(&self, index: usize) -> Result<Option<Tensor>> {
        match self.buffers.get(index) {
            Some(buffer) if self.end > self.start => {
                let last = self.end - self.start - 1;
                buffer.view(last..last + 1).map(|x| Some(x.data().clone()))
            }
            _ => Ok(None),
        }
    }

    /// Forgets the tokens from slot `len` on.
    ///
    /// # Errors
    /// A windowed cache that no longer holds what the token in slot `len` would have to see.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        if len >= self.end {
            return Ok(());
        }
        let needed = self.window.map_or(0, |w| (len + 1).saturating_sub(w));
        if self.start > needed {
            bail!("kv cache: cannot go back to {len} tokens, the window has dropped those before {}", self.start)
        }
        self.end = len;
        Arc::make_mut(&mut self.norms).truncate(len - self.start);
        if len == 0 {
            self.resolution = None;
            self.start = 0;
        }
        Ok(())
    }

    /// Forgets all tokens and keeps the memory. The next ones may be of a batch of another size, in another dtype and
    /// under other frequencies.
    pub fn reset(&mut self) {
        self.norms = Arc::default();
        (self.start, self.end, self.resolution) = (0, 0, None);
    }

    /// Replaces the rows of the batch by those with the numbers `rows`, in this order and as often as they occur: beam
    /// search keeps its best beams so, and one row becomes many.
    ///
    /// # Errors
    /// A row that is not there.
    pub fn select_rows(&mut self, rows: &[usize]) -> Result<()> {
        let held = self.end - self.start;
        let Some((batch, device)) = self.buffers.first().and_then(Buffer::batch) else { return Ok(()) };
        if let Some(row) = rows.iter().find(|row| **row >= batch) {
            bail!("kv cache: there is no row {row} among {batch}")
        }
        let index = Tensor::from_iter(rows.iter().map(|row| *row as u32), &device)?;
        self.norms = Arc::default();
        self.buffers.iter_mut().try_for_each(|buffer| buffer.select_rows(&index, held))
    }

    /// Bounds on the norms of the `tokens` keys that the last [`append`](Self::append) returned, or `None` if the cache
    /// doesn't hold that many. Only the keys that came in since the last time are looked at, so that a layer whose bias
    /// makes no use of the bounds pays nothing for them. Kernels leave out far keys with them, see
    /// [`KernelOptions`](crate::attention::KernelOptions).
    ///
    /// # Errors
    /// Keys that can't be read.
    pub fn key_norms(&mut self, tokens: usize) -> Result<Option<Arc<KeyNorms>>> {
        let held = self.end - self.start;
        if tokens != held || held == 0 {
            return Ok(None);
        }
        let known = self.norms.len();
        if known < held {
            let new = self.buffers[0].view(known..held)?;
            Arc::make_mut(&mut self.norms).append(&new)?;
        }
        Ok(Some(self.norms.clone()))
    }
}

/// `xs`, `(b, h, t, d)`, as this type, or as it is.
fn stored(xs: &Tensor, kind: Option<CacheType>) -> Result<Stored> {
    xs.dims4()?;
    match kind {
        Some(kind) => Stored::new(xs, kind),
        None => Ok(Stored::from(xs)),
    }
}

/// The caches of all layers of a model.
#[derive(Debug, Clone, Default)]
pub struct KvCache {
    /// One per layer, in order.
    pub layers: Vec<LayerCache>,
}

impl KvCache {
    /// Tokens seen so far.
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, LayerCache::len)
    }

    /// True if nothing was appended yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Memory all buffers take.
    pub fn size_in_bytes(&self) -> usize {
        self.layers.iter().map(LayerCache::size_in_bytes).sum()
    }

    /// Forgets the tokens from slot `len` on, see [`LayerCache::truncate`].
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        self.layers.iter_mut().try_for_each(|layer| layer.truncate(len))
    }

    /// Forgets all tokens, see [`LayerCache::reset`].
    pub fn reset(&mut self) {
        self.layers.iter_mut().for_each(LayerCache::reset);
    }

    /// Replaces the rows of the batch, see [`LayerCache::select_rows`].
    pub fn select_rows(&mut self, rows: &[usize]) -> Result<()> {
        self.layers.iter_mut().try_for_each(|layer| layer.select_rows(rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};
    use std::ops::Range;

    fn numbers(xs: &Stored) -> Vec<f32> {
        xs.data().flatten_all().unwrap().to_vec1().unwrap()
    }

    fn tokens(range: Range<usize>) -> Tensor {
        let n = range.len();
        Tensor::from_iter(range.map(|i| i as f32), &Device::Cpu).and_then(|t| t.reshape((1, 1, n, 1))).unwrap()
    }

    /// Appends blocks of the given sizes and checks that every token that a query may see is there, in order.
    fn check(mask: &Mask, blocks: &[usize]) {
        let mut cache = LayerCache::new(mask, 4);
        let mut slot = 0;
        for &n in blocks {
            let new = tokens(slot..slot + n);
            let ([k, v], start) = cache.append([&new, &(&new * 2.0).unwrap()], Resolution::Fixed).unwrap();
            let held = numbers(&k);
            assert_eq!(held, (start..slot + n).map(|i| i as f32).collect::<Vec<_>>());
            assert_eq!(numbers(&v)[0], 2.0 * start as f32);
            for q in slot..slot + n {
                assert!(mask.visible(0, q, 0..slot + n).start >= start, "{blocks:?}: {q} needs more than {start}..");
            }
            slot += n;
            assert_eq!(cache.len(), slot);
        }
    }

    #[test]
    fn holds_what_a_query_may_see() {
        for mask in [Mask::causal(), Mask::causal().with_window(Some(5)), Mask::causal().with_chunk(Some(6))] {
            for blocks in [&[1; 40][..], &[3, 1, 1, 9, 1, 30, 1, 1, 2], &[50, 1, 1, 1, 1, 50], &[5; 9]] {
                check(&mask, blocks);
            }
        }
        check(&Mask::causal().with_window(Some(1)), &[1, 3, 1, 1, 7, 1]);
    }

    #[test]
    fn a_window_bounds_the_memory() {
        let mut cache = LayerCache::new(&Mask::causal().with_window(Some(8)), 1000);
        for slot in 0..500 {
            let new = tokens(slot..slot + 1);
            cache.append([&new, &new], Resolution::Fixed).unwrap();
        }
        assert_eq!(cache.size_in_bytes(), 2 * 16 * 4);
    }

    #[test]
    fn truncates_and_refuses_what_is_gone() {
        let mut cache = LayerCache::new(&Mask::causal(), 0);
        cache.append([&tokens(0..5), &tokens(0..5)], Resolution::Fixed).unwrap();
        cache.truncate(2).unwrap();
        let ([k, _], _) = cache.append([&tokens(7..8), &tokens(7..8)], Resolution::Fixed).unwrap();
        assert_eq!(numbers(&k), [0.0, 1.0, 7.0]);

        let mut windowed = LayerCache::new(&Mask::causal().with_window(Some(4)), 0);
        windowed.append([&tokens(0..50), &tokens(0..50)], Resolution::Fixed).unwrap();
        assert!(windowed.truncate(20).unwrap_err().to_string().contains("dropped those before 47"));
    }

    #[test]
    fn refuses_to_mix_frequencies() {
        let mut cache = LayerCache::new(&Mask::causal(), 0);
        let one = tokens(0..1);
        cache.append([&one, &one], Resolution::Length(8)).unwrap();
        let error = cache.append([&one, &one], Resolution::Length(9)).unwrap_err().to_string();
        assert!(error.contains("Length(8)") && error.contains("Length(9)"), "{error}");
        cache.truncate(0).unwrap();
        cache.append([&one, &one], Resolution::Length(9)).unwrap();
    }
}
