//! Perplexity, comparison across position scalings, text generation and their reports.
//!
//! A model's position scaling can be swapped without touching its weights, so comparing scalings is one model load and
//! one set of windows scored once per scaling. What this crate adds is the bookkeeping that makes such a comparison
//! worth trusting: every token is scored at most once and weighs the same ([`windows`]), errors of estimation are
//! stated ([`perplexity`]), two scalings are compared on the very same tokens ([`compare`]), and two models on the very same
//! bytes ([`across`]).
//!
//! It depends on models only through `attn-models`, knows nothing about checkpoints' files or hubs, and prints nothing.
//! The one file it reads and writes is the run file of a long comparison ([`run`]).

pub mod across;
pub mod answer;
mod clock;
pub mod compare;
pub mod encoding;
mod error;
mod exact;
pub mod explain;
pub mod generate;
pub mod metrics;
pub mod perplexity;
pub mod protocol;
pub mod report;
pub mod retrieval;
pub mod rng;
pub mod run;
pub mod sample;
pub mod search;
mod skipped;
pub mod stats;
pub mod windows;

pub use error::{Error, Result, one_line};
pub use skipped::{Fits, Skipped};
