//! `attn tokenize`: a text as the ids that a model reads, to count them or to give them to another program.

use crate::options::LoadArgs;
use crate::output::{note, print, print_json, print_text};
use crate::parse::{BosChoice, parse_positive};
use crate::{model, text};
use anyhow::Result;
use clap::Args;
use loader::Tokenizer;
use serde_json::json;
use std::path::PathBuf;

/// `attn tokenize`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  attn tokenize MODEL --text my.txt --max-tokens 100
  attn tokenize MODEL --text my.txt --json | jq .tokens
  echo Hello | attn tokenize --text - --ids | attn logits --ids - --out l.safetensors

Each line has an id and its token as the vocabulary spells it, in quotes. The ids are those that attn \
perplexity and attn compare read.")]
pub(crate) struct TokenizeArgs {
    /// Hub id, folder, .gguf file, or a model inside this program [default: tiny-austen]
    pub(crate) model: Option<String>,
    /// Text to tokenise: UTF-8 file, .jsonl file, or - for stdin [default: a sample inside the program]
    #[arg(long, value_name = "FILE")]
    pub(crate) text: Option<PathBuf>,
    /// Key that holds the text in each line of a .jsonl file
    #[arg(long, value_name = "KEY", default_value = "text")]
    pub(crate) text_field: String,
    /// Print only the first M tokens
    #[arg(long, value_name = "M", allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) max_tokens: Option<usize>,
    /// Begin with the BOS token; auto: only if the tokenizer does so
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = BosChoice::Auto)]
    pub(crate) bos: BosChoice,
    /// Print only the ids, as the row [[1, 2, 3]] that attn logits reads
    #[arg(long, conflicts_with = "json")]
    pub(crate) ids: bool,
    /// Print the result as one JSON document
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) load: LoadArgs,
}

/// Runs the command.
///
/// # Errors
/// The text can't be read or tokenised, MODEL can't be opened or has no tokenizer, or it has no BOS token and `--bos on` is
/// given.
pub(crate) fn run(args: &TokenizeArgs) -> Result<()> {
    text::check(args.text.as_slice())?;
    let (checkpoint, name) = model::checkpoint(args.model.as_deref(), &args.load)?;
    let tokenizer = model::tokenizer(&checkpoint, &name)?;
    let bos = model::bos_of(&checkpoint, args.bos, &name)?;
    let most = args.max_tokens.unwrap_or(usize::MAX);
    let text::Tokens { source, ids, .. } =
        text::tokenize(args.text.as_deref(), &args.text_field, tokenizer, most, &mut |_| ())?;
    let mut ids = text::begun(ids, bos);
    ids.truncate(most);
    if args.json {
        return print_json(&json!({
            "model": name, "text": source.name, "sha256": source.sha256, "bytes": source.bytes, "bos": bos,
            "tokens": ids.len(), "ids": ids,
        }));
    }
    note(&format!("{}: {} tokens", source.name, ids.len()));
    if args.ids { print(&format!("{}\n", json!([ids]))) } else { print_text(&lines(&ids, tokenizer)?) }
}

/// A line per token: its id, and its spelling in quotes.
fn lines(ids: &[u32], tokenizer: &Tokenizer) -> Result<String> {
    let mut out = String::new();
    for &id in ids {
        let token = serde_json::to_string(&tokenizer.token(id).unwrap_or_default())?;
        out.push_str(&format!("{id:>7} {token}\n"));
    }
    Ok(out)
}
