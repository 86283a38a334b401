//! Learned absolute positions (GPT-2, BERT, OPT): one vector per position, added to the token embeddings.
//!
//! The encoding ends with its table. A position past it is an error, because its last vector would be a wrong answer.

use super::{EmbeddingEncoding, Positions, TABLE_INIT};
use candle_core::{Result, Tensor, bail};
use candle_nn::VarBuilder;

/// The size of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LearnedConfig {
    /// Rows of the table, those below `offset` included.
    pub rows: usize,
    /// Width of the token embeddings.
    pub hidden: usize,
    /// Added to every position: 2 in OPT, BART and RoBERTa, else 0.
    pub offset: usize,
}

/// The learned table.
#[derive(Debug, Clone)]
pub struct Learned {
    config: LearnedConfig,
    table: Tensor,
}

impl Learned {
    /// Takes the tensor `weight` of shape `(rows, hidden)` from `vb`, for example at `transformer.wpe`; in a
    /// fresh `VarMap` it starts as [`candle_nn::embedding()`] does.
    pub fn new(config: LearnedConfig, vb: VarBuilder) -> Result<Self> {
        let table = vb.get_with_hints((config.rows, config.hidden), "weight", TABLE_INIT)?;
        Self::from_table(config, table)
    }

    /// From a table `(rows, hidden)`; gradients flow into it.
    ///
    /// # Errors
    /// A table of another shape, or one that the offset leaves no row of.
    pub fn from_table(config: LearnedConfig, table: Tensor) -> Result<Self> {
        if table.dims() != [config.rows, config.hidden] {
            bail!("learned positions: expected a table ({}, {}), got {:?}", config.rows, config.hidden, table.dims())
        }
        if config.offset >= config.rows {
            bail!("learned positions: an offset of {} leaves no row of a table of {} rows", config.offset, config.rows)
        }
        Ok(Self { config, table })
    }
}

impl EmbeddingEncoding for Learned {
    fn embed(&self, xs: &Tensor, positions: &Positions) -> Result<Tensor> {
        let limit = self.config.rows - self.config.offset;
        if !positions.is_empty() && positions.largest() >= limit {
            bail!(
                "learned positions end at {limit}: this model cannot take a sequence of {} tokens",
                positions.largest() + 1
            )
        }
        let index = positions.all().map(|p| (p + self.config.offset) as u32);
        let index = Tensor::new(index.collect::<Vec<_>>(), self.table.device())?;
        let added =
            self.table.index_select(&index, 0)?.reshape((positions.rows(), positions.len(), self.config.hidden))?;
        xs.broadcast_add(&added.to_dtype(xs.dtype())?)
    }

    fn max_positions(&self) -> Option<usize> {
        Some(self.config.rows - self.config.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn the_offset_and_the_padding_pick_the_row() -> Result<()> {
        let table = Tensor::arange(0f32, 7., &Device::Cpu)?.reshape((7, 1))?;
        let learned = Learned::from_table(LearnedConfig { rows: 7, hidden: 1, offset: 2 }, table.clone())?;
        let xs = Tensor::zeros((2, 3, 1), DType::F32, &Device::Cpu)?;
        let rows = learned.embed(&xs, &Positions::new(2..5).with_pads(Some([0, 3].into())))?;
        assert_eq!(rows.flatten_all()?.to_vec1::<f32>()?, [4., 5., 6., 2., 2., 3.]);
        assert_eq!(learned.max_positions(), Some(5));
        // Padding does not count against the limit, tokens do.
        assert!(learned.embed(&xs, &Positions::new(3..6).with_pads(Some([1, 2].into()))).is_ok());
        let message = learned.embed(&xs, &Positions::new(3..6)).expect_err("past the table").to_string();
        assert!(message.contains("end at 5") && message.contains("6 tokens"), "{message}");
        assert!(Learned::from_table(LearnedConfig { rows: 7, hidden: 1, offset: 7 }, table).is_err());
        Ok(())
    }
}
