//! Where in a text its tokens end.
//!
//! Figures per byte need the bytes that each token stands for. The offsets that tokenizers give cannot be used: some
//! leave out the spaces before a word, others give the whole character for every part of it. So the tokens are decoded
//! again, a few at a time, and compared with the text they were made of. This also shows whether they hold the whole
//! text: a tokenizer that folds case or joins spaces predicts less than the text.

use super::{Tokenizer, failed};
use crate::error::Result;

/// How many tokens in a row may end within a character, which is decoded as a replacement character until it is
/// complete. More mean that the tokens hold another text.
const MAX_OPEN: usize = 64;
/// Characters of a text that an error shows.
const SHOWN: usize = 16;

impl Tokenizer {
    /// For each of `ids`, the first of what [`encode`](Self::encode) makes of `text` without special tokens, the number of
    /// bytes of `text` up to its end; `None` where it ends within a character, and for some last ones that may end so.
    ///
    /// # Errors
    /// The tokens do not give the text back (the error names the place), or they cannot be decoded.
    pub fn ends(&self, ids: &[u32], text: &str) -> Result<Vec<Option<usize>>> {
        let mut ends = Vec::with_capacity(ids.len());
        // `open`: the tokens since the last end. A decoder may treat the first token of a text differently, so those before
        // them stay in front.
        let (mut before, mut open): (Vec<u32>, Vec<u32>) = (vec![], vec![]);
        let (mut at, mut known) = (0, String::new());
        for &id in ids {
            open.push(id);
            let all = self.decode(&[&before[..], &open].concat(), false)?;
            let said = all.strip_prefix(&known);
            let end = said.and_then(|said| end_of(text, at, said));
            ends.push(end);
            if let Some(end) = end {
                at = end;
                // Tokens without text are not a sufficient beginning for the next ones, so those before them stay too.
                if said.is_some_and(str::is_empty) {
                    before.append(&mut open);
                } else {
                    before = std::mem::take(&mut open);
                }
                known = self.decode(&before, false)?;
            } else if open.len() > MAX_OPEN || said.is_some_and(|said| !said.contains(char::REPLACEMENT_CHARACTER)) {
                return Err(unlike(text, at, said.unwrap_or(&all)));
            }
        }
        Ok(ends)
    }
}

/// Where `said` ends in `text`, if it stands there from byte `at` on. A replacement character may be a part of a character, and
/// ends nothing.
fn end_of(text: &str, at: usize, said: &str) -> Option<usize> {
    if said.ends_with(char::REPLACEMENT_CHARACTER) {
        return None;
    }
    let rest = &text[at..];
    if rest.starts_with(said) {
        return Some(at + said.len());
    }
    // Some put a space in front of a text, and some take one off: it is in the tokens and not in the text, or the other way
    // round.
    let (more, less) = (said.strip_prefix(' '), rest.strip_prefix(' '));
    match (at, more, less) {
        (0, Some(said), _) if rest.starts_with(said) => Some(said.len()),
        (0, _, Some(rest)) if rest.starts_with(said) => Some(1 + said.len()),
        _ => None,
    }
}

fn unlike(text: &str, at: usize, said: &str) -> crate::LoadError {
    let shown = |text: &str| text.chars().take(SHOWN).collect::<String>();
    failed(format!(
        "its tokens don't reproduce the text: from byte {at} on, {:?} becomes {:?}",
        shown(&text[at..]),
        shown(said)
    ))
}

#[cfg(test)]
#[path = "ends_tests.rs"]
mod tests;
