//! A growable tensor of tokens, whatever their numbers are stored as.

use crate::{CacheType, stored::Stored};
use candle_core::{Device, Result, Tensor, bail};
use std::{ops::Range, sync::Arc};

/// A growable buffer of `(b, h, t, d)` along `t`. A clone shares its memory until one of the two is written to.
#[derive(Debug, Clone, Default)]
pub(super) struct Buffer {
    /// Rows of numbers, or of bytes that hold blocks.
    data: Option<Arc<Tensor>>,
    kind: Option<CacheType>,
}

impl Buffer {
    pub(super) fn capacity(&self) -> usize {
        self.data.as_ref().map_or(0, |t| t.dims()[2])
    }

    pub(super) fn view(&self, range: Range<usize>) -> Result<Stored> {
        match &self.data {
            Some(data) => Stored::from_data(data.narrow(2, range.start, range.len())?, self.kind),
            None => bail!("kv cache: empty"),
        }
    }

    /// Writes `xs` at `at`, moving `keep` (a range of the old contents) to the front of a buffer of `capacity` first if
    /// that capacity is not there yet.
    pub(super) fn write(&mut self, new: &Stored, at: usize, keep: Range<usize>, capacity: usize) -> Result<()> {
        let xs = new.data();
        let (b, h, _, d) = xs.dims4()?;
        self.kind = new.kind();
        // What is written into memory has no gradient: where one is tracked there is a new tensor each time.
        match &self.data {
            Some(old) if !keep.is_empty() && (old.track_op() || xs.track_op()) => {
                let kept = old.narrow(2, keep.start, at.min(keep.len()))?;
                self.data = Some(Arc::new(Tensor::cat(&[&kept, xs], 2)?));
                return Ok(());
            }
            _ if xs.track_op() => {
                self.data = Some(Arc::new(xs.clone()));
                return Ok(());
            }
            _ => {}
        }
        let reusable = |old: &Arc<Tensor>| {
            let same = old.dims() == [b, h, old.dims()[2], d] && old.dtype() == xs.dtype();
            same && old.dims()[2] >= capacity && keep.start == 0 && !old.track_op() && Arc::strong_count(old) == 1
        };
        let data = match self.data.take() {
            Some(old) if reusable(&old) => old,
            old => {
                let new = Tensor::zeros((b, h, capacity, d), xs.dtype(), xs.device())?;
                if let Some(old) = old
                    && !keep.is_empty()
                {
                    new.slice_set(&old.narrow(2, keep.start, keep.len())?.contiguous()?, 2, 0)?;
                }
                Arc::new(new)
            }
        };
        data.slice_set(&xs.contiguous()?, 2, at)?;
        self.data = Some(data);
        Ok(())
    }

    /// An error if `new` can't stand beside what is held.
    pub(super) fn check(&self, new: &Stored) -> Result<()> {
        let Some(old) = &self.data else { return Ok(()) };
        let old = Stored::from_data((**old).clone(), self.kind)?;
        let ((old_b, old_h, _, old_d), (b, h, t, d)) = (old.dims4()?, new.dims4()?);
        let (was, is) = (old.kind_name(), new.kind_name());
        if (old_b, old_h, old_d, was) != (b, h, d, is) {
            bail!("kv cache: holds ({old_b}, {old_h}, t, {old_d}) in {was}, cannot take ({b}, {h}, {t}, {d}) in {is}")
        }
        Ok(())
    }

    /// Rows of the batch, and where they are.
    pub(super) fn batch(&self) -> Option<(usize, Device)> {
        self.data.as_ref().map(|data| (data.dims()[0], data.device().clone()))
    }

    /// The rows of the batch with these numbers, in this order; room for as many tokens as before.
    pub(super) fn select_rows(&mut self, rows: &Tensor, held: usize) -> Result<()> {
        let Some(old) = &self.data else { return Ok(()) };
        let selected = old.narrow(2, 0, held)?.contiguous()?.index_select(rows, 0)?;
        if selected.track_op() {
            self.data = Some(Arc::new(selected));
            return Ok(());
        }
        let (b, h, _, d) = selected.dims4()?;
        let new = Tensor::zeros((b, h, self.capacity(), d), old.dtype(), old.device())?;
        new.slice_set(&selected.contiguous()?, 2, 0)?;
        self.data = Some(Arc::new(new));
        Ok(())
    }

    pub(super) fn size_in_bytes(&self) -> usize {
        self.data.as_ref().map_or(0, |t| t.elem_count() * t.dtype().size_in_bytes())
    }
}
