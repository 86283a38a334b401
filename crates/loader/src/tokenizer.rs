//! Text to token ids and back, with the beginning- and end-of-text conventions of the checkpoint.
//!
//! `tokenizers` does the work. What is added here is what a checkpoint keeps outside tokenizer.json: which ids begin
//! and end a text, whether they are added at all, and whether the ids fit the model. A wrong answer to any of these
//! does not fail, it only makes a model worse.

use crate::{
    error::{LoadError, Result},
    guard::guard,
};
use std::{path::Path, sync::OnceLock};

mod cuts;
mod ends;
mod outline;
mod pieces;

pub use cuts::last_word_end;
pub(crate) use outline::MAX_ADDED;
pub use pieces::{TextEncoder, append, longest_piece};

/// Text to token ids and back.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The id that begins a text, if the model has one.
    pub bos_id: Option<u32>,
    /// The ids that end a text; empty if the tokenizer does not say.
    pub eos_ids: Vec<u32>,
    /// Whether `encode` with special tokens begins with `bos_id`; `None` leaves it to tokenizer.json.
    pub add_bos: Option<bool>,
    /// Whether `encode` with special tokens ends with the first of `eos_ids`; `None` leaves it to tokenizer.json.
    pub add_eos: Option<bool>,
    /// Warnings for the user of the tokenizer.
    pub warnings: Vec<String>,
    vocab_limit: Option<usize>,
    /// Where a text may be cut into pieces, once somebody asked.
    cuts: OnceLock<cuts::Cuts>,
}

impl Tokenizer {
    /// Reads the contents of a tokenizer.json; `file` is for messages.
    ///
    /// # Errors
    /// The contents are not a tokenizer.
    pub fn from_json(file: &Path, bytes: &[u8]) -> Result<Self> {
        Self::parse(bytes).map_err(|reason| LoadError::Tokenizer { file: file.to_path_buf(), reason })
    }

    /// [`from_json`](Self::from_json), with only the reason of a failure.
    pub(crate) fn parse(bytes: &[u8]) -> std::result::Result<Self, String> {
        let read = || {
            let outline = outline::Outline::check(bytes)?;
            let inner = guard(|| tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| e.to_string())).flatten()?;
            let mut tokenizer = Self::new(inner);
            if let Some(dropout) = outline.dropout() {
                tokenizer.without_dropout(dropout);
            }
            Ok(tokenizer)
        };
        read().map_err(|reason: String| format!("not a valid tokenizer.json: {reason}"))
    }

    /// Switches off the random omission of merges, which is meant for training: the ids of a text would differ at every
    /// call.
    fn without_dropout(&mut self, dropout: f64) {
        if let tokenizers::ModelWrapper::BPE(bpe) = self.inner.get_model() {
            let mut certain = bpe.clone();
            certain.dropout = None;
            self.inner.with_model(certain);
            self.warnings.push(format!(
                "the tokenizer skips merges at random (dropout {dropout}), as in training; this is switched off"
            ));
        }
    }

    /// Wraps a tokenizer made elsewhere; it has no beginning or end of text until they are set.
    #[must_use]
    pub fn new(mut inner: tokenizers::Tokenizer) -> Self {
        // Neither has a place in feeding a model: both would change the ids silently.
        inner.with_padding(None);
        let _ = inner.with_truncation(None);
        Self {
            inner,
            bos_id: None,
            eos_ids: Vec::new(),
            add_bos: None,
            add_eos: None,
            warnings: Vec::new(),
            vocab_limit: None,
            cuts: OnceLock::new(),
        }
    }

    /// Refuses ids from `vocab_size` on, for which the model has no embedding.
    pub fn set_vocab_limit(&mut self, vocab_size: usize) {
        self.vocab_limit = Some(vocab_size);
    }

    /// The tokenizer inside.
    #[must_use]
    pub fn inner(&self) -> &tokenizers::Tokenizer {
        &self.inner
    }

    /// The ids of `text`. Special tokens written out in the text are recognised; with `add_special` those that begin
    /// and end a text are added, without it nothing is.
    ///
    /// # Errors
    /// The text can't be tokenised, or has a token that the model has no embedding for.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        self.encode_as(text, add_special, self.add_bos)
    }

    /// [`encode`](Self::encode) with special tokens, beginning with BOS or not whatever the tokenizer does by itself.
    /// A BOS that is written out in the text stays, and is not doubled.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_with_bos(&self, text: &str, bos: bool) -> Result<Vec<u32>> {
        self.encode_as(text, true, Some(bos))
    }

    fn encode_as(&self, text: &str, add_special: bool, add_bos: Option<bool>) -> Result<Vec<u32>> {
        if !add_special {
            let ids = self.encode_plain(text)?;
            self.check_ids(&ids)?;
            return Ok(ids);
        }
        let mut ids = self.encode_special(text)?;
        self.set_ends(&mut ids, text, add_bos)?;
        self.check_ids(&ids)?;
        Ok(ids)
    }

    /// Refuses ids that the model has no embedding for.
    fn check_ids(&self, ids: &[u32]) -> Result<()> {
        if let Some(limit) = self.vocab_limit
            && let Some(&id) = ids.iter().find(|&&id| id as usize >= limit)
        {
            let token = self.inner.id_to_token(id).unwrap_or_default();
            return Err(LoadError::TokenOutOfVocabulary { token, id, vocab_size: limit });
        }
        Ok(())
    }

    /// The ids that tokenizer.json gives a text, without what this type adds.
    fn raw(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding = guard(|| self.inner.encode_fast(text, add_special).map_err(|e| e.to_string()));
        let encoding = encoding.flatten().map_err(|e| failed(format!("can't tokenise the text: {e}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The token that a text begins with by the tokenizer's own rule: the explicit one (`add_bos_token`), else what
    /// tokenizer.json puts in front of any text.
    ///
    /// # Errors
    /// The tokenizer fails on a text of one letter.
    pub fn begins_with(&self) -> Result<Option<u32>> {
        match self.add_bos {
            Some(true) => Ok(self.bos_id),
            Some(false) => Ok(None),
            None => {
                let (with, without) = (self.raw("a", true)?, self.raw("a", false)?);
                Ok(with.first().copied().filter(|first| without.first() != Some(first)))
            }
        }
    }

    /// An explicit choice wins over what tokenizer.json does, in both directions, as in transformers.
    fn set_ends(&self, ids: &mut Vec<u32>, text: &str, add_bos: Option<bool>) -> Result<()> {
        if let Some(bos) = self.bos_id {
            match add_bos {
                Some(true) if ids.first() != Some(&bos) => ids.insert(0, bos),
                // One that is written out is not doubled.
                Some(true) if ids.starts_with(&[bos, bos]) && self.encode_plain(text)?.first() == Some(&bos) => {
                    ids.remove(0);
                }
                // Only what was put in front of the text goes, not what is written in it.
                Some(false) if ids.first() == Some(&bos) && ids[1..].starts_with(&self.encode_plain(text)?) => {
                    ids.remove(0);
                }
                _ => {}
            }
        }
        if let Some(&eos) = self.eos_ids.first()
            && self.add_eos == Some(true)
            && ids.last() != Some(&eos)
        {
            ids.push(eos);
        }
        Ok(())
    }

    /// The text of `ids`; with `skip_special` without tokens such as `<|im_end|>`. Bytes that are not UTF-8 come out
    /// as U+FFFD.
    ///
    /// # Errors
    /// The tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let text = guard(|| self.inner.decode(ids, skip_special).map_err(|e| e.to_string()));
        text.flatten().map_err(|e| failed(format!("can't decode: {e}")))
    }

    /// A decoder for ids that come one at a time.
    #[must_use]
    pub fn stream(&self, skip_special: bool) -> StreamDecoder<'_> {
        StreamDecoder { tokenizer: self, skip_special, ids: Vec::new(), read: 0 }
    }

    /// The text of token `id` as the vocabulary spells it.
    #[must_use]
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a token, spelled as in the vocabulary.
    #[must_use]
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The number of tokens, added ones included.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }
}

