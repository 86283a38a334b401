//! A loaded model: weights once, position encodings exchangeable, from ids to logits.

use crate::TensorSource;
use crate::builder::Builder;
use crate::config::{Notes, UnknownKeys};
use crate::families;
use crate::spec::{AttentionSpec, LayerSpec, ModelSpec, MultiHeadSpec, StackSpec};
use crate::stack::{Encodings, Memory, Stack, TokensRead};
use attn_core::position::{self, LearnedTensor, PositionConfig, learned_tensors};
use attn_core::{CacheTypes, KvCache, Linear, PositionEncoding, PositionOverride, Positions, Resolution, profile};
use candle_core::{D, DType, Device, IndexOp, Module, Result, Tensor, bail};
use candle_nn::VarBuilder;
use std::{collections::HashMap, sync::Arc};

/// How a model is loaded.
#[derive(Debug, Clone)]
pub struct Options {
    /// Dtype of weights and activations.
    pub dtype: DType,
    /// Where the weights live.
    pub device: Device,
    /// Overrides the checkpoint's rotary settings.
    pub positions: PositionOverride,
    /// What keys and values are stored as.
    pub cache: CacheTypes,
    /// Whether keys of the config that nothing here reads are refused or passed over.
    pub unknown_keys: UnknownKeys,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            dtype: DType::F32,
            device: Device::Cpu,
            positions: PositionOverride::default(),
            cache: CacheTypes::default(),
            unknown_keys: UnknownKeys::default(),
        }
    }
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
pub struct Model {
    spec: Arc<ModelSpec>,
    stack: Stack,
    encoder: Option<Stack>,
    /// From the hidden size to the head's width, if they differ.
    head_projection: Option<Linear>,
    head: Option<Linear>,
    /// The tables that encodings of decoder and encoder read, to build them anew.
    tables: Arc<Tables>,
    parameters: usize,
    dtype: DType,
    cache: CacheTypes,
    notes: Arc<Notes>,
    warnings: Arc<[String]>,
}

/// Learned tables of position encodings, by stack.
#[derive(Debug, Default)]
struct Tables {
    stack: StackTables,
    encoder: StackTables,
}

#[derive(Debug, Default)]
struct StackTables {
    absolute: Option<Tensor>,
    /// What all layers share.
    layers: Option<Tensor>,
    /// What each layer has of its own, by name; empty for encodings that learn nothing.
    own: Vec<HashMap<String, Tensor>>,
}

impl StackTables {
    fn load(spec: &StackSpec, weights: &Builder) -> Result<Self> {
        let absolute = match (&spec.embedding.position_table, &spec.embedding.position) {
            (Some(table), PositionConfig::Learned(c)) => {
                Some(weights.table(table, [c.rows, c.hidden], weights.dtype)?)
            }
            _ => None,
        };
        let layers = match (&spec.layer_table, spec.layers.first().map(|l| l.attention.position())) {
            (Some(table), Some(PositionConfig::T5(c))) => {
                Some(weights.table(table, [c.buckets, c.heads], DType::F32)?)
            }
            (Some(table), Some(PositionConfig::RotaryTable(c))) => {
                Some(weights.table(table, [c.rows, c.head_dim], DType::F32)?)
            }
            _ => None,
        };
        let own = spec.layers.iter().map(|layer| own_tensors(layer, weights)).collect::<Result<_>>()?;
        Ok(Self { absolute, layers, own })
    }

    /// Builds the encodings of a stack; layers with equal configs share one.
    fn encodings(&self, spec: &StackSpec, device: &Device) -> Result<Encodings> {
        let at = |table: &Option<Tensor>| {
            let named = table.iter().map(|t| ("weight".to_string(), t.clone())).collect();
            let dtype = table.as_ref().map_or(DType::F32, Tensor::dtype);
            Some(VarBuilder::from_tensors(named, dtype, device))
        };
        let embedding = position::build_embedding(&spec.embedding.position, at(&self.absolute))?;
        let mut built: Vec<(&PositionConfig, Arc<dyn PositionEncoding>)> = Vec::new();
        let mut layers = Vec::with_capacity(spec.layers.len());
        for (layer, own) in spec.layers.iter().zip(&self.own) {
            let config = layer.attention.position();
            let shared = built.iter().find(|(c, _)| *c == config && own.is_empty()).map(|(_, e)| e.clone());
            let encoding = match shared {
                Some(encoding) => encoding,
                None if own.is_empty() => position::build(config, at(&self.layers))?,
                None => position::build(config, Some(VarBuilder::from_tensors(own.clone(), DType::F32, device)))?,
            };
            built.push((config, encoding.clone()));
            layers.push(encoding);
        }
        Ok(Encodings { embedding, layers })
    }
}

