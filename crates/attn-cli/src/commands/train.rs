//! `attn train`: a new small decoder under any position encoding, or a checkpoint trained further.

use crate::options::LoadArgs;
use crate::output::{note, print_json, print_text, usage};
use crate::parse::DeviceName;
use crate::parse::{parse_count, parse_positive, parse_positive_number, parse_temperature};
use crate::progress::Progress;
use crate::{model, text};
use anyhow::{Context, Result, ensure};
use attn_train::adamw::AdamW;
use attn_train::checkpoint::{Log, lock, write_all};
use attn_train::shape::{Position, Shape, without_positions};
use attn_train::{Settings, Step, Trainer, bpe};
use candle_core::{DType, Device, Tensor};
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use loader::Tokenizer;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Instant;

/// `attn train`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  attn train --text novel.txt --out runs/alibi --position alibi
  attn train --text a.txt --text b.txt --out runs/rope --steps 2000 --dtype bf16
  attn train ./checkpoint --text mine.txt --out runs/tuned --learning-rate 2e-4

A stopped run continues from its last checkpoint when the same command is given again, and ends with the \
same bits. At the end OUT holds a Hugging Face folder, train.jsonl with every step, and loss.svg.")]
pub(crate) struct TrainArgs {
    /// Folder or hub id of a checkpoint to fine-tune [default: train a new model]
    pub(crate) model: Option<String>,
    /// UTF-8 text to train on; repeatable
    #[arg(long, value_name = "FILE", required = true)]
    pub(crate) text: Vec<PathBuf>,
    /// Folder for checkpoints, log and result
    #[arg(short, long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Remove the rotation from a rotary checkpoint and train it further, which needs only a short run (DroPE)
    #[arg(long, requires = "model")]
    pub(crate) drop_positions: bool,
    /// Number of steps of the whole run
    #[arg(long, value_name = "N", default_value_t = 1000, allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) steps: usize,
    /// Number of sequences in a micro-batch
    #[arg(long, value_name = "N", default_value_t = 16, allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) batch: usize,
    /// Micro-batches per step; their gradients are averaged
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) accumulate: usize,
    /// Tokens per sequence
    #[arg(short, long, value_name = "N", default_value_t = 256, allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) context: usize,
    /// Peak learning rate, reached after the warm-up; a cosine then lowers it to a tenth
    #[arg(long, visible_alias = "lr", value_name = "X", default_value_t = 2e-3, allow_negative_numbers = true, value_parser = parse_positive_number)]
    pub(crate) learning_rate: f64,
    /// Number of warm-up steps
    #[arg(long, value_name = "N", default_value_t = 50, allow_negative_numbers = true, value_parser = parse_count)]
    pub(crate) warmup: usize,
    /// Weight decay of the weight matrices
    #[arg(long, value_name = "X", default_value_t = 0.1, allow_negative_numbers = true, value_parser = parse_temperature)]
    pub(crate) weight_decay: f64,
    /// Largest norm of the gradient; a larger gradient is scaled down to it
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true, value_parser = parse_positive_number)]
    pub(crate) clip: f64,
    /// Seed of the initial weights and of the batches
    #[arg(short, long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Number of steps between checkpoints
    #[arg(long, value_name = "N", default_value_t = 100, allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) checkpoint_every: usize,
    /// UTF-8 text to measure the loss on at every checkpoint; it is not trained on
    #[arg(long, value_name = "FILE")]
    pub(crate) held_out: Option<PathBuf>,
    /// Number of tokens of the --held-out text to use
    #[arg(long, value_name = "N", default_value_t = 32768, allow_negative_numbers = true, value_parser = parse_positive, requires = "held_out")]
    pub(crate) held_out_tokens: usize,
    /// Print the result as one JSON document at the end
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) shape: ShapeArgs,
    #[command(flatten)]
    pub(crate) load: LoadArgs,
}

