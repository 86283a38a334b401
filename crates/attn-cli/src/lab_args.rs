//! The options of `attn retrieval`, `attn merge` and `attn export`, and those of long runs.

use crate::args::{ModelArgs, OutputArgs, ReportArgs, modes_help};
use crate::parse::{
    BosChoice, Modes, Tasks, parse_mode_factor, parse_modes, parse_positive, parse_probability_or_zero, parse_tasks,
    tasks_help,
};
use attn_eval::compare::Factor;
use attn_eval::run::Shard;
use clap::Args;
use std::path::PathBuf;

/// A run that may be interrupted, or measured in parts.
#[derive(Debug, Clone, PartialEq, Args)]
#[command(next_help_heading = "Long runs")]
pub(crate) struct RunArgs {
    /// Append every finished cell to this file, and go on where it stops
    #[arg(long, value_name = "FILE")]
    pub(crate) run: Option<PathBuf>,
    /// Measure only part i of n, to be joined by attn merge
    #[arg(long, value_name = "I/N", requires = "run")]
    pub(crate) shard: Option<Shard>,
}

/// What things are hidden in, and where.
#[derive(Debug, Clone, PartialEq, Args)]
#[command(next_help_heading = "Retrieval")]
pub(crate) struct TrialArgs {
    /// Hide things in this text: UTF-8 file, .jsonl file, or - [default: the first --text, else the passkey paper's sentences]
    #[arg(long, value_name = "FILE")]
    pub(crate) haystack: Option<PathBuf>,
    /// Where the asked-for thing stands, from 0, the beginning, to 1, the end; one row each
    #[arg(long, value_name = "D,..", value_delimiter = ',', default_value = "0,0.25,0.5,0.75,1", allow_negative_numbers = true, value_parser = parse_probability_or_zero)]
    pub(crate) depths: Vec<f64>,
    /// Trials per depth; tasks without depths have as many in all
    #[arg(long, value_name = "N", default_value_t = 5, allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) trials: usize,
}

/// `attn retrieval`
#[derive(Debug, Args)]
pub(crate) struct RetrievalArgs {
    #[arg(long, alias = "task", value_name = "TASK,..", value_delimiter = ',', value_parser = parse_tasks, help = tasks_help())]
    pub(crate) tasks: Vec<Tasks>,
    /// The key of a .jsonl file that holds the text
    #[arg(long, value_name = "KEY", default_value = "text")]
    pub(crate) text_field: String,
    /// Tokens of prompt and answer, one column each; the trained context is added if all are longer [default: 1, 2 and 4
    /// times the trained context]
    #[arg(long, alias = "context", value_name = "N,..", value_delimiter = ',', allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) contexts: Vec<usize>,
    #[arg(long, value_name = "MODE,..", value_delimiter = ',', value_parser = parse_modes, help = modes_help("one grid each"))]
    pub(crate) modes: Vec<Modes>,
    /// The scalings' factor. longest: the longest context over the trained one, the same for every context, as a model is
    /// served; auto: each context over the trained one
    #[arg(long, value_name = "F", default_value = "longest", allow_negative_numbers = true, value_parser = parse_mode_factor)]
    pub(crate) factor: Factor,
    /// Seed of what is hidden, and of the passages
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Begin every prompt with the BOS token; auto: if the tokenizer begins a text with it
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = BosChoice::Auto)]
    pub(crate) bos: BosChoice,
    #[command(flatten)]
    pub(crate) trials: TrialArgs,
    #[command(flatten)]
    pub(crate) report: ReportArgs,
    #[command(flatten)]
    pub(crate) long: RunArgs,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
}

/// `attn merge`
#[derive(Debug, Args)]
pub(crate) struct MergeArgs {
    /// Run files of one comparison
    #[arg(required = true, value_name = "RUN")]
    pub(crate) runs: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// `attn export`
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// The folder to write; without it only the options for other programs are printed
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Link to the weights rather than copying them
    #[arg(long, requires = "out")]
    pub(crate) link: bool,
    /// Context to serve [default: the trained one times the factor]
    #[arg(short, long, alias = "ctx-size", value_name = "N", allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) context: Option<usize>,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
}
