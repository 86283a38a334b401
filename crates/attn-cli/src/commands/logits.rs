//! `attn logits`: a model's raw output for given ids, to compare with other implementations.

use crate::model::{self, Opened};
use crate::options::ModelArgs;
use crate::output::{check_writable, note, usage, write_file};
use crate::parse::parse_count;
use crate::{ids, text};
use anyhow::{Context, Result, bail, ensure};
use attn_core::CacheTypes;
use attn_models::memory::Workload;
use attn_models::{Architecture, Model, RopeLength, Session, check_finite};
use candle_core::{DType, Tensor};
use clap::Args;
use std::path::Path;
use std::path::PathBuf;

/// `attn logits`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  attn logits MODEL --ids ids.json --out logits.safetensors
  attn logits MODEL --ids ids.json --out logits.safetensors --decode --greedy 16

ids.json holds rows of equal length: [[1, 2, 3], [4, 5, 6]]. The output file holds logits (B, T, V) f32 \
and, with --greedy N, greedy (B, T+N) i64. For an encoder it holds hidden (B, T, H) f32.")]
pub(crate) struct LogitsArgs {
    /// JSON file with rows of token ids, or - for stdin
    #[arg(long, value_name = "FILE.json")]
    pub(crate) ids: PathBuf,
    /// JSON file with token ids for the decoder of an encoder-decoder model
    #[arg(long, value_name = "FILE.json")]
    pub(crate) decoder_ids: Option<PathBuf>,
    /// Safetensors file to write
    #[arg(long, value_name = "FILE.safetensors")]
    pub(crate) out: PathBuf,
    /// Feed one token at a time through the cache
    #[arg(long)]
    pub(crate) decode: bool,
    /// Also continue each row greedily by N tokens, always with --rope-length exact
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = parse_count)]
    pub(crate) greedy: Option<usize>,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
}

/// Runs the command.
///
/// # Errors
/// The ids are no rectangle of ids of the vocabulary, the options don't fit the model, the logits are not finite, or the
/// file can't be written.
pub(crate) fn run(args: &LogitsArgs) -> Result<()> {
    check_writable(&args.out)?;
    let ids = Rows::read(&args.ids)?;
    let decoder_ids = args.decoder_ids.as_deref().map(Rows::read).transpose()?;
    let opened = model::open(&args.model)?;
    let named = outputs(args, &opened, &ids, decoder_ids.as_ref())?;
    let bytes = serialize(&named)?;
    write_file(&args.out, |out| Ok(out.write_all(&bytes)?))?;
    let said: Vec<String> = named.iter().map(|(name, tensor)| format!("{name} {:?}", tensor.dims())).collect();
    note(&format!("{}: {}", args.out.display(), said.join(", ")));
    Ok(())
}

/// The tensors to write, by name.
fn outputs(args: &LogitsArgs, opened: &Opened, ids: &Rows, decoder: Option<&Rows>) -> Result<Vec<(String, Tensor)>> {
    let model = &opened.model;
    let prompt = ids.tensor(model)?;
    let (fed, encoded) = match (model.architecture(), decoder) {
        (Architecture::EncoderDecoder, None) => {
            return usage(format!("{} is an encoder-decoder model: give --decoder-ids too", opened.name));
        }
        (Architecture::EncoderDecoder, Some(decoder)) => {
            let (rows, decoded) = (ids.rows.count(), decoder.rows.count());
            if decoded != rows {
                return usage(format!("--ids has {rows} rows and --decoder-ids {decoded}: give both as many"));
            }
            (decoder.tensor(model)?, Some(prompt))
        }
        (_, Some(_)) => {
            return usage(format!("{} is not an encoder-decoder model: --decoder-ids doesn't apply", opened.name));
        }
        (_, None) => (prompt, None),
    };
    let (rows, tokens) = fed.dims2()?;
    let encoded_tokens = encoded.as_ref().map_or(Ok(0), |ids| ids.dim(1))?;
    let total = tokens.saturating_add(args.greedy.unwrap_or(0));
    opened.check_memory(total, |total| work(args, rows, tokens.min(total), total, encoded_tokens))?;
    if model.architecture() == Architecture::Encoder {
        if args.decode || args.greedy.is_some() {
            return usage(format!("{} is an encoder: --decode and --greedy are for models that generate", opened.name));
        }
        let hidden = model.hidden(&fed, tokens, None)?.to_dtype(DType::F32)?;
        check_finite(&hidden, "the hidden states")?;
        return Ok(vec![("hidden".to_string(), hidden)]);
    }
    let policy = args.model.rope.rope_length;
    let length = model::window_length(policy).unwrap_or(tokens);
    let logits = if args.decode {
        decode(model, &fed, encoded.as_ref(), model::session_length(policy, tokens))?
    } else if encoded.is_some() {
        session(model, encoded.as_ref(), RopeLength::Declared(length))?.feed_all(&fed)?
    } else {
        model.logits(&fed, length)?
    };
    let logits = logits.to_dtype(DType::F32)?;
    check_finite(&logits, "the logits")?;
    let mut named = vec![("logits".to_string(), logits)];
    if let Some(new) = args.greedy {
        named.push(("greedy".to_string(), greedy(model, &fed, encoded.as_ref(), new)?));
    }
    Ok(named)
}