/// The shape of a new model.
#[derive(Debug, Args)]
#[command(next_help_heading = "New model")]
pub(crate) struct ShapeArgs {
    /// Position encoding [default: rope]
    #[arg(long, value_name = "ENCODING", value_parser = position())]
    pub(crate) position: Option<Position>,
    /// tokenizer.json to use [default: train one on the text]
    #[arg(long, value_name = "FILE", conflicts_with = "vocab")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// Vocabulary size of a tokenizer that is trained on the text
    #[arg(long, value_name = "N", default_value_t = 1024, allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) vocab: usize,
    /// Width of the residual stream
    #[arg(long, value_name = "N", default_value_t = 192, allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) hidden: usize,
    /// Width of the feed-forward network
    #[arg(long, value_name = "N", default_value_t = 512, allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) intermediate: usize,
    /// Number of layers
    #[arg(long, value_name = "N", default_value_t = 4, allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) layers: usize,
    /// Number of query heads
    #[arg(long, value_name = "N", default_value_t = 6, allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) heads: usize,
    /// Number of key and value heads
    #[arg(long, value_name = "N", default_value_t = 2, allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) kv_heads: usize,
}

/// The encodings by name, which the help lists.
fn position() -> impl TypedValueParser<Value = Position> {
    PossibleValuesParser::new(Position::all().map(Position::name)).try_map(|name| name.parse::<Position>())
}

/// What a run starts from: its tokenizer as JSON, its config and its initial weights.
struct Start {
    tokenizer: String,
    tokens: Vec<u32>,
    /// Tokens that are not trained on.
    pub(crate) held_out: Option<Vec<u32>>,
    config: Value,
    weights: BTreeMap<String, Tensor>,
}

#[derive(Serialize)]
struct Summary {
    out: String,
    parameters: usize,
    text_tokens: usize,
    steps: usize,
    resumed_from: usize,
    first_loss: f64,
    last_loss: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    held_out_loss: Option<f64>,
    seconds: f64,
}

/// Runs the command.
///
/// # Errors
/// A text, tokenizer or checkpoint that can't be read, settings that don't fit, a run of other settings in `--out`.
pub(crate) fn run(args: &TrainArgs) -> Result<()> {
    if args.load.device != DeviceName::Cpu {
        return usage("--device: training runs on the CPU");
    }
    text::check(&args.text)?;
    check_files(args)?;
    model::set_threads(args.load.threads)?;
    // The shards of a step have the cores already, and Candle's pool for element-wise operations admits one at a time.
    model::tell_candle("CANDLE_NUM_THREADS", 1);
    let start = if args.model.is_some() { tuned(args)? } else { fresh(args)? };
    let text_tokens = start.tokens.len();
    let mut trainer = Trainer::new(settings(args, start.config), start.weights, start.tokens)?;
    let _lock = lock(&args.out)?;
    let resumed = trainer.resume(&args.out)?;
    let resumed_from = trainer.done();
    if resumed {
        note(&format!("resuming after step {resumed_from}"));
    }
    let mut log = Log::open(&args.out, resumed_from)?;
    let started = Instant::now();
    train(args, &mut trainer, &mut log, &start.tokenizer, start.held_out.as_deref())?;
    // Published weights are bf16 like most; the checkpoints keep f32.
    trainer.export(&args.out, &start.tokenizer, DType::BF16)?;
    let chart = attn_train::plot::loss(log.steps());
    write_all(&args.out, &[("loss.svg", chart.into_bytes())])?;
    let loss = |step: Option<&Step>| step.map_or(f64::NAN, |s| s.loss);
    let summary = Summary {
        out: args.out.display().to_string(),
        parameters: trainer.parameters(),
        text_tokens,
        steps: trainer.done(),
        resumed_from,
        first_loss: loss(log.steps().first()),
        last_loss: loss(log.steps().last()),
        held_out_loss: log.steps().last().and_then(|step| step.held_out),
        seconds: started.elapsed().as_secs_f64(),
    };
    if args.json { print_json(&summary) } else { print_text(&report(&summary)) }
}

