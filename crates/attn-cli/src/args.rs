//! The command line, as clap sees it.
//!
//! Flags are spelled as in llama.cpp and the Hugging Face command line where those have them. Groups of options that
//! several commands share are structs that the commands flatten in.

use crate::bench::args::BenchArgs;
use crate::lab_args::{ExportArgs, MergeArgs, RetrievalArgs, RunArgs, TrialArgs};
use crate::metrics::MetricArgs;
use crate::output::{check_writable, usage};
use crate::parse::{
    BosChoice, CompletionFormat, DeviceName, LengthPolicy, Measured, Modes, Precision, Predict, ProtocolChoice,
    parse_count, parse_device, parse_factor, parse_length, parse_measured, parse_metric, parse_mode_factor,
    parse_modes, parse_pair, parse_positive, parse_positive_number, parse_predict, parse_probability,
    parse_probability_or_zero, parse_protocol, parse_scaling, parse_temperature, scaling_help,
};
use crate::train::args::TrainArgs;
use anyhow::Result;
use attn_core::position::extend::Setting;
use attn_core::{PositionOverride, RopeOverride};
use attn_eval::compare::{Factor, Mode};
use attn_eval::metrics::MetricName;
use attn_eval::retrieval::TASKS;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Run Hugging Face checkpoints, swap their position scaling, and compare what that does.
#[derive(Debug, Parser)]
#[command(name = "attn", version, max_term_width = 100, arg_required_else_help = true, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  attn compare                                  the embedded model, six scalings, four lengths
  attn compare MODEL --text book.txt --plot chart.svg
  attn generate HuggingFaceTB/SmolLM2-135M-Instruct --chat -p 'What is the capital of France?'
  attn perplexity MODEL --text book.txt --context 16384 --rope-scaling yarn --rope-factor 2

MODEL is a hub id (org/name or org/name@revision), a folder with config.json and safetensors, or a
.gguf file. Without one, a small Llama that is part of the program is used.";

/// The help of `--modes`.
pub(crate) fn modes_help(shown: &str) -> String {
    let defaults: Vec<String> = Mode::defaults().iter().map(Mode::to_string).collect();
    format!(
        "Scalings and methods, {shown}; joined by +, as in yarn+log-n; a method's numbers after colons, as in \
         rerope:window=128; all, frequencies or positions for several [default: {}]",
        defaults.join(",")
    )
}

/// What follows the options of `attn compare`: examples and what the modes are.
fn compare_help(examples: &str) -> String {
    let width = Mode::all().map(|mode| mode.to_string().len()).max().unwrap_or(0);
    let modes: Vec<String> = Mode::all().map(|mode| format!("  {mode:width$}  {}", mode.summary())).collect();
    format!("{examples}\n\nModes:\n{}\n\nIn the result, * marks the lowest perplexity of a context.", modes.join("\n"))
}

