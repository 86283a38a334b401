//! Attention with pluggable position encodings for Candle.

pub mod attention;
mod bias;
mod mask;
pub mod position;

pub use attention::{AttendArgs, attend};
pub use bias::ScoreBias;
pub use mask::Mask;
pub use position::{PositionEncoding, Positions, Resolution};