fn failed(reason: String) -> LoadError {
    LoadError::Tokenizer { file: Path::new("tokenizer.json").to_path_buf(), reason }
}

/// Turns ids that come one at a time into text, holding back characters whose bytes are not all there yet.
#[derive(Debug, Clone)]
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    /// The ids still needed: those already shown that the next ones lean on, then those not shown yet.
    ids: Vec<u32>,
    /// How many of `ids` have been shown.
    read: usize,
}

/// A UTF-8 character has at most four bytes, so what is still incomplete after as many more tokens never completes.
const MAX_HELD: usize = 4;

impl StreamDecoder<'_> {
    /// Takes the next id and returns the text that became certain, which may be empty.
    ///
    /// # Errors
    /// The tokenizer's decoder fails.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let (before, now) = self.texts()?;
        if now.ends_with(char::REPLACEMENT_CHARACTER) && self.ids.len() - self.read <= MAX_HELD {
            return Ok(String::new());
        }
        Ok(self.show(&before, &now))
    }

    /// Returns what is still held back.
    ///
    /// # Errors
    /// The tokenizer's decoder fails.
    pub fn finish(mut self) -> Result<String> {
        let (before, now) = self.texts()?;
        Ok(self.show(&before, &now))
    }

    /// The text shown so far within the window, and the text of the whole window.
    fn texts(&self) -> Result<(String, String)> {
        let before = self.tokenizer.decode(&self.ids[..self.read], self.skip_special)?;
        Ok((before, self.tokenizer.decode(&self.ids, self.skip_special)?))
    }

    fn show(&mut self, before: &str, now: &str) -> String {
        // A decoder may treat the first token differently (it strips a leading space), so the tokens already shown are
        // decoded too.
        let new = now.get(before.len()..).unwrap_or_default().to_string();
        if !new.is_empty() || now.len() <= before.len() && self.ids.len() - self.read > MAX_HELD {
            self.ids.drain(..self.read);
            self.read = self.ids.len();
        }
        new
    }
}
