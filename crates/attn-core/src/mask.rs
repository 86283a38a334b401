//! Which keys a query may see.
//!
//! Every mask here leaves each query one contiguous range of keys, so a mask is a function from a query to a range
//! rather than a tensor: kernels turn it into loop bounds and never touch a hidden block, and only the reference
//! kernel ever writes it out as numbers. [`Mask::visible`] is the single definition that all of them follow.

use candle_core::{Result, bail};
use std::{ops::Range, sync::Arc};

/// The keys a query sees, as conditions that all have to hold.
///
/// Queries and keys are named by their *slot*: the index of the token in its row of the batch, counted from the first
/// token ever fed, padding included.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mask {
    /// Only keys at or before the query: `k <= q`.
    pub causal: bool,
    /// Sliding window: only the `window` nearest keys on either side, the query's own included (`q - k < window`).
    /// A causal window of W therefore sees W keys, as in Mistral and transformers.
    pub window: Option<usize>,
    /// Only keys at least so far before the query: `q - k >= beyond`. With a window of the same width, the two masks share
    /// the keys before a query among them.
    pub beyond: Option<usize>,
    /// Only the first so many real keys of the row.
    pub first: Option<usize>,
    /// Only keys of some blocks of tokens. Blocks are counted from the row's first real token.
    pub chunk: Option<Chunk>,
    /// The slots that hold real tokens, one range per row of the batch; the others are padding. `None`: all of them.
    pub keys: Option<Arc<[Range<usize>]>>,
    /// The slots where the documents that are packed into a row begin, in order, one list per row of the batch: a query
    /// sees only its own document. `None`: every row is one document.
    pub documents: Option<Arc<[Vec<usize>]>>,
}

/// Blocks of `size` tokens, and which of them a query sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Tokens in a block.
    pub size: usize,
    /// Which blocks, seen from the query's own.
    pub which: Chunks,
}

/// Which blocks of tokens a query sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunks {
    /// Its own: chunked attention (Llama 4).
    Own,
    /// The one before its own.
    Previous,
    /// Those before the one before its own.
    Earlier,
}

impl Mask {
    /// A causal mask and nothing else.
    pub fn causal() -> Self {
        Self { causal: true, ..Self::default() }
    }

    /// Every query sees every key.
    pub fn bidirectional() -> Self {
        Self::default()
    }

    /// Limits the mask to a sliding window of `window` keys, see [`Mask::window`].
    #[must_use]
    pub fn with_window(mut self, window: Option<usize>) -> Self {
        self.window = window;
        self
    }

    /// Limits the mask to keys at least `beyond` tokens before the query, see [`Mask::beyond`].
    #[must_use]
    pub fn with_beyond(mut self, beyond: Option<usize>) -> Self {
        self.beyond = beyond;
        self
    }

    /// Limits the mask to the row's first `n` real keys.
    #[must_use]
    pub fn with_first(mut self, n: Option<usize>) -> Self {
        self.first = n;
        self
    }

    /// Limits the mask to the query's own block of `size` tokens, see [`Mask::chunk`].
    #[must_use]
    pub fn with_chunk(mut self, size: Option<usize>) -> Self {
        self.chunk = size.map(|size| Chunk { size, which: Chunks::Own });
        self
    }

    /// Limits the mask to the block of `size` tokens before the query's own.
    #[must_use]
    pub fn with_previous_chunk(mut self, size: usize) -> Self {
        self.chunk = Some(Chunk { size, which: Chunks::Previous });
        self
    }

    /// Limits the mask to the blocks of `size` tokens before the one before the query's own.
    #[must_use]
    pub fn with_earlier_chunks(mut self, size: usize) -> Self {
        self.chunk = Some(Chunk { size, which: Chunks::Earlier });
        self
    }

    /// Hides padding, see [`Mask::keys`].
    #[must_use]
    pub fn with_keys(mut self, keys: Option<Arc<[Range<usize>]>>) -> Self {
        self.keys = keys;
        self
    }

    /// Keeps packed documents apart, see [`Mask::documents`].
    #[must_use]
    pub fn with_documents(mut self, starts: Option<Arc<[Vec<usize>]>>) -> Self {
        self.documents = starts;
        self
    }

