//! What scoring a text takes: its tokens, memory, and the metrics beside perplexity.

use crate::model::Opened;
use crate::options::MetricArgs;
use crate::text::{self, Tokens};
use anyhow::{Result, ensure};
use attn_eval::metrics::{KeyTokens, MetricName, MetricSettings, Metrics};
use attn_eval::perplexity::rows;
use attn_models::memory::Workload;
use attn_models::{Architecture, Model};
use std::path::Path;

/// What scoring windows of `context` tokens asks of a model.
pub(crate) fn work(model: &Model, context: usize) -> Workload {
    let rows = rows(context);
    // The head runs in chunks.
    let logits = rows.saturating_mul(context).min(model.logits_at_once());
    let cached = if model.scores_through_cache() { context } else { 0 };
    Workload { rows, pass: context, cached, encoded: 0, logits }
}

/// The first `most` tokens of the text that a command scores.
///
/// # Errors
/// The model generates no text, or has no tokenizer; the text can't be read or tokenised.
pub(crate) fn tokens(
    opened: &Opened,
    path: Option<&Path>,
    field: &str,
    most: usize,
    also: &mut dyn FnMut(&str),
) -> Result<Tokens> {
    let only = "perplexity needs a model that predicts the next token";
    ensure!(opened.model.architecture() == Architecture::Decoder, "{} is not a decoder: {only}", opened.name);
    text::tokenize(path, field, opened.tokenizer()?, most, also)
}

/// The token that lm-evaluation-harness puts before a document, and that an empty context stands for: BOS, else EOS.
///
/// # Errors
/// The model has no tokenizer.
pub(crate) fn prefix(opened: &Opened) -> Result<Option<u32>> {
    let tokenizer = opened.tokenizer()?;
    let generation = &opened.checkpoint.generation;
    let eos = tokenizer.eos_ids.first().or(generation.eos_ids.first());
    Ok(tokenizer.bos_id.or(generation.bos_id).or(eos.copied()))
}

/// What the options ask for beside perplexity, `objective` among it; `None` if it is nothing. `opened` is the model as it is,
/// `trained` the context it was trained for.
///
/// # Errors
/// It has no tokenizer.
pub(crate) fn metrics<'a>(
    args: &MetricArgs,
    opened: &'a Opened,
    trained: Option<usize>,
    objective: MetricName,
) -> Result<Option<Metrics<'a>>> {
    let wanted = |metric| args.takes(metric) || objective == metric;
    let usual = KeyTokens::for_trained(trained);
    let trunc_len = args.trunc_len.unwrap_or(usual.trunc_len);
    let sliding_window = args.sliding_window.unwrap_or((trunc_len / 4).max(1));
    let longppl = wanted(MetricName::LongPpl).then_some(KeyTokens { trunc_len, sliding_window, ..usual });
    let settings = MetricSettings { longppl, kl: wanted(MetricName::Kl) };
    if settings.longppl.is_none() && !settings.kl {
        return Ok(None);
    }
    Ok(Some(Metrics { model: &opened.model, tokenizer: opened.tokenizer()?, trained, settings }))
}
