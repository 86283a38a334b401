//! Which position encodings a model has and on which layers, for inspecting and explaining it without its weights.

use crate::builder::Builder;
use crate::spec::{AttentionSpec, ModelSpec, StackSpec};
use crate::weights::TensorSource;
use attn_core::position::PositionConfig;
use candle_core::{DType, Device, Result, Tensor};

/// Where an encoding acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Added to the token embeddings, before the first layer.
    Embeddings,
    /// Inside attention.
    Attention,
}

/// An encoding, the limits of attention under it, and the layers that have both.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodingGroup<'a> {
    /// The encoding.
    pub config: &'a PositionConfig,
    /// Where it acts.
    pub place: Place,
    /// Keys that a query of these layers sees at most.
    pub window: Option<usize>,
    /// Tokens per chunk, if these layers attend within chunks.
    pub chunk: Option<usize>,
    /// Their numbers, ascending.
    pub layers: Vec<usize>,
}

impl StackSpec {
    /// The encodings, each once with the layers that use it.
    pub fn encodings(&self) -> Vec<EncodingGroup<'_>> {
        let mut groups: Vec<EncodingGroup> = vec![];
        for (index, layer) in self.layers.iter().enumerate() {
            let (window, chunk) = match &layer.attention {
                AttentionSpec::MultiHead(a) => (a.mask.window, a.mask.chunk),
                AttentionSpec::Latent(_) => (None, None),
            };
            let config = layer.attention.position();
            match groups.iter_mut().find(|g| g.config == config && (g.window, g.chunk) == (window, chunk)) {
                Some(group) => group.layers.push(index),
                None => {
                    groups.push(EncodingGroup { config, place: Place::Attention, window, chunk, layers: vec![index] });
                }
            }
        }
        let config = &self.embedding.position;
        if !matches!(config, PositionConfig::Nope(_)) {
            // What is added to the embeddings reaches every layer, and those do nothing more.
            groups.retain(|group| !matches!(group.config, PositionConfig::Nope(_)));
            let layers = (0..self.layers.len()).collect();
            groups.insert(0, EncodingGroup { config, place: Place::Embeddings, window: None, chunk: None, layers });
        }
        groups
    }
}

impl ModelSpec {
    /// The T5 table `(buckets, heads)` in f32 that the layers of `stack` (this model's decoder or encoder) share, or
    /// `None` if they have none.
    ///
    /// # Errors
    /// The tensor is missing, of another shape, or can't be read.
    pub fn relative_table(&self, stack: &StackSpec, weights: &dyn TensorSource) -> Result<Option<Tensor>> {
        let position = stack.layers.first().map(|layer| layer.attention.position());
        let (Some(name), Some(PositionConfig::T5(config))) = (&stack.relative_table, position) else { return Ok(None) };
        let builder = Builder::new(weights, self, DType::F32, &Device::Cpu)?;
        builder.tensor_as(name, &[config.buckets, config.heads], DType::F32).map(Some)
    }
}
