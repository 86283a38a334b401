//! A stack of blocks: embedding, layers, final norm. Runs decoders, encoders and T5's two halves alike.

use crate::builder::Builder;
use crate::mlp::{Mlp, Moe};
use crate::per_layer::{PerLayer, PerLayerInputs};
use crate::spec::{AttentionSpec, BesideSpec, CrossSpec, LayerSpec, ProjectionPlace, StackSpec, Wiring};
use crate::tokens::Tokens;
use attn_core::{
    CacheTypes, EmbeddingEncoding, KeyValues, KvCache, LatentAttention, LayerCache, Linear, Mask, MultiHeadAttention,
    Norm, PositionEncoding, Positions, ops,
    position::{NopeConfig, PositionConfig},
    profile,
};
use candle_core::{DType, Module, Result, Tensor, bail};
use std::sync::atomic::{AtomicU64, Ordering};
use std::{ops::Range, sync::Arc};

/// Position encodings of a stack: one for the embedding and one per layer, shared where the configs are equal.
pub(crate) struct Encodings {
    pub(crate) embedding: Option<Arc<dyn EmbeddingEncoding>>,
    pub(crate) layers: Vec<Arc<dyn PositionEncoding>>,
}

#[derive(Debug, Clone)]
pub(crate) struct Stack {
    tokens: Tokens,
    scale: f64,
    projection: Option<(Linear, ProjectionPlace)>,
    position: Option<Arc<dyn EmbeddingEncoding>>,
    token_type: Option<Tensor>,
    embedding_norm: Option<Norm>,
    per_layer: Option<PerLayerInputs>,
    layers: Vec<Block>,
    final_norm: Option<Norm>,
    read: TokensRead,
}

/// How much a model has read so far, for a progress bar: one pass over a long window may take a minute. Clones count
/// together, and so do a model's clones and its variants under other positions.
#[derive(Debug, Clone)]
pub struct TokensRead {
    /// Tokens times blocks.
    blocks: Arc<AtomicU64>,
    layers: usize,
}

impl TokensRead {
    fn new(layers: usize) -> Self {
        Self { blocks: Arc::default(), layers }
    }

    fn count(&self, tokens: usize) {
        self.blocks.fetch_add(tokens as u64, Ordering::Relaxed);
    }

    /// Tokens read so far, over all passes and rows. Those of a pass that has come through half of the blocks count half.
    pub fn tokens(&self) -> f64 {
        self.blocks.load(Ordering::Relaxed) as f64 / self.layers.max(1) as f64
    }
}

#[derive(Debug, Clone)]
struct Block {
    attention: Attention,
    /// The block whose keys and values this one reads.
    source: Option<usize>,
    /// Later blocks read this one's keys and values.
    is_source: bool,
    cross: Option<Cross>,
    mlp: Mlp,
    norms: Norms,
    parallel: bool,
    residual_multiplier: Option<f64>,
    residual_after_norm: bool,
    beside: Option<Beside>,
    per_layer: Option<PerLayer>,
    scalar: Option<f64>,
}

/// What one pass carries from block to block beside the residual.
struct Pass<'a> {
    positions: &'a Positions,
    /// Inputs of their own for every block, `(b, t, layers, width)`.
    inputs: Option<Tensor>,
    /// Keys and values that later blocks read, by the block they come from.
    kept: Vec<Option<KeyValues>>,
}

/// Attention to the encoder.
#[derive(Debug, Clone)]
struct Cross {
    attention: MultiHeadAttention,
    norm: Norm,
    norm_after: bool,
}

/// Experts beside the feed-forward network.
#[derive(Debug, Clone)]
struct Beside {
    norm: Norm,
    moe: Moe,
    post_norm: Norm,
    mlp_post_norm: Norm,
}

#[derive(Debug, Clone)]
enum Attention {
    MultiHead(MultiHeadAttention),
    Latent(LatentAttention),
}

#[derive(Debug, Clone)]
struct Norms {
    attention: Option<Norm>,
    attention_post: Option<Norm>,
    attention_out: Option<Norm>,
    mlp: Option<Norm>,
    mlp_post: Option<Norm>,
    mlp_out: Option<Norm>,
}

/// What a decoder's cross-attention reads: keys and values of every layer, and the real tokens of each row.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    layers: Vec<(Tensor, Tensor)>,
    keys: Option<Arc<[Range<usize>]>>,
}

fn norm(norm: Option<&Norm>, xs: Tensor) -> Result<Tensor> {
    norm.map_or(Ok(xs.clone()), |n| n.forward(&xs))
}

