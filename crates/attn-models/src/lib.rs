//! Decoders and encoders as data on top of `attn-core`.

mod weights;

pub use weights::TensorSource;
