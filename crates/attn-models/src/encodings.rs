//! Which position encodings a model has and on which layers, for inspecting and explaining it without its weights.

use crate::builder::Builder;
use crate::spec::{AttentionSpec, ModelSpec, StackSpec};
use crate::weights::TensorSource;
use attn_core::position::{PositionConfig, RopeConfig};
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
                AttentionSpec::MultiHead(a) => (a.mask.window, a.mask.chunk.map(|chunk| chunk.size)),
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

impl StackSpec {
    /// See [`ModelSpec::places_alike`].
    fn places_alike(&self, other: &Self, len: usize) -> bool {
        let scale = |attention: &AttentionSpec| match attention {
            AttentionSpec::MultiHead(_) => None,
            AttentionSpec::Latent(a) => Some(a.scale(&a.position)),
        };
        let layers = self.layers.iter().map(|x| &x.attention).zip(other.layers.iter().map(|x| &x.attention));
        self.layers.len() == other.layers.len() && alike(&self.embedding.position, &other.embedding.position, len) && {
            layers
        }
        .all(|(a, b)| alike(a.position(), b.position(), len) && scale(a) == scale(b))
    }
}

/// True for the same encoding, and for two rotary ones that have the same angles for `len` tokens, up to the rounding of f64: a blend
/// of a frequency with itself may be off by that.
fn alike(a: &PositionConfig, b: &PositionConfig, len: usize) -> bool {
    if a == b {
        return true;
    }
    // A method changes nothing for a text that stays within its window.
    let plain = |config: &PositionConfig| match config {
        PositionConfig::Extended(config) if config.is_plain(len) => Some(config.rope.clone()),
        PositionConfig::Rope(rope) => Some(rope.clone()),
        _ => None,
    };
    let (Some(a), Some(b)) = (plain(a), plain(b)) else { return false };
    let (a, b) = (&a, &b);
    let lanes = |rope: &RopeConfig| (rope.head_dim, rope.rotary_dim, rope.layout);
    let near = |a: f64, b: f64| (a - b).abs() <= 8.0 * f64::EPSILON * a.abs().max(b.abs());
    let (x, y) = (a.frequencies(len), b.frequencies(len));
    lanes(a) == lanes(b)
        && near(x.attention_factor, y.attention_factor)
        && x.inv_freq.iter().zip(&y.inv_freq).all(|(x, y)| near(*x, *y))
}

impl ModelSpec {
    /// True if two settings of one model place tokens in the same way, frequency by frequency, in sequences whose
    /// length-dependent scalings resolve for `len` tokens: for example, dynamic NTK within the trained context changes
    /// nothing.
    pub fn places_alike(&self, other: &Self, len: usize) -> bool {
        let encoders = match (&self.encoder, &other.encoder) {
            (Some(a), Some(b)) => a.places_alike(b, len),
            (a, b) => a.is_none() && b.is_none(),
        };
        encoders && self.stack.places_alike(&other.stack, len)
    }

    /// The T5 table `(buckets, heads)` in f32 that the layers of `stack` (this model's decoder or encoder) share, or
    /// `None` if they have none.
    ///
    /// # Errors
    /// The tensor is missing, of another shape, or can't be read.
    pub fn relative_table(&self, stack: &StackSpec, weights: &dyn TensorSource) -> Result<Option<Tensor>> {
        let position = stack.layers.first().map(|layer| layer.attention.position());
        let (Some(table), Some(PositionConfig::T5(config))) = (&stack.layer_table, position) else { return Ok(None) };
        let builder = Builder::new(weights, self, DType::F32, &Device::Cpu)?;
        builder.table(table, [config.buckets, config.heads], DType::F32).map(Some)
    }
}
