//! Long texts, tokenised piece by piece.
//!
//! `tokenizers` keeps about 150 bytes for every byte of a text until it is done with it. Here a text is cut where that
//! does not change its tokens ([`Cuts`]). The ids are those of one call over the whole text: `pieces_tests.rs` checks
//! this for every listed part and every place of random texts.
//!
//! A piece is tokenised with the character before it, whose ids are then taken off, so that what a tokenizer puts in
//! front of a text is in front of that character. A text that cannot be cut is tokenised whole, if there is enough
//! memory for that.

use super::{Tokenizer, cuts::Cuts};
use crate::{error::Result, free_memory};

/// Bytes of a piece; what is kept for one is some 40 MB.
const PIECE: usize = 1 << 18;
/// Bytes that are taken in at once.
const PART: usize = 1 << 16;
/// Characters on each side of a cut that are tokenised whole and in two, as a second check.
const WINDOW: usize = 32;
/// What a tokenizer keeps for each byte of a text while it works on it.
const BYTES_PER_BYTE: u64 = 160;

/// Tokenises a text that comes in parts, up to a number of tokens.
#[derive(Debug)]
pub struct TextEncoder<'a> {
    tokenizer: &'a Tokenizer,
    most: usize,
    /// Bytes that may be held; `None`: what is free says it.
    longest: Option<usize>,
    piece: usize,
    /// What has not been tokenised yet.
    held: String,
    /// Up to where in it no place to cut has been found.
    searched: usize,
    /// The character before it.
    before: Option<char>,
    ids: Vec<u32>,
}

impl Tokenizer {
    /// Tokenises a text that comes in parts, without the special tokens that begin or end one: the ids of one call of
    /// [`encode`](Self::encode), of which the first `most` are wanted. Where it has no place to cut it, no more of it is held
    /// than there is memory to tokenise at once.
    #[must_use]
    pub fn text_encoder(&self, most: usize) -> TextEncoder<'_> {
        TextEncoder {
            tokenizer: self,
            most,
            longest: None,
            piece: PIECE,
            held: String::new(),
            searched: 0,
            before: None,
            ids: Vec::new(),
        }
    }

    /// Where a text may be cut.
    fn cuts(&self) -> &Cuts {
        self.cuts.get_or_init(|| Cuts::of(&self.inner))
    }

    /// The ids of `text`, a long one in pieces.
    pub(super) fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        if text.len() <= PIECE {
            return self.raw(text, false);
        }
        let mut encoder = self.text_encoder(usize::MAX);
        encoder.push(text)?;
        encoder.finish().map(|(ids, _)| ids)
    }

    /// The ids of `text` with what tokenizer.json puts around any text.
    pub(super) fn encode_special(&self, text: &str) -> Result<Vec<u32>> {
        if text.len() > PIECE {
            let (with, without) = (self.raw("a", true)?, self.raw("a", false)?);
            let at = (0..=with.len().saturating_sub(without.len())).find(|&at| with[at..].starts_with(&without));
            if let Some(at) = at.filter(|_| !without.is_empty()) {
                return Ok([&with[..at], &self.encode_plain(text)?, &with[at + without.len()..]].concat());
            }
        }
        self.raw(text, true)
    }

    /// The ids of `text` after the character `before`.
    fn encode_after(&self, before: Option<char>, text: &str) -> Result<Option<Vec<u32>>> {
        let Some(before) = before else { return self.raw(text, false).map(Some) };
        let letter = self.raw(before.encode_utf8(&mut [0; 4]), false)?;
        let mut ids = self.raw(&format!("{before}{text}"), false)?;
        let follows = ids.starts_with(&letter);
        Ok(follows.then(|| ids.split_off(letter.len())))
    }

    /// Whether the text around a cut is the same whole and in two.
    fn cuts_at(&self, text: &str, at: usize) -> Result<bool> {
        let from = text[..at].char_indices().rev().take(WINDOW).last().map_or(at, |(i, _)| i);
        let to = text[at..].char_indices().nth(WINDOW).map_or(text.len(), |(i, _)| at + i);
        let mut two = self.raw(&text[from..at], false)?;
        let Some(rest) = self.encode_after(text[..at].chars().last(), &text[at..to])? else { return Ok(false) };
        two.extend(rest);
        Ok(two == self.raw(&text[from..to], false)?)
    }
}

impl TextEncoder<'_> {
    /// Takes the next part of the text.
    ///
    /// # Errors
    /// It can't be tokenised, has a token that the model doesn't, or can't be cut and is too long to be held.
    pub fn push(&mut self, text: &str) -> Result<()> {
        let mut rest = text;
        while !rest.is_empty() && !self.is_full() {
            let (part, after) = rest.split_at(rest.floor_char_boundary(PART.min(rest.len())));
            self.held.push_str(part);
            rest = after;
            if self.held.len() >= self.piece {
                self.cut()?;
            }
        }
        Ok(())
    }

    /// Whether there are as many tokens as were wanted: what comes now changes nothing.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.ids.len() >= self.most
    }

    /// The ids, and how many the whole text has where it was tokenised to its end.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn finish(mut self) -> Result<(Vec<u32>, Option<usize>)> {
        let mut all = None;
        if !self.is_full() {
            let held = std::mem::take(&mut self.held);
            self.take(&held)?;
            all = Some(self.ids.len());
        }
        self.ids.truncate(self.most);
        Ok((self.ids, all))
    }

    /// Tokenises what is held up to the last place where it can be cut.
    fn cut(&mut self) -> Result<()> {
        let mut end = self.held.len();
        while let Some(at) = self.tokenizer.cuts().last(&self.tokenizer.inner, &self.held[..end], self.searched) {
            if self.tokenizer.cuts_at(&self.held, at)? {
                let rest = self.held.split_off(at);
                let piece = std::mem::replace(&mut self.held, rest);
                self.searched = 0;
                self.take(&piece)?;
                self.before = piece.chars().last();
                return Ok(());
            }
            end = at;
        }
        // A place has up to two characters after it, of up to four bytes, and one before.
        self.searched = self.held.len().saturating_sub(12);
        match self.held.len() > self.longest.unwrap_or_else(longest_piece) {
            true => Err(super::failed(format!(
                "{} bytes of the text can't be cut, since no word, line or sentence ends in them or the tokenizer looks \
                 further; to tokenise them takes {BYTES_PER_BYTE} bytes of memory for each, which is more than is free",
                self.held.len()
            ))),
            false => Ok(()),
        }
    }

    fn take(&mut self, piece: &str) -> Result<()> {
        let ids = self.tokenizer.encode_after(self.before, piece)?;
        let ids = ids.ok_or_else(|| super::failed("a text is not what its pieces are".to_string()))?;
        self.tokenizer.check_ids(&ids)?;
        append(&mut self.ids, &ids);
        Ok(())
    }
}

/// Puts `more` after `ids`, whose room grows by an eighth at a time. Doubling it would, for a long text, take as much
/// memory again as all ids.
pub fn append(ids: &mut Vec<u32>, more: &[u32]) {
    if ids.capacity() - ids.len() < more.len() {
        ids.reserve_exact(more.len().max(ids.len() / 8));
    }
    ids.extend_from_slice(more);
}

/// Bytes of a text that may be tokenised at once: what it takes is at most half of the memory that is free.
#[must_use]
pub fn longest_piece() -> usize {
    free_memory().map_or(usize::MAX, |free| usize::try_from(free / 2 / BYTES_PER_BYTE).unwrap_or(usize::MAX))
}

#[cfg(test)]
#[path = "pieces_tests.rs"]
mod tests;
