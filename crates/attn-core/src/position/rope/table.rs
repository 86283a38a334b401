//! Cosines and sines of the positions that occur, computed in f64 and rounded once.

use crate::position::Positions;
use crate::position::frequencies::Frequencies;
use candle_core::{DType, Device, Result, Tensor};
use rayon::prelude::*;
use std::ops::Range;

/// cos and sin of some positions, the attention factor multiplied in.
#[derive(Debug)]
pub(super) struct Table {
    /// The positions tabled.
    positions: Range<usize>,
    /// `(positions, pairs)`.
    cos: Tensor,
    sin: Tensor,
    /// For the CPU kernel: per position all cosines, then all sines.
    raw: Vec<f32>,
    pairs: usize,
}

impl Table {
    pub(super) fn new(frequencies: &Frequencies, positions: Range<usize>, dtype: DType, device: &Device) -> Result<Self> {
        let pairs = frequencies.inv_freq.len();
        let shape = (positions.len(), pairs);
        let mut both = vec![(0f64, 0f64); positions.len() * pairs];
        both.par_chunks_mut(pairs * 64).enumerate().for_each(|(block, rows)| {
            for (i, row) in rows.chunks_mut(pairs).enumerate() {
                let position = (positions.start + block * 64 + i) as f64;
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
        Ok(Self { positions, cos, sin, raw, pairs })
    }

    /// The positions tabled.
    pub(super) fn positions(&self) -> &Range<usize> {
        &self.positions
    }

    pub(super) fn covers(&self, wanted: &Range<usize>) -> bool {
        self.positions.start <= wanted.start && wanted.end <= self.positions.end
    }

    /// The cosines and the sines of one position.
    pub(super) fn row(&self, position: usize) -> (&[f32], &[f32]) {
        let start = (position - self.positions.start) * 2 * self.pairs;
        self.raw[start..start + 2 * self.pairs].split_at(self.pairs)
    }

    /// cos and sin of the positions as tensors that broadcast to `(b, h, t, pairs)`.
    pub(super) fn select(&self, positions: &Positions) -> Result<(Tensor, Tensor)> {
        let shape = (positions.rows().len(), 1, positions.len(), self.pairs);
        if let [pad] = positions.rows()
            && *pad <= positions.slots().start
        {
            let start = positions.slots().start - pad - self.positions.start;
            let pick = |table: &Tensor| table.narrow(0, start, positions.len())?.reshape(shape);
            return Ok((pick(&self.cos)?, pick(&self.sin)?));
        }
        let rows = positions.rows().iter().flat_map(|&pad| positions.row(pad));
        let index = rows.map(|p| (p - self.positions.start) as u32).collect::<Vec<_>>();
        let index = Tensor::new(index, self.cos.device())?;
        let pick = |table: &Tensor| table.index_select(&index, 0)?.reshape(shape);
        Ok((pick(&self.cos)?, pick(&self.sin)?))
    }
}