/// The tensors that a layer's encoding learns, in f32 whatever the model's dtype: distances need more than bf16's eight bits.
fn own_tensors(layer: &LayerSpec, weights: &Builder) -> Result<HashMap<String, Tensor>> {
    let AttentionSpec::MultiHead(MultiHeadSpec { position, position_prefix: Some(prefix), .. }) = &layer.attention
    else {
        return Ok(HashMap::new());
    };
    let named = learned_tensors(position)?.into_iter().map(|LearnedTensor { name, shape, .. }| {
        let full = format!("{}{prefix}{name}", layer.prefix);
        Ok((name, weights.tensor_as(&full, shape.dims(), DType::F32)?))
    });
    named.collect()
}

impl Model {
    /// Reads the config, then the tensors it calls for.
    ///
    /// # Errors
    /// An unknown family, a key that is missing, wrong or not understood, a tensor that is missing or of another shape,
    /// a tensor in the checkpoint that the model does not use; each names the key or the tensor.
    pub fn load(config: &serde_json::Value, weights: Arc<dyn TensorSource>, options: &Options) -> Result<Self> {
        let (spec, notes) = families::spec_with(config, options.unknown_keys)?;
        if let Some(quantization) = families::quantization(config) {
            let method = quantization.get("quant_method").and_then(|m| m.as_str()).unwrap_or("an unknown method");
            bail!(
                "config.json: quantization_config: weights quantised by {method} can't be read: take a checkpoint \
                 without quantization, or a GGUF file"
            )
        }
        let spec = spec.with_positions(&options.positions)?;
        spec.check_cache_types(options.cache, &options.device)?;
        let builder = Builder::new(weights.as_ref(), &spec, options.dtype, &options.device)?;
        let hidden = spec.hidden_size;
        let load = |stack: &StackSpec| -> Result<(Stack, StackTables)> {
            let tables = StackTables::load(stack, &builder)?;
            Ok((
                Stack::load(stack, spec.vocab_size, hidden, tables.encodings(stack, &options.device)?, &builder)?,
                tables,
            ))
        };
        let (stack, stack_tables) = load(&spec.stack)?;
        let (encoder, encoder_tables) = match &spec.encoder {
            Some(encoder) => load(encoder).map(|(stack, tables)| (Some(stack), tables))?,
            None => (None, StackTables::default()),
        };
        let head = spec.head.as_ref().map(|h| builder.head(h, stack.tokens())).transpose()?;
        let narrowed = spec.head.as_ref().and_then(|h| h.projection.as_ref());
        let head_projection = narrowed.map(|p| builder.linear("", p)).transpose()?;
        builder.finish(&spec)?;
        let parameters = builder.parameters();
        let tables = Arc::new(Tables { stack: stack_tables, encoder: encoder_tables });
        let (spec, notes, dtype, cache) = (Arc::new(spec), Arc::new(notes), options.dtype, options.cache);
        let warnings = builder.warnings().into();
        Ok(Self { spec, stack, encoder, head_projection, head, tables, parameters, dtype, cache, notes, warnings })
    }

    /// The same weights under another rotary setting.
    ///
    /// # Errors
    /// A model without rotary layers, by name; parameters that don't fit.
    pub fn with_positions(&self, change: &PositionOverride) -> Result<Self> {
        let spec = self.spec.with_positions(change)?;
        let stack = self.stack.with_encodings(&spec.stack, self.tables.stack.encodings(&spec.stack, self.device())?);
        let encoder = match (&self.encoder, &spec.encoder) {
            (Some(stack), Some(spec)) => {
                Some(stack.with_encodings(spec, self.tables.encoder.encodings(spec, self.device())?))
            }
            _ => None,
        };
        Ok(Self { spec: Arc::new(spec), stack, encoder, ..self.clone() })
    }

    /// The same weights with keys and values stored as these types, wherever they are stored.
    ///
    /// # Errors
    /// As [`ModelSpec::check_cache_types`].
    pub fn with_cache_types(&self, cache: CacheTypes) -> Result<Self> {
        self.spec.check_cache_types(cache, self.device())?;
        Ok(Self { cache, ..self.clone() })
    }

    /// What keys and values are stored as.
    pub fn cache_types(&self) -> CacheTypes {
        self.cache
    }

    /// True if a pass over a whole sequence goes through a cache, because the cache does not give back exactly the
    /// numbers put in.
    pub fn scores_through_cache(&self) -> bool {
        self.cache.differ_from(self.dtype)
    }

    /// An empty cache for `expected` tokens.
    pub(crate) fn new_cache(&self, expected: usize) -> KvCache {
        self.stack.new_cache(expected, self.cache)
    }

    /// The model as data.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Notes on the config: unknown keys that were ignored, which [`UnknownKeys::Collect`] allows, and keys that do
    /// nothing.
    pub fn notes(&self) -> &Notes {
        &self.notes
    }

    /// Warnings for the user: where the checkpoint contradicts its config and the checkpoint was followed.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Decoder, encoder or both.
    pub fn architecture(&self) -> Architecture {
        self.spec.architecture
    }

    /// The longest context the model was trained for, without overrides.
    pub fn trained_context(&self) -> Option<usize> {
        self.spec.trained_context
    }

