#![doc = include_str!("../README.md")]
//!
//! # Where to look
//!
//! - [`MultiHeadAttention`] and [`LatentAttention`]: whole layers, `(b, t, hidden)` to `(b, t, hidden)`.
//! - [`PositionEncoding`]: the trait behind them; [`position`] has the encodings that come with the crate,
//!   [`position::extend`] those that extend a context without training, [`position::build`] makes one that a config names.
//! - [`attend`]: the attention call itself, `(b, h, t, d)`, which picks a kernel.
//! - [`Mask`], [`ScoreBias`], [`Positions`]: which keys a query sees, what is added to its scores, where tokens stand.
//! - [`LayerCache`]: keys and values of earlier tokens, allocated ahead; [`CacheType`]: how they are stored.
//! - [`ops`]: norms, activations, gates and the loss, in one pass each, with gradients.
//! - [`profile`]: where the time of a forward pass goes.

pub mod attention;
mod cache;
#[cfg(feature = "cuda")]
mod cuda;
mod latent;
mod layer;
mod linear;
#[doc(hidden)]
pub mod machine;
mod mask;
mod norm;
pub mod ops;
mod parallel;
mod placing;
pub mod position;
pub mod product;
pub mod profile;
mod quantized;
mod simd;
mod stored;
#[cfg(test)]
mod testing;

pub use attention::{AttendArgs, Curve, ScoreBias, Scores, attend, attend_lse, attend_weights, merge};
pub use cache::{KvCache, LayerCache};
pub use latent::{LatentAttention, LatentConfig, LatentParts, QueryProjection};
pub use layer::{
    Attended, AttentionConfig, AttentionParts, ForwardOptions, GateWidth, KeyValues, MultiHeadAttention, Projections,
    QkNormPlace,
};
pub use linear::Linear;
pub use mask::{Chunk, Chunks, Mask};
pub use norm::Norm;
pub use ops::NormKind;
pub use position::{
    EmbeddingEncoding, PositionConfig, PositionEncoding, PositionOverride, Positions, Resolution, RopeConfig,
    RopeOverride,
};
pub use quantized::{BlockFormat, Blocks};
pub use stored::{CacheType, CacheTypes, Stored};
pub use {candle_core, candle_nn};