impl Norms {
    fn load(wiring: &Wiring, prefix: &str, weights: &Builder) -> Result<Self> {
        let load = |spec: &Option<_>| spec.as_ref().map(|s| weights.norm(prefix, s)).transpose();
        Ok(Self {
            attention: load(&wiring.attention_norm)?,
            attention_post: load(&wiring.attention_post_norm)?,
            attention_out: load(&wiring.attention_out_norm)?,
            mlp: load(&wiring.mlp_norm)?,
            mlp_post: load(&wiring.mlp_post_norm)?,
            mlp_out: load(&wiring.mlp_out_norm)?,
        })
    }
}

impl Cross {
    fn load(spec: &CrossSpec, prefix: &str, hidden: usize, weights: &Builder) -> Result<Self> {
        let nope = attn_core::position::build(&PositionConfig::Nope(NopeConfig::default()), None)?;
        let attention = weights.multi_head(prefix, hidden, &spec.attention, nope)?;
        Ok(Self { attention, norm: weights.norm(prefix, &spec.norm)?, norm_after: spec.norm_after })
    }
}

impl Beside {
    fn load(spec: &BesideSpec, prefix: &str, weights: &Builder) -> Result<Self> {
        Ok(Self {
            norm: weights.norm(prefix, &spec.norm)?,
            moe: Moe::load(&spec.moe, prefix, weights)?,
            post_norm: weights.norm(prefix, &spec.post_norm)?,
            mlp_post_norm: weights.norm(prefix, &spec.mlp_post_norm)?,
        })
    }

    /// What the network gave, `fed`, with what the experts make of the residual `xs`.
    fn join(&self, xs: &Tensor, fed: &Tensor) -> Result<Tensor> {
        let routed = self.moe.forward_routed(&self.norm.forward(xs)?, xs)?;
        ops::add(&self.mlp_post_norm.forward(fed)?, &self.post_norm.forward(&routed)?)
    }
}

impl Block {
    fn load(spec: &LayerSpec, hidden: usize, position: Arc<dyn PositionEncoding>, weights: &Builder) -> Result<Self> {
        let prefix = spec.prefix.as_str();
        let attention = match &spec.attention {
            AttentionSpec::MultiHead(s) => Attention::MultiHead(weights.multi_head(prefix, hidden, s, position)?),
            AttentionSpec::Latent(s) => {
                let scale = s.scale(&s.position);
                let prefix = format!("{prefix}self_attn.");
                Attention::Latent(weights.latent(&prefix, hidden, s, position, scale)?)
            }
        };
        let cross = spec.cross.as_ref().map(|cross| Cross::load(cross, prefix, hidden, weights)).transpose()?;
        let source = match &spec.attention {
            AttentionSpec::MultiHead(attention) => attention.source,
            AttentionSpec::Latent(_) => None,
        };
        let scalar = match &spec.scalar {
            Some(name) if weights.contains(&format!("{prefix}{name}")) => {
                Some(f64::from(weights.tensor_as(&format!("{prefix}{name}"), &[1], DType::F32)?.to_vec1::<f32>()?[0]))
            }
            _ => None,
        };
        Ok(Self {
            attention,
            source,
            is_source: false,
            cross,
            beside: spec.beside.as_ref().map(|s| Beside::load(s, prefix, weights)).transpose()?,
            per_layer: spec.per_layer.as_ref().map(|s| PerLayer::load(s, prefix, weights)).transpose()?,
            scalar,
            mlp: Mlp::load(&spec.mlp, prefix, weights)?,
            norms: Norms::load(&spec.wiring, prefix, weights)?,
            parallel: spec.wiring.parallel,
            residual_multiplier: spec.wiring.residual_multiplier,
            residual_after_norm: spec.wiring.residual_after_norm,
        })
    }

    fn join(&self, residual: &Tensor, branch: Tensor) -> Result<Tensor> {
        let _scope = profile::scope(profile::Op::ElementWise);
        match self.residual_multiplier {
            Some(m) => ops::add(residual, &(branch * m)?),
            None => ops::add(residual, &branch),
        }
    }

    /// The residual stream after `branch` joined it, through the norm `out` if there is one, and what the norm `next`
    /// makes of it for the branch that follows.
    fn join_norm(
        &self,
        residual: &Tensor,
        branch: Tensor,
        out: Option<&Norm>,
        next: Option<&Norm>,
    ) -> Result<(Tensor, Tensor)> {
        if let (None, Some(next), None) = (out, next, self.residual_multiplier) {
            return next.forward_sum(residual, &branch);
        }
        let xs = norm(out, self.join(residual, branch)?)?;
        let normed = norm(next, xs.clone())?;
        Ok((xs, normed))
    }

