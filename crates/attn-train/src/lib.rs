//! Training decoders that are built from this project's blocks, from plain text to a checkpoint that Hugging Face tools read.
//!
//! Its purpose is to show what a position encoding does to a model that was trained with it, and to fine-tune a
//! checkpoint for a longer context. A step is a pure function of the settings, the step's number and the state, so a run
//! that was killed and resumed ends with the same bits as one that was not.
//!
//! - [`shape`]: a new model's config and initial weights.
//! - [`bpe`]: a byte-level tokenizer trained on the text.
//! - [`Trainer`]: batches, loss, gradients, [`AdamW`](adamw::AdamW), the [`schedule`] of the learning rate.
//! - [`checkpoint`]: saving and resuming.

pub mod adamw;
pub mod bpe;
pub mod checkpoint;
mod error;
pub mod plot;
pub mod schedule;
pub mod shape;
mod trainer;

pub use error::{Error, Result};
pub use trainer::{Settings, Step, Trainer};
