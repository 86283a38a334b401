//! What one thread works on at a time: a block of queries, against the keys that it sees.

use super::{bias::Bias, problem::Problem, tile::Row};
use std::ops::Range;

/// A block of queries of one kv head's query heads, against a range of keys.
#[derive(Debug, Clone)]
pub(super) struct Unit {
    pub(super) b: usize,
    pub(super) kv_head: usize,
    pub(super) queries: Range<usize>,
    pub(super) keys: Range<usize>,
    /// The part that the result is, if other units have the other keys.
    pub(super) part: Option<usize>,
}

/// Rows of a unit that are worked on together.
pub(super) struct Rows {
    /// Which of the unit's rows.
    pub(super) range: Range<usize>,
    /// The keys that any of them sees.
    pub(super) keys: Range<usize>,
}

impl Unit {
    /// The unit's rows: heads of one kv group one after another, each with the same queries.
    pub(super) fn rows(&self, p: &Problem) -> Vec<Row> {
        let n = p.sizes.group() * self.queries.len();
        let row = |i: usize| {
            let head = self.kv_head * p.sizes.group() + i / self.queries.len();
            let q = self.queries.start + i % self.queries.len();
            Row { head, q, seen: p.seen(self.b, q) }
        };
        (0..n).map(row).collect()
    }

    /// Rows in blocks of `size`, without blocks that see nothing.
    pub(super) fn blocks_of_rows(&self, rows: &[Row], size: usize) -> Vec<Rows> {
        let mut blocks = Vec::with_capacity(rows.len().div_ceil(size));
        for start in (0..rows.len()).step_by(size) {
            let range = start..rows.len().min(start + size);
            let seen = rows[range.clone()].iter().map(|row| row.seen.clone()).filter(|seen| !seen.is_empty());
            if let Some(seen) = seen.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)) {
                let keys = seen.start.max(self.keys.start)..seen.end.min(self.keys.end);
                blocks.push(Rows { range, keys });
            }
        }
        blocks
    }

    /// Where the blocks of `size` keys start. Nearest first, for a linear bias: it is the order in which the rest can be
    /// left out early.
    pub(super) fn blocks_of_keys(&self, p: &Problem, size: usize) -> impl Iterator<Item = usize> + use<> {
        let backwards = matches!(p.bias, Bias::Linear { .. });
        let (first, last) = (self.keys.start / size, self.keys.end.div_ceil(size));
        (first..last).map(move |i| size * if backwards { first + last - 1 - i } else { i })
    }
}
