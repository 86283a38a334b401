//! Long texts, tokenised piece by piece.
//!
//! `tokenizers` keeps about 150 bytes for every byte of a text until it is done with it. Here a text is cut where the
//! tokenizer can't see across: between a letter and a space that another letter follows. Whether a tokenizer can't is told
//! from its parts, of which those are listed that are known; with any other part a text stays whole. The ids are those of
//! one call: `pieces_tests.rs` holds that for every listed part and every place of random texts.
//!
//! A piece is tokenised with the letter before it, whose ids are then taken off, so that what a tokenizer puts in front of a
//! text is in front of that letter.

use super::Tokenizer;
use crate::error::Result;
use crate::gguf::is_known_split;
use serde_json::Value;
use tokenizers::ModelWrapper;

/// Bytes of a piece; what is kept for one is some 40 MB.
const PIECE: usize = 1 << 18;
/// Bytes that are taken in at once.
const PART: usize = 1 << 16;
/// Characters on each side of a cut that are tokenised whole and in two, as a second check.
const WINDOW: usize = 32;
/// What a tokenizer keeps for each byte of a text while it works on it.
pub const BYTES_PER_BYTE: u64 = 160;

/// Tokenises a text that comes in parts, up to a number of tokens.
#[derive(Debug)]
pub struct TextEncoder<'a> {
    tokenizer: &'a Tokenizer,
    most: usize,
    longest: usize,
    piece: usize,
    /// What has not been tokenised yet.
    held: String,
    /// Up to where in it no place to cut has been found.
    searched: usize,
    /// The letter before it.
    before: Option<char>,
    ids: Vec<u32>,
}

impl Tokenizer {
    /// Tokenises a text that comes in parts, without the special tokens that begin or end one: the ids of one call of
    /// [`encode`](Self::encode), of which the first `most` are wanted. At most `longest` bytes of it are held at once,
    /// where it has no place to cut it.
    #[must_use]
    pub fn text_encoder(&self, most: usize, longest: usize) -> TextEncoder<'_> {
        TextEncoder {
            tokenizer: self,
            most,
            longest,
            piece: PIECE,
            held: String::new(),
            searched: 0,
            before: None,
            ids: Vec::new(),
        }
    }

    /// Whether the ids of a text are those of its pieces.
    fn takes_pieces(&self) -> bool {
        *self.pieces.get_or_init(|| can_cut(&self.inner))
    }

    /// The ids of `text`, a long one in pieces.
    pub(super) fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        if text.len() <= PIECE {
            return self.raw(text, false);
        }
        let mut encoder = self.text_encoder(usize::MAX, usize::MAX);
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

    /// The ids of `text` after the letter `before`.
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
        if self.tokenizer.takes_pieces() {
            while let Some(at) = last_cut(&self.held[..end], self.searched) {
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
        }
        self.searched = self.held.len().saturating_sub(2);
        match self.held.len() > self.longest {
            true => Err(super::failed(format!(
                "{} bytes of the text can't be cut, since no letter, space and letter follow each other in them or the \
                 tokenizer looks further; to tokenise them takes {BYTES_PER_BYTE} bytes of memory for each, which is more \
                 than is free",
                self.held.len()
            ))),
            false => Ok(()),
        }
    }

    fn take(&mut self, piece: &str) -> Result<()> {
        let ids = self.tokenizer.encode_after(self.before, piece)?;
        let ids = ids.ok_or_else(|| super::failed("a text is not what its pieces are".to_string()))?;
        self.tokenizer.check_ids(&ids)?;
        // Grown by less than its double, which for a long text is as much again as all ids.
        if self.ids.capacity() - self.ids.len() < ids.len() {
            self.ids.reserve_exact(ids.len().max(self.ids.len() / 8));
        }
        self.ids.extend_from_slice(&ids);
        Ok(())
    }
}

/// The last place in `text` to cut it, between a letter and a space that a letter follows, but for what is before `from`.
#[must_use]
pub fn last_cut(text: &str, from: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    let from = from.min(bytes.len());
    let window = bytes[from..]
        .windows(3)
        .rposition(|w| w[0].is_ascii_alphabetic() && w[1] == b' ' && w[2].is_ascii_alphabetic());
    window.map(|at| from + at + 1)
}

