//! What the hooks of an encoding get to see: [`Context`] and [`BiasContext`]; and [`Part`], how an encoding treats near
//! and far keys differently.

use super::Positions;
use crate::{Mask, stored::Stored};
use candle_core::{Result, Tensor, bail};
use std::ops::Range;

/// Which tokens a hook is about.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Context<'a> {
    /// Where they stand, padding included.
    pub positions: &'a Positions,
    /// The hidden states that the layer got, `(b, t, hidden)`, or `None` where the hook is called outside a layer.
    pub hidden: Option<&'a Tensor>,
    /// The number of the layer in its model, where [known](crate::AttentionConfig::layer).
    pub layer: Option<usize>,
    /// For queries: the index of the [`Part`] they are placed for.
    pub part: usize,
    /// For keys: the copy that is placed, see [`Part::copy`].
    pub copy: usize,
}

impl<'a> Context<'a> {
    /// Tokens at `positions`, and nothing else known.
    pub fn new(positions: &'a Positions) -> Self {
        Self { positions, hidden: None, layer: None, part: 0, copy: 0 }
    }

    /// With the layer's input, `(b, t, hidden)`.
    #[must_use]
    pub fn with_hidden(mut self, hidden: Option<&'a Tensor>) -> Self {
        self.hidden = hidden;
        self
    }

    /// With the layer's number.
    #[must_use]
    pub fn with_layer(mut self, layer: Option<usize>) -> Self {
        self.layer = layer;
        self
    }

    /// For queries of another part.
    #[must_use]
    pub fn with_part(mut self, part: usize) -> Self {
        self.part = part;
        self
    }

    /// For another copy of the keys.
    #[must_use]
    pub fn with_copy(mut self, copy: usize) -> Self {
        self.copy = copy;
        self
    }

    /// The hidden states, for encodings that can't do without.
    ///
    /// # Errors
    /// They are not known here; the message names the encoding `who`.
    pub fn hidden(&self, who: &str) -> Result<&'a Tensor> {
        match self.hidden {
            Some(hidden) => Ok(hidden),
            None => bail!("{who} needs the layer's input, which is not given"),
        }
    }
}

/// Which queries and keys a bias is asked for.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct BiasContext<'a> {
    /// The tokens that ask; [`Context::part`] says for which keys.
    pub at: Context<'a>,
    /// The slots of the keys, from the cache and from this call.
    pub keys: Range<usize>,
    /// The placed queries, `(b, h, tq, d)`; `None` in latent attention, whose scores are sums of two products.
    pub q: Option<&'a Tensor>,
    /// The placed keys, `(b, h_kv, tk, d)`, as the cache stores them; `None` in latent attention.
    pub k: Option<&'a Stored>,
    /// What the encoding [remembered](super::PositionEncoding::remember) of these keys, `(b, h, tk, w)`.
    pub remembered: Option<&'a Tensor>,
    /// What products of queries and keys are multiplied by.
    pub scale: f64,
}

impl<'a> BiasContext<'a> {
    /// The queries of `at` against the keys in the slots `keys`, and nothing else known.
    pub fn new(at: Context<'a>, keys: Range<usize>) -> Self {
        Self { at, keys, q: None, k: None, remembered: None, scale: 1.0 }
    }

    /// With the placed queries and keys and what their products are multiplied by.
    #[must_use]
    pub fn with_products(mut self, q: Option<&'a Tensor>, k: Option<&'a Stored>, scale: f64) -> Self {
        (self.q, self.k, self.scale) = (q, k, scale);
        self
    }

    /// With what was remembered of the keys.
    #[must_use]
    pub fn with_remembered(mut self, remembered: Option<&'a Tensor>) -> Self {
        self.remembered = remembered;
        self
    }

    /// The slots of the queries.
    pub fn queries(&self) -> Range<usize> {
        self.at.positions.slots()
    }

    /// The distances key minus query that occur: the first and how many, each one more than the one before. `None` if
    /// there is no query or no key.
    pub fn distances(&self) -> Option<(i64, usize)> {
        let (q, k) = (self.queries(), &self.keys);
        let some = !q.is_empty() && !k.is_empty();
        some.then(|| (k.start as i64 - q.end as i64 + 1, q.len() + k.len() - 1))
    }

    /// The positions of the keys of a row (as [`Positions::row`] counts rows): 0 on the padding before it.
    ///
    /// # Errors
    /// Explicit positions were given only for the tokens of this call, and earlier keys are in the cache.
    pub fn key_positions(&self, row: usize) -> Result<Vec<usize>> {
        let positions = self.at.positions;
        if !positions.has_ids() {
            let pad = positions.pad(row);
            return Ok(self.keys.clone().map(|slot| slot.saturating_sub(pad)).collect());
        }
        if self.keys != positions.slots() {
            bail!("positions: the ids given are those of slots {:?}, not of keys in {:?}", positions.slots(), self.keys)
        }
        Ok(positions.row(row).collect())
    }

    /// What was remembered of the keys, for encodings that remember.
    ///
    /// # Errors
    /// Nothing was; the message names the encoding `who`.
    pub fn remembered(&self, who: &str) -> Result<&'a Tensor> {
        match self.remembered {
            Some(remembered) => Ok(remembered),
            None => bail!("{who} needs what it remembers of the keys, which is not given"),
        }
    }
}

/// A region of keys that an encoding treats in its own way: Self-Extend, ReRoPE, dual chunk and their kin rotate near and
/// far keys to different positions.
///
/// The regions of an encoding are disjoint. Attention runs over each, with queries placed for it, and the results are
/// joined exactly: one softmax over all, at the cost of plain attention.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Part {
    /// The keys of the part, as conditions beside those of the layer's own mask: nearer or farther than so much, of the
    /// query's own, the previous or earlier chunks, the first few.
    pub region: Mask,
    /// Which copy of the keys it reads. Each copy is the keys placed in a way of its own, and the cache keeps all of
    /// them.
    pub copy: usize,
}

impl Part {
    /// The keys of `region`, from copy 0.
    pub fn new(region: Mask) -> Self {
        Self { region, copy: 0 }
    }

    /// From another copy.
    #[must_use]
    pub fn with_copy(mut self, copy: usize) -> Self {
        self.copy = copy;
        self
    }
}
