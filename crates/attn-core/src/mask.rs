//! Which keys a query may see.
//!
//! Every mask here leaves each query one contiguous range of keys, so a mask is a function from a query to a range
//! rather than a tensor: kernels turn it into loop bounds and never touch a hidden block, and only the reference
//! kernel ever writes it out as numbers. [`Mask::visible`] is the single definition that all of them follow.

use std::{ops::Range, sync::Arc};

/// The keys a query sees, as conditions that all have to hold.
///
/// Queries and keys are named by their *slot*: the index of the token in its row of the batch, counted from the first
/// token ever fed, padding included.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mask {
    /// Only keys at or before the query: `k <= q`.
    pub causal: bool,
    /// Sliding window: only the `window` nearest keys on either side, the query's own included (`q - k < window`).
    /// A causal window of W therefore sees W keys, as in Mistral and transformers.
    pub window: Option<usize>,
    /// Chunked attention (Llama 4): only keys in the query's own block of `chunk` tokens. Blocks are counted from the
    /// row's first real token.
    pub chunk: Option<usize>,
    /// The slots that hold real tokens, one range per row of the batch; the others are padding. `None`: all of them.
    pub keys: Option<Arc<[Range<usize>]>>,
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

    /// Limits the mask to chunks, see [`Mask::chunk`].
    #[must_use]
    pub fn with_chunk(mut self, chunk: Option<usize>) -> Self {
        self.chunk = chunk;
        self
    }

    /// Hides padding, see [`Mask::keys`].
    #[must_use]
    pub fn with_keys(mut self, keys: Option<Arc<[Range<usize>]>>) -> Self {
        self.keys = keys;
        self
    }

    /// The slots that the query in slot `q` of batch row `row` sees among the slots `keys`; may be empty.
    pub fn visible(&self, row: usize, q: usize, keys: Range<usize>) -> Range<usize> {
        let Range { mut start, mut end } = keys;
        if self.causal {
            end = end.min(q + 1);
        }
        if let Some(window) = self.window {
            start = start.max((q + 1).saturating_sub(window));
            end = end.min(q.saturating_add(window));
        }
        let mut first = 0;
        if let Some(rows) = &self.keys {
            first = rows[row].start;
            start = start.max(first);
            end = end.min(rows[row].end);
        }
        if let Some(chunk) = self.chunk {
            let block = q.saturating_sub(first) / chunk;
            start = start.max(first + block * chunk);
            end = end.min(first + (block + 1) * chunk);
        }
        start..end.max(start)
    }

    /// True if every query in `queries` of every row sees all of `keys`: the mask then changes nothing.
    pub fn hides_nothing(&self, rows: usize, queries: Range<usize>, keys: Range<usize>) -> bool {
        (0..rows).all(|r| queries.clone().all(|q| self.visible(r, q, keys.clone()) == keys))
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
    fn padding_may_leave_a_query_with_no_key() {
        let m = Mask::causal().with_keys(Some(vec![2..6, 0..6].into()));
        assert!(m.visible(0, 1, 0..6).is_empty());
        assert_eq!(m.visible(1, 1, 0..6), 0..2);
        assert!(!m.hides_nothing(2, 0..6, 0..6));
        assert!(Mask::causal().hides_nothing(1, 5..6, 0..6));
    }
}
