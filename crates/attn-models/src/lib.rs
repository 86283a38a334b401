//! Decoders and encoders as data on top of `attn-core`.

mod model;
mod weights;

pub use model::{Architecture, Model, Options, RopeLength, Session};
pub use weights::TensorSource;
