//! [`Positions`] say where the tokens of a call stand in their text, and [`Resolution`] which frequencies follow from that.

use candle_core::{DType, Result, Tensor, bail};
use std::{ops::Range, sync::Arc};

/// Where a block of tokens stands: the slots it fills and the position of every token. Positions are slots, minus the
/// padding at the start of a row, unless they are [given](Self::with_ids). Never "the current length": every token's
/// absolute position is explicit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Positions {
    slots: Range<usize>,
    pads: Option<Arc<[usize]>>,
    ends: Option<Arc<[usize]>>,
    /// The positions of each row, if they are given: one row for all or one per row of the batch.
    ids: Option<Arc<[Vec<usize>]>>,
    length: usize,
}

impl Positions {
    /// Tokens in `slots`, with positions equal to slots and frequencies resolved for a sequence of `slots.end` tokens.
    pub fn new(slots: Range<usize>) -> Self {
        let length = slots.end;
        Self { slots, pads: None, ends: None, ids: None, length }
    }

    /// Declares the sequence length that length-dependent scalings (dynamic NTK, LongRoPE) resolve their frequencies
    /// for. It has to stay the same for the lifetime of a cache.
    #[must_use]
    pub fn with_length(mut self, length: usize) -> Self {
        self.length = length;
        self
    }

    /// Row `i` of the batch starts with `pads[i]` padding tokens: position = slot - pad, and 0 on the padding.
    #[must_use]
    pub fn with_pads(mut self, pads: Option<Arc<[usize]>>) -> Self {
        self.pads = pads;
        self
    }

    /// Row `i` of the batch has its last real token before slot `ends[i]`; right padding follows. For encoders.
    #[must_use]
    pub fn with_ends(mut self, ends: Option<Arc<[usize]>>) -> Self {
        self.ends = ends;
        self
    }

    /// The position of every token, transformers' `position_ids`: `(b, t)` or `(1, t)` of integers, for packed documents
    /// and trees of drafts. They place tokens (rotation, learned and sinusoidal tables, temperature); what a query
    /// *sees* still goes by slots, see [`Mask`](crate::Mask). An encoding that adds a bias by the distance of slots is
    /// refused beside them.
    ///
    /// # Errors
    /// A tensor of another shape or dtype, a negative position.
    pub fn with_ids(mut self, ids: &Tensor) -> Result<Self> {
        let (rows, t) = ids.dims2()?;
        if t != self.len() || rows == 0 {
            bail!("positions: ids of shape {:?} do not fit {} tokens", ids.dims(), self.len())
        }
        if !matches!(ids.dtype(), DType::U8 | DType::U32 | DType::I64) {
            bail!("positions: ids must be U8, U32 or I64, not {:?}", ids.dtype())
        }
        let row = |row: Vec<i64>| -> Result<Vec<usize>> {
            let position = |p: i64| match usize::try_from(p) {
                Ok(p) => Ok(p),
                Err(_) => bail!("positions: an id must not be negative, got {p}"),
            };
            row.into_iter().map(position).collect()
        };
        self.ids = Some(ids.to_dtype(DType::I64)?.to_vec2()?.into_iter().map(row).collect::<Result<_>>()?);
        Ok(self)
    }

    /// The slots of each row that hold real tokens, if any row is padded.
    pub fn keys(&self) -> Option<Arc<[Range<usize>]>> {
        let rows = self.pads.as_ref().or(self.ends.as_ref())?.len();
        let start = |row: usize| self.pads.as_ref().map_or(0, |pads| pads[row]);
        let end = |row: usize| self.ends.as_ref().map_or(usize::MAX, |ends| ends[row]);
        Some((0..rows).map(|row| start(row)..end(row)).collect())
    }

    /// The slots the tokens fill.
    pub fn slots(&self) -> Range<usize> {
        self.slots.clone()
    }

    /// Number of tokens per row.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// True if there is no token.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The sequence length that frequencies are resolved for.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Padding tokens at the start of each row, if any row has some.
    pub fn pads(&self) -> Option<&[usize]> {
        self.pads.as_deref()
    }

