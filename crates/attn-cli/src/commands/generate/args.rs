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
    /// The prompt; without -p and -f it is stdin, or a conversation where that is a terminal
    #[arg(short, long, value_name = "TEXT")]
    pub(crate) prompt: Option<String>,
    /// Read the prompt from a file, or - for stdin
    #[arg(short, long, value_name = "FILE", conflicts_with = "prompt")]
    pub(crate) file: Option<PathBuf>,
    /// At most this many new tokens; -1: until the model ends the text or its trained context is full [default: 128; -1 in
    /// a conversation]
    #[arg(short, long, value_name = "N", allow_negative_numbers = true, value_parser = parse_predict)]
    pub(crate) n_predict: Option<Predict>,
    /// Take the prompt as a user's message and answer it, by the checkpoint's chat template
    #[arg(long)]
    pub(crate) chat: bool,
    /// Talk in turns, by the chat template: every line of stdin is a message, -p the first. Ctrl-C ends an answer
    #[arg(long, visible_alias = "cnv", conflicts_with = "file")]
    pub(crate) conversation: bool,
    /// A system message before the user's
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// End the text where this begins; repeatable
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    /// Print one JSON document per piece of text, and one with the figures at the end
    #[arg(long)]
    pub(crate) json: bool,
    /// Begin the prompt with the BOS token; auto: if the tokenizer does. A chat template decides by itself
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
    /// 0 always takes the most likely token
    #[arg(long, alias = "temp", value_name = "T", default_value_t = 0.0, allow_negative_numbers = true, value_parser = parse_temperature)]
    pub(crate) temperature: f64,
    /// Only the K most likely tokens; 0: all
    #[arg(long, value_name = "K", default_value_t = 40, allow_negative_numbers = true, value_parser = parse_count)]
    pub(crate) top_k: usize,
    /// Only the most likely tokens that together reach this probability
    #[arg(long, value_name = "P", default_value_t = 0.95, allow_negative_numbers = true, value_parser = parse_probability)]
    pub(crate) top_p: f64,
    /// Only tokens at least this share as likely as the most likely one; 0: all
    #[arg(long, value_name = "P", default_value_t = 0.0, allow_negative_numbers = true, value_parser = parse_probability_or_zero)]
    pub(crate) min_p: f64,
    /// Penalty on tokens seen lately; 1: none
    #[arg(long, value_name = "R", default_value_t = 1.0, allow_negative_numbers = true, value_parser = parse_positive_number)]
    pub(crate) repeat_penalty: f64,
    /// How many tokens count as lately
    #[arg(long, value_name = "N", default_value_t = 64, allow_negative_numbers = true, value_parser = parse_count)]
    pub(crate) repeat_last_n: usize,
    /// Seed of the draws; the same seed gives the same text
    #[arg(short, long, default_value_t = 0)]
    pub(crate) seed: u64,
}
