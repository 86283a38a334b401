//! `attn perplexity`: how well a model predicts a text.

use crate::args::PerplexityArgs;
use crate::model::{self, Opened};
use crate::output::{print_json, print_text, usage};
use crate::parse::ProtocolChoice;
use crate::progress::Progress;
use crate::protocol::{self, PerSize};
use crate::text::{self, Tokens};
use crate::{inspect, memory, metrics};
use anyhow::Result;
use attn_eval::metrics::{MetricName, MetricSettings};
use attn_eval::perplexity::{Cell, Label, ScoreOptions, check_room, rows, score};
use attn_eval::report::bos_line;
use attn_eval::windows::{WindowOptions, Windows};
use attn_models::memory::Workload;
use attn_models::{Architecture, Model};
use serde::Serialize;
use std::path::Path;

/// The window if none is asked for: no longer than this, so that it doesn't surprise on a slow machine.
const LONGEST_DEFAULT: usize = 2048;

/// Runs the command.
///
/// # Errors
/// The model or the text can't be read, or the text can't be cut as asked.
pub(crate) fn run(args: &PerplexityArgs) -> Result<()> {
    text::check(args.text.as_slice())?;
    args.metrics.check(MetricName::Ppl)?;
    let only_perplexity = args.metrics.metrics == [MetricName::Ppl];
    if let Some(protocol) = args.protocol.0 {
        if !only_perplexity {
            return usage(format!("--metrics is for --protocol all: {protocol} has perplexity alone"));
        }
        return protocol::run(args, protocol);
    }
    if !only_perplexity {
        return metrics::run(args);
    }
    let opened = model::open(&args.model)?;
    let most = args.cut.max_tokens.unwrap_or(usize::MAX);
    let tokens = tokens(&opened, args.text.as_deref(), &args.cut.text_field, most, &mut |_| ())?.ids;
    let context = window(args, &opened.model, tokens.len());
    let (mode, factor) = inspect::scaling(&opened.model);
    let bos = opened.bos(args.cut.bos)?;
    let options = ScoreOptions {
        windows: WindowOptions { context, stride: args.cut.stride, bos },
        length: model::window_length(args.model.rope.rope_length),
    };
    check_room(&opened.model, context)?;
    let windows = Windows::new(tokens.len(), &options.windows)?;
    memory::check(&opened, context, |context| work(&opened.model, context))?;
    let total = windows.work();
    let mut progress = Progress::new();
    let mut done = 0;
    let scores = score(&opened.model, &tokens, &options, &mut |read| {
        done += read;
        progress.set(done, total, "scoring");
    })?;
    drop(progress);
    let cell = scores.cell(&Label { mode, factor, context, stride: windows.stride(), seed: 0 });
    let report = Report::new(cell, bos, args, None);
    if args.json { print_json(&report) } else { print_text(&summary(&report)) }
}

/// Tokens per window for a text of `tokens`: those asked for, else the trained context, as far as that is not long.
pub(crate) fn window(args: &PerplexityArgs, model: &Model, tokens: usize) -> usize {
    let trained = model.trained_context().unwrap_or(512).min(LONGEST_DEFAULT);
    args.context.unwrap_or(trained.min(tokens))
}

/// A cell, and how it was come to.
#[derive(Serialize)]
pub(crate) struct Report {
    #[serde(flatten)]
    cell: Cell,
    bos: Option<u32>,
    bos_choice: &'static str,
    protocol: ProtocolChoice,
    #[serde(flatten)]
    per_size: Option<PerSize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) metrics: Option<MetricSettings>,
}

impl Report {
    pub(crate) fn new(cell: Cell, bos: Option<u32>, args: &PerplexityArgs, per_size: Option<PerSize>) -> Self {
        Self { cell, bos, bos_choice: args.cut.bos.name(), protocol: args.protocol, per_size, metrics: None }
    }
}

/// What scoring windows of `context` tokens asks of a model.
pub(crate) fn work(model: &Model, context: usize) -> Workload {
    let rows = rows(context);
    // The head runs in chunks.
    let logits = rows.saturating_mul(context).min(model.logits_at_once());
    Workload { rows, pass: context, cached: 0, encoded: 0, logits }
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
    let only = "perplexity is for models that predict the next token";
    anyhow::ensure!(opened.model.architecture() == Architecture::Decoder, "{} is none: {only}", opened.name);
    text::tokenize(path, field, opened.tokenizer()?, most, also)
}

/// The figures for a terminal.
pub(crate) fn summary(report: &Report) -> String {
    let cell = &report.cell;
    let mut out = String::new();
    if cell.perplexity.is_finite() {
        out.push_str(&format!("perplexity  {:.4} ± {:.4}", cell.perplexity, cell.stderr));
        out.push_str("  (standard error, tokens taken as independent)\n");
    } else {
        out.push_str(&format!(
            "nats        {:.2} per token  (their exponential is more than a number can say)\n",
            cell.nll
        ));
    }
    if let Some(error) = cell.stderr_windows.filter(|error| error.is_finite()) {
        out.push_str(&format!("            ± {error:.4}  (windows taken as independent)\n"));
    }
    if let Some(last) = cell.last_quarter_perplexity.filter(|last| last.is_finite()) {
        out.push_str(&format!("last        {last:.4}  (last quarter of each window)\n"));
    }
    if let Some(sizes) = &report.per_size {
        out.push_str(&sizes.lines());
    }
    if let Some(protocol) = report.protocol.0 {
        out.push_str(&format!("protocol    {protocol}: {}\n", protocol.scored()));
    }
    out.push_str(&format!(
        "tokens      {} scored in {} windows of {}, one every {}\n",
        cell.tokens, cell.windows, cell.context, cell.stride
    ));
    out.push_str(&format!("BOS         {}\n", bos_line(report.bos, report.bos_choice)));
    let speed = (cell.windows * cell.context) as f64 / cell.seconds.max(1e-9);
    out.push_str(&format!("seconds     {:.1}  ({speed:.0} tokens a second)\n", cell.seconds));
    out
}