    /// Padding tokens at the start of a row.
    pub fn pad(&self, row: usize) -> usize {
        self.pads.as_ref().map_or(0, |pads| pads[row])
    }

    /// True if positions were [given](Self::with_ids) rather than counted.
    pub fn has_ids(&self) -> bool {
        self.ids.is_some()
    }

    /// Rows whose positions may differ: 1, which stands for every row of the batch, or the rows of the batch.
    pub fn rows(&self) -> usize {
        match (&self.ids, &self.pads) {
            (Some(ids), _) => ids.len(),
            (None, Some(pads)) => pads.len(),
            (None, None) => 1,
        }
    }

    /// The positions of a row, one per token.
    pub fn row(&self, row: usize) -> impl Iterator<Item = usize> + '_ {
        let ids = self.ids.as_ref().map(|ids| &ids[row]);
        let pad = if ids.is_some() { 0 } else { self.pad(row) };
        let first = self.slots.start;
        (0..self.len()).map(move |i| ids.map_or((first + i).saturating_sub(pad), |ids| ids[i]))
    }

    /// The positions of all [rows](Self::rows), one row after the other.
    pub fn all(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.rows()).flat_map(|row| self.row(row))
    }

    /// The largest position, 0 if there is no token.
    pub fn largest(&self) -> usize {
        match (&self.ids, &self.pads) {
            (Some(_), _) => self.all().max().unwrap_or(0),
            (None, pads) => {
                let least = pads.as_ref().and_then(|pads| pads.iter().min()).copied().unwrap_or(0);
                self.slots.end.saturating_sub(1).saturating_sub(least)
            }
        }
    }

    /// An error unless this is about `tokens` tokens of `batch` rows.
    pub(crate) fn check(&self, what: &str, batch: usize, tokens: usize) -> Result<()> {
        if tokens != self.len() {
            bail!("{what}: there are {tokens} tokens, but positions for {} in slots {:?}", self.len(), self.slots)
        }
        let given = [
            ("padding", self.pads.as_ref().map(|x| x.len())),
            ("ends", self.ends.as_ref().map(|x| x.len())),
            ("position ids", self.ids.as_ref().map(|x| x.len()).filter(|n| *n > 1)),
        ];
        for (name, rows) in given {
            if let Some(rows) = rows
                && rows != batch
            {
                bail!("{what}: {name} is given for {rows} rows, but the batch has {batch}")
            }
        }
        Ok(())
    }
}

/// Which frequencies a sequence of a given length uses. Two lengths with the same resolution may share a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Resolution {
    /// The same for every length.
    Fixed,
    /// LongRoPE up to its original context.
    Short,
    /// LongRoPE past its original context.
    Long,
    /// Dynamic NTK past its trained context: frequencies of exactly this length.
    Length(usize),
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn positions_are_slots_less_padding_or_what_is_given() -> Result<()> {
        let plain = Positions::new(3..6);
        assert_eq!((plain.rows(), plain.all().collect::<Vec<_>>(), plain.largest()), (1, vec![3, 4, 5], 5));
        let padded = plain.clone().with_pads(Some([0, 4].into()));
        assert_eq!((padded.rows(), padded.all().collect::<Vec<_>>(), padded.largest()), (2, vec![3, 4, 5, 0, 0, 1], 5));
        let given = padded.with_ids(&Tensor::new(&[[7i64, 0, 1], [2, 2, 9]], &Device::Cpu)?)?;
        assert_eq!((given.all().collect::<Vec<_>>(), given.largest()), (vec![7, 0, 1, 2, 2, 9], 9));
        assert!(given.has_ids() && given.check("x", 2, 3).is_ok());
        assert!(given.check("x", 3, 3).is_err() && given.check("x", 2, 4).is_err());
        let wrong = |ids: Tensor| plain.clone().with_ids(&ids).is_err();
        assert!(wrong(Tensor::new(&[[0u32, 1]], &Device::Cpu)?));
        assert!(wrong(Tensor::new(&[[0i64, -1, 1]], &Device::Cpu)?));
        assert!(wrong(Tensor::new(&[[0f32, 1., 2.]], &Device::Cpu)?));
        Ok(())
    }
}
