//! What things are hidden in, in sentences: a text of the user's, or a few sentences over and over.

use anyhow::{Context, Result};
use loader::Tokenizer;

/// The sentences of Mohtashami and Jaggi (2023), which RULER's variable tracking uses too.
const FILLER: &str = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. ";

/// What reports call them.
pub(super) const PAPER: &str = "essay";

/// What is hidden in, in sentences.
#[derive(Debug, Clone)]
pub struct Haystack {
    /// What reports call it.
    pub name: String,
    sentences: Vec<Vec<u32>>,
    /// Whether it may be repeated to fill a context.
    repeats: bool,
}

impl Haystack {
    /// The passkey paper's sentences, over and over.
    ///
    /// # Errors
    /// They can't be tokenised, or come to nothing.
    pub fn paper(tokenizer: &Tokenizer) -> Result<Self> {
        // Twice, so that the first sentence too is met with a space before it.
        let sentences = sentences(&FILLER.repeat(2), tokenizer)?;
        let second = sentences.get(5..10).context("the tokenizer makes no tokens of the paper's sentences")?;
        Ok(Self { name: PAPER.to_string(), sentences: second.to_vec(), repeats: true })
    }

    /// A text of the user's, of which every trial takes a passage.
    ///
    /// # Errors
    /// It can't be tokenised.
    pub fn text(name: &str, text: &str, tokenizer: &Tokenizer) -> Result<Self> {
        Ok(Self { name: name.to_string(), sentences: sentences(text, tokenizer)?, repeats: false })
    }

    /// Tokens in it.
    pub fn tokens(&self) -> usize {
        self.sentences.iter().map(Vec::len).sum()
    }

    /// Why it can't fill `count` tokens, if it can't.
    pub(super) fn lacks(&self, count: usize) -> Option<String> {
        match self.tokens() {
            0 => Some(format!("{} has no text to hide anything in", self.name)),
            has if !self.repeats && has < count => {
                Some(format!("{} has {has} tokens, and {count} of them are needed", self.name))
            }
            _ => None,
        }
    }

    /// The sentence that a passage begins with, out of `draw(n)`, a number below `n`.
    pub(super) fn first(&self, draw: impl FnOnce(usize) -> usize) -> usize {
        if self.repeats { 0 } else { draw(self.sentences.len()) }
    }

    /// `count` tokens from sentence `first` on and the needles among them, each after the sentence that ends closest to its
    /// depth; needles of one place keep their order.
    pub(super) fn around(&self, needles: &[(f64, Vec<u32>)], first: usize, count: usize) -> Vec<u32> {
        let (filler, breaks) = self.passage(first, count);
        let place = |depth: f64| {
            let distance = |at: &usize| (*at as f64 - depth * count as f64).abs();
            breaks.iter().copied().min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap_or(0)
        };
        let mut placed: Vec<(usize, &[u32])> =
            needles.iter().map(|(depth, ids)| (place(*depth), ids.as_slice())).collect();
        placed.sort_by_key(|(at, _)| *at);
        let mut all = vec![];
        let mut from = 0;
        for (at, ids) in placed {
            all.extend_from_slice(&filler[from..at]);
            all.extend_from_slice(ids);
            from = at;
        }
        all.extend_from_slice(&filler[from..]);
        all
    }

    /// `count` tokens from sentence `first` on, and where a needle may stand: before the first sentence, or after any.
    fn passage(&self, first: usize, count: usize) -> (Vec<u32>, Vec<usize>) {
        let mut filler = vec![];
        let mut breaks = vec![0];
        for sentence in self.sentences.iter().cycle().skip(first) {
            filler.extend_from_slice(sentence);
            if filler.len() >= count {
                break;
            }
            breaks.push(filler.len());
        }
        filler.truncate(count);
        breaks.push(count);
        (filler, breaks)
    }
}

/// Cuts a text after full stops, question and exclamation marks; spaces go to what follows.
fn sentences(text: &str, tokenizer: &Tokenizer) -> Result<Vec<Vec<u32>>> {
    let mut parts = vec![];
    let mut start = 0;
    let mut ended = false;
    for (at, c) in text.char_indices() {
        if ended && c.is_whitespace() {
            parts.push(&text[start..at]);
            start = at;
        }
        ended = matches!(c, '.' | '!' | '?');
    }
    parts.push(&text[start..]);
    let encoded: Result<Vec<Vec<u32>>, _> = parts.into_iter().map(|part| tokenizer.encode(part, false)).collect();
    Ok(encoded?.into_iter().filter(|ids| !ids.is_empty()).collect())
}
