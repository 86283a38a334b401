//! Perplexity as other programs measure it, so that figures can be compared with theirs.
//!
//! Programs differ in which tokens they score and what stands before each, and so in their figures for one model and one
//! text. A protocol here is the list of passes that a program makes over a text:
//!
//! - [`LlamaCpp`](Protocol::LlamaCpp), llama.cpp's `llama-perplexity`: windows side by side, of which the second half is
//!   scored (of `n` tokens those from `n / 2 + 1` on). If a text begins with a BOS token, this token replaces the first one of
//!   every window.
//! - [`Stride`](Protocol::Stride), the recipe of transformers' page "Perplexity of fixed-length models": a window starts
//!   every `stride` tokens and ends, at the latest, with the text; it scores the tokens that no earlier window did. The mean of
//!   every window but the first counts as that of one token less than it is of, because the recipe always subtracts the token
//!   that is lost to the shift of labels, also if none is lost.
//! - [`LmEval`](Protocol::LmEval), lm-evaluation-harness's `loglikelihood_rolling`: every token of a document is scored,
//!   in windows side by side with one token of context before each; the first token of a document comes after a prefix
//!   token (BOS, else EOS), and the last window is filled up with context. Every document is scored by itself.

use crate::clock::Clock;
use crate::error::{Result, Within, ensure, error};
use crate::perplexity::{Scores, rows};
use attn_models::Model;
use candle_core::Tensor;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// The program whose way of measuring perplexity is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// llama.cpp's `llama-perplexity`.
    LlamaCpp,
    /// The strided recipe of transformers' documentation.
    Stride,
    /// lm-evaluation-harness's `loglikelihood_rolling`.
    LmEval,
}

impl Protocol {
    /// All protocols.
    pub const ALL: [Self; 3] = [Self::LlamaCpp, Self::Stride, Self::LmEval];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::LlamaCpp => "llama.cpp",
            Self::Stride => "stride",
            Self::LmEval => "lm-eval",
        }
    }

    /// Which tokens are scored, in a few words.
    pub fn scored(self) -> &'static str {
        match self {
            Self::LlamaCpp => "the second half of every window, as llama-perplexity has it",
            Self::Stride => "the new tokens of every window, as transformers' strided recipe has it",
            Self::LmEval => "every token, as lm-evaluation-harness's rolling log-likelihood has it",
        }
    }

    /// The program's default number of tokens per window, for a model with this trained context.
    pub fn default_context(self, trained: Option<usize>) -> usize {
        match self {
            Self::LlamaCpp => 512,
            Self::Stride | Self::LmEval => trained.unwrap_or(2048),
        }
    }

    /// The program's default number of tokens from one window's start to the next.
    pub fn default_stride(self, context: usize) -> usize {
        match self {
            Self::Stride => context.min(512),
            Self::LlamaCpp | Self::LmEval => context,
        }
    }

    /// The passes over a document of `len` tokens. `first` is the BOS token that replaces every window's first token
    /// (llama.cpp), or the prefix (lm-eval, which needs one); the strided recipe has neither.
    ///
    /// # Errors
    /// A window too small to score anything in, a stride that skips text, a text too short for the protocol, or no prefix for
    /// lm-eval.
    pub fn passes(self, len: usize, context: usize, stride: usize, first: Option<u32>) -> Result<Vec<Pass>> {
        ensure!(context >= 2, Setting, "a context of {context} leaves no token to score: it has to be at least 2");
        ensure!(
            (1..=context).contains(&stride),
            Setting,
            "a stride of {stride} skips text, or never gets on, with a context of {context}"
        );
        match self {
            Self::LlamaCpp => llama_cpp(len, context, first),
            Self::Stride => strided(len, context, stride),
            Self::LmEval => lm_eval(len, context, first),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|protocol| protocol.name() == text);
        found.ok_or_else(|| format!("known: {}", Self::ALL.map(Self::name).join(", ")))
    }
}

