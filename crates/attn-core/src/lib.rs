//! Attention with pluggable position encodings for Candle.

pub mod attention;
mod bias;
mod cache;
mod latent;
mod layer;
mod linear;
mod mask;
mod norm;
pub mod position;
pub mod product;

pub use attention::{AttendArgs, attend};
pub use bias::ScoreBias;
pub use cache::{KvCache, LayerCache};
pub use latent::{LatentAttention, LatentConfig, LatentParts, QueryProjection};
pub use layer::{AttentionConfig, MultiHeadAttention, Projections, QkNorm, QkNormPlace};
pub use linear::Linear;
pub use mask::Mask;
pub use norm::{Norm, NormKind};
pub use position::{PositionConfig, PositionEncoding, Positions, Resolution, RopeConfig, RopeOverride};
