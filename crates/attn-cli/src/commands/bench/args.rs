//! The options of `attn bench`, as clap sees them.

use crate::options::ModelArgs;
use crate::parse::{DeviceName, Precision, parse_count, parse_device, parse_positive};
use attn_core::attention::KernelPath;
use clap::{Args, Subcommand, ValueEnum};

/// `attn bench`
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(crate) what: BenchCommand,
}

/// What to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// One attention call on random numbers, checked against the reference first
    #[command(after_help = "\
Examples:
  attn bench attention --seq 4096
  attn bench attention --seq 4096 --dtype bf16 --heads 32 --kv-heads 8 --head-dim 128
  attn bench attention --seq 32768 --decode --bias alibi --json

GFLOP/s count the pairs of query and key that the mask leaves, and what ALiBi then leaves unread as if it
were computed. The peak is that of f32 multiply-adds with the same vectors, measured in the same run.")]
    Attention(AttentionArgs),
    /// Tokens per second of a model: a prompt in one pass, then one token at a time
    #[command(after_help = "\
Examples:
  attn bench model MODEL --dtype bf16
  attn bench model MODEL --prompt 512 --generate 64 --depth 4096 --json

As in llama-bench, ids are arbitrary, nothing is sampled, and --depth tokens are in the cache before
either measurement begins.")]
    Model(Box<ModelBenchArgs>),
}

/// `attn bench attention`
#[derive(Debug, Clone, Args)]
pub(crate) struct AttentionArgs {
    /// Data type of queries, keys and values
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    pub(crate) dtype: Precision,
    /// Sequences in the batch
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = parse_positive)]
    pub(crate) batch: usize,
    /// Query heads
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = parse_positive)]
    pub(crate) heads: usize,
    /// Key and value heads
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = parse_positive)]
    pub(crate) kv_heads: usize,
    /// Width of a head
    #[arg(long, value_name = "D", default_value_t = 64, value_parser = parse_positive)]
    pub(crate) head_dim: usize,
    /// Keys, and queries unless --decode
    #[arg(long, value_name = "T", default_value_t = 4096, value_parser = parse_positive)]
    pub(crate) seq: usize,
    /// One query, the last
    #[arg(long, conflicts_with = "backward")]
    pub(crate) decode: bool,
    /// What is added to the scores
    #[arg(long, value_enum, default_value_t = BiasName::None)]
    pub(crate) bias: BiasName,
    /// A number per head in the softmax's denominator
    #[arg(long)]
    pub(crate) sinks: bool,
    /// A way to read past the trained length, of a quarter of --seq: near and far keys at different positions
    #[arg(long, value_enum, conflicts_with_all = ["backward", "decode", "window"])]
    pub(crate) method: Option<MethodName>,
    /// Gradients of the bias and the sinks too, with --backward
    #[arg(long, requires = "backward")]
    pub(crate) learned: bool,
    /// Keys that a query sees, its own included [default: all before it]
    #[arg(long, value_name = "W", value_parser = parse_positive)]
    pub(crate) window: Option<usize>,
    /// Forward and backward pass
    #[arg(long)]
    pub(crate) backward: bool,
    /// Instruction set of the CPU kernel: amx, avx512, avx512bf16, avx2, neon or portable [default: the fastest]
    #[arg(long, value_name = "PATH")]
    pub(crate) path: Option<KernelPath>,
    /// Time another implementation of the same call beside it
    #[arg(long, value_enum, value_name = "WHOSE")]
    pub(crate) against: Option<Rival>,
    /// Runs that are timed, after some that aren't
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = parse_positive)]
    pub(crate) runs: usize,
    /// cpu, cuda, cuda:N or metal
    #[arg(long, default_value = "cpu", value_parser = parse_device)]
    pub(crate) device: DeviceName,
    /// Threads to compute with [default: one per core]
    #[arg(short, long, value_name = "N", value_parser = parse_positive)]
    pub(crate) threads: Option<usize>,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

/// `--bias`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BiasName {
    /// Nothing
    None,
    /// A slope per head times the distance
    Alibi,
    /// A number per head and distance, as T5's
    Relative,
    /// A number per head and query less one per head and key, as FoX's
    Keys,
    /// Three coefficients per head and query times vectors by distance, as Shaw's
    Bank,
    /// A small network of distance and place, as FIRE's
    Curve,
    /// A number per head, query and key
    Dense,
}

/// `--method`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum MethodName {
    /// Far keys at one distance
    Rerope,
    /// Far keys at positions in groups
    SelfExtend,
    /// Positions within chunks
    DualChunk,
    /// The first keys and a window
    Streaming,
}

/// `--against`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Rival {
    /// The same call without bias, sinks, method and window, in turn
    Plain,
    /// candle-nn's flash_attn for the CPU
    Candle,
}

/// `attn bench model`
#[derive(Debug, Args)]
pub(crate) struct ModelBenchArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Tokens of the prompt; 0: no prompt is measured
    #[arg(short, long, value_name = "N", default_value_t = 512, value_parser = parse_count)]
    pub(crate) prompt: usize,
    /// Tokens fed one at a time; 0: none
    #[arg(short = 'n', long, value_name = "N", default_value_t = 64, value_parser = parse_count)]
    pub(crate) generate: usize,
    /// Tokens in the cache before either begins
    #[arg(short, long, value_name = "N", default_value_t = 0, value_parser = parse_count)]
    pub(crate) depth: usize,
    /// Sequences at a time
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = parse_positive)]
    pub(crate) batch: usize,
    /// Also show where the time of one more run of each goes, by operation
    #[arg(long)]
    pub(crate) profile: bool,
    /// Runs that are timed, after one that isn't
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = parse_positive)]
    pub(crate) runs: usize,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}
