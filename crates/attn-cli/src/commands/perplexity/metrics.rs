//! `attn perplexity --metrics`: LongPPL and the divergence from the model as it is, beside perplexity.

use super::args::PerplexityArgs;
use super::report::{Report, summary};
use crate::measure::scoring::{metrics, tokens, work};
use crate::output::{print_json, print_text};
use crate::progress::Progress;
use crate::{model, positions};
use anyhow::Result;
use attn_eval::metrics::MetricName;
use attn_eval::perplexity::{Label, ScoreOptions, check_room, rows};
use attn_eval::report;
use attn_eval::windows::{WindowOptions, Windows};

/// Runs `attn perplexity` with further metrics, for which the model is opened as it is.
///
/// # Errors
/// As [`super::run`], and windows too short for LongPPL.
pub(super) fn run(args: &PerplexityArgs) -> Result<()> {
    let opened = model::open_plain(&args.model)?;
    let change = args.model.rope.to_override()?;
    let model = if change.is_none() { opened.model.clone() } else { opened.model.with_positions(&change)? };
    let trained = change.rope.original_context.or(opened.model.trained_context());
    let most = args.cut.max_tokens.unwrap_or(usize::MAX);
    let tokens = tokens(&opened, args.text.as_deref(), &args.cut.text_field, most, &mut |_| ())?.ids;
    let context = args.window(&opened.model, tokens.len());
    let bos = opened.bos(args.cut.bos)?;
    let options = ScoreOptions {
        windows: WindowOptions { context, stride: args.cut.stride, bos },
        length: model::window_length(args.model.rope.rope_length),
    };
    check_room(&model, context)?;
    let Some(metrics) = metrics(&args.metrics, &opened, trained, MetricName::Ppl)? else { return Ok(()) };
    metrics.check(context)?;
    let windows = Windows::new(tokens.len(), &options.windows)?;
    opened.check_memory(context, |context| work(&opened.model, context))?;
    opened.check_kept(metrics.kept_bytes(rows(context), context), &work(&opened.model, context))?;
    let total = windows.work() + windows.windows().len() * metrics.work(context);
    let (mut progress, mut done) = (Progress::watching(&opened.model), 0);
    let scores = metrics.measure(&model, &tokens, &options, &mut |read| {
        done += read;
        progress.set(done, total, "scoring");
    })?;
    drop(progress);
    let (mode, factor) = positions::scaling(&model);
    let cell = scores.cell(&Label { mode, factor, context, stride: windows.stride(), seed: 0 });
    let tables = report::metrics(std::slice::from_ref(&cell));
    let mut report = Report::new(cell, bos, args, None);
    report.metrics = Some(metrics.settings);
    if args.json { print_json(&report) } else { print_text(&(summary(&report) + &tables)) }
}
