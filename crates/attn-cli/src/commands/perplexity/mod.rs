//! `attn perplexity`: how well a model predicts a text.

pub(crate) mod args;
mod metrics;
mod protocol;
mod report;

use crate::measure::scoring::{tokens, work};
use crate::output::{print_json, print_text, usage};
use crate::progress::Progress;
use crate::{model, positions, text};
use anyhow::Result;
use args::PerplexityArgs;
use attn_eval::metrics::MetricName;
use attn_eval::perplexity::{Label, ScoreOptions, check_room, score};
use attn_eval::windows::{WindowOptions, Windows};
use report::{Report, summary};

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
            return usage(format!("--metrics needs --protocol all: {protocol} measures only perplexity"));
        }
        return protocol::run(args, protocol);
    }
    if !only_perplexity {
        return metrics::run(args);
    }
    let opened = model::open(&args.model)?;
    let most = args.cut.max_tokens.unwrap_or(usize::MAX);
    let tokens = tokens(&opened, args.text.as_deref(), &args.cut.text_field, most, &mut |_| ())?.ids;
    let context = args.window(&opened.model, tokens.len());
    let (mode, factor) = positions::scaling(&opened.model);
    let bos = opened.bos(args.cut.bos)?;
    let options = ScoreOptions {
        windows: WindowOptions { context, stride: args.cut.stride, bos },
        length: model::window_length(args.model.rope.rope_length),
    };
    check_room(&opened.model, context)?;
    let windows = Windows::new(tokens.len(), &options.windows)?;
    opened.check_memory(context, |context| work(&opened.model, context))?;
    let total = windows.work();
    let mut progress = Progress::watching(&opened.model);
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
