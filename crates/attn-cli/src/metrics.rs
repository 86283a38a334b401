//! `--metrics`: LongPPL and the divergence from the model as it is, beside perplexity.

use crate::args::PerplexityArgs;
use crate::inspect;
use crate::memory;
use crate::model::{self, Opened};
use crate::output::{print_json, print_text, usage};
use crate::parse::{parse_metric, parse_positive};
use crate::perplexity::{Report, summary, tokens, window, work};
use crate::progress::Progress;
use anyhow::Result;
use attn_eval::metrics::{KeyTokens, MetricName, MetricSettings, Metrics};
use attn_eval::perplexity::{Label, ScoreOptions, check_room, rows};
use attn_eval::report;
use attn_eval::windows::{WindowOptions, Windows};
use clap::Args;

/// What is measured beside perplexity.
#[derive(Debug, Clone, PartialEq, Args)]
#[command(next_help_heading = "Metrics")]
pub(crate) struct MetricArgs {
    /// ppl; longppl (perplexity of the tokens that need far text); kl (divergence from the model as it is within its trained
    /// context)
    #[arg(long, alias = "metric", value_name = "NAME,..", value_delimiter = ',', default_value = "ppl", value_parser = parse_metric)]
    pub(crate) metrics: Vec<MetricName>,
    /// LongPPL: tokens of the short context at least [default: half the trained context, at most 4096]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) trunc_len: Option<usize>,
    /// LongPPL: tokens that share a short context [default: a quarter of --trunc-len]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) sliding_window: Option<usize>,
}

impl MetricArgs {
    /// Refuses options of a metric that is not taken.
    ///
    /// # Errors
    /// Their names.
    pub(crate) fn check(&self, objective: MetricName) -> Result<()> {
        let longppl = self.takes(MetricName::LongPpl) || objective == MetricName::LongPpl;
        if (self.trunc_len.is_some() || self.sliding_window.is_some()) && !longppl {
            return usage("--trunc-len and --sliding-window are for LongPPL: add --metrics longppl");
        }
        Ok(())
    }

    fn takes(&self, metric: MetricName) -> bool {
        self.metrics.contains(&metric)
    }

    /// What these ask for beside perplexity, `objective` among it; `None` if it is nothing. `opened` is the model as it is,
    /// `trained` the context it was trained for.
    ///
    /// # Errors
    /// It has no tokenizer.
    pub(crate) fn of<'a>(
        &self,
        opened: &'a Opened,
        trained: Option<usize>,
        objective: MetricName,
    ) -> Result<Option<Metrics<'a>>> {
        let wanted = |metric| self.takes(metric) || objective == metric;
        let usual = KeyTokens::for_trained(trained);
        let trunc_len = self.trunc_len.unwrap_or(usual.trunc_len);
        let sliding_window = self.sliding_window.unwrap_or((trunc_len / 4).max(1));
        let longppl = wanted(MetricName::LongPpl).then_some(KeyTokens { trunc_len, sliding_window, ..usual });
        let settings = MetricSettings { longppl, kl: wanted(MetricName::Kl) };
        if settings.longppl.is_none() && !settings.kl {
            return Ok(None);
        }
        Ok(Some(Metrics { model: &opened.model, tokenizer: opened.tokenizer()?, trained, settings }))
    }
}

/// Runs `attn perplexity` with further metrics, for which the model is opened as it is.
///
/// # Errors
/// As [`crate::perplexity::run`], and windows too short for LongPPL.
pub(crate) fn run(args: &PerplexityArgs) -> Result<()> {
    let opened = model::open_plain(&args.model)?;
    let change = args.model.rope.to_override()?;
    let model = if change.is_none() { opened.model.clone() } else { opened.model.with_positions(&change)? };
    let trained = change.rope.original_context.or(opened.model.trained_context());
    let most = args.cut.max_tokens.unwrap_or(usize::MAX);
    let tokens = tokens(&opened, args.text.as_deref(), &args.cut.text_field, most, &mut |_| ())?.ids;
    let context = window(args, &opened.model, tokens.len());
    let bos = opened.bos(args.cut.bos)?;
    let options = ScoreOptions {
        windows: WindowOptions { context, stride: args.cut.stride, bos },
        length: model::window_length(args.model.rope.rope_length),
    };
    check_room(&model, context)?;
    let Some(metrics) = args.metrics.of(&opened, trained, MetricName::Ppl)? else { return Ok(()) };
    metrics.check(context)?;
    let windows = Windows::new(tokens.len(), &options.windows)?;
    memory::check(&opened, context, |context| work(&opened.model, context))?;
    memory::check_kept(&opened, metrics.kept_bytes(rows(context), context), &work(&opened.model, context))?;
    let total = windows.work() + windows.windows().len() * metrics.work(context);
    let (mut progress, mut done) = (Progress::new(), 0);
    let scores = metrics.measure(&model, &tokens, &options, &mut |read| {
        done += read;
        progress.set(done, total, "scoring");
    })?;
    drop(progress);
    let (mode, factor) = inspect::scaling(&model);
    let cell = scores.cell(&Label { mode, factor, context, stride: windows.stride(), seed: 0 });
    let tables = report::metrics(std::slice::from_ref(&cell));
    let mut report = Report::new(cell, bos, args, None);
    report.metrics = Some(metrics.settings);
    if args.json { print_json(&report) } else { print_text(&(summary(&report) + &tables)) }
}
