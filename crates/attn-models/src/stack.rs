//! A stack of blocks: embedding, layers, final norm. Runs decoders, encoders and T5's two halves alike.

use crate::builder::Builder;
use crate::mlp::Mlp;
use crate::spec::{AttentionSpec, CrossSpec, LayerSpec, ProjectionPlace, StackSpec, Wiring};
use crate::tokens::Tokens;
use attn_core::{
    EmbeddingEncoding, KvCache, LatentAttention, LayerCache, Linear, Mask, MultiHeadAttention, Norm, PositionEncoding,
    Positions, ops,
    position::{NopeConfig, PositionConfig},
    profile,
};
use candle_core::{Module, Result, Tensor};
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
    layers: Vec<Block>,
    final_norm: Option<Norm>,
}

#[derive(Debug, Clone)]
struct Block {
    attention: Attention,
    cross: Option<Cross>,
    mlp: Mlp,
    norms: Norms,
    parallel: bool,
    residual_multiplier: Option<f64>,
    residual_after_norm: bool,
}

/// Attention to the encoder.
#[derive(Debug, Clone)]
struct Cross {
    attention: MultiHeadAttention,
    norm: Norm,
    norm_after: bool,
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
        Ok(Self {
            attention,
            cross,
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

    fn forward(
        &self,
        xs: &Tensor,
        positions: &Positions,
        cache: Option<&mut LayerCache>,
        memory: Option<(&(Tensor, Tensor), &Memory)>,
    ) -> Result<Tensor> {
        let n = &self.norms;
        let normed = norm(n.attention.as_ref(), xs.clone())?;
        let attended = match &self.attention {
            Attention::MultiHead(a) => a.forward(&normed, positions, cache)?,
            Attention::Latent(a) => a.forward(&normed, positions, cache)?,
        };
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
        let fed = norm(n.mlp_post.as_ref(), self.mlp.forward(&normed)?)?;
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
            layers: layers.map(|(s, p)| Block::load(s, hidden, p, weights)).collect::<Result<_>>()?,
            final_norm: load(&spec.final_norm)?,
        })
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

    pub(crate) fn new_cache(&self, expected: usize) -> KvCache {
        let layers = self.layers.iter().map(|block| match &block.attention {
            Attention::MultiHead(a) => a.new_cache(expected),
            Attention::Latent(a) => a.new_cache(expected),
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
        if let Some(position) = &self.position {
            xs = position.embed(&xs, positions)?;
        }
        xs = norm(self.embedding_norm.as_ref(), xs)?;
        if let Some((projection, ProjectionPlace::AfterNorm)) = &self.projection {
            xs = projection.forward(&xs)?;
        }
        drop(scope);
        for (i, block) in self.layers.iter().enumerate() {
            let cache = cache.as_mut().map(|c| &mut c.layers[i]);
            let memory = memory.and_then(|m| Some((m.layers.get(i)?, m)));
            xs = block.forward(&xs, positions, cache, memory)?;
        }
        norm(self.final_norm.as_ref(), xs)
    }
}
