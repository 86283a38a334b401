//! What a layer does with its position encoding: one place, so that every kind of layer calls every hook and checks the
//! same things.
//!
//! A layer makes a [`Placing`] for its call, has it place keys and append them to the cache, and then has it run
//! attention over the parts of the encoding; the layer says how its own queries are normed and how one call of attention
//! is made.

use crate::{
    AttendArgs, LayerCache, Mask, PositionEncoding, Positions, ScoreBias, Scores,
    attention::{KeyNorms, merge},
    position::{BiasContext, Context, Part},
    stored::Stored,
};
use candle_core::{Result, Tensor, bail};
use std::{ops::Range, sync::Arc};

/// The mask of a layer, limited to how far back the parts of its encoding reach, if they do: what a cache has to keep.
pub(crate) fn reached(mask: &Mask, encoding: &dyn PositionEncoding) -> Mask {
    let reaches = encoding.parts().iter().map(|part| mask.intersect(&part.region).ok()?.reach());
    match reaches.collect::<Option<Vec<usize>>>().and_then(|all| all.into_iter().max()) {
        Some(reach) if mask.causal => mask.clone().with_window(Some(mask.window.map_or(reach, |w| w.min(reach)))),
        _ => mask.clone(),
    }
}

/// One call of a layer, as its encoding sees it.
pub(crate) struct Placing<'a> {
    encoding: &'a dyn PositionEncoding,
    at: Context<'a>,
    mask: Mask,
    batch: usize,
}

/// Everything that queries read of the tokens so far.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    /// The keys, once per copy.
    pub(crate) copies: Vec<Stored>,
    /// The values, in layers that keep them apart from the keys.
    pub(crate) values: Option<Stored>,
    /// What the encoding remembers.
    pub(crate) remembered: Option<Tensor>,
    /// The slot of the first.
    pub(crate) start: usize,
}

impl Held {
    /// How many keys there are.
    pub(crate) fn tokens(&self) -> Result<usize> {
        Ok(self.copies[0].dims4()?.2)
    }

    /// The slots.
    pub(crate) fn slots(&self) -> Result<Range<usize>> {
        Ok(self.start..self.start + self.tokens()?)
    }
}

/// What one call of attention has to give beside its output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beside {
    Nothing,
    /// The log-sum-exp of the scores.
    Lse,
    /// The weights.
    Weights,
}

/// One call of attention that a layer makes: placed queries over one copy of the keys.
pub(crate) struct Call<'a> {
    pub(crate) q: &'a Tensor,
    pub(crate) copy: usize,
    pub(crate) args: AttendArgs,
    pub(crate) key_norms: Option<Arc<KeyNorms>>,
    pub(crate) beside: Beside,
}

/// Scores before an encoding adds to them, and a tensor mask if the caller gave one.
pub(crate) struct Base<'a> {
    pub(crate) scores: Scores,
    /// Added to the scores: broadcasts to `(b, h, tq, tk)`.
    pub(crate) additive: Option<&'a Tensor>,
    /// Whether [`Beside::Weights`] are wanted.
    pub(crate) weights: bool,
    /// Whether queries and keys are whole: what encodings that look at content get to see.
    pub(crate) whole: bool,
}

impl<'a> Placing<'a> {
    /// A call of a layer on the tokens `xs`, `(b, t, hidden)`, at `positions`.
    ///
    /// # Errors
    /// Positions of another number of tokens or rows, and past where the encoding ends.
    pub(crate) fn new(
        encoding: &'a dyn PositionEncoding,
        xs: &'a Tensor,
        positions: &'a Positions,
        layer: Option<usize>,
        mask: &Mask,
    ) -> Result<Self> {
        let (batch, tokens, _) = xs.dims3()?;
        positions.check("attention", batch, tokens)?;
        if let Some(end) = encoding.max_positions()
            && positions.largest() >= end
        {
            bail!("attention: the position encoding ends at {end}, a token stands at position {}", positions.largest())
        }
        if !encoding.parts().is_empty() && (positions.has_ids() || !mask.causal) {
            bail!(
                "attention: an encoding that treats near and far keys differently needs causal attention, and counts in \
                 slots: no position ids"
            )
        }
        let at = Context::new(positions).with_hidden(Some(xs)).with_layer(layer);
        Ok(Self { encoding, at, mask: mask.clone().with_keys(positions.keys()), batch })
    }

