//! `attn explain`: what a model's position encoding does, from its config alone.

use crate::model;
use crate::options::ModelArgs;
use crate::output::{check_writable, color, note, print_json, print_text, width, write_file};
use crate::parse::parse_positive;
use anyhow::{Context, Result};
use attn_eval::explain::{Explained, explain};
use attn_eval::report::{TableStyle, explanation, html};
use attn_models::TensorSource;
use attn_models::families::{self, Positions};
use clap::Args;
use serde_json::Value;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

/// `attn explain`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  attn explain
  attn explain MODEL --length 32768
  attn explain config.json --rope-scaling yarn --rope-factor 4 --html page.html

MODEL may also be a config.json. The output shows wavelengths beside the trained context, what each \
scaling does to every frequency, RoPE's decay, how far its base reaches, ALiBi's slopes and T5's buckets.")]
pub(crate) struct ExplainArgs {
    /// Sequence length to explain [default: the length that the config's scaling is made for, else four
    /// times the trained context]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) length: Option<usize>,
    /// Print the result as one JSON document
    #[arg(long)]
    pub(crate) json: bool,
    /// Write an HTML page with charts; it needs no network
    #[arg(long, value_name = "FILE.html")]
    pub(crate) html: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
}

/// Runs the command.
///
/// # Errors
/// The config can't be read or understood, or the rope options don't fit it.
pub(crate) fn run(args: &ExplainArgs) -> Result<()> {
    if let Some(path) = &args.html {
        check_writable(path)?;
    }
    args.model.cache.refuse("explain")?;
    let explained = explained(args)?;
    if let Some(path) = &args.html {
        let page = html::explanation(&explained)?;
        write_file(path, |out| Ok(out.write_all(page.as_bytes())?))?;
    }
    if args.json {
        return print_json(&explained);
    }
    print_text(&explanation(&explained, TableStyle { width: width(), color: color() }))
}

fn explained(args: &ExplainArgs) -> Result<Explained> {
    let Source { name, config, weights } = open(args)?;
    let change = args.model.rope.to_override()?;
    let read = families::positions(&config, model::unknown_keys(&args.model.load));
    let Positions { spec, notes, unread } = read.with_context(|| format!("can't read {name}"))?;
    model::warn(&name, &notes);
    if let Some(why) = &unread {
        note(&format!("warning: {name}: this program does not know its layers: {why}"));
    }
    let spec = spec.with_positions(&change).with_context(|| format!("can't read {name}"))?;
    // Which tensors hold the tables is known only if the layers are known.
    let weights = weights.as_deref().filter(|_| unread.is_none());
    let explained = explain(&name, &spec, weights, change.rope.original_context, args.length)?;
    Ok(Explained { layers_known: unread.is_none(), ..explained })
}

/// What is explained; a `config.json` by itself has no weights.
struct Source {
    name: String,
    config: Value,
    weights: Option<Arc<dyn TensorSource>>,
}

fn open(args: &ExplainArgs) -> Result<Source> {
    let model = args.model.model.as_deref();
    match model.map(Path::new).filter(|path| path.is_file() && path.extension().is_some_and(|e| e == "json")) {
        Some(path) => {
            let name = path.display().to_string();
            let text = std::fs::read_to_string(path).with_context(|| format!("can't read {name}"))?;
            let config = serde_json::from_str(&text).with_context(|| format!("{name} is not JSON"))?;
            Ok(Source { name, config, weights: None })
        }
        None => {
            let (checkpoint, name) = model::checkpoint(model, &args.model.load)?;
            Ok(Source { name, config: checkpoint.config, weights: Some(checkpoint.weights) })
        }
    }
}
