//! Perplexity, retrieval, comparison across position scalings, text generation, and reports of all these.
//!
//! A model's position scaling can be changed without touching its weights, so a comparison of scalings loads a model once and
//! scores the same windows once per scaling. What this crate adds is what makes such a comparison reliable: every token is scored
//! at most once and has the same weight ([`windows`]), standard errors and intervals are given ([`perplexity`], [`stats`]), two
//! scalings are compared on the same tokens ([`compare`]), and two models on the same bytes ([`across`]).
//!
//! This crate depends on models only through `attn-models`, does not know the files of checkpoints or hubs, and prints nothing.
//! The only files that it reads and writes are the run files of long comparisons ([`run`]).

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