/// The workload of rows of `tokens` tokens that are continued to `total`.
fn work(args: &LogitsArgs, rows: usize, tokens: usize, total: usize, encoded: usize) -> Workload {
    let pass = if args.greedy.is_some() || !args.decode { total } else { 1 };
    let in_cache = args.decode || args.greedy.is_some() || args.model.cache.types() != CacheTypes::default();
    let cached = if in_cache { total.saturating_mul(2) } else { 0 };
    // Once as they come, once as they are written.
    Workload { rows, pass, cached, encoded, logits: rows.saturating_mul(tokens).saturating_mul(2) }
}

fn session(model: &Model, encoded: Option<&Tensor>, length: RopeLength) -> Result<Session> {
    let mut session = Session::new(model, length, None)?;
    if let Some(prompt) = encoded {
        session.encode(prompt, None)?;
    }
    Ok(session)
}

/// Logits `(b, t, vocab)`, one token at a time through the cache.
fn decode(model: &Model, ids: &Tensor, encoded: Option<&Tensor>, length: RopeLength) -> Result<Tensor> {
    let mut session = session(model, encoded, length)?;
    let steps = (0..ids.dim(1)?).map(|at| Ok(session.feed(&ids.narrow(1, at, 1)?.contiguous()?)?));
    Ok(Tensor::stack(&steps.collect::<Result<Vec<_>>>()?, 1)?)
}

/// The ids and `new` more, `(b, t + new)` i64, each the likeliest under the frequencies of the length so far.
fn greedy(model: &Model, ids: &Tensor, encoded: Option<&Tensor>, new: usize) -> Result<Tensor> {
    let tokens = ids.dim(1)?;
    if let Some(max) = model.max_context() {
        let wanted = tokens.saturating_add(new);
        ensure!(wanted <= max, "{wanted} tokens are more than the {max} positions that the model has learned");
    }
    let mut session = session(model, encoded, RopeLength::Exact)?;
    let mut all = vec![ids.clone()];
    for _ in 0..new {
        let last = all.last().context("there are ids")?;
        all.push(Model::greedy(&session.feed(last)?)?);
    }
    Ok(Tensor::cat(&all, 1)?.to_dtype(DType::I64)?)
}

/// A rectangle of token ids, and the file it is from.
struct Rows {
    name: String,
    rows: ids::Rows,
}

impl Rows {
    fn read(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let rows = ids::parse(&text::read_file(path)?).with_context(|| name.clone())?;
        Ok(Self { name, rows })
    }

    /// `(b, t)` u32 on the model's device.
    fn tensor(&self, model: &Model) -> Result<Tensor> {
        let (vocab, ids::Rows { ids, width }) = (model.vocab_size(), &self.rows);
        if let Some(at) = ids.iter().position(|&id| id as usize >= vocab) {
            let (id, row, column) = (ids[at], at / width, at % width);
            bail!("{}: id {id} in row {row}, column {column} is outside the vocabulary of {vocab}", self.name);
        }
        Ok(Tensor::from_slice(ids, (self.rows.count(), *width), model.device())?)
    }
}

fn serialize(named: &[(String, Tensor)]) -> Result<Vec<u8>> {
    let on_cpu = named.iter().map(|(name, tensor)| {
        let tensor = tensor.to_device(&candle_core::Device::Cpu)?.contiguous()?;
        Ok((name.as_str(), tensor))
    });
    Ok(safetensors::serialize(on_cpu.collect::<Result<Vec<_>>>()?, None)?)
}