/// Refuses at once what would show after the texts were read.
fn check_files(args: &TrainArgs) -> Result<()> {
    if args.out.exists() && !args.out.is_dir() {
        return usage(format!("--out {} exists and is not a folder", args.out.display()));
    }
    let own = args.model.is_none() && args.shape.tokenizer.is_none();
    match args.text.iter().find(|path| own && !path.is_file()) {
        Some(path) => usage(format!(
            "--text {} is not a regular file, but has to be read twice, first to train a tokenizer: give a regular file, or \
             --tokenizer",
            path.display()
        )),
        None => Ok(()),
    }
}

fn report(s: &Summary) -> String {
    let held_out = s.held_out_loss.map_or(String::new(), |loss| format!("held out    {loss:.4}\n"));
    format!(
        "model       {} ({} weights)\ntext        {} tokens\nloss        {:.4} to {:.4} in {} steps\n{held_out}seconds     {:.1}\n",
        s.out, s.parameters, s.text_tokens, s.first_loss, s.last_loss, s.steps, s.seconds
    )
}

fn train(
    args: &TrainArgs,
    trainer: &mut Trainer,
    log: &mut Log,
    tokenizer: &str,
    held_out: Option<&[u32]>,
) -> Result<()> {
    let mut progress = Progress::new();
    while trainer.done() < args.steps {
        let mut step = trainer.step()?;
        let saved = step.step.is_multiple_of(args.checkpoint_every) || step.step == args.steps;
        if let Some(tokens) = held_out.filter(|_| saved) {
            step.held_out = Some(trainer.held_out_loss(tokens)?);
        }
        log.add(&step)?;
        let message = format!("step {} loss {:.3} {:.0} tokens/s", step.step, step.loss, step.tokens_per_second);
        progress.set(step.step, args.steps, &message);
        if saved {
            trainer.save(&args.out, tokenizer)?;
        }
    }
    Ok(())
}

fn settings(args: &TrainArgs, config: Value) -> Settings {
    Settings {
        seed: args.seed,
        steps: args.steps,
        batch: args.batch,
        accumulate: args.accumulate,
        context: args.context,
        learning_rate: args.learning_rate,
        warmup: args.warmup,
        clip: args.clip,
        adamw: AdamW { weight_decay: args.weight_decay, ..AdamW::default() },
        dtype: args.load.dtype().as_str().to_string(),
        data: String::new(),
        config,
        allow_unknown_config_keys: args.load.allow_unknown_config_keys,
    }
}

/// A new model.
fn fresh(args: &TrainArgs) -> Result<Start> {
    let s = &args.shape;
    let tokenizer = match &s.tokenizer {
        Some(path) => Tokenizer::from_json(path, text::read_file(path)?.as_bytes())?,
        None => train_tokenizer(&args.text, s.vocab)?,
    };
    let shape = Shape {
        position: s.position.unwrap_or(Position::ROPE),
        vocab: tokenizer.vocab_size(),
        context: args.context,
        hidden: s.hidden,
        intermediate: s.intermediate,
        layers: s.layers,
        heads: s.heads,
        kv_heads: s.kv_heads,
    };
    Ok(Start {
        tokenizer: json(&tokenizer)?,
        tokens: encode(&tokenizer, &args.text, Some(0))?,
        held_out: held_out(args, &tokenizer)?,
        config: shape.config()?,
        weights: shape.weights(args.seed)?,
    })
}

