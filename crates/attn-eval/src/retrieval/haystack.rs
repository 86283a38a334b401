//! The text in which things are hidden, cut into sentences: one of the user's, or a few sentences repeated.

use crate::error::{Result, error};
use loader::{TextEncoder, Tokenizer, append};

/// The sentences of Mohtashami and Jaggi (2023), which RULER's variable tracking uses too.
const FILLER: &str = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. ";

/// What reports call these sentences.
pub(super) const PAPER: &str = "essay";

/// A text in which things are hidden, cut into sentences.
#[derive(Debug, Clone)]
pub struct Haystack {
    /// What reports call it.
    pub name: String,
    /// The tokens of all sentences.
    ids: Vec<u32>,
    /// Where each sentence ends, in tokens.
    ends: Vec<usize>,
    /// Whether it may be repeated to fill a context.
    repeats: bool,
}

impl Haystack {
    /// The passkey paper's sentences, repeated as often as needed.
    ///
    /// # Errors
    /// They can't be tokenised, or give no tokens.
    pub fn paper(tokenizer: &Tokenizer) -> Result<Self> {
        // They are tokenised twice in a row, so that the first sentence too has a space before it.
        let twice = Self::text(PAPER, &FILLER.repeat(2), tokenizer)?;
        let none = || error!(UnsuitableModel, "the tokenizer gives no tokens for the sentences of the haystack");
        let ends = twice.ends.get(4..10).ok_or_else(none)?;
        let (first, rest) = (ends[0], &ends[1..]);
        let ids = twice.ids[first..ends[5]].to_vec();
        Ok(Self { name: twice.name, ids, ends: rest.iter().map(|end| end - first).collect(), repeats: true })
    }

    /// A text of the user's. Every trial takes a passage of it.
    ///
    /// # Errors
    /// It can't be tokenised.
    pub fn text(name: &str, text: &str, tokenizer: &Tokenizer) -> Result<Self> {
        let mut reader = HaystackReader::new(tokenizer);
        reader.push(text)?;
        reader.finish(name)
    }

    /// The number of its tokens.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Why it can't fill `count` tokens; `None` if it can.
    pub(super) fn lacks(&self, count: usize) -> Option<String> {
        match self.tokens() {
            0 => Some(format!("{} has no text to hide anything in", self.name)),
            has if !self.repeats && has < count => {
                Some(format!("{} has {has} tokens, but {count} are needed", self.name))
            }
            _ => None,
        }
    }

    /// The sentence with which a passage begins. `draw(n)` gives a random number below `n`.
    pub(super) fn first(&self, draw: impl FnOnce(usize) -> usize) -> usize {
        if self.repeats { 0 } else { draw(self.ends.len()) }
    }

    /// `count` tokens from sentence `first` on, with the needles among them. Each needle stands after the sentence whose end is
    /// closest to its depth; needles at one place keep their order.
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
        for sentence in (0..self.ends.len()).cycle().skip(first) {
            let start = if sentence == 0 { 0 } else { self.ends[sentence - 1] };
            filler.extend_from_slice(&self.ids[start..self.ends[sentence]]);
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

/// Cuts a text that comes in parts into sentences, and tokenises each. A sentence ends after a full stop, question mark or
/// exclamation mark that white space follows (the white space belongs to the next sentence), and after the full-width marks of
/// Chinese and Japanese.
#[derive(Debug)]
pub struct HaystackReader<'a> {
    tokenizer: &'a Tokenizer,
    /// The sentence that has not ended yet.
    sentence: TextEncoder<'a>,
    last: Last,
    ids: Vec<u32>,
    ends: Vec<usize>,
}

/// The kind of the character before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Last {
    /// A mark that ends a sentence if white space follows.
    Mark,
    /// A full-width mark, or a closing quotation mark or bracket after one: ends a sentence unless another one follows.
    WideMark,
    Other,
}

impl<'a> HaystackReader<'a> {
    /// A reader that has read nothing yet.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        let sentence = tokenizer.text_encoder(usize::MAX);
        Self { tokenizer, sentence, last: Last::Other, ids: vec![], ends: vec![] }
    }

    /// Adds the next part.
    ///
    /// # Errors
    /// It can't be tokenised.
    pub fn push(&mut self, text: &str) -> Result<()> {
        let mut start = 0;
        for (at, c) in text.char_indices() {
            let closes =
                matches!(c, '\u{3002}' | '\u{ff01}' | '\u{ff1f}' | '\u{300d}' | '\u{300f}' | '\u{201d}' | '\u{ff09}');
            let ends = match self.last {
                Last::Mark => c.is_whitespace(),
                Last::WideMark => !closes,
                Last::Other => false,
            };
            if ends {
                self.sentence.push(&text[start..at])?;
                self.end()?;
                start = at;
            }
            self.last = match c {
                '.' | '!' | '?' => Last::Mark,
                '\u{3002}' | '\u{ff01}' | '\u{ff1f}' => Last::WideMark,
                _ if closes && self.last == Last::WideMark => Last::WideMark,
                _ => Last::Other,
            };
        }
        Ok(self.sentence.push(&text[start..])?)
    }

    /// The bytes of memory that the text takes so far.
    pub fn bytes(&self) -> u64 {
        (self.ids.capacity() * size_of::<u32>() + self.ends.capacity() * size_of::<usize>()) as u64
    }

    /// The whole haystack, called `name`.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn finish(mut self, name: &str) -> Result<Haystack> {
        self.end()?;
        Ok(Haystack { name: name.to_string(), ids: self.ids, ends: self.ends, repeats: false })
    }

    fn end(&mut self) -> Result<()> {
        let sentence = std::mem::replace(&mut self.sentence, self.tokenizer.text_encoder(usize::MAX));
        let (ids, _) = sentence.finish()?;
        if !ids.is_empty() {
            append(&mut self.ids, &ids);
            self.ends.push(self.ids.len());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn sentences_end_where_they_do_whatever_the_parts() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/tokenizer.json");
        let tokenizer = Tokenizer::from_json(&file, &std::fs::read(&file).unwrap()).unwrap();
        let text = "One. Two?! Three 3.5\nfour.\n\u{5b57}\u{3002}\u{300d}\u{5b57}\u{ff01}\u{ff1f}\u{5b57} no end";
        let parts = [
            "One.",
            " Two?!",
            " Three 3.5\nfour.",
            "\n\u{5b57}\u{3002}\u{300d}",
            "\u{5b57}\u{ff01}\u{ff1f}",
            "\u{5b57} no end",
        ];
        let want: Vec<Vec<u32>> = parts.iter().map(|part| tokenizer.encode(part, false).unwrap()).collect();
        let haystack = Haystack::text("t", text, &tokenizer).unwrap();
        let mut reader = HaystackReader::new(&tokenizer);
        text.chars().for_each(|c| reader.push(c.encode_utf8(&mut [0; 4])).unwrap());
        let single = reader.finish("t").unwrap();
        for found in [haystack, single] {
            let starts = [0].iter().chain(&found.ends);
            let sentences: Vec<&[u32]> = starts.zip(&found.ends).map(|(from, to)| &found.ids[*from..*to]).collect();
            assert_eq!(sentences, want);
        }
    }
}
