//! The flags of `attn train`.

use crate::args::LoadArgs;
use crate::parse::{parse_count, parse_positive, parse_positive_number, parse_temperature};
use attn_train::shape::Position;
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use std::path::PathBuf;

/// `attn train`
#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    /// Folder or hub id of a checkpoint to fine-tune [default: a new model]
    pub(crate) model: Option<String>,
    #[command(flatten)]
    pub(crate) load: LoadArgs,
    /// UTF-8 text to train on; repeatable
    #[arg(long, value_name = "FILE", required = true)]
    pub(crate) text: Vec<PathBuf>,
    /// Folder for checkpoints, the log and the result
    #[arg(short, long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Train a rotary checkpoint on without its rotation, which a short run gets over (DroPE)
    #[arg(long, requires = "model")]
    pub(crate) drop_positions: bool,
    #[command(flatten)]
    pub(crate) shape: ShapeArgs,
    /// Steps of the whole run
    #[arg(long, value_name = "N", default_value_t = 1000, allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) steps: usize,
    /// Rows of a micro-batch
    #[arg(long, value_name = "N", default_value_t = 16, allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) batch: usize,
    /// Micro-batches per step, whose gradients are averaged
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) accumulate: usize,
    /// Tokens per row
    #[arg(short, long, value_name = "N", default_value_t = 256, allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) context: usize,
    /// Peak learning rate, reached after the warm-up; a cosine takes it down to a tenth
    #[arg(long, visible_alias = "lr", value_name = "X", default_value_t = 2e-3, allow_negative_numbers = true, value_parser = parse_positive_number)]
    pub(crate) learning_rate: f64,
    /// Steps of warm-up
    #[arg(long, value_name = "N", default_value_t = 50, allow_negative_numbers = true, value_parser = parse_count)]
    pub(crate) warmup: usize,
    /// Decay of the weight matrices
    #[arg(long, value_name = "X", default_value_t = 0.1, allow_negative_numbers = true, value_parser = parse_temperature)]
    pub(crate) weight_decay: f64,
    /// Longest gradient; longer ones are shortened to it
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true, value_parser = parse_positive_number)]
    pub(crate) clip: f64,
    /// Seed of the first weights and of the batches
    #[arg(short, long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Steps from one checkpoint to the next
    #[arg(long, value_name = "N", default_value_t = 100, allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) checkpoint_every: usize,
    /// Print one JSON document at the end
    #[arg(long)]
    pub(crate) json: bool,
}

/// The shape of a new model.
#[derive(Debug, Args)]
#[command(next_help_heading = "New model")]
pub(crate) struct ShapeArgs {
    /// Position encoding [default: rope]
    #[arg(long, value_name = "ENCODING", value_parser = position())]
    pub(crate) position: Option<Position>,
    /// A tokenizer.json to use [default: one trained on the text]
    #[arg(long, value_name = "FILE", conflicts_with = "vocab")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// Tokens of a tokenizer trained on the text
    #[arg(long, value_name = "N", default_value_t = 1024, allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) vocab: usize,
    /// Width of the residual stream
    #[arg(long, value_name = "N", default_value_t = 192, allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) hidden: usize,
    /// Width of the feed-forward network
    #[arg(long, value_name = "N", default_value_t = 512, allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) intermediate: usize,
    /// Blocks
    #[arg(long, value_name = "N", default_value_t = 4, allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) layers: usize,
    /// Query heads
    #[arg(long, value_name = "N", default_value_t = 6, allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) heads: usize,
    /// Key and value heads
    #[arg(long, value_name = "N", default_value_t = 2, allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) kv_heads: usize,
}

/// The encodings by name, which the help lists.
fn position() -> impl TypedValueParser<Value = Position> {
    PossibleValuesParser::new(Position::all().map(Position::name)).try_map(|name| name.parse::<Position>())
}
