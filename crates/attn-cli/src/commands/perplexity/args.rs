//! The options of `attn perplexity`.

use crate::options::{MetricArgs, ModelArgs, TextArgs};
use crate::parse::{ProtocolChoice, parse_positive, parse_protocol};
use attn_models::Model;
use clap::Args;
use std::path::PathBuf;

/// The longest default window, so that a run without options does not take long on a slow machine.
const LONGEST_DEFAULT: usize = 2048;

/// `attn perplexity`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  attn perplexity --context 256
  attn perplexity MODEL --text book.txt --context 4096 --stride 2048
  attn perplexity MODEL --text book.txt --rope-scaling dynamic --rope-factor 2
  attn perplexity MODEL --text book.txt --protocol llama.cpp --context 512

All windows are full and one starts every --stride tokens. The first token of a window is not scored, no \
token is scored twice, and all tokens have the same weight.

--protocol selects the windows and the rule of another program, to compare figures with it. The default \
window is then 512 tokens for llama.cpp, else the trained context; lm-eval scores the documents of a \
.jsonl file one by one.")]
pub(crate) struct PerplexityArgs {
    /// Tokens per window [default: the trained context, at most 2048]
    #[arg(short, long, alias = "ctx-size", value_name = "N", allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) context: Option<usize>,
    /// Print the result as one JSON document
    #[arg(long)]
    pub(crate) json: bool,
    /// Score the tokens that another program scores: llama.cpp (llama-perplexity), stride (transformers' recipe), lm-eval
    /// (rolling log-likelihood); all: every token once
    #[arg(long, value_name = "NAME", default_value = ProtocolChoice::OWN, value_parser = parse_protocol)]
    pub(crate) protocol: ProtocolChoice,
    /// Text to score: UTF-8 file, .jsonl file, or - for stdin [default: a sample inside the program]
    #[arg(long, value_name = "FILE", help_heading = "Text")]
    pub(crate) text: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) metrics: MetricArgs,
    #[command(flatten)]
    pub(crate) cut: TextArgs,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
}

impl PerplexityArgs {
    /// Tokens per window for a text of `tokens`: those asked for, else the trained context, as far as that is not long.
    pub(super) fn window(&self, model: &Model, tokens: usize) -> usize {
        let trained = model.trained_context().unwrap_or(512).min(LONGEST_DEFAULT);
        self.context.unwrap_or(trained.min(tokens))
    }
}
