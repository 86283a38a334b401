//! Decides which tokens of a text are scored, and with which tokens before them.
//!
//! Perplexities are comparable only if it is known which tokens they average over. Common recipes differ in this: some score a
//! token twice, some give a short last window the weight of a full one, some are off by one at every stride.
//! The rules here are:
//!
//! - A window has `context` tokens; one starts every `stride` tokens (by default windows are disjoint).
//! - The first token of a window has nothing before it and isn't scored. With a BOS token, every window is the BOS and
//!   `context - 1` tokens of the text, and all of those can be scored.
//! - A token is scored in the first window in which it can be, and never again; all scored tokens have the same weight.
//! - Windows are always full. Disjoint windows leave out the tokens after the last full window. Overlapping windows
//!   end with one more full window that is moved back to end with the text, and in which, as everywhere, only the
//!   tokens not scored before count.
//! - A text shorter than one window is an error, not a shorter window.

use crate::error::{Result, ensure};
use std::ops::Range;

/// How a text is cut.
#[derive(Debug, Clone, Default)]
pub struct WindowOptions {
    /// Tokens per window, the BOS token included.
    pub context: usize,
    /// Tokens of the text from one window's start to the next; `None`: windows side by side.
    pub stride: Option<usize>,
    /// A token put before every window.
    pub bos: Option<u32>,
}

/// One window of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// The tokens of the text it covers.
    pub text: Range<usize>,
    /// Those of them that are scored here.
    pub scored: Range<usize>,
}

/// A text cut into windows.
#[derive(Debug, Clone)]
pub struct Windows {
    context: usize,
    stride: usize,
    bos: Option<u32>,
    windows: Vec<Window>,
}

impl Windows {
    /// Cuts a text of `len` tokens.
    ///
    /// # Errors
    /// The text is shorter than a window, the context too small to score anything, or the stride 0 or so long that
    /// tokens between windows would be skipped.
    pub fn new(len: usize, options: &WindowOptions) -> Result<Self> {
        let context = options.context;
        ensure!(context >= 2, Setting, "a context of {context} leaves no token to score: it has to be at least 2");
        let lead = usize::from(options.bos.is_some());
        let body = context - lead;
        let stride = options.stride.unwrap_or(body);
        ensure!(stride > 0, Setting, "a stride of 0 never gets past the first window");
        ensure!(stride <= body, Setting, "a stride of {stride} would skip text: a window holds {body} tokens of it");
        ensure!(len >= body, TextTooShort, "the text has {len} tokens to use, too few for one window of {context}");

        let mut starts: Vec<usize> = (0..=len - body).step_by(stride).collect();
        let covered = starts.last().map_or(0, |start| start + body);
        if stride < body && covered < len {
            starts.push(len - body);
        }
        let mut scored_to = 0;
        let windows = starts
            .into_iter()
            .map(|start| {
                let text = start..start + body;
                let scored = scored_to.max(start + 1 - lead)..text.end;
                scored_to = text.end;
                Window { text, scored }
            })
            .collect();
        Ok(Self { context, stride, bos: options.bos, windows })
    }

    /// Tokens per window, the BOS token included.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Tokens of the text from one window's start to the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// The token put before every window, if there is one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The windows in the order of the text.
    pub fn windows(&self) -> &[Window] {
        &self.windows
    }

    /// Windows of at most `context` tokens that were cut by other rules, in the order of the text.
    pub(crate) fn of(context: usize, bos: Option<u32>, windows: Vec<Window>) -> Self {
        Self { context, stride: context, bos, windows }
    }

    /// The number of tokens that the model reads for all windows.
    pub fn work(&self) -> usize {
        self.windows.iter().map(|window| window.text.len() + usize::from(self.bos.is_some())).sum()
    }

    /// The ids that a model is fed for `window`. They are `context` ids unless the windows were cut by other rules.
    pub fn ids(&self, window: &Window, tokens: &[u32]) -> Vec<u32> {
        self.bos.into_iter().chain(tokens[window.text.clone()].iter().copied()).collect()
    }

    /// The places of the scored tokens in [`ids`](Self::ids). The negative log-likelihood of the token at place `p` is entry
    /// `p - 1` of what [`Model::nll`](attn_models::Model::nll) returns.
    pub fn positions(&self, window: &Window) -> Range<usize> {
        let shift = |token: usize| token - window.text.start + usize::from(self.bos.is_some());
        shift(window.scored.start)..shift(window.scored.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(len: usize, context: usize, stride: Option<usize>, bos: Option<u32>) -> Windows {
        Windows::new(len, &WindowOptions { context, stride, bos }).unwrap()
    }

    fn scored(windows: &Windows) -> Vec<Range<usize>> {
        windows.windows().iter().map(|w| w.scored.clone()).collect()
    }

    #[test]
    fn disjoint_windows_leave_each_first_token_and_the_remainder_out() {
        let windows = cut(11, 4, None, None);
        assert_eq!(scored(&windows), [1..4, 5..8]);
        assert_eq!(windows.work(), 8);
        let full = cut(16384, 512, None, None);
        assert_eq!(full.windows().iter().map(|w| w.scored.len()).sum::<usize>(), 32 * 511);
    }

    #[test]
    fn overlapping_windows_score_every_token_after_the_first_once() {
        let windows = cut(11, 4, Some(2), None);
        assert_eq!(scored(&windows), [1..4, 4..6, 6..8, 8..10, 10..11]);
        assert_eq!(windows.windows()[4].text, 7..11);
        assert_eq!(windows.positions(&windows.windows()[1]), 2..4);
        assert_eq!(windows.positions(&windows.windows()[4]), 3..4);
        for (len, context, stride) in [(20, 5, 4), (20, 5, 3), (21, 5, 1), (5, 5, 2), (97, 16, 7)] {
            let all: Vec<usize> = scored(&cut(len, context, Some(stride), None)).into_iter().flatten().collect();
            assert_eq!(all, (1..len).collect::<Vec<_>>(), "{len} {context} {stride}");
        }
    }

    #[test]
    fn a_bos_takes_a_place_and_lets_the_first_token_be_scored() {
        let windows = cut(9, 4, None, Some(7));
        assert_eq!(scored(&windows), [0..3, 3..6, 6..9]);
        assert_eq!(windows.ids(&windows.windows()[1], &[0, 1, 2, 3, 4, 5, 6, 7, 8]), [7, 3, 4, 5]);
        assert_eq!(windows.positions(&windows.windows()[1]), 1..4);
        let overlapping = cut(8, 4, Some(2), Some(7));
        assert_eq!(scored(&overlapping), [0..3, 3..5, 5..7, 7..8]);
    }

    #[test]
    fn what_cannot_be_cut_is_refused_with_its_numbers() {
        let refused = |len, context, stride, bos| {
            Windows::new(len, &WindowOptions { context, stride, bos }).unwrap_err().to_string()
        };
        let short = refused(100, 512, None, None);
        assert!(short.contains("100") && short.contains("512"), "{short}");
        assert!(refused(100, 1, None, None).contains("at least 2"));
        assert!(refused(100, 10, Some(0), None).contains("stride of 0"));
        assert!(refused(100, 10, Some(11), None).contains("skip"));
        assert!(refused(100, 10, Some(10), Some(1)).contains("holds 9"));
        assert_eq!(cut(10, 10, None, None).windows().len(), 1);
    }
}