    /// Copies of the keys that the encoding needs.
    fn copies(&self) -> usize {
        self.encoding.parts().iter().map(|part| part.copy + 1).max().unwrap_or(1)
    }

    /// Places the keys (`place` does so in the layer's order), appends them and `values` to the cache if there is one, and
    /// returns all that the queries read.
    ///
    /// # Errors
    /// A cache that the tokens don't continue.
    pub(crate) fn keep(
        &self,
        place: impl Fn(&Context) -> Result<Tensor>,
        values: Option<Tensor>,
        cache: Option<&mut LayerCache>,
    ) -> Result<Held> {
        let slots = self.at.positions.slots();
        if let Some(cache) = &cache
            && cache.len() != slots.start
        {
            bail!("attention: tokens at slots {slots:?} do not continue a cache of {} tokens", cache.len())
        }
        let copies = self.copies();
        let keys = (0..copies).map(|copy| place(&self.at.with_copy(copy))).collect::<Result<Vec<_>>>()?;
        let has_values = values.is_some();
        let tokens = copies + usize::from(has_values);
        let last = cache.as_ref().map(|cache| cache.last(tokens)).transpose()?.flatten();
        let remembered = self.encoding.remember(&self.at, last.as_ref())?;
        let (mut all, start) = match cache {
            Some(cache) => {
                let mut new = keys.iter().map(|k| cache.stored_keys(k)).collect::<Result<Vec<_>>>()?;
                new.extend(values.map(|v| cache.stored_values(&v)).transpose()?);
                new.extend(remembered.as_ref().map(Stored::from));
                cache.append_all(&new, self.encoding.resolve(self.at.positions.length()))?
            }
            None => (keys.iter().chain(&values).chain(&remembered).map(Stored::from).collect(), slots.start),
        };
        let remembered = if all.len() > tokens { all.pop() } else { None };
        let values = if has_values { all.pop() } else { None };
        Ok(Held { copies: all, values, remembered: remembered.map(|x| x.data().clone()), start })
    }

    /// Attention of queries that `place` places over all parts of `held`, each by a call that `attend` makes: output, and
    /// weights if they are wanted. `cache` is the one that holds the keys, if there is one.
    pub(crate) fn run(
        &self,
        held: &Held,
        base: &Base,
        place: impl Fn(&Context) -> Result<Tensor>,
        attend: impl Fn(&Call) -> Result<(Tensor, Option<Tensor>)>,
        mut cache: Option<&mut LayerCache>,
    ) -> Result<(Tensor, Option<Tensor>)> {
        if held.copies.len() != self.copies() {
            bail!("attention: keys in {} copies, the position encoding reads {}", held.copies.len(), self.copies())
        }
        let sinks = match (&base.scores.sinks, self.encoding.sinks()) {
            (Some(_), Some(_)) => bail!("attention: both the layer and its position encoding have sinks"),
            (own, theirs) => own.clone().or(theirs),
        };
        let parts = self.active(held)?;
        let mut results = Vec::with_capacity(parts.len());
        for (i, (index, part)) in parts.iter().enumerate() {
            let at = self.at.with_part(*index);
            let q = place(&at)?;
            let bias = self.bias(at, &q, held, part.copy, base)?;
            let linear = matches!(bias, ScoreBias::Linear { .. }) && part.copy == 0 && q.device().is_cpu();
            let key_norms = match &mut cache {
                Some(cache) if linear => cache.key_norms(held.tokens()?)?,
                _ => None,
            };
            // A mask does not hide sinks, so only one of the parts may have them.
            let sinks = if i == 0 { sinks.clone() } else { None };
            let scores = base.scores.clone().with_bias(bias).with_sinks(sinks);
            let args = AttendArgs::new(scores)
                .with_mask(part.region.clone())
                .with_slots(self.at.positions.slots().start, held.start);
            let mut call = Call { q: &q, copy: part.copy, args, key_norms, beside: Beside::Nothing };
            if parts.len() > 1 {
                call.beside = Beside::Lse;
            }
            let weights = match base.weights {
                true => attend(&Call { beside: Beside::Weights, args: call.args.clone(), key_norms: None, ..call })?.1,
                false => None,
            };
            let (out, lse) = attend(&call)?;
            results.push((out, lse, weights));
        }
        join(results)
    }