/// One pass of the model over a part of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pass {
    /// A token before those of the text, if there is one.
    pub lead: Option<u32>,
    /// The tokens of the text, those that are scored included.
    pub text: Range<usize>,
    /// The number of tokens at its end that are scored.
    pub scored: usize,
    /// The number of tokens for which their mean counts.
    pub counts: usize,
    /// The number of tokens that the program feeds, which length-dependent scalings resolve for.
    pub length: usize,
}

impl Pass {
    /// The ids; the last one is only predicted.
    fn ids(&self, tokens: &[u32]) -> Vec<u32> {
        self.lead.into_iter().chain(tokens[self.text.clone()].iter().copied()).collect()
    }

    /// The number of tokens of the pass, the last included.
    #[allow(clippy::len_without_is_empty)] // No pass is empty.
    pub fn len(&self) -> usize {
        self.text.len() + usize::from(self.lead.is_some())
    }

    /// Whether the two can go through the model together.
    fn like(&self, other: &Self) -> bool {
        (self.len(), self.scored, self.length) == (other.len(), other.scored, other.length)
    }
}

fn llama_cpp(len: usize, context: usize, bos: Option<u32>) -> Result<Vec<Pass>> {
    let scored = context - 1 - context / 2;
    ensure!(scored > 0, Setting, "a context of {context} has no second half to score: it has to be at least 3");
    // The program itself needs two windows of text, but scores as few as one of them with `--chunks`.
    ensure!(len >= context, TextTooShort, "the text has {len} tokens to use, too few for one window of {context}");
    let windows = (0..len / context).map(|i| {
        let start = i * context + usize::from(bos.is_some());
        Pass { lead: bos, text: start..(i + 1) * context, scored, counts: scored, length: context }
    });
    Ok(windows.collect())
}

fn strided(len: usize, context: usize, stride: usize) -> Result<Vec<Pass>> {
    ensure!(len >= 2, TextTooShort, "a text of {len} tokens has none to score");
    let mut passes = vec![];
    let mut scored_to = 0;
    for start in (0..len).step_by(stride) {
        let text = start..(start + context).min(len);
        // The first token of a window has nothing before it.
        let scored = (text.end - scored_to).min(text.len() - 1);
        let counts = text.end - scored_to - 1;
        scored_to = text.end;
        if counts > 0 {
            passes.push(Pass { lead: None, length: text.len(), text, scored, counts });
        }
        if scored_to == len {
            break;
        }
    }
    Ok(passes)
}

fn lm_eval(len: usize, context: usize, prefix: Option<u32>) -> Result<Vec<Pass>> {
    let none = || {
        error!(UnsuitableModel, "the first token of a document is predicted from a BOS or EOS token, but there is none")
    };
    let prefix = prefix.ok_or_else(none)?;
    let first = len.min(context);
    let mut passes = vec![];
    if first > 0 {
        passes.push(Pass { lead: Some(prefix), text: 0..first, scored: first, counts: first, length: first });
    }
    let mut scored_to = first;
    while scored_to < len {
        let scored = context.min(len - scored_to);
        scored_to += scored;
        // `context` tokens are fed; the last token is predicted and not fed.
        let text = scored_to - context - 1..scored_to;
        passes.push(Pass { lead: None, text, scored, counts: scored, length: context });
    }
    Ok(passes)
}

/// Turns a batch of equally long rows of ids, a number `n` and a length into the negative log-likelihoods, in nats, of the last
/// `n` tokens of each row; length-dependent scalings resolve for the length. Its error is that of Candle's models.
pub type TailScorer<'a> = dyn FnMut(&[Vec<u32>], usize, usize) -> candle_core::Result<Vec<Vec<f32>>> + 'a;

