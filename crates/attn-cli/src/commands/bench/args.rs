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
    /// Time one attention call on random numbers, after checking it against the reference
    #[command(after_help = "\
Examples:
  attn bench attention --seq 4096
  attn bench attention --dtype bf16 --heads 32 --kv-heads 8 --head-dim 128
  attn bench attention --seq 32768 --decode --bias alibi --json

GFLOP/s count every pair of query and key that the mask allows, also the pairs that the kernel skips \
because ALiBi makes their weights negligible. The peak is the speed of f32 multiply-adds with the same \
vector instructions, measured in the same run.")]
    Attention(AttentionArgs),
    /// Measure tokens per second of a model: a prompt in one pass, then one token at a time
    #[command(after_help = "\
Examples:
  attn bench model MODEL --dtype bf16
  attn bench model MODEL --prompt 512 --generate 64 --depth 4096 --json

As in llama-bench, token ids are arbitrary, nothing is sampled, and the cache holds --depth tokens \
before each measurement.")]
    Model(Box<ModelBenchArgs>),
}

/// `attn bench attention`
#[derive(Debug, Clone, Args)]
pub(crate) struct AttentionArgs {
    /// Data type of queries, keys and values
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    pub(crate) dtype: Precision,
    /// Number of sequences in the batch
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = parse_positive)]
    pub(crate) batch: usize,
    /// Number of query heads
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = parse_positive)]
    pub(crate) heads: usize,
    /// Number of key and value heads
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = parse_positive)]
    pub(crate) kv_heads: usize,
    /// Width of a head
    #[arg(long, value_name = "D", default_value_t = 64, value_parser = parse_positive)]
    pub(crate) head_dim: usize,
    /// Number of keys; also of queries, unless --decode is given
    #[arg(long, value_name = "T", default_value_t = 4096, value_parser = parse_positive)]
    pub(crate) seq: usize,
    /// Only one query, the last
    #[arg(long, conflicts_with = "backward")]
    pub(crate) decode: bool,
    /// Bias that is added to the scores
    #[arg(long, value_enum, default_value_t = BiasName::None)]
    pub(crate) bias: BiasName,
    /// Add one number per head to the denominator of the softmax
    #[arg(long)]
    pub(crate) sinks: bool,
    /// Method that places near and far keys differently, for a trained length of a quarter of --seq
    #[arg(long, value_enum, conflicts_with_all = ["backward", "decode", "window"])]
    pub(crate) method: Option<MethodName>,
    /// With --backward, also compute gradients of the bias and the sinks
    #[arg(long, requires = "backward")]
    pub(crate) learned: bool,
    /// Number of keys that a query sees, including its own [default: all up to its own]
    #[arg(long, value_name = "W", value_parser = parse_positive)]
    pub(crate) window: Option<usize>,
    /// Time a forward and a backward pass
    #[arg(long)]
    pub(crate) backward: bool,
    /// Instruction set of the CPU kernel: amx, avx512, avx512bf16, avx2, neon or portable [default: the fastest]
    #[arg(long, value_name = "PATH")]
    pub(crate) path: Option<KernelPath>,
    /// Also time another implementation of the same call
    #[arg(long, value_enum, value_name = "WHOSE")]
    pub(crate) against: Option<Rival>,
    /// Number of timed runs, after some untimed ones
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = parse_positive)]
    pub(crate) runs: usize,
    /// Device to compute on: cpu, cuda, cuda:N or metal
    #[arg(long, default_value = "cpu", value_parser = parse_device)]
    pub(crate) device: DeviceName,
    /// Number of threads [default: one per core]
    #[arg(short, long, value_name = "N", value_parser = parse_positive)]
    pub(crate) threads: Option<usize>,
    /// Print the result as one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

/// `--bias`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BiasName {
    /// No bias
    None,
    /// A slope per head times the distance
    Alibi,
    /// One number per head and distance, as in T5
    Relative,
    /// One number per head and query minus one per head and key, as in FoX
    Keys,
    /// Three coefficients per head and query times vectors per distance, as in Shaw's encoding
    Bank,
    /// A small network of distance and position, as in FIRE
    Curve,
    /// One number per head, query and key
    Dense,
}

/// `--method`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum MethodName {
    /// All far keys at one distance
    Rerope,
    /// Groups of far keys share a position
    SelfExtend,
    /// Positions within chunks
    DualChunk,
    /// Only the first keys and a window
    Streaming,
}

/// `--against`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Rival {
    /// The same call without bias, sinks, method and window, run alternately
    Plain,
    /// flash_attn of candle-nn, for the CPU
    Candle,
}

/// `attn bench model`
#[derive(Debug, Args)]
pub(crate) struct ModelBenchArgs {
    /// Tokens of the prompt; 0: measure no prompt
    #[arg(short, long, value_name = "N", default_value_t = 512, value_parser = parse_count)]
    pub(crate) prompt: usize,
    /// Tokens to feed one at a time; 0: measure none
    #[arg(short = 'n', long, value_name = "N", default_value_t = 64, value_parser = parse_count)]
    pub(crate) generate: usize,
    /// Tokens in the cache before each measurement
    #[arg(short, long, value_name = "N", default_value_t = 0, value_parser = parse_count)]
    pub(crate) depth: usize,
    /// Number of sequences in the batch
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = parse_positive)]
    pub(crate) batch: usize,
    /// Also show the time by operation, from one more run of each measurement
    #[arg(long)]
    pub(crate) profile: bool,
    /// Number of timed runs, after one untimed run
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = parse_positive)]
    pub(crate) runs: usize,
    /// Print the result as one JSON document
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
}