    /// The keys that both masks let a query see.
    ///
    /// # Errors
    /// Two conditions that don't make one: blocks of different kinds, different padding or documents.
    pub fn intersect(&self, other: &Self) -> Result<Self> {
        fn one<T: Clone + PartialEq + std::fmt::Debug>(what: &str, a: &Option<T>, b: &Option<T>) -> Result<Option<T>> {
            match (a, b) {
                (Some(a), Some(b)) if a != b => bail!("mask: {what} {a:?} and {b:?} at once"),
                (a, b) => Ok(a.clone().or_else(|| b.clone())),
            }
        }
        let least = |a: Option<usize>, b: Option<usize>| a.into_iter().chain(b).min();
        Ok(Self {
            causal: self.causal || other.causal,
            window: least(self.window, other.window),
            beyond: self.beyond.max(other.beyond),
            first: least(self.first, other.first),
            chunk: one("blocks", &self.chunk, &other.chunk)?,
            keys: one("padding", &self.keys, &other.keys)?,
            documents: one("documents", &self.documents, &other.documents)?,
        })
    }

    /// The slots that the query in slot `q` of batch row `row` sees among the slots `keys`; may be empty.
    ///
    /// For one row both ends never fall as `q` grows.
    pub fn visible(&self, row: usize, q: usize, keys: Range<usize>) -> Range<usize> {
        let Range { mut start, mut end } = keys;
        let mut limit = |range: Range<usize>| (start, end) = (start.max(range.start), end.min(range.end));
        if self.causal {
            limit(0..q + 1);
        }
        if let Some(window) = self.window {
            limit((q + 1).saturating_sub(window)..q.saturating_add(window));
        }
        if let Some(beyond) = self.beyond {
            limit(0..(q + 1).saturating_sub(beyond));
        }
        let mut real = 0;
        if let Some(rows) = &self.keys {
            real = rows[row].start;
            limit(rows[row].clone());
        }
        if let Some(n) = self.first {
            limit(real..real.saturating_add(n));
        }
        if let Some(Chunk { size, which }) = self.chunk {
            let own = real + q.saturating_sub(real) / size * size;
            limit(match which {
                Chunks::Own => own..own.saturating_add(size),
                Chunks::Previous => own.saturating_sub(size).max(real)..own,
                Chunks::Earlier => real..own.saturating_sub(size).max(real),
            });
        }
        if let Some(rows) = &self.documents {
            let starts = &rows[row];
            let after = starts.partition_point(|start| *start <= q);
            limit(after.checked_sub(1).map_or(0, |i| starts[i])..starts.get(after).copied().unwrap_or(usize::MAX));
        }
        start..end.max(start)
    }

    /// True if every query in `queries` of every row sees all of `keys`: the mask then changes nothing.
    pub fn hides_nothing(&self, rows: usize, queries: Range<usize>, keys: Range<usize>) -> bool {
        (0..rows).all(|r| queries.clone().all(|q| self.visible(r, q, keys.clone()) == keys))
    }

    /// True if no query in `queries` of any of `rows` rows sees any of `keys`.
    pub fn hides_all(&self, rows: usize, queries: Range<usize>, keys: Range<usize>) -> bool {
        (0..rows).all(|r| queries.clone().all(|q| self.visible(r, q, keys.clone()).is_empty()))
    }

    /// True if what a query sees depends on its row of the batch.
    pub fn differs_by_row(&self) -> bool {
        self.keys.is_some() || self.documents.is_some()
    }

    /// How many keys, counted back from a query's own, later queries can see at most; `None` if there is no limit. What
    /// lies further back need not be kept.
    pub fn reach(&self) -> Option<usize> {
        let chunk = self.chunk.and_then(|chunk| match chunk.which {
            Chunks::Own => Some(chunk.size),
            Chunks::Previous => Some(chunk.size.saturating_mul(2)),
            Chunks::Earlier => None,
        });
        let nearest = [self.window, chunk].into_iter().flatten().min();
        nearest.filter(|_| self.causal)
    }

    /// True if nothing but causality, a window, the query's own block or padding hides keys.
    pub(crate) fn is_simple(&self) -> bool {
        let own = self.chunk.is_none_or(|chunk| chunk.which == Chunks::Own);
        own && self.beyond.is_none() && self.first.is_none() && self.documents.is_none()
    }

