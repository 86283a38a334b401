//! The options of `attn generate`.

use crate::options::ModelArgs;
use crate::parse::{
    BosChoice, Predict, parse_count, parse_positive_number, parse_predict, parse_probability,
    parse_probability_or_zero, parse_temperature,
};
use clap::Args;
use std::path::PathBuf;

/// `attn generate`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  attn generate -p 'It was a truth'
  attn generate MODEL --chat -p 'What is the capital of France?' -n 64
  attn generate MODEL --conversation
  attn generate MODEL -f prompt.txt --temperature 0.8 --top-p 0.95 --seed 7")]
pub(crate) struct GenerateArgs {
    /// Prompt [default: stdin; a conversation if stdin is a terminal]
    #[arg(short, long, value_name = "TEXT")]
    pub(crate) prompt: Option<String>,
    /// Read the prompt from this file; - is stdin
    #[arg(short, long, value_name = "FILE", conflicts_with = "prompt")]
    pub(crate) file: Option<PathBuf>,
    /// Maximum number of new tokens; -1: until the model ends the text or its trained context is full [default: 128; -1 in
    /// a conversation]
    #[arg(short, long, value_name = "N", allow_negative_numbers = true, value_parser = parse_predict)]
    pub(crate) n_predict: Option<Predict>,
    /// Treat the prompt as a user's message and answer it, with the checkpoint's chat template
    #[arg(long)]
    pub(crate) chat: bool,
    /// Hold a conversation, with the chat template: each line of stdin is a message, -p the first; Ctrl-C stops an answer
    #[arg(long, visible_alias = "cnv", conflicts_with = "file")]
    pub(crate) conversation: bool,
    /// System message, before the user's first message
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// Stop when the model writes this text, and leave it out; repeatable
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    /// Print one JSON document per piece of text, and a last one with token counts and times
    #[arg(long)]
    pub(crate) json: bool,
    /// Begin the prompt with the BOS token; auto: only if the tokenizer does so. In a chat the template decides
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = BosChoice::Auto)]
    pub(crate) bos: BosChoice,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
}

/// How the next token is chosen.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
    /// Sampling temperature; 0 always takes the most likely token
    #[arg(long, alias = "temp", value_name = "T", default_value_t = 0.0, allow_negative_numbers = true, value_parser = parse_temperature)]
    pub(crate) temperature: f64,
    /// Sample from the K most likely tokens; 0: from all
    #[arg(long, value_name = "K", default_value_t = 40, allow_negative_numbers = true, value_parser = parse_count)]
    pub(crate) top_k: usize,
    /// Sample from the most likely tokens whose probabilities add up to P
    #[arg(long, value_name = "P", default_value_t = 0.95, allow_negative_numbers = true, value_parser = parse_probability)]
    pub(crate) top_p: f64,
    /// Sample from tokens at least P times as likely as the most likely one; 0: from all
    #[arg(long, value_name = "P", default_value_t = 0.0, allow_negative_numbers = true, value_parser = parse_probability_or_zero)]
    pub(crate) min_p: f64,
    /// Penalty on tokens among the last --repeat-last-n; 1: no penalty
    #[arg(long, value_name = "R", default_value_t = 1.0, allow_negative_numbers = true, value_parser = parse_positive_number)]
    pub(crate) repeat_penalty: f64,
    /// Number of last tokens that the penalty looks at
    #[arg(long, value_name = "N", default_value_t = 64, allow_negative_numbers = true, value_parser = parse_count)]
    pub(crate) repeat_last_n: usize,
    /// Seed of the sampling; the same seed gives the same text
    #[arg(short, long, default_value_t = 0)]
    pub(crate) seed: u64,
}
