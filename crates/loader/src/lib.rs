//! Checkpoints for running models: from the Hugging Face hub, a folder, a GGUF file, or bytes in the program.
//!
//! A model needs five things that a checkpoint keeps in as many places and spellings: its config, its weights, its
//! tokenizer, its chat template and the ids that begin and end a text. [`Checkpoint::open`] finds all of them and hands
//! them out in one spelling, that of Hugging Face, whatever the files were.
//!
//! ```no_run
//! use loader::{Checkpoint, LoadOptions};
//! let checkpoint = Checkpoint::open("org/name", &LoadOptions::default())?;
//! let ids = checkpoint.require_tokenizer()?.encode("Hello", true)?;
//! # Ok::<(), loader::LoadError>(())
//! ```
//!
//! Checkpoints are untrusted input. Every length in them is checked before it is used; nothing in them is executed
//! except the chat template, in a sandbox; and every error is one line that says what is wrong: see [`LoadError`].

mod blob;
mod chat;
mod checkpoint;
mod convert;
mod deferred;
mod digest;
mod error;
mod folder;
mod free_memory;
#[cfg(fuzzing)]
pub mod fuzzing;
mod gguf;
mod guard;
mod hub;
mod open;
mod options;
mod regular;
mod safetensors;
mod scaled;
mod source;
mod splits;
mod tokenizer;

pub use chat::ChatTemplate;
pub use checkpoint::{Checkpoint, GenerationDefaults, Origin, OriginFile};
pub use digest::{Sha256Parts, sha256};
pub use error::{LoadError, Result};
pub use free_memory::free_memory;
pub use hub::{Fetched, HubConfig, download};
pub use options::LoadOptions;
pub use safetensors::SafetensorsSource;
pub use source::{HubRef, ModelRef};
pub use tokenizer::{StreamDecoder, TextEncoder, Tokenizer, append, last_word_end, longest_piece};