/// Scores the last tokens of rows under a model. Length-dependent scalings resolve for `length`, or else for the length that the
/// protocol's program feeds.
pub(crate) fn tail_scorer(
    model: &Model,
    length: Option<usize>,
) -> impl FnMut(&[Vec<u32>], usize, usize) -> candle_core::Result<Vec<Vec<f32>>> {
    move |batch, n, own| {
        let t = batch.first().map_or(0, Vec::len);
        let ids = Tensor::from_vec(batch.concat(), (batch.len(), t), model.device())?;
        // The last token is only predicted and not read.
        let hidden = model.hidden(&ids.narrow(1, 0, t - 1)?, length.unwrap_or(own), None)?;
        let (hidden, targets) = (hidden.narrow(1, t - 1 - n, n)?, ids.narrow(1, t - n, n)?);
        model.nll_after(&hidden, &targets)?.to_vec2()
    }
}

/// Scores the passes over `tokens` under `model`. `progress` is told the number of tokens read after each forward pass.
///
/// # Errors
/// The model has no room for a pass, or a likelihood isn't finite.
pub fn score_passes(
    model: &Model,
    tokens: &[u32],
    passes: &[Pass],
    length: Option<usize>,
    progress: &mut dyn FnMut(usize),
) -> Result<Scores> {
    score_passes_with(&mut tail_scorer(model, length), tokens, passes, progress)
}

/// [`score_passes`] with any function that gives likelihoods in the place of a model.
///
/// # Errors
/// As [`score_passes`].
pub fn score_passes_with(
    nll: &mut TailScorer<'_>,
    tokens: &[u32],
    passes: &[Pass],
    progress: &mut dyn FnMut(usize),
) -> Result<Scores> {
    let clock = Clock::start();
    let longest = passes.iter().map(Pass::len).max().unwrap_or(0);
    let mut scores = Scores::default();
    for alike in passes.chunk_by(Pass::like) {
        for batch in alike.chunks(rows(longest)) {
            let first = &batch[0];
            let ids: Vec<Vec<u32>> = batch.iter().map(|pass| pass.ids(tokens)).collect();
            let found = nll(&ids, first.scored, first.length).within(|| "scoring a window".into())?;
            for (pass, tail) in batch.iter().zip(&found) {
                let from = pass.len() - pass.scored;
                let row = [vec![f32::NAN; from - 1], tail.clone()].concat();
                scores.add(&row, from..pass.len(), longest, pass.text.end - pass.scored)?;
                scores.weigh_last(pass.counts);
            }
            progress(batch.len() * first.len());
        }
    }
    scores.seconds = clock.seconds();
    Ok(scores)
}

/// The size of a text in bytes and words, for figures that don't depend on the tokenizer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    /// Bytes in UTF-8.
    pub bytes: usize,
    /// Words, as lm-evaluation-harness counts them: the pieces between runs of white space, one more than there are runs.
    pub words: usize,
}

impl Size {
    /// The size of a text.
    pub fn of(text: &str) -> Self {
        let mut counter = SizeCounter::default();
        counter.push(text);
        counter.size()
    }

    /// Both sizes together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { bytes: self.bytes + other.bytes, words: self.words + other.words }
    }
}

/// Finds the [`Size`] of a text that comes in parts.
#[derive(Debug, Clone, Copy, Default)]
pub struct SizeCounter {
    bytes: usize,
    /// Runs of white space so far.
    runs: usize,
    /// Whether the text so far ends with white space.
    inside: bool,
}

impl SizeCounter {
    /// Adds the next part.
    pub fn push(&mut self, text: &str) {
        self.bytes += text.len();
        for c in text.chars() {
            // Python's white space: that of Unicode, and four control characters.
            let space = c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c);
            self.runs += usize::from(space && !self.inside);
            self.inside = space;
        }
    }

    /// The size so far.
    pub fn size(&self) -> Size {
        Size { bytes: self.bytes, words: self.runs + 1 }
    }
}

#[cfg(test)]
#[path = "protocol_tests.rs"]
mod tests;
