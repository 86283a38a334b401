//! Attention with pluggable position encodings for Candle.
//!
//! - [`MultiHeadAttention`] and [`LatentAttention`]: whole layers, `(b, t, hidden)` to `(b, t, hidden)`.
//! - [`PositionEncoding`]: the trait behind them; [`position::build`] makes one of the encodings that come with the crate.
//! - [`attend`]: the attention call itself, `(b, h, t, d)`, which picks a kernel.
//! - [`Mask`], [`ScoreBias`], [`Positions`]: which keys a query sees, what is added to its scores, where tokens stand.
//! - [`LayerCache`]: keys and values of earlier tokens, allocated ahead.
//! - [`profile`]: where the time of a forward pass goes.
//! - [`machine`]: what the processor can do at most, to measure kernels against.
//!
//! The example at [`MultiHeadAttention`] is a start.

pub mod attention;
mod cache;
#[cfg(feature = "cuda")]
mod cuda;
mod latent;
mod layer;
mod linear;
pub mod machine;
mod mask;
mod norm;
pub mod ops;
mod parallel;
pub mod position;
pub mod product;
pub mod profile;
mod simd;

pub use attention::{AttendArgs, Curve, ScoreBias, Scores, attend, attend_lse, attend_weights, merge};
pub use cache::{KvCache, LayerCache};
pub use latent::{LatentAttention, LatentConfig, LatentParts, QueryProjection};
pub use layer::{AttentionConfig, AttentionParts, GateWidth, KeyValues, MultiHeadAttention, Projections, QkNormPlace};
pub use linear::Linear;
pub use mask::{Chunk, Chunks, Mask};
pub use norm::Norm;
pub use ops::NormKind;
pub use position::{PositionConfig, PositionEncoding, Positions, Resolution, RopeConfig, RopeOverride};

/// The README's code, compiled and run with the documentation examples.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