/// Whether the parts of a tokenizer are such that none sees across a cut.
fn can_cut(inner: &tokenizers::Tokenizer) -> bool {
    let part = |value: Result<Value, serde_json::Error>| value.unwrap_or(Value::from("unknown"));
    let normalizer = inner.get_normalizer().map_or(Value::Null, |n| part(serde_json::to_value(n)));
    let pre = inner.get_pre_tokenizer().map_or(Value::Null, |p| part(serde_json::to_value(p)));
    let added = inner.get_added_tokens_decoder();
    let added = added.values().all(|token| {
        let content = token.content.as_bytes();
        // One that reaches over a cut, or that takes the space after it.
        let over = content.windows(2).any(|w| w[0].is_ascii_alphabetic() && !w[1].is_ascii_graphic());
        let takes = token.rstrip && content.last().is_some_and(u8::is_ascii_alphabetic);
        !over && !takes
    });
    added
        && normalises_by_character(&normalizer)
        && match splits(&pre) {
            Some(Splits::Here) => true,
            Some(Splits::Elsewhere) => merges_within_words(inner),
            None => false,
        }
}

/// Whether a normaliser never looks from one side of a cut to the other.
fn normalises_by_character(part: &Value) -> bool {
    let Some(kind) = part.get("type").and_then(Value::as_str) else { return part.is_null() };
    match kind {
        "Sequence" => part["normalizers"].as_array().is_some_and(|all| all.iter().all(normalises_by_character)),
        // None of these makes one of a letter and a space, or looks at both.
        "NFC" | "NFD" | "NFKC" | "NFKD" | "Nmt" | "Lowercase" | "StripAccents" | "BertNormalizer" | "Precompiled"
        | "Strip" | "Prepend" => true,
        "Replace" => match (part["pattern"]["String"].as_str(), part["pattern"]["Regex"].as_str()) {
            (Some(pattern), _) => !pattern.is_empty() && !pattern.bytes().any(|b| b.is_ascii_alphabetic()),
            (None, Some(regex)) => regex == " {2,}",
            (None, None) => false,
        },
        _ => false,
    }
}

/// What a pre-tokenizer does at a cut.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Splits {
    /// It ends a word there.
    Here,
    /// It ends words by other characters.
    Elsewhere,
}

/// `None`: a pre-tokenizer that is not known.
fn splits(part: &Value) -> Option<Splits> {
    let Some(kind) = part.get("type").and_then(Value::as_str) else {
        return part.is_null().then_some(Splits::Elsewhere);
    };
    let flag = |key: &str| part.get(key).and_then(Value::as_bool);
    match kind {
        "Sequence" => {
            let mut all = Splits::Elsewhere;
            for part in part["pretokenizers"].as_array()? {
                if splits(part)? == Splits::Here {
                    all = Splits::Here;
                }
            }
            Some(all)
        }
        "ByteLevel" if flag("use_regex") == Some(false) => Some(Splits::Elsewhere),
        "ByteLevel" | "Whitespace" | "WhitespaceSplit" | "BertPreTokenizer" => Some(Splits::Here),
        "Metaspace" if flag("split") != Some(false) => Some(Splits::Here),
        "Metaspace" | "Digits" | "Punctuation" => Some(Splits::Elsewhere),
        "Split" => {
            let whole = match part["behavior"].as_str()? {
                "Isolated" => flag("invert") == Some(false),
                "Removed" => flag("invert") == Some(true),
                _ => false,
            };
            let (string, regex) = (part["pattern"]["String"].as_str(), part["pattern"]["Regex"].as_str());
            match (string, regex) {
                (Some(" "), _) => Some(Splits::Elsewhere),
                (_, Some(regex)) if whole => {
                    is_known_split(regex).map(|here| if here { Splits::Here } else { Splits::Elsewhere })
                }
                _ => None,
            }
        }
        _ => None,
    }
}

/// Whether no token has a letter and a space after it, so that no merge reaches over a cut, and every letter is a token, so
/// that unknown characters on both sides are not made one.
fn merges_within_words(inner: &tokenizers::Tokenizer) -> bool {
    let ModelWrapper::BPE(bpe) = inner.get_model() else { return false };
    let plain = |affix: &Option<String>| affix.as_deref().is_none_or(str::is_empty);
    if bpe.ignore_merges || !plain(&bpe.continuing_subword_prefix) || !plain(&bpe.end_of_word_suffix) {
        return false;
    }
    let vocab = bpe.get_vocab();
    let over = |token: &String| {
        let mut last = ' ';
        token.chars().any(|c| {
            let before = std::mem::replace(&mut last, c);
            before.is_ascii_alphabetic() && matches!(c, ' ' | '\u{2581}' | '\u{120}')
        })
    };
    let letters =
        ('a'..='z').chain('A'..='Z').all(|letter| vocab.contains_key(letter.encode_utf8(&mut [0; 4]) as &str));
    letters && !vocab.keys().any(over)
}

#[cfg(test)]
#[path = "pieces_tests.rs"]
mod tests;
