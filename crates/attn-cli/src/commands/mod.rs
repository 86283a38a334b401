//! The commands, a file or folder each: the options as a struct, and a `run` that does it.
//!
//! Commands use the modules beside this folder and never each other.

pub(crate) mod bench;
pub(crate) mod compare;
pub(crate) mod completions;
pub(crate) mod download;
pub(crate) mod explain;
pub(crate) mod export;
pub(crate) mod generate;
pub(crate) mod inspect;
pub(crate) mod logits;
pub(crate) mod merge;
pub(crate) mod perplexity;
pub(crate) mod playground;
pub(crate) mod requests;
pub(crate) mod retrieval;
pub(crate) mod tokenize;
pub(crate) mod train;
