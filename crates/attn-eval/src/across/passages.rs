//! The same bytes for models of different tokenizers.
//!
//! Two models can be compared by what they predict only if both predict the same text with the same text before it. Windows of
//! equal numbers of tokens do not give that, since the same number of tokens is more text with one tokenizer than with another.
//! So windows are cut here by bytes, at places where a token ends for *every* model:
//!
//! - A window begins at such a place and is as long as it can be with at most `context` tokens for each of the models, the
//!   BOS token of those that have one included. The model whose tokens are the shortest reads about `context` of them, the
//!   others fewer; all read the same bytes.
//! - The bytes of a window up to its second such place are not scored, since a model without BOS has nothing before its first
//!   token. If every model has a BOS, they are scored.
//! - Windows lie side by side. With a stride, a window begins after the one before it by as many bytes as are at most `stride`
//!   tokens for each model, and scores what no earlier window did; a last window is moved back to end with the text.
//! - A window that is not full, as the last may be, is left out.
//!
//! With one tokenizer every end of a token is such a place, and the windows are those of [`Windows::new`].

use crate::error::{Result, ensure};
use crate::windows::{Window, Windows};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

/// The beginning of a text, as a model's tokenizer encodes it.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// Its ids.
    pub ids: Vec<u32>,
    /// For each token, the bytes of the text up to its end; `None` if it ends within a character.
    pub ends: Vec<Option<usize>>,
    /// The token before every window, if there is one.
    pub bos: Option<u32>,
}

/// A text cut for several models.
#[derive(Debug, Clone)]
pub struct Passages {
    /// The bytes that each window scores.
    pub scored: Vec<Range<usize>>,
    /// The windows as each of the models sees them.
    pub windows: Vec<Windows>,
}

impl Passages {
    /// Cuts a text, which every model sees its own way, into windows of at most `context` tokens.
    ///
    /// # Errors
    /// The text is shorter than a window, the context is too small to score anything, the stride is 0 or skips text, or the models
    /// have too few places in common.
    pub fn cut(texts: &[Encoded], context: usize, stride: Option<usize>) -> Result<Self> {
        ensure!(context >= 2, Setting, "a context of {context} leaves no token to score: it has to be at least 2");
        let bodies: Vec<usize> = texts.iter().map(|text| context - usize::from(text.bos.is_some())).collect();
        let body = bodies.iter().copied().min().unwrap_or(0);
        ensure!(stride.is_none_or(|stride| stride > 0), Setting, "a stride of 0 never gets past the first window");
        if let Some(stride) = stride {
            ensure!(
                stride <= body,
                Setting,
                "a stride of {stride} would skip text: a window holds {body} tokens of it"
            );
        }
        let places = Places::of(texts);
        let ranges = places.windows(&bodies, stride, body)?;
        let all_begin = texts.iter().all(|text| text.bos.is_some());
        let mut cut = vec![];
        let mut scored_to = 0;
        for window in ranges {
            let first = window.start + usize::from(!all_begin);
            let scored = scored_to.max(first)..window.end;
            scored_to = window.end;
            if !scored.is_empty() {
                cut.push((window, scored));
            }
        }
        let bytes = places.bytes.last().copied().unwrap_or(0);
        ensure!(
            !cut.is_empty(),
            TextTooShort,
            "the text has {bytes} bytes to use, too few for one window of {context} tokens"
        );
        let windows = texts.iter().zip(&places.tokens).map(|(text, tokens)| {
            let of = |range: &Range<usize>| tokens[range.start]..tokens[range.end];
            let windows = cut.iter().map(|(text, scored)| Window { text: of(text), scored: of(scored) });
            Windows::of(context, text.bos, windows.collect())
        });
        let windows = windows.collect();
        let scored = cut.iter().map(|(_, scored)| places.bytes[scored.start]..places.bytes[scored.end]);
        Ok(Self { scored: scored.collect(), windows })
    }

    /// Bytes that are scored, window by window.
    pub fn bytes(&self) -> Vec<usize> {
        self.scored.iter().map(Range::len).collect()
    }
}

/// Bytes at the beginning of a text that every model sees in whole tokens.
pub fn common_bytes(texts: &[Encoded]) -> usize {
    Places::of(texts).bytes.last().copied().unwrap_or(0)
}

/// Where a token ends for every model.
struct Places {
    /// Bytes before each.
    bytes: Vec<usize>,
    /// Tokens before each, model by model.
    tokens: Vec<Vec<usize>>,
}

impl Places {
    fn of(texts: &[Encoded]) -> Self {
        // Several tokens may end at one place, if some have no text; the last of them counts.
        let ends = |text: &Encoded| text.ends.iter().zip(1..).filter_map(|(end, n)| Some(((*end)?, n))).collect();
        let maps: Vec<HashMap<usize, usize>> = texts.iter().map(ends).collect();
        let first: BTreeMap<usize, usize> = maps.first().into_iter().flatten().map(|(&end, &n)| (end, n)).collect();
        let (mut bytes, mut tokens) = (vec![0], vec![vec![0]; texts.len()]);
        for end in first.into_keys().filter(|&end| end > 0) {
            let found: Option<Vec<usize>> = maps.iter().map(|map| map.get(&end).copied()).collect();
            let Some(found) = found else { continue };
            bytes.push(end);
            tokens.iter_mut().zip(found).for_each(|(all, n)| all.push(n));
        }
        Self { bytes, tokens }
    }

    fn last(&self) -> usize {
        self.bytes.len() - 1
    }

    /// Whether every model has at most `most` tokens, a number for each, between two places.
    fn within(&self, range: Range<usize>, most: &[usize]) -> bool {
        self.tokens.iter().zip(most).all(|(tokens, most)| tokens[range.end] - tokens[range.start] <= *most)
    }

    /// The farthest place from `start` with at most `most` tokens, a number for each model, between them.
    fn reach(&self, start: usize, most: &[usize]) -> usize {
        let (mut near, mut far) = (start, self.last() + 1);
        while far - near > 1 {
            let middle = near + (far - near) / 2;
            if self.within(start..middle, most) { near = middle } else { far = middle }
        }
        near
    }

    /// The windows, as ranges of places.
    fn windows(&self, bodies: &[usize], stride: Option<usize>, body: usize) -> Result<Vec<Range<usize>>> {
        let context = body;
        let (last, mut start, mut windows) = (self.last(), 0, vec![]);
        while start < last {
            let end = self.reach(start, bodies);
            let at = self.bytes[start];
            ensure!(
                end > start,
                Incomparable,
                "from byte {at} on, the models' tokens end at no common place within {context} tokens"
            );
            let full = end < last || self.tokens.iter().zip(bodies).any(|(t, n)| t[end] - t[start] == *n);
            if !full {
                break;
            }
            windows.push(start..end);
            let next = stride.map_or(end, |stride| self.reach(start, &vec![stride; bodies.len()]));
            let (at, stride) = (self.bytes[start], stride.unwrap_or(body));
            ensure!(
                next > start,
                Incomparable,
                "from byte {at} on, the models' tokens end at no common place within {stride} tokens: take a longer stride"
            );
            start = next;
        }
        let covered = windows.last().map_or(last, |window| window.end);
        if stride.is_some_and(|stride| stride < body) && covered < last {
            let start = (0..last).rev().take_while(|&start| self.within(start..last, bodies)).last();
            windows.extend(start.map(|start| start..last));
        }
        Ok(windows)
    }
}

#[cfg(test)]
#[path = "passages_tests.rs"]
mod tests;