/// A checkpoint, trained further as it is: its config decides shape and, unless they are dropped, positions.
fn tuned(args: &TrainArgs) -> Result<Start> {
    let (s, name) = (&args.shape, args.model.as_deref().unwrap_or_default());
    if s.position.is_some() || s.tokenizer.is_some() {
        return usage(format!("--position and --tokenizer are for a new model; {name} has its own"));
    }
    let (checkpoint, name) = model::checkpoint(args.model.as_deref(), &args.load)?;
    let config = match args.drop_positions {
        true => without_positions(&checkpoint.config).with_context(|| format!("--drop-positions: {name}"))?,
        false => checkpoint.config.clone(),
    };
    model::spec(&config, &name, &args.load)?;
    let tokenizer = model::tokenizer(&checkpoint, &name)?;
    let source = checkpoint.weights.clone();
    let weights = source.names().into_iter().map(|name| {
        let tensor = source.load(&name, DType::F32, &Device::Cpu)?;
        Ok((name, tensor))
    });
    Ok(Start {
        tokenizer: json(tokenizer)?,
        tokens: encode(tokenizer, &args.text, tokenizer.eos_ids.first().copied())?,
        held_out: held_out(args, tokenizer)?,
        config,
        weights: weights.collect::<Result<_>>()?,
    })
}

/// The contents of a tokenizer.json.
fn json(tokenizer: &Tokenizer) -> Result<String> {
    tokenizer.inner().to_string(false).map_err(|e| anyhow::anyhow!("can't write the tokenizer: {e}"))
}

/// The first ids of the text that is not trained on.
fn held_out(args: &TrainArgs, tokenizer: &Tokenizer) -> Result<Option<Vec<u32>>> {
    let Some(path) = &args.held_out else { return Ok(None) };
    let ids = text::tokenize_plain(path, tokenizer, args.held_out_tokens)?;
    if ids.len() < args.context {
        let few = format!(
            "--held-out: the {} tokens of {} are fewer than the {} of --context",
            ids.len(),
            path.display(),
            args.context
        );
        return usage(few);
    }
    Ok(Some(ids))
}

/// The ids of all texts, one after the other, each with its end.
fn encode(tokenizer: &Tokenizer, texts: &[PathBuf], end: Option<u32>) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for path in texts {
        let text = text::tokenize_plain(path, tokenizer, usize::MAX)?;
        if ids.is_empty() {
            ids = text;
        } else {
            ids.reserve_exact(text.len() + 1);
            ids.extend(text);
        }
        // Exactly one more: the usual growth would double the memory.
        ids.reserve_exact(1);
        ids.extend(end);
    }
    Ok(ids)
}

/// A tokenizer of the texts, which are read as it learns from them.
fn train_tokenizer(texts: &[PathBuf], vocab: usize) -> Result<Tokenizer> {
    let (sender, receiver) = sync_channel::<String>(2);
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || texts.iter().try_for_each(|path| send_pieces(path, &sender)));
        let free = loader::free_memory().unwrap_or(u64::MAX);
        let trained = bpe::train(receiver.into_iter(), vocab, free / 2).map(Tokenizer::new);
        match reader.join() {
            Ok(read) => {
                read?;
                Ok(trained?)
            }
            Err(_) => anyhow::bail!("reading the texts failed"),
        }
    })
}

/// Sends a text in pieces that begin and end words, until the receiver is dropped.
fn send_pieces(path: &Path, to: &SyncSender<String>) -> Result<()> {
    const PIECE: usize = 1 << 20;
    let (mut held, mut searched) = (String::new(), 0);
    text::stream(Some(path), None, &mut |part| {
        held.push_str(part);
        if held.len() < PIECE {
            return Ok(true);
        }
        if let Some(end) = loader::last_word_end(&held, searched) {
            let rest = held.split_off(end);
            searched = 0;
            return Ok(to.send(std::mem::replace(&mut held, rest)).is_ok());
        }
        // A place has up to two characters after it, of up to four bytes, and one before.
        searched = held.len().saturating_sub(12);
        let long = held.len() > loader::longest_piece();
        ensure!(
            !long,
            "{} has {} bytes without the end of a word, more than fit into memory",
            path.display(),
            held.len()
        );
        Ok(true)
    })?;
    let _ = to.send(held);
    Ok(())
}