/// What follows the options of `attn retrieval`: examples and what the tasks are.
fn tasks_list(examples: &str) -> String {
    let width = TASKS.iter().map(|task| task.name.len()).max().unwrap_or(0);
    let tasks: Vec<String> = TASKS.iter().map(|task| format!("  {:width$}  {}", task.name, task.summary)).collect();
    format!(
        "{examples}\n\nTasks:\n{}\n\nA single number counts if it is the first in the answer, exactly. Every mode gets the same \
         trials. A context that does not\nfit is left out with a warning. A task that the model can't do where it was trained \
         is not counted.",
        tasks.join("\n")
    )
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Continue a prompt, or answer it with --chat
    #[command(after_help = "\
Examples:
  attn generate -p 'It was a truth'
  attn generate MODEL --chat -p 'What is the capital of France?' -n 64
  attn generate MODEL --conversation
  attn generate MODEL -f prompt.txt --temperature 0.8 --top-p 0.95 --seed 7")]
    Generate(GenerateArgs),
    /// Measure the perplexity of a text
    #[command(after_help = "\
Examples:
  attn perplexity --context 256
  attn perplexity MODEL --text book.txt --context 4096 --stride 2048
  attn perplexity MODEL --text book.txt --context 16384 --rope-scaling dynamic --rope-factor 2 --json
  attn perplexity MODEL --text book.txt --protocol llama.cpp --context 512

Windows are full and start every --stride tokens; a window's first token is not scored, no token is
scored twice, and all weigh the same. --protocol names another rule, for figures to lay beside those of
another program: windows are then those of that program, 512 tokens by default for llama.cpp, else the
trained context. lm-eval takes a .jsonl file's documents one by one.")]
    Perplexity(PerplexityArgs),
    /// Compare position scalings on the same text: perplexity by mode and context
    #[command(after_help = compare_help("\
Examples:
  attn compare
  attn compare MODEL --text book.txt --contexts 8192,16384 --modes none,dynamic,yarn
  attn compare MODEL --text book.txt --json > cells.json
  attn compare --html report.html --csv cells.csv --plot chart.svg
  attn compare --from cells.json --html report.html
  attn compare MODEL --text a.txt --text b.jsonl --run run.jsonl   goes on if it is interrupted
  attn compare MODEL --text book.txt --contexts 8192 --tasks ppl,retrieval --usable
  attn compare MODEL --text book.txt --contexts 16384 --metrics longppl,kl
  attn compare MODEL --text book.txt --contexts 16384 --search"))]
    Compare(CompareArgs),
    /// Measure retrieval: is what is hidden far back in the text still found?
    #[command(after_help = tasks_list("\
Examples:
  attn retrieval MODEL --contexts 4096,8192 --modes none,dynamic,yarn
  attn retrieval MODEL --tasks all --haystack book.txt --contexts 8192 --depths 0,0.5,1 --trials 10 --json"))]
    Retrieval(RetrievalArgs),
    /// attn retrieval --tasks passkey: is a number hidden far back in the text still found?
    #[command(after_help = tasks_list("\
Examples:
  attn passkey MODEL --contexts 4096,8192,16384 --modes none,dynamic,yarn
  attn passkey MODEL --haystack book.txt --contexts 8192 --depths 0,0.5,1 --trials 10 --json"))]
    Passkey(RetrievalArgs),
    /// Write a checkpoint with another position scaling in its config, and the options to serve it with
    #[command(after_help = "\
Examples:
  attn export MODEL --rope-scaling yarn --rope-factor 2 --out model-16k
  attn export MODEL --rope-theta 500000               only the options for vLLM and llama.cpp

config.json gets the scaling in the spelling of transformers 5 (rope_parameters) and of transformers 4
(rope_scaling, rope_theta). Weights and tokenizer are copied.")]
    Export(ExportArgs),
    /// Join the run files of a comparison that was measured in parts
    #[command(after_help = "\
Examples:
  attn compare MODEL --text book.txt --shard 1/2 --run a.jsonl     on one machine
  attn compare MODEL --text book.txt --shard 2/2 --run b.jsonl     on another
  attn merge a.jsonl b.jsonl --json > cells.json

The result is that of one run without --shard, to the last digit. Runs of other settings, and cells that
are missing, are refused by name.")]
    Merge(MergeArgs),
    /// Train a small decoder on plain text, or fine-tune a checkpoint
    #[command(after_help = "\
Examples:
  attn train --text novel.txt --out runs/alibi --position alibi
  attn train --text a.txt --text b.txt --out runs/rope --steps 2000 --context 512 --dtype bf16
  attn train ./checkpoint --text mine.txt --out runs/tuned --steps 200 --learning-rate 2e-4

A run that was stopped goes on from its last checkpoint when the same command is given again, and ends
with the same bits. OUT holds a Hugging Face folder at the end, train.jsonl with every step, loss.svg.")]
    Train(TrainArgs),
    /// Write the logits of given token ids to a safetensors file
    #[command(after_help = "\
Examples:
  attn logits MODEL --ids ids.json --out logits.safetensors
  attn logits MODEL --ids ids.json --out logits.safetensors --decode --greedy 16

ids.json holds rows of equal length: [[1, 2, 3], [4, 5, 6]]. The result holds logits (B, T, V) f32, and
with --greedy N also greedy (B, T+N) i64. Encoders write hidden (B, T, H) f32 instead.")]
    Logits(LogitsArgs),
    /// Show a model's architecture
    #[command(after_help = "\
Examples:
  attn inspect
  attn inspect MODEL --rope-scaling yarn --rope-factor 4 --json")]
    Inspect(InspectArgs),
    /// Show what a model's position encoding does, without running the model
    #[command(after_help = "\
Examples:
  attn explain
  attn explain MODEL --length 32768
  attn explain config.json --rope-scaling yarn --rope-factor 4 --html page.html

MODEL may also be a config.json. Shown are wavelengths against the trained context, what each scaling
does to every frequency, RoPE's decay, how far its base reaches, ALiBi's slopes and T5's buckets.")]
    Explain(ExplainArgs),
    /// Lessons on position encodings in a browser, on this program's own code and models
    #[command(after_help = "\
Examples:
  attn playground
  attn playground --no-open --port 8000
  attn playground --out site                   the files for any web host

The page is built by scripts/build_playground.sh and looked for beside this program. It is served to this
machine alone, and loads nothing from elsewhere.")]
    Playground(PlaygroundArgs),
    /// Fetch a model from the Hugging Face hub into the cache
    #[command(after_help = "\
Examples:
  attn download HuggingFaceTB/SmolLM2-135M-Instruct
  HF_ENDPOINT=https://mirror.example attn download org/name@v1.0

The cache is that of other Hugging Face tools: HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE hold.")]
    Download(DownloadArgs),
    /// Print a shell's completions, or a manual page
    #[command(after_help = "\
Examples:
  attn completions bash > ~/.local/share/bash-completion/completions/attn
  attn completions man compare | man -l -")]
    Completions(CompletionsArgs),
    /// Measure the speed of attention or of a whole model
    #[command(arg_required_else_help = true)]
    Bench(BenchArgs),
    /// Render a chat template in a process with limits: how `generate --chat` starts itself
    #[command(name = crate::template::COMMAND, hide = true)]
    RenderChat,
}