    /// Attention over the block's own keys and values, or over those of the block it reads them from.
    fn attend(&self, i: usize, xs: &Tensor, pass: &mut Pass, cache: Option<&mut LayerCache>) -> Result<Tensor> {
        match &self.attention {
            Attention::Latent(a) => a.forward(xs, pass.positions, cache),
            Attention::MultiHead(a) => match self.source {
                Some(source) => match pass.kept.get(source).and_then(Option::as_ref) {
                    Some(keys) => a.forward_shared(xs, pass.positions, keys),
                    None => bail!("layer {i} reads the keys of layer {source}, which keeps none"),
                },
                None if self.is_source => {
                    let (out, keys) = a.forward_sharing(xs, pass.positions, cache)?;
                    pass.kept.resize(pass.kept.len().max(i + 1), None);
                    pass.kept[i] = Some(keys);
                    Ok(out)
                }
                None => a.forward(xs, pass.positions, cache),
            },
        }
    }

    /// Block `i`: its branches, then its own input and scale where it has them.
    fn forward(
        &self,
        i: usize,
        xs: &Tensor,
        pass: &mut Pass,
        cache: Option<&mut LayerCache>,
        memory: Option<(&(Tensor, Tensor), &Memory)>,
    ) -> Result<Tensor> {
        let mut xs = self.branches(i, xs, pass, cache, memory)?;
        if let (Some(own), Some(inputs)) = (&self.per_layer, &pass.inputs) {
            xs = own.join(&xs, &inputs.narrow(2, i, 1)?.squeeze(2)?)?;
        }
        match self.scalar {
            Some(scalar) if scalar != 1.0 => xs * scalar,
            _ => Ok(xs),
        }
    }

    fn branches(
        &self,
        i: usize,
        xs: &Tensor,
        pass: &mut Pass,
        cache: Option<&mut LayerCache>,
        memory: Option<(&(Tensor, Tensor), &Memory)>,
    ) -> Result<Tensor> {
        let n = &self.norms;
        let normed = norm(n.attention.as_ref(), xs.clone())?;
        let attended = self.attend(i, &normed, pass, cache)?;
        let attended = norm(n.attention_post.as_ref(), attended)?;
        let residual = if self.residual_after_norm { &normed } else { xs };
        if self.parallel {
            let input = match &n.mlp {
                Some(own) => own.forward(xs)?,
                None => normed.clone(),
            };
            let branches = ops::add(&attended, &norm(n.mlp_post.as_ref(), self.mlp.forward(&input)?)?)?;
            return self.join(residual, branches);
        }
        let (xs, normed) = match (&self.cross, memory) {
            (Some(cross), Some((layer, memory))) => {
                let mask = Mask::bidirectional().with_keys(memory.keys.clone());
                let (before, after) = match cross.norm_after {
                    true => (None, Some(&cross.norm)),
                    false => (Some(&cross.norm), None),
                };
                let (xs, normed) = self.join_norm(residual, attended, n.attention_out.as_ref(), before)?;
                let attended = cross.attention.forward_memory(&normed, layer, mask)?;
                self.join_norm(&xs, attended, after, n.mlp.as_ref())?
            }
            _ => self.join_norm(residual, attended, n.attention_out.as_ref(), n.mlp.as_ref())?,
        };
        let mut fed = self.mlp.forward(&normed)?;
        if let Some(beside) = &self.beside {
            fed = beside.join(&xs, &fed)?;
        }
        let fed = norm(n.mlp_post.as_ref(), fed)?;
        let residual = if self.residual_after_norm { &normed } else { &xs };
        norm(n.mlp_out.as_ref(), self.join(residual, fed)?)
    }
}

impl Stack {
    pub(crate) fn load(
        spec: &StackSpec,
        vocab: usize,
        hidden: usize,
        encodings: Encodings,
        weights: &Builder,
    ) -> Result<Self> {
        let embedding = &spec.embedding;
        let tokens = weights.tokens(&embedding.tokens, vocab, embedding.width)?;
        let token_type = match &embedding.token_types {
            Some((name, rows)) => Some(weights.tensor(name, &[*rows, embedding.width])?.get(0)?),
            None => None,
        };
        let load = |spec: &Option<_>| spec.as_ref().map(|s| weights.norm("", s)).transpose();
        let layers = spec.layers.iter().zip(encodings.layers);
        let mut layers = layers.map(|(s, p)| Block::load(s, hidden, p, weights)).collect::<Result<Vec<_>>>()?;
        for source in layers.iter().filter_map(|block| block.source).collect::<Vec<_>>() {
            if let Some(block) = layers.get_mut(source) {
                block.is_source = true;
            }
        }
        let per_layer = spec.per_layer.as_ref();
        let per_layer = per_layer.map(|s| PerLayerInputs::load(s, layers.len(), hidden, weights)).transpose()?;
        Ok(Self {
            tokens,
            scale: embedding.scale,
            projection: match &embedding.projection {
                Some((linear, place)) => Some((weights.linear("", linear)?, *place)),
                None => None,
            },
            position: encodings.embedding,
            token_type,
            embedding_norm: load(&embedding.norm)?,
            per_layer,
            read: TokensRead::new(layers.len()),
            layers,
            final_norm: load(&spec.final_norm)?,
        })
    }

