//! Decoders and encoders as data on top of `attn-core`.
//!
//! A family reads a Hugging Face `config.json` into a [`spec::ModelSpec`]; one [`Model`] builds and runs any of them;
//! a [`Session`] carries a sequence through it token by token. Position encodings can be exchanged on a loaded model
//! ([`Model::with_positions`]) without touching its weights.

pub mod activation;
mod builder;
mod caching;
pub mod config;
pub mod encodings;
pub mod families;
mod finite;
mod likelihood;
pub mod memory;
mod mlp;
mod model;
mod per_layer;
mod routing;
mod session;
pub mod spec;
mod stack;
mod tokens;
mod weights;

pub use attn_core::{BlockFormat, Blocks};
pub use finite::check_finite;
pub use model::{Architecture, Model, Options};
pub use session::{RopeLength, Session};
pub use stack::TokensRead;
pub use weights::{TensorSource, load_then_stack};