/// Which model, and how to load it.
#[derive(Debug, Clone, PartialEq, Args)]
pub(crate) struct ModelArgs {
    /// Hub id, folder, .gguf file, or an embedded model: tiny-austen, tiny-rope, tiny-alibi, tiny-t5,
    /// tiny-sinusoidal, tiny-learned, tiny-nope [default: tiny-austen]
    pub(crate) model: Option<String>,
    #[command(flatten)]
    pub(crate) load: LoadArgs,
    #[command(flatten)]
    pub(crate) rope: RopeArgs,
}

/// How weights are loaded and where they live.
#[derive(Debug, Clone, PartialEq, Args)]
#[command(next_help_heading = "Loading")]
pub(crate) struct LoadArgs {
    /// Data type to compute in
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    pub(crate) dtype: Precision,
    /// cpu, cuda, cuda:N or metal
    #[arg(long, default_value = "cpu", value_parser = parse_device)]
    pub(crate) device: DeviceName,
    /// Threads to compute with [default: one per core]
    #[arg(short, long, value_name = "N", allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) threads: Option<usize>,
    /// Keep a GGUF file's weights quantised rather than expanding them
    #[arg(long)]
    pub(crate) keep_quantized: bool,
    /// Read weights rather than mapping the file into memory
    #[arg(long)]
    pub(crate) no_mmap: bool,
    /// Never use the network, only what the cache has
    #[arg(long)]
    pub(crate) offline: bool,
    /// Pass over config keys that are not known, which may change the result, with a warning
    #[arg(long)]
    pub(crate) allow_unknown_config_keys: bool,
    /// Try even what is estimated not to fit into memory
    #[arg(long)]
    pub(crate) no_memory_check: bool,
}

/// What replaces the checkpoint's own position scaling.
#[derive(Debug, Clone, PartialEq, Args)]
#[command(next_help_heading = "Position scaling")]
pub(crate) struct RopeArgs {
    #[arg(long, value_name = "TYPE", value_parser = parse_scaling, help = scaling_help())]
    pub(crate) rope_scaling: Option<Setting>,
    /// Context wanted over context trained
    #[arg(long, value_name = "S", allow_negative_numbers = true, value_parser = parse_factor)]
    pub(crate) rope_factor: Option<f64>,
    /// Base of the frequencies
    #[arg(long, value_name = "THETA", allow_negative_numbers = true, value_parser = parse_positive_number)]
    pub(crate) rope_theta: Option<f64>,
    /// Context the model was trained for
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) rope_original_context: Option<usize>,
    /// A further key of the scaling's config, such as beta_fast=16; repeatable
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_pair)]
    pub(crate) rope_param: Vec<(String, String)>,
    /// Length that dynamic and longrope resolve for: declared (known beforehand), exact (always the
    /// current one) or a number [default: declared]
    #[arg(long, value_name = "LENGTH", value_parser = parse_length)]
    pub(crate) rope_length: Option<LengthPolicy>,
}

