//! A rotation whose sines and cosines come from a table in the checkpoint rather than from a formula (RoFormer).
//!
//! The encoding ends with its table. A position past it is an error, because its last angle would be a wrong answer.

use super::apply::rotate_plain;
use super::{Layout, RopeConfig};
use crate::position::{Context, PositionEncoding, Positions};
use candle_core::{D, DType, Result, Tensor, bail};
use candle_nn::VarBuilder;

/// The size of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RotaryTableConfig {
    /// Positions that it has a row for.
    pub rows: usize,
    /// Width of a head, all of which is rotated.
    pub head_dim: usize,
}

/// The rotation; lanes `2i` and `2i + 1` turn together.
#[derive(Debug, Clone)]
pub struct RotaryTable {
    /// Shape and layout, as the rotation itself takes them.
    rotation: RopeConfig,
    rows: usize,
    /// `(rows, head_dim / 2)`
    cos: Tensor,
    /// `(rows, head_dim / 2)`
    sin: Tensor,
}

impl RotaryTable {
    /// Takes the tensor `weight` of shape `(rows, head_dim)` from `vb`.
    ///
    /// # Errors
    /// As [`from_table`](Self::from_table).
    pub fn new(config: &RotaryTableConfig, vb: VarBuilder) -> Result<Self> {
        let table = vb.get((config.rows, config.head_dim), "weight")?;
        Self::from_table(config, &table)
    }

    /// From a table `(rows, head_dim)` whose rows hold the sines of all pairs, then the cosines.
    ///
    /// # Errors
    /// A table of another shape, a head of odd width.
    pub fn from_table(config: &RotaryTableConfig, table: &Tensor) -> Result<Self> {
        let RotaryTableConfig { rows, head_dim } = *config;
        if table.dims() != [rows, head_dim] || rows == 0 {
            bail!("rotary table: expected a table ({rows}, {head_dim}), got {:?}", table.dims())
        }
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            bail!("rotary table: the width of a head must be even and positive, got {head_dim}")
        }
        let half = |start| table.narrow(1, start, head_dim / 2)?.contiguous();
        let rotation = RopeConfig { layout: Layout::Interleaved, ..RopeConfig::new(head_dim, 10_000.0) };
        Ok(Self { rotation, rows, sin: half(0)?, cos: half(head_dim / 2)? })
    }

    /// Rotates queries or keys, `(b, h, t, head_dim)`.
    ///
    /// # Errors
    /// Heads of another width, positions past the table.
    pub fn rotate(&self, xs: &Tensor, positions: &Positions) -> Result<Tensor> {
        let head_dim = self.rotation.head_dim;
        if xs.dim(D::Minus1)? != head_dim || xs.dim(2)? != positions.len() {
            bail!("rotary table: {:?} does not fit {} positions of head_dim {head_dim}", xs.dims(), positions.len())
        }
        if positions.is_empty() {
            return Ok(xs.clone());
        }
        if positions.largest() >= self.rows {
            bail!(
                "rotary positions end at {}: this model cannot take a sequence of {} tokens",
                self.rows,
                positions.largest() + 1
            )
        }
        let index = Tensor::new(positions.all().map(|p| p as u32).collect::<Vec<_>>(), self.cos.device())?;
        let dtype = if xs.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let pick = |table: &Tensor| {
            let shape = (positions.rows(), 1, positions.len(), head_dim / 2);
            table.index_select(&index, 0)?.reshape(shape)?.to_dtype(dtype)
        };
        rotate_plain(xs, &pick(&self.cos)?, &pick(&self.sin)?, &self.rotation)
    }
}

impl PositionEncoding for RotaryTable {
    fn queries(&self, q: &Tensor, at: &Context) -> Result<Tensor> {
        self.rotate(q, at.positions)
    }

    fn keys(&self, k: &Tensor, at: &Context) -> Result<Tensor> {
        self.rotate(k, at.positions)
    }

    fn max_positions(&self) -> Option<usize> {
        Some(self.rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::{Rope, Sinusoidal, SinusoidalConfig, SinusoidalLayout};
    use crate::testing::randn;
    use candle_core::Device;

    #[test]
    fn a_table_of_sinusoids_is_rope() -> Result<()> {
        let layout = SinusoidalLayout::Concatenated;
        let sinusoids = Sinusoidal::new(SinusoidalConfig { layout, ..SinusoidalConfig::new(8) })?;
        let rows = (0..16).flat_map(|p| sinusoids.at(p)).collect::<Vec<_>>();
        let table = Tensor::from_vec(rows, (16, 8), &Device::Cpu)?.to_dtype(DType::F32)?;
        let encoding = RotaryTable::from_table(&RotaryTableConfig { rows: 16, head_dim: 8 }, &table)?;
        let rope = Rope::new(RopeConfig { layout: Layout::Interleaved, ..RopeConfig::new(8, 1e4) })?;
        let xs = randn(0.0, 1.0, (2, 3, 5, 8))?;
        let positions = Positions::new(9..14).with_pads(Some([0, 2].into()));
        let (got, want) = (encoding.rotate(&xs, &positions)?, rope.rotate(&xs, &positions)?);
        let off = (got - want)?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(off < 1e-5, "off by {off}");
        let message = encoding.rotate(&xs, &Positions::new(12..17)).expect_err("past the table").to_string();
        assert!(message.contains("end at 16") && message.contains("17 tokens"), "{message}");
        Ok(())
    }
}
