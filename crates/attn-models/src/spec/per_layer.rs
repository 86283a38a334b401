//! Inputs of their own for every layer, as data: Gemma 3n's and Gemma 4's second embedding.

use super::{LinearSpec, NormSpec};
use crate::activation::Activation;

/// A vector of `width` numbers per token and layer: a second embedding of the token, and a projection of its first one.
#[derive(Debug, Clone, PartialEq)]
pub struct PerLayerInputsSpec {
    /// `(rows, layers * width)`; multiplied by `width^1/2`.
    pub tokens: String,
    /// Rows of the table.
    pub rows: usize,
    /// Numbers per layer.
    pub width: usize,
    /// From the first embedding to `layers * width`; multiplied by `hidden_size^-1/2`.
    pub projection: LinearSpec,
    /// On the projection's part of each layer.
    pub norm: NormSpec,
}

/// How a layer takes its input in, after the feed-forward: `xs + norm(projection(act(gate xs) * input))`.
#[derive(Debug, Clone, PartialEq)]
pub struct PerLayerSpec {
    /// From the hidden size to the input's width.
    pub gate: LinearSpec,
    /// On the gate.
    pub activation: Activation,
    /// Back to the hidden size.
    pub projection: LinearSpec,
    /// On what joins the residual.
    pub norm: NormSpec,
}