impl RopeArgs {
    /// The override these flags spell.
    ///
    /// # Errors
    /// A number that the method doesn't take.
    pub(crate) fn to_override(&self) -> Result<PositionOverride> {
        let setting = self.rope_scaling.unwrap_or_default();
        let mut extend = setting.extend;
        for (key, value) in self.rope_param.iter().filter(|(key, _)| setting.extend.takes(key)) {
            extend = extend.with_param(key, value)?;
        }
        let rope = RopeOverride {
            scaling: setting.scheme.map(|scheme| scheme.called().to_string()),
            factor: self.rope_factor,
            theta: self.rope_theta,
            original_context: self.rope_original_context,
            params: self.rope_param.iter().filter(|(key, _)| !setting.extend.takes(key)).cloned().collect(),
        };
        Ok(PositionOverride { rope, extend })
    }
}

/// How a text is read and cut.
#[derive(Debug, Clone, PartialEq, Args)]
#[command(next_help_heading = "Text")]
pub(crate) struct TextArgs {
    /// The key of a .jsonl file that holds the text
    #[arg(long, value_name = "KEY", default_value = "text")]
    pub(crate) text_field: String,
    /// Tokens from one window's start to the next [default: the context]
    #[arg(long, value_name = "S", allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) stride: Option<usize>,
    /// Use only the first M tokens of the text
    #[arg(long, value_name = "M", allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) max_tokens: Option<usize>,
    /// Begin every window with the BOS token; auto: if the tokenizer begins a text with it
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = BosChoice::Auto)]
    pub(crate) bos: BosChoice,
}

/// `attn generate`
#[derive(Debug, Args)]
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

/// `attn perplexity`
#[derive(Debug, Args)]
pub(crate) struct PerplexityArgs {
    /// Tokens per window [default: the trained context, at most 2048]
    #[arg(short, long, alias = "ctx-size", value_name = "N", allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) context: Option<usize>,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
    /// Score what another program scores: llama.cpp (llama-perplexity), stride (transformers' recipe), lm-eval (its rolling
    /// log-likelihood); all: every token once
    #[arg(long, value_name = "NAME", default_value = ProtocolChoice::OWN, value_parser = parse_protocol)]
    pub(crate) protocol: ProtocolChoice,
    /// UTF-8 file, .jsonl file, or - for stdin [default: an embedded sample]
    #[arg(long, value_name = "FILE", help_heading = "Text")]
    pub(crate) text: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) metrics: MetricArgs,
    #[command(flatten)]
    pub(crate) cut: TextArgs,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
}

/// `attn compare`
#[derive(Debug, Clone, PartialEq, Args)]
pub(crate) struct CompareArgs {
    /// Tokens per window, one column each [default: 1, 2, 4 and 8 times the trained context, as far as --max-tokens and the
    /// text have four windows]
    #[arg(long, alias = "context", value_name = "N,..", value_delimiter = ',', allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) contexts: Vec<usize>,
    #[arg(long, value_name = "MODE,..", value_delimiter = ',', value_parser = parse_modes, help = modes_help("one row each"))]
    pub(crate) modes: Vec<Modes>,
    /// The scalings' factor. longest: the longest context over the trained one, the same for every context, as a model is
    /// served; auto: each context over the trained one
    #[arg(long, value_name = "F", default_value = "longest", allow_negative_numbers = true, value_parser = parse_mode_factor)]
    pub(crate) factor: Factor,
    /// Compare few modes at the trained context and at twice it, for a first look
    #[arg(long)]
    pub(crate) quick: bool,
    /// What is measured: ppl, and retrieval or the names of its tasks (attn retrieval --help has them)
    #[arg(long, value_name = "TASK,..", value_delimiter = ',', default_value = "ppl", value_parser = parse_measured)]
    pub(crate) tasks: Vec<Measured>,
    /// Find out by bisection how far each mode carries, between the trained and the longest context
    #[arg(long, conflicts_with_all = ["search", "shard"])]
    pub(crate) usable: bool,
    /// Say what would be measured and about how long it takes, and end
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Seed of the bootstrap
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    /// Show the result that --json wrote to this file, without measuring anything
    #[arg(long, value_name = "FILE.json", help_heading = "Output", conflicts_with_all = ["model", "text", "run", "contexts", "modes", "search", "quick", "dry_run", "tasks", "usable", "stride", "max_tokens"])]
    pub(crate) from: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) long: RunArgs,
    #[command(flatten)]
    pub(crate) trials: TrialArgs,
    /// Search for a better scaling at the one context named: chosen on half of the windows, confirmed on the others
    #[arg(long, conflicts_with_all = ["run", "stride"], help_heading = "Search")]
    pub(crate) search: bool,
    /// Candidates to try beside the modes
    #[arg(long, value_name = "N", default_value_t = 40, requires = "search", help_heading = "Search", allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) search_budget: usize,
    /// What the search makes low: ppl, longppl or kl
    #[arg(long, value_name = "METRIC", default_value = "ppl", requires = "search", help_heading = "Search", value_parser = parse_metric)]
    pub(crate) objective: MetricName,
    #[command(flatten)]
    pub(crate) metrics: MetricArgs,
    /// UTF-8 file, .jsonl file, or - for stdin; repeatable [default: an embedded sample]
    #[arg(long, value_name = "FILE", help_heading = "Text")]
    pub(crate) text: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) cut: TextArgs,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
}

