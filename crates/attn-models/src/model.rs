//! Stub of the model API: the real file comes from the main branch with these signatures.
use attn_core::RopeOverride;
use candle_core::{DType, Device, Result, Tensor};
use std::sync::Arc;
use crate::TensorSource;

/// How a model is loaded.
#[derive(Debug, Clone)]
pub struct Options {
    /// Compute and weight dtype.
    pub dtype: DType,
    /// Where the weights live.
    pub device: Device,
    /// Overrides the checkpoint's rotary settings.
    pub rope: RopeOverride,
}

/// What a model maps its input to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// Next-token logits from the tokens so far.
    Decoder,
    /// Hidden states (BERT).
    Encoder,
    /// Logits of a decoder that attends to an encoded prompt (T5).
    EncoderDecoder,
}

/// A loaded model; cloning shares the weights.
#[derive(Debug, Clone)]
pub struct Model {}

#[allow(unused_variables)]
impl Model {
    /// Loads a model.
    pub fn load(config: &serde_json::Value, weights: Arc<dyn TensorSource>, options: &Options) -> Result<Self> { unimplemented!() }
    /// The same weights under another rotary setting. Errors by name on models without rotary layers.
    pub fn with_rope(&self, rope: &RopeOverride) -> Result<Self> { unimplemented!() }
    /// Decoder, encoder or both.
    pub fn architecture(&self) -> Architecture { unimplemented!() }
    /// The longest context the model was trained for (max_position_embeddings or original_max_position_embeddings of the *checkpoint*, without overrides).
    pub fn trained_context(&self) -> Option<usize> { unimplemented!() }
    /// Hard limit of learned tables.
    pub fn max_context(&self) -> Option<usize> { unimplemented!() }
    /// Vocabulary size.
    pub fn vocab_size(&self) -> usize { unimplemented!() }
    /// JSON for `attn inspect`: architecture, parameters, dtype, layers, heads, position: [...], kv_bytes_per_token ...
    pub fn inspect(&self) -> serde_json::Value { unimplemented!() }
    /// Logits `(b, t, vocab)` f32 of ids `(b, t)` u32 in one prefill, frequencies resolved for `length` tokens (usually t).
    pub fn logits(&self, ids: &Tensor, length: usize) -> Result<Tensor> { unimplemented!() }
    /// Hidden states `(b, t, hidden)` f32 of an encoder.
    pub fn hidden(&self, ids: &Tensor) -> Result<Tensor> { unimplemented!() }
    /// Negative log-likelihoods of tokens 1.. of each row of ids `(b, t)`: `(b, t - 1)` f32 on the CPU. Head in chunks, so no (t, vocab) tensor is ever held.
    pub fn nll(&self, ids: &Tensor, length: usize) -> Result<Tensor> { unimplemented!() }
}

/// Which sequence length the frequencies of length-dependent scalings (dynamic NTK, LongRoPE) are resolved for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeLength {
    /// Once, for a length known beforehand.
    Declared(usize),
    /// Always the current length; when the resolution changes the cache is recomputed from the tokens.
    Exact,
}

/// A running sequence (or left-padded batch of sequences): tokens in, logits out, keys and values cached between.
#[derive(Debug)]
pub struct Session {}

#[allow(unused_variables)]
impl Session {
    /// A new session. `pads`: padding tokens at the start of each row of a left-padded batch.
    pub fn new(model: &Model, length: RopeLength, pads: Option<Vec<usize>>) -> Result<Self> { unimplemented!() }
    /// For encoder-decoder models: encodes the prompt `(b, t)` u32 that the decoder attends to.
    pub fn encode(&mut self, ids: &Tensor) -> Result<()> { unimplemented!() }
    /// Feeds `(b, t)` u32 ids and returns the logits `(b, vocab)` f32 after the last.
    pub fn feed(&mut self, ids: &Tensor) -> Result<Tensor> { unimplemented!() }
    /// Feeds `(b, t)` u32 ids and returns the logits `(b, t, vocab)` f32 after each.
    pub fn feed_all(&mut self, ids: &Tensor) -> Result<Tensor> { unimplemented!() }
    /// Tokens fed so far, per row.
    pub fn len(&self) -> usize { unimplemented!() }
}
