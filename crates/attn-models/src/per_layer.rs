//! Inputs of their own for every layer (Gemma 3n, Gemma 4): a vector per token and layer, made once from the token and its
//! embedding, which each layer takes in through a gate after its feed-forward.

use crate::builder::Builder;
use crate::spec::{PerLayerInputsSpec, PerLayerSpec};
use crate::tokens::Tokens;
use attn_core::ops::{self, Activation};
use attn_core::{Linear, Norm};
use candle_core::{Module, Result, Tensor};

/// What makes the inputs.
#[derive(Debug, Clone)]
pub(crate) struct PerLayerInputs {
    tokens: Tokens,
    projection: Linear,
    norm: Norm,
    layers: usize,
    width: usize,
    hidden: usize,
}

impl PerLayerInputs {
    pub(crate) fn load(spec: &PerLayerInputsSpec, layers: usize, hidden: usize, weights: &Builder) -> Result<Self> {
        Ok(Self {
            tokens: weights.tokens(&spec.tokens, spec.rows, layers * spec.width)?,
            projection: weights.linear("", &spec.projection)?,
            norm: weights.norm("", &spec.norm)?,
            layers,
            width: spec.width,
            hidden,
        })
    }

    /// Ids `(b, t)` and their embeddings `(b, t, hidden)` to `(b, t, layers, width)`.
    pub(crate) fn of(&self, ids: &Tensor, embedded: &Tensor) -> Result<Tensor> {
        let (b, t) = ids.dims2()?;
        let shape = (b, t, self.layers, self.width);
        let own = (self.tokens.embed(ids)?.reshape(shape)? * (self.width as f64).sqrt())?;
        let projected = (self.projection.forward(embedded)? * (self.hidden as f64).powf(-0.5))?;
        let projected = self.norm.forward(&projected.reshape(shape)?)?;
        (projected + own)? * 0.5f64.sqrt()
    }
}

/// How a layer takes its input in.
#[derive(Debug, Clone)]
pub(crate) struct PerLayer {
    gate: Linear,
    activation: Activation,
    projection: Linear,
    norm: Norm,
}

impl PerLayer {
    pub(crate) fn load(spec: &PerLayerSpec, prefix: &str, weights: &Builder) -> Result<Self> {
        Ok(Self {
            gate: weights.linear(prefix, &spec.gate)?,
            activation: spec.activation,
            projection: weights.linear(prefix, &spec.projection)?,
            norm: weights.norm(prefix, &spec.norm)?,
        })
    }

    /// The residual `(b, t, hidden)` with the input `(b, t, width)` taken in.
    pub(crate) fn join(&self, xs: &Tensor, input: &Tensor) -> Result<Tensor> {
        let gated = ops::gated_pair(self.activation, &self.gate.forward(xs)?, &input.contiguous()?)?;
        ops::add(xs, &self.norm.forward(&self.projection.forward(&gated)?)?)
    }
}