    /// How much this stack has read.
    pub(crate) fn read(&self) -> &TokensRead {
        &self.read
    }

    /// The token embedding `(vocab, hidden)`.
    pub(crate) fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// The same weights under other position encodings.
    pub(crate) fn with_encodings(&self, spec: &StackSpec, encodings: Encodings) -> Self {
        let mut stack = Self { position: encodings.embedding, ..self.clone() };
        for ((block, layer), position) in stack.layers.iter_mut().zip(&spec.layers).zip(encodings.layers) {
            block.attention = match (&block.attention, &layer.attention) {
                (Attention::Latent(a), AttentionSpec::Latent(s)) => {
                    Attention::Latent(a.with_position(position, s.scale(&s.position)))
                }
                (Attention::Latent(a), AttentionSpec::MultiHead(_)) => Attention::Latent(a.clone()),
                (Attention::MultiHead(a), _) => Attention::MultiHead(a.with_position(position)),
            };
        }
        stack
    }

    pub(crate) fn new_cache(&self, expected: usize, types: CacheTypes) -> KvCache {
        let layers = self.layers.iter().map(|block| match &block.attention {
            Attention::MultiHead(a) => a.new_cache(expected).with_types(types),
            Attention::Latent(a) => a.new_cache(expected).with_types(types),
        });
        KvCache { layers: layers.collect() }
    }

    /// The encoding added to the embeddings.
    pub(crate) fn embedding_encoding(&self) -> Option<&Arc<dyn EmbeddingEncoding>> {
        self.position.as_ref()
    }

    /// The encoding of every layer.
    pub(crate) fn encodings(&self) -> impl Iterator<Item = &Arc<dyn PositionEncoding>> {
        self.layers.iter().map(|block| match &block.attention {
            Attention::MultiHead(a) => a.position(),
            Attention::Latent(a) => a.position(),
        })
    }

    /// Keys and values that every layer's cross-attention reads from the encoder's output `(b, s, hidden)`.
    pub(crate) fn memory(&self, encoded: &Tensor, keys: Option<Arc<[Range<usize>]>>) -> Result<Memory> {
        let layers = self.layers.iter().filter_map(|b| b.cross.as_ref()).map(|c| c.attention.memory(encoded));
        Ok(Memory { layers: layers.collect::<Result<_>>()?, keys })
    }

    /// Ids `(b, t)` to hidden states `(b, t, hidden)`.
    pub(crate) fn forward(
        &self,
        ids: &Tensor,
        positions: &Positions,
        mut cache: Option<&mut KvCache>,
        memory: Option<&Memory>,
    ) -> Result<Tensor> {
        let scope = profile::scope(profile::Op::Embedding);
        let mut xs = self.tokens.embed(ids)?;
        if self.scale != 1.0 {
            xs = (xs * self.scale)?;
        }
        if let Some(row) = &self.token_type {
            xs = xs.broadcast_add(row)?;
        }
        if let Some((projection, ProjectionPlace::BeforePositions)) = &self.projection {
            xs = projection.forward(&xs)?;
        }
        let inputs = self.per_layer.as_ref().map(|per_layer| per_layer.of(ids, &xs)).transpose()?;
        if let Some(position) = &self.position {
            xs = position.embed(&xs, positions)?;
        }
        xs = norm(self.embedding_norm.as_ref(), xs)?;
        if let Some((projection, ProjectionPlace::AfterNorm)) = &self.projection {
            xs = projection.forward(&xs)?;
        }
        drop(scope);
        let mut pass = Pass { positions, inputs, kept: Vec::new() };
        for (i, block) in self.layers.iter().enumerate() {
            let cache = cache.as_mut().map(|c| &mut c.layers[i]);
            let memory = memory.and_then(|m| Some((m.layers.get(i)?, m)));
            xs = block.forward(i, &xs, &mut pass, cache, memory)?;
            self.read.count(ids.elem_count());
        }
        norm(self.final_norm.as_ref(), xs)
    }
}