    /// An error unless the mask fits a batch of `rows`.
    pub(crate) fn check(&self, rows: usize) -> Result<()> {
        if let Some(keys) = &self.keys
            && keys.len() != rows
        {
            bail!("attend: the mask has key ranges for {} rows, the batch has {rows}", keys.len())
        }
        if let Some(documents) = &self.documents {
            if documents.len() != rows {
                bail!("attend: the mask has documents for {} rows, the batch has {rows}", documents.len())
            }
            if let Some(starts) = documents.iter().find(|starts| !starts.is_sorted()) {
                bail!("attend: documents have to be in order, not {starts:?}")
            }
        }
        if self.window == Some(0) || self.chunk.is_some_and(|chunk| chunk.size == 0) {
            bail!("attend: a window or chunk of 0 tokens sees nothing")
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_keeps_w_keys_including_self() {
        let m = Mask::causal().with_window(Some(4));
        assert_eq!(m.visible(0, 10, 0..11), 7..11);
        assert_eq!(m.visible(0, 2, 0..11), 0..3);
        assert_eq!(Mask::bidirectional().with_window(Some(2)).visible(0, 5, 0..11), 4..7);
    }

    #[test]
    fn chunks_count_from_the_first_real_token() {
        let m = Mask::causal().with_chunk(Some(4));
        assert_eq!(m.visible(0, 5, 0..6), 4..6);
        assert_eq!(m.visible(0, 3, 0..6), 0..4);
        let padded = m.with_keys(Some(std::iter::once(3..8).collect()));
        assert_eq!(padded.visible(0, 6, 0..8), 3..7);
        assert_eq!(padded.visible(0, 7, 0..8), 7..8);
    }

    #[test]
    fn an_intersection_sees_what_both_see() -> Result<()> {
        let a = Mask::causal().with_window(Some(9)).with_keys(Some(std::iter::once(2..30).collect()));
        for b in [
            Mask::bidirectional().with_window(Some(5)),
            Mask::causal().with_chunk(Some(4)),
            Mask::causal().with_beyond(Some(3)),
        ] {
            let both = a.intersect(&b)?;
            let b = b.with_keys(a.keys.clone());
            for q in 0..30 {
                let (x, y) = (a.visible(0, q, 0..30), b.visible(0, q, 0..30));
                let seen: Vec<usize> = x.filter(|k| y.contains(k)).collect();
                assert_eq!(both.visible(0, q, 0..30).collect::<Vec<_>>(), seen, "{b:?}, query {q}");
            }
        }
        assert!(Mask::causal().with_chunk(Some(4)).intersect(&Mask::causal().with_previous_chunk(4)).is_err());
        Ok(())
    }

    #[test]
    fn padding_may_leave_a_query_with_no_key() {
        let m = Mask::causal().with_keys(Some(vec![2..6, 0..6].into()));
        assert!(m.visible(0, 1, 0..6).is_empty());
        assert_eq!(m.visible(1, 1, 0..6), 0..2);
        assert!(!m.hides_nothing(2, 0..6, 0..6));
        assert!(Mask::causal().hides_nothing(1, 5..6, 0..6));
    }

    /// Every pair of the masks that methods for long texts are made of shares the causal keys without overlap.
    #[test]
    fn far_and_near_parts_cover_every_key_once() {
        let causal = Mask::causal;
        let chunked =
            vec![causal().with_chunk(Some(5)), causal().with_previous_chunk(5), causal().with_earlier_chunks(5)];
        let near_and_far = vec![causal().with_window(Some(7)), causal().with_beyond(Some(7))];
        for padding in [None, Some(Arc::from([3..40usize, 0..31]))] {
            for parts in [&chunked, &near_and_far] {
                for row in 0..2 {
                    let real = padding.as_ref().map_or(0..40, |rows: &Arc<[Range<usize>]>| rows[row].clone());
                    for q in real.clone() {
                        let seen = parts.iter().map(|m| m.clone().with_keys(padding.clone()).visible(row, q, 0..40));
                        let mut seen: Vec<usize> = seen.flatten().collect();
                        seen.sort_unstable();
                        assert_eq!(seen, (real.start..real.end.min(q + 1)).collect::<Vec<_>>(), "query {q}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_first_keys_are_the_first_real_ones() {
        let m = Mask::causal().with_beyond(Some(4)).with_first(Some(3));
        assert_eq!(m.visible(0, 20, 0..21), 0..3);
        assert_eq!(m.visible(0, 5, 0..6), 0..2);
        let padded = m.with_keys(Some(std::iter::once(2..30).collect()));
        assert_eq!(padded.visible(0, 20, 0..21), 2..5);
    }

    #[test]
    fn a_query_sees_its_own_document() {
        let m = Mask::causal().with_documents(Some(vec![vec![0, 4, 9], vec![2]].into()));
        assert_eq!(m.visible(0, 6, 0..12), 4..7);
        assert_eq!(m.visible(0, 9, 0..12), 9..10);
        assert_eq!(m.visible(1, 1, 0..12), 0..2);
        assert_eq!(m.visible(1, 5, 0..12), 2..6);
        assert!(m.check(2).is_ok() && m.check(1).is_err());
    }

    #[test]
    fn only_near_masks_have_a_reach() {
        assert_eq!(Mask::causal().reach(), None);
        assert_eq!(Mask::causal().with_window(Some(6)).with_chunk(Some(4)).reach(), Some(4));
        assert_eq!(Mask::causal().with_previous_chunk(4).reach(), Some(8));
        assert_eq!(Mask::causal().with_earlier_chunks(4).reach(), None);
        assert_eq!(Mask::bidirectional().with_window(Some(6)).reach(), None);
    }
}