    /// Where a learned table ends: no sequence can be longer. `None` if the encoding has no end.
    pub fn max_context(&self) -> Option<usize> {
        let layers = self.stack.encodings().filter_map(|e| e.max_positions());
        layers.chain(self.stack.embedding_encoding().and_then(|e| e.max_positions())).min()
    }

    /// Vocabulary size.
    pub fn vocab_size(&self) -> usize {
        self.spec.vocab_size
    }

    /// Numbers in all tensors that were read.
    pub fn parameters(&self) -> usize {
        self.parameters
    }

    /// Dtype of weights and activations.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Device of the weights.
    pub fn device(&self) -> &Device {
        self.stack.tokens().device()
    }

    /// How much this model and its variants have read, with a pass counted block by block while it runs. An encoder in front
    /// of the decoder does not count.
    pub fn tokens_read(&self) -> TokensRead {
        self.stack.read().clone()
    }

    pub(crate) fn stack(&self) -> &Stack {
        &self.stack
    }

    /// The frequencies each layer uses for a sequence of `length` tokens.
    pub(crate) fn resolutions(&self, length: usize) -> Vec<Resolution> {
        self.stack.encodings().map(|e| e.resolve(length)).collect()
    }

    /// True if any layer's frequencies depend on the length of the sequence.
    pub fn depends_on_length(&self) -> bool {
        self.resolutions(1) != self.resolutions(usize::MAX >> 16)
    }

    pub(crate) fn check_context(&self, tokens: usize) -> Result<()> {
        match self.max_context() {
            Some(max) if tokens > max => {
                bail!("{tokens} tokens are more than the {max} positions that the model has learned")
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn check_ids(&self, ids: &Tensor) -> Result<()> {
        let largest = ids.flatten_all()?.max(0)?.to_scalar::<u32>()? as usize;
        if largest >= self.vocab_size() {
            bail!("token id {largest} is outside the vocabulary of {}", self.vocab_size())
        }
        Ok(())
    }

    /// Hidden states after the final norm, `(b, t, hidden)`, of ids `(b, t)` u32 in one pass. Keys and values are those
    /// that the [types of the cache](Self::cache_types) leave of them.
    ///
    /// `length`: what length-dependent frequencies are resolved for, usually `t`. For encoders `ends` gives the real
    /// tokens of each right-padded row.
    pub fn hidden(&self, ids: &Tensor, length: usize, ends: Option<Arc<[usize]>>) -> Result<Tensor> {
        if self.architecture() == Architecture::EncoderDecoder {
            bail!("{} is an encoder-decoder model: use a session", self.spec.family)
        }
        let positions = self.positions(ids, length)?.with_ends(ends);
        let mut cache = self.scores_through_cache().then(|| self.new_cache(positions.len()));
        self.stack.forward(ids, &positions, cache.as_mut(), None)
    }

    fn positions(&self, ids: &Tensor, length: usize) -> Result<Positions> {
        let t = ids.dim(1)?;
        if t == 0 {
            bail!("no tokens")
        }
        self.check_ids(ids)?;
        self.check_context(t)?;
        Ok(Positions::new(0..t).with_length(length))
    }

    /// Encodes ids `(b, s)` and projects the keys and values that the decoder's cross-attention reads.
    pub(crate) fn memory(&self, ids: &Tensor, ends: Option<Arc<[usize]>>) -> Result<Memory> {
        let Some(encoder) = &self.encoder else { bail!("{} has no encoder", self.spec.family) };
        let positions = self.positions(ids, ids.dim(1)?)?.with_ends(ends);
        let keys = positions.keys();
        self.stack.memory(&encoder.forward(ids, &positions, None, None)?, keys)
    }

    /// Logits f32 of hidden states.
    pub fn head_logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let _scope = profile::whole(profile::Op::Head);
        let (Some(head), Some(spec)) = (&self.head, &self.spec.head) else {
            bail!("{} is an encoder: it has hidden states but no logits", self.spec.family)
        };
        let projected = self.head_projection.as_ref().map(|p| p.forward(hidden)).transpose()?;
        let mut logits = head.forward(projected.as_ref().unwrap_or(hidden))?.to_dtype(DType::F32)?;
        if spec.scale != 1.0 {
            logits = (logits * spec.scale)?;
        }
        match spec.softcap {
            Some(cap) => (logits / cap)?.tanh()? * cap,
            None => Ok(logits),
        }
    }

    /// Logits `(b, t, vocab)` f32 of ids `(b, t)` u32 in one prefill; see [`hidden`](Self::hidden) for `length`.
    pub fn logits(&self, ids: &Tensor, length: usize) -> Result<Tensor> {
        self.head_logits(&self.hidden(ids, length, None)?)
    }

    /// Greedy choice per row of logits `(b, vocab)`: `(b, 1)` u32.
    pub fn greedy(logits: &Tensor) -> Result<Tensor> {
        logits.argmax(D::Minus1)?.to_dtype(DType::U32)?.i(..)?.unsqueeze(1)
    }
}
