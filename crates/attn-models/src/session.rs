//! A running sequence: tokens in, logits out, keys and values cached between.
//!
//! The session keeps the tokens it was fed, because scalings whose frequencies depend on the length cannot carry a cache
//! from one set of frequencies to the next: rotating cached keys anew would not mend it, since the deeper layers' keys
//! and values were computed from states under the old ones. Under [`RopeLength::Exact`] the session recomputes instead.

use crate::stack::Memory;
use crate::{Architecture, Model, check_finite};
use attn_core::{KvCache, Positions, Resolution};
use candle_core::{Result, Tensor, bail};
use std::sync::Arc;

/// Which sequence length the frequencies of length-dependent scalings (dynamic NTK, LongRoPE) are resolved for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeLength {
    /// Once, for a length known beforehand: the window when scoring, prompt and new tokens when generating.
    Declared(usize),
    /// Always the current length, as transformers does without a cache: when the frequencies change, everything is
    /// recomputed from the tokens.
    Exact,
}

/// A running sequence, or a left-padded batch of them.
#[derive(Debug)]
pub struct Session {
    model: Model,
    policy: RopeLength,
    pads: Option<Arc<[usize]>>,
    cache: KvCache,
    /// Everything fed so far, `(b, n)`; kept only where it may have to be recomputed.
    tokens: Vec<Tensor>,
    /// Frequencies of every layer that the cache was filled under.
    resolutions: Vec<Resolution>,
    memory: Option<Memory>,
}

impl Session {
    /// A new session, whose keys and values are stored as the [model's](Model::cache_types). `pads`: padding tokens at the start of each row of a left-padded batch.
    pub fn new(model: &Model, length: RopeLength, pads: Option<Vec<usize>>) -> Result<Self> {
        if model.architecture() == Architecture::Encoder {
            bail!("{} is an encoder: it has hidden states but generates nothing", model.spec().family)
        }
        let expected = match length {
            RopeLength::Declared(n) => n,
            RopeLength::Exact => 0,
        };
        Ok(Self {
            model: model.clone(),
            policy: length,
            pads: pads.filter(|p| p.iter().any(|&n| n > 0)).map(Into::into),
            cache: model.new_cache(expected),
            tokens: Vec::new(),
            resolutions: Vec::new(),
            memory: None,
        })
    }

    /// For encoder-decoder models: encodes the prompt `(b, s)` u32 that the decoder attends to. `ends`: real tokens of
    /// each right-padded row.
    pub fn encode(&mut self, ids: &Tensor, ends: Option<Vec<usize>>) -> Result<()> {
        self.memory = Some(self.model.memory(ids, ends.map(Into::into))?);
        Ok(())
    }

    /// Tokens fed so far, per row, padding included.
    pub fn len(&self) -> usize {
        self.cache.len()
    }

    /// True if nothing was fed yet.
    pub fn is_empty(&self) -> bool {
        self.cache.is_empty()
    }

    /// Memory the cache takes.
    pub fn cache_bytes(&self) -> usize {
        self.cache.size_in_bytes()
    }

    /// Feeds ids `(b, t)` u32 and returns the logits `(b, vocab)` f32 after the last.
    ///
    /// # Errors
    /// No tokens, ids outside the vocabulary, positions that the model does not have, or logits that are not finite.
    pub fn feed(&mut self, ids: &Tensor) -> Result<Tensor> {
        let hidden = self.advance(ids)?;
        let last = hidden.narrow(1, hidden.dim(1)? - 1, 1)?;
        let logits = self.model.head_logits(&last)?.squeeze(1)?;
        check_finite(&logits, &format!("the logits after {} tokens", self.len()))?;
        Ok(logits)
    }

    /// Feeds ids `(b, t)` u32 and returns the logits `(b, t, vocab)` f32 after each.
    pub fn feed_all(&mut self, ids: &Tensor) -> Result<Tensor> {
        let t = ids.dim(1)?;
        let hidden = self.advance(ids)?;
        self.model.head_logits(&hidden.narrow(1, hidden.dim(1)? - t, t)?)
    }

    /// Forgets the tokens from the `len`-th on, to continue differently from there.
    ///
    /// # Errors
    /// A windowed layer has dropped what the next token would have to see, see
    /// [`LayerCache::truncate`](attn_core::LayerCache::truncate).
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        self.cache.truncate(len)?;
        if len == 0 {
            self.tokens.clear();
        } else if !self.tokens.is_empty() {
            let all = Tensor::cat(&self.tokens, 1)?;
            self.tokens = vec![all.narrow(1, 0, len.min(all.dim(1)?))?];
        }
        Ok(())
    }

    /// Hidden states of at least the new tokens, at the end.
    fn advance(&mut self, ids: &Tensor) -> Result<Tensor> {
        let (b, t) = ids.dims2()?;
        if t == 0 {
            bail!("no tokens to feed")
        }
        if self.pads.as_ref().is_some_and(|pads| pads.len() != b) {
            bail!("the session has padding for another number of rows than {b}")
        }
        if self.model.architecture() == Architecture::EncoderDecoder && self.memory.is_none() {
            bail!("{} needs its prompt encoded before the decoder runs", self.model.spec().family)
        }
        let (start, end) = (self.len(), self.len() + t);
        let length = match self.policy {
            RopeLength::Declared(n) => n,
            RopeLength::Exact => end,
        };
        let resolutions = self.model.resolutions(length);
        if resolutions == self.resolutions || start == 0 {
            self.remember(ids);
            self.resolutions = resolutions;
            return self.run(ids, start, end, length);
        }
        self.remember(ids);
        let all = Tensor::cat(&self.tokens, 1)?;
        self.tokens = vec![all.clone()];
        self.cache.truncate(0)?;
        self.resolutions = resolutions;
        self.run(&all, 0, end, length)
    }

    fn remember(&mut self, ids: &Tensor) {
        if self.policy == RopeLength::Exact && self.model.depends_on_length() {
            self.tokens.push(ids.clone());
        }
    }

    fn run(&mut self, ids: &Tensor, start: usize, end: usize, length: usize) -> Result<Tensor> {
        self.model.check_ids(ids)?;
        self.model.check_context(end)?;
        let positions = Positions::new(start..end).with_length(length).with_pads(self.pads.clone());
        self.model.stack().forward(ids, &positions, Some(&mut self.cache), self.memory.as_ref())
    }
}
