//! Cosines and sines of the positions that occur, computed in f64 and rounded once.

use crate::position::frequencies::Frequencies;
use candle_core::{DType, Device, Result, Tensor};
use rayon::prelude::*;
use std::{ops::Range, sync::Arc};

/// cos and sin of some positions, the attention factor multiplied in.
#[derive(Debug)]
pub(super) struct Table {
    /// `(positions, pairs)`.
    cos: Tensor,
    sin: Tensor,
    /// For the CPU kernel: per position all cosines, then all sines.
    raw: Vec<f32>,
    pairs: usize,
}

/// The positions that a table has, in order.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Tabled {
    /// All whole ones from here to there.
    Range(Range<usize>),
    /// Any.
    List(Arc<[f64]>),
}

impl Tabled {
    fn len(&self) -> usize {
        match self {
            Self::Range(range) => range.len(),
            Self::List(list) => list.len(),
        }
    }

    fn at(&self, i: usize) -> f64 {
        match self {
            Self::Range(range) => (range.start + i) as f64,
            Self::List(list) => list[i],
        }
    }

    /// True if a table of `other` serves as well.
    pub(super) fn within(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Range(own), Self::Range(other)) => other.start <= own.start && own.end <= other.end,
            (own, other) => own == other,
        }
    }
}

impl Table {
    pub(super) fn new(frequencies: &Frequencies, positions: &Tabled, dtype: DType, device: &Device) -> Result<Self> {
        let pairs = frequencies.inv_freq.len();
        let shape = (positions.len(), pairs);
        let mut both = vec![(0f64, 0f64); positions.len() * pairs];
        both.par_chunks_mut(pairs * 64).enumerate().for_each(|(block, rows)| {
            for (i, row) in rows.chunks_mut(pairs).enumerate() {
                let position = positions.at(block * 64 + i);
                for (out, inv_freq) in row.iter_mut().zip(&frequencies.inv_freq) {
                    let (sin, cos) = (position * inv_freq).sin_cos();
                    *out = (cos * frequencies.attention_factor, sin * frequencies.attention_factor);
                }
            }
        });
        let (cos, sin) = if dtype == DType::F64 {
            let (cos, sin): (Vec<f64>, Vec<f64>) = both.iter().copied().unzip();
            (Tensor::from_vec(cos, shape, device)?, Tensor::from_vec(sin, shape, device)?)
        } else {
            let (cos, sin): (Vec<f32>, Vec<f32>) = both.iter().map(|&(c, s)| (c as f32, s as f32)).unzip();
            (Tensor::from_vec(cos, shape, device)?, Tensor::from_vec(sin, shape, device)?)
        };
        let mut raw = Vec::new();
        if device.is_cpu() && dtype != DType::F64 {
            raw.reserve_exact(2 * both.len());
            for row in both.chunks(pairs) {
                raw.extend(row.iter().map(|x| x.0 as f32));
                raw.extend(row.iter().map(|x| x.1 as f32));
            }
        }
        Ok(Self { cos, sin, raw, pairs })
    }
}

/// The angles of every token of a call.
#[derive(Debug, Clone)]
pub(super) struct Angles {
    pub(super) table: Arc<Table>,
    /// Rows that differ: 1 for all alike, or those of the batch.
    pub(super) rows: usize,
    /// The row of the table that each token takes, one row of the batch after the other.
    pub(super) index: Arc<[u32]>,
}

impl Angles {
    /// The cosines and the sines of a token.
    pub(super) fn of(&self, row: usize, token: usize) -> (&[f32], &[f32]) {
        let tokens = self.index.len() / self.rows;
        let row = if self.rows == 1 { 0 } else { row };
        let pairs = self.table.pairs;
        let start = self.index[row * tokens + token] as usize * 2 * pairs;
        self.table.raw[start..start + 2 * pairs].split_at(pairs)
    }

    /// cos and sin as tensors that broadcast to `(b, h, t, pairs)`.
    pub(super) fn tensors(&self) -> Result<(Tensor, Tensor)> {
        let Table { cos, sin, pairs, .. } = &*self.table;
        let shape = (self.rows, 1, self.index.len() / self.rows, *pairs);
        if let Some(first) = self.index.first()
            && self.index.iter().zip(*first..).all(|(i, j)| *i == j)
        {
            let pick = |table: &Tensor| table.narrow(0, *first as usize, self.index.len())?.reshape(shape);
            return Ok((pick(cos)?, pick(sin)?));
        }
        let index = Tensor::new(&*self.index, cos.device())?;
        let pick = |table: &Tensor| table.index_select(&index, 0)?.reshape(shape);
        Ok((pick(cos)?, pick(sin)?))
    }
}