/// How a comparison is shown.
#[derive(Debug, Clone, PartialEq, Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct OutputArgs {
    #[command(flatten)]
    pub(crate) report: ReportArgs,
    /// Write a line chart
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) plot: Option<PathBuf>,
}

/// How measurements of any kind are shown.
#[derive(Debug, Clone, PartialEq, Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct ReportArgs {
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
    /// Write the figures as CSV
    #[arg(long, value_name = "FILE")]
    pub(crate) csv: Option<PathBuf>,
    /// Write a page with verdict, tables and charts that opens offline
    #[arg(long, value_name = "FILE.html")]
    pub(crate) html: Option<PathBuf>,
}

impl ReportArgs {
    /// What can be known to be wrong before anything is measured.
    ///
    /// # Errors
    /// A path that can't be written.
    pub(crate) fn check(&self) -> Result<()> {
        check_files(self.csv.iter().chain(&self.html))
    }
}

/// Refuses files that can't be written, and one that would be written twice.
///
/// # Errors
/// Which of them, and why.
pub(crate) fn check_files<'a>(files: impl Iterator<Item = &'a PathBuf>) -> Result<()> {
    let mut seen: Vec<&PathBuf> = vec![];
    for file in files {
        check_writable(file)?;
        if seen.contains(&file) {
            return usage(format!(
                "two outputs are to be written to {}: the second would replace the first",
                file.display()
            ));
        }
        seen.push(file);
    }
    Ok(())
}

/// `attn logits`
#[derive(Debug, Args)]
pub(crate) struct LogitsArgs {
    /// JSON file with rows of token ids, or - for stdin
    #[arg(long, value_name = "FILE.json")]
    pub(crate) ids: PathBuf,
    /// Rows of token ids for the decoder of an encoder-decoder model
    #[arg(long, value_name = "FILE.json")]
    pub(crate) decoder_ids: Option<PathBuf>,
    /// The safetensors file to write
    #[arg(long, value_name = "FILE.safetensors")]
    pub(crate) out: PathBuf,
    /// Feed one token at a time through the cache
    #[arg(long)]
    pub(crate) decode: bool,
    /// Also continue each row greedily by N tokens, always under the frequencies of the current length
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = parse_count)]
    pub(crate) greedy: Option<usize>,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
}

/// `attn inspect`
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
}

/// `attn explain`
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// Sequence length to explain for [default: what a configured scaling was made for, else four times
    /// the trained context]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) length: Option<usize>,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
    /// Write a page with charts that opens offline
    #[arg(long, value_name = "FILE.html")]
    pub(crate) html: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
}

/// `attn playground`
#[derive(Debug, Args)]
pub(crate) struct PlaygroundArgs {
    /// The folder that scripts/build_playground.sh wrote [default: playground beside or above the program]
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Write the page's files into this folder instead of serving them
    #[arg(long, value_name = "DIR", conflicts_with_all = ["port", "no_open"])]
    pub(crate) out: Option<PathBuf>,
    /// The port to serve on; 0 takes any that is free
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) port: u16,
    /// Don't open a browser
    #[arg(long)]
    pub(crate) no_open: bool,
}

/// `attn completions`
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// bash, elvish, fish, powershell, zsh, or man
    #[arg(value_enum)]
    pub(crate) format: CompletionFormat,
    /// The command that the manual page is of [default: all of them, in one]
    pub(crate) command: Option<String>,
}

/// `attn download`
#[derive(Debug, Args)]
pub(crate) struct DownloadArgs {
    /// Hub id: org/name or org/name@revision
    pub(crate) model: String,
}

#[cfg(test)]
#[path = "args_tests.rs"]
mod tests;
