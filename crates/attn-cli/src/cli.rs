//! The command line, as clap sees it: the list of commands.
//!
//! Every command is a file in `commands` that holds its options and what it does; this is the only file that knows all of
//! them. Flags are spelled as in llama.cpp and the Hugging Face command line where those have them.

use crate::commands::{
    bench, compare, completions, download, explain, export, generate, inspect, logits, merge, perplexity, playground,
    requests, retrieval, tokenize, train,
};
use crate::template;
use anyhow::Result;
use attn_eval::retrieval::Task;
use clap::{CommandFactory, Parser, Subcommand};

/// Run Hugging Face checkpoints, change their position scaling, and compare the results.
#[derive(Debug, Parser)]
#[command(name = "attn", version, max_term_width = 100, arg_required_else_help = true, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  attn compare              # a small model and a text inside the program
  attn compare MODEL --text book.txt --html report.html
  attn generate MODEL --chat -p 'What is the capital of France?'
  attn perplexity MODEL --text book.txt --rope-scaling yarn --rope-factor 2

MODEL is a hub id (org/name or org/name@revision), a folder with config.json and safetensors, or a \
.gguf file. Without MODEL, a small Llama inside the program is used.";

/// What to do.
// One value is made per run, so that its size does not matter; on Windows paths make it larger than the lint allows.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Continue a prompt, or answer it with --chat
    Generate(generate::args::GenerateArgs),
    /// Measure the perplexity of a text
    Perplexity(perplexity::args::PerplexityArgs),
    /// Compare position scalings on the same text: perplexity by mode and context
    Compare(compare::CompareArgs),
    /// Measure retrieval: whether the model finds what is hidden far back in a text
    Retrieval(retrieval::RetrievalArgs),
    /// The same as attn retrieval --tasks passkey: whether the model finds a hidden number
    #[command(after_help = retrieval::tasks_list("\
Examples:
  attn passkey MODEL --contexts 4096,8192,16384 --modes none,dynamic,yarn
  attn passkey MODEL --haystack book.txt --contexts 8192 --trials 10"))]
    Passkey(retrieval::RetrievalArgs),
    /// Write a checkpoint with another position scaling in its config, and print options to serve it
    Export(export::ExportArgs),
    /// Join the run files of a comparison that was measured in parts
    Merge(merge::MergeArgs),
    /// Train a small decoder on plain text, or fine-tune a checkpoint
    Train(train::TrainArgs),
    /// Answer JSON requests from stdin, one per line: log-likelihoods and continuations for evaluation harnesses
    Requests(requests::RequestsArgs),
    /// Write the logits of given token ids to a safetensors file
    Logits(logits::LogitsArgs),
    /// Print a text as the token ids that a model reads
    Tokenize(tokenize::TokenizeArgs),
    /// Show a model's architecture
    Inspect(inspect::InspectArgs),
    /// Show what a model's position encoding does, without running the model
    Explain(explain::ExplainArgs),
    /// Open lessons on position encodings in a browser; they run this program's code and models
    Playground(playground::PlaygroundArgs),
    /// Fetch a model from the Hugging Face hub into the cache
    Download(download::DownloadArgs),
    /// Print completions for a shell, or manual pages
    Completions(completions::CompletionsArgs),
    /// Measure the speed of attention or of a whole model
    #[command(arg_required_else_help = true)]
    Bench(bench::args::BenchArgs),
    /// Render a chat template in a process with limits: how `generate --chat` starts itself
    #[command(name = template::COMMAND, hide = true)]
    RenderChat,
}

impl Command {
    /// Runs the command.
    ///
    /// # Errors
    /// Those of the command.
    pub(crate) fn run(self) -> Result<()> {
        match self {
            Self::Generate(args) => generate::run(&args),
            Self::Perplexity(args) => perplexity::run(&args),
            Self::Compare(args) => compare::run(&args),
            Self::Retrieval(args) => retrieval::run(&args, Task::defaults()),
            Self::Passkey(args) => retrieval::run(&args, Task::named("passkey").unwrap_or_default()),
            Self::Export(args) => export::run(&args),
            Self::Merge(args) => merge::run(&args),
            Self::Train(args) => train::run(&args),
            Self::Requests(args) => requests::run(&args),
            Self::Logits(args) => logits::run(&args),
            Self::Tokenize(args) => tokenize::run(&args),
            Self::Inspect(args) => inspect::run(&args),
            Self::Explain(args) => explain::run(&args),
            Self::Playground(args) => playground::run(&args),
            Self::Download(args) => download::run(&args),
            Self::Completions(args) => completions::run(&args, Cli::command()),
            Self::Bench(args) => bench::run(&args),
            Self::RenderChat => template::run(),
        }
    }
}

#[cfg(test)]
#[path = "cli_tests.rs"]
mod tests;