    /// The parts that have keys here, with their index, or all keys as one. Their region is what remains of the mask.
    fn active(&self, held: &Held) -> Result<Vec<(usize, Part)>> {
        if self.encoding.parts().is_empty() {
            return Ok(vec![(0, Part::new(self.mask.clone()))]);
        }
        let parts = self.encoding.parts().iter().enumerate().map(|(i, part)| {
            let region = self.mask.intersect(&part.region)?;
            Ok((i, Part { region, ..part.clone() }))
        });
        let mut parts = parts.collect::<Result<Vec<_>>>()?;
        let (slots, keys) = (self.at.positions.slots(), held.slots()?);
        // One is left for queries that see nothing.
        let mut left = parts.len();
        parts.retain(|(_, part)| {
            let keep = left == 1 || !part.region.hides_all(self.batch, slots.clone(), keys.clone());
            left -= usize::from(!keep);
            keep
        });
        Ok(parts)
    }

    fn bias(&self, at: Context, q: &Tensor, held: &Held, copy: usize, base: &Base) -> Result<ScoreBias> {
        let slots = held.slots()?;
        let (seen_q, seen_k) = if base.whole { (Some(q), Some(&held.copies[copy])) } else { (None, None) };
        let context = BiasContext::new(at, slots.clone())
            .with_products(seen_q, seen_k, base.scores.scale)
            .with_remembered(held.remembered.as_ref());
        let bias = self.encoding.bias(&context)?;
        let by_slots = !matches!(bias, ScoreBias::None | ScoreBias::Keys { .. } | ScoreBias::Dense(_));
        if by_slots && at.positions.has_ids() {
            bail!("attention: the position encoding adds a bias by the distance of slots: position ids do not apply")
        }
        let Some(additive) = base.additive else { return Ok(bias) };
        Ok(ScoreBias::Dense(match bias.to_dense(at.positions.slots(), slots, q.device())? {
            Some(bias) => bias.broadcast_add(&additive.to_dtype(bias.dtype())?)?,
            None => additive.clone(),
        }))
    }
}

/// One result from those of disjoint parts.
fn join(results: Vec<(Tensor, Option<Tensor>, Option<Tensor>)>) -> Result<(Tensor, Option<Tensor>)> {
    if let [(out, _, weights)] = results.as_slice() {
        return Ok((out.clone(), weights.clone()));
    }
    let mut parts = Vec::with_capacity(results.len());
    for (out, lse, _) in &results {
        match lse {
            Some(lse) => parts.push((out.clone(), lse.clone())),
            None => bail!("attention: a part without its sums"),
        }
    }
    let (out, total) = merge(&parts)?;
    let mut weights: Option<Tensor> = None;
    for ((_, lse), (_, _, part)) in parts.iter().zip(&results) {
        let Some(part) = part else { continue };
        // Where nothing is seen, both are minus infinity.
        let share = (lse - &total)?.exp()?;
        let share = lse.eq(f64::NEG_INFINITY)?.where_cond(&share.zeros_like()?, &share)?;
        let part = part.broadcast_mul(&share.unsqueeze(3)?.to_dtype(part.dtype())?)?;
        weights = Some(match weights {
            Some(sum) => (sum + part)?,
            None => part,
        });
    }
    Ok((out, weights))
}
