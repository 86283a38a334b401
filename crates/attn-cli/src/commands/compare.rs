//! `attn compare`: one model, one or more texts, several position scalings; or several models ([`several`]).

mod several;

use crate::measure::plan::{default_contexts, modes, quick_modes, unique, with_trained};
use crate::measure::present::{self, present, present_from};
use crate::measure::scoring::{self, tokens, work};
use crate::measure::{about, apply, estimate, estimate::Quick, long_run, trials};
use crate::model::{self, Opened};
use crate::options::{MetricArgs, ModelArgs, OutputArgs, RunArgs, TextArgs, TrialArgs, modes_help, spelled_out};
use crate::output::{note, usage};
use crate::parse::{
    DeviceName, Measured, Modes, Precision, parse_measured, parse_metric, parse_mode_factor, parse_modes,
    parse_positive,
};
use crate::progress::Progress;
use crate::text::{self, Source};
use crate::{embedded, positions};
use anyhow::{Result, bail};
use attn_eval::across::ModelSpec;
use attn_eval::compare::{
    Comparison, Factor, Lab, LabScores, LabSpec, Mode, Plan, Results, Text, encodings, lengths_between, sum_up,
};
use attn_eval::metrics::{MetricName, Metrics};
use attn_eval::perplexity::Cell;
use attn_eval::report::{About, TextInfo};
use attn_eval::retrieval::{Grid, Haystack, RetrievalPlan, Task};
use attn_eval::run::{Measurable, Run, kind};
use attn_eval::search::{Objective, search};
use attn_eval::stats::MIN_WINDOWS;
use attn_models::{Model, Options};
use clap::{Args, Parser};
use std::path::{Path, PathBuf};

/// `attn compare`
#[derive(Debug, Clone, PartialEq, Args)]
#[command(after_help = compare_help("\
Examples:
  attn compare
  attn compare MODEL --text book.txt --contexts 8192 --modes none,dynamic,yarn
  attn compare MODEL --text book.txt --json > cells.json
  attn compare --html report.html --csv cells.csv --plot chart.svg
  attn compare --from cells.json --html report.html
  attn compare MODEL --text a.txt --text b.jsonl --run run.jsonl  # resumable
  attn compare MODEL --text book.txt --tasks ppl,retrieval --usable
  attn compare MODEL --text book.txt --contexts 16384 --metrics longppl,kl
  attn compare MODEL --text book.txt --contexts 16384 --search
  attn compare MODEL OTHER --text book.txt     # bits per byte of several models"))]
pub(crate) struct CompareArgs {
    /// Tokens per window, one column each [default: 1, 2, 4 and 8 times the trained context, as long as the text and
    /// --max-tokens allow four windows]
    #[arg(long, alias = "context", value_name = "N,..", value_delimiter = ',', allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) contexts: Vec<usize>,
    #[arg(long, value_name = "MODE,..", value_delimiter = ',', value_parser = parse_modes, help = modes_help("one row each"))]
    pub(crate) modes: Vec<Modes>,
    /// Factor of the scalings: a number; longest: longest context / trained context, for every context, as when a model is
    /// served; auto: each context / trained context
    #[arg(long, value_name = "F", default_value = "longest", allow_negative_numbers = true, value_parser = parse_mode_factor)]
    pub(crate) factor: Factor,
    /// Take a first look: few modes, at the trained context and at twice the trained context, in bf16 where the processor
    /// multiplies it faster and no --dtype is given
    #[arg(long)]
    pub(crate) quick: bool,
    /// What to measure: ppl, retrieval, or single retrieval tasks (attn retrieval --help lists them)
    #[arg(long, value_name = "TASK,..", value_delimiter = ',', default_value = "ppl", value_parser = parse_measured)]
    pub(crate) tasks: Vec<Measured>,
    /// Find the usable length of each mode by bisection, between the trained and the longest context
    #[arg(long, conflicts_with_all = ["search", "shard"])]
    pub(crate) usable: bool,
    /// Only show what would be measured and about how long it takes
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Seed of the bootstrap, which gives the intervals
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    /// Show the result that --json wrote to this file; measure nothing
    #[arg(long, value_name = "FILE.json", help_heading = "Output", conflicts_with_all = ["model", "others", "text", "run", "contexts", "modes", "search", "quick", "dry_run", "tasks", "usable", "stride", "max_tokens"])]
    pub(crate) from: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) long: RunArgs,
    #[command(flatten)]
    pub(crate) trials: TrialArgs,
    /// Search for a better scaling at one context: half of the windows choose it, the other half confirm it
    #[arg(long, conflicts_with_all = ["run", "stride"], help_heading = "Search")]
    pub(crate) search: bool,
    /// Number of candidates to try in addition to the modes
    #[arg(long, value_name = "N", default_value_t = 40, requires = "search", help_heading = "Search", allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) search_budget: usize,
    /// Metric that the search minimises: ppl, longppl or kl
    #[arg(long, value_name = "METRIC", default_value = "ppl", requires = "search", help_heading = "Search", value_parser = parse_metric)]
    pub(crate) objective: MetricName,
    #[command(flatten)]
    pub(crate) metrics: MetricArgs,
    /// Text to measure on: UTF-8 file, .jsonl file, or - for stdin; repeatable [default: a sample inside the program]
    #[arg(long, value_name = "FILE", help_heading = "Text")]
    pub(crate) text: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) cut: TextArgs,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// More models to compare with the first by bits per byte of the same text, each without changes unless --modes is
    /// given; --contexts are then the maximum tokens per window of every model
    #[arg(value_name = "MODELS", help_heading = None::<&'static str>, conflicts_with_all = ["search", "usable", "quick", "plot", "haystack", "trunc_len", "sliding_window", "rope_theta", "rope_original_context"])]
    pub(crate) others: Vec<String>,
}

/// What follows the options of `attn compare`: examples and what the modes are.
fn compare_help(examples: &str) -> String {
    let width = Mode::all().map(|mode| mode.to_string().len()).max().unwrap_or(0);
    let modes: Vec<String> = Mode::all().map(|mode| format!("  {mode:width$}  {}", mode.summary())).collect();
    format!("{examples}\n\nModes:\n{}\n\nIn the table, * marks the lowest perplexity of a context.", modes.join("\n"))
}

/// Tokens of each text that are used at least, unless others are asked for.
const DEFAULT_TOKENS: usize = 8192;

/// Bytes of the first text that the models of other encodings are measured on at most.
const KEPT: usize = 64 << 20;

/// Runs the command.
///
/// # Errors
/// The model or a text can't be read, a context or mode doesn't fit them, or a file can't be written.
pub(crate) fn run(args: &CompareArgs) -> Result<()> {
    let begun = begun(args)?;
    measure_all(&fast_if_quick(begun.as_ref().unwrap_or(args))?)
}

/// The options, with bf16 for `--quick` where no dtype is given and the processor multiplies it faster.
fn fast_if_quick(args: &CompareArgs) -> Result<CompareArgs> {
    let mut args = args.clone();
    let load = &mut args.model.load;
    if args.quick && load.dtype.is_none() && matches!(load.device, DeviceName::Cpu) && estimate::bf16_is_faster()? {
        load.dtype = Some(Precision::Bf16);
    }
    Ok(args)
}

/// The options of a command line that begins with `attn compare`.
fn read(line: &[impl AsRef<str>]) -> Option<CompareArgs> {
    /// What follows the program's name.
    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: CompareArgs,
    }
    let words = spelled_out(line.iter().skip(1).map(|word| word.as_ref().into()));
    let line = (words.first()? == "compare").then(|| Line::try_parse_from(words))?;
    Some(line.ok()?.args)
}

/// Whether the options say nothing of what is measured: only where it is kept and how it is shown.
fn says_nothing(args: &CompareArgs) -> bool {
    let Some(nothing) = read(&["attn", "compare"]) else { return false };
    let CompareArgs { output, long, dry_run, .. } = args.clone();
    *args == CompareArgs { output, long, dry_run, ..nothing }
}

/// The options that a run file was begun with, where it is named and nothing of what is measured is.
fn begun(args: &CompareArgs) -> Result<Option<CompareArgs>> {
    let Some(path) = args.long.run.as_ref().filter(|path| path.exists()) else { return Ok(None) };
    if !says_nothing(args) {
        return Ok(None);
    }
    let command = match kind(path)?.as_str() {
        ModelSpec::KIND => Run::<ModelSpec>::read(path)?.header.about.command,
        _ => Run::<LabSpec>::read(path)?.header.about.command,
    };
    let Some(begun) = read(&command) else {
        bail!("{} was started with a command that this version does not know: {}", path.display(), command.join(" "))
    };
    note(&format!("continuing {}: {}", path.display(), command.join(" ")));
    let (output, long) = (args.output.clone(), args.long.clone());
    Ok(Some(CompareArgs { output, long, dry_run: args.dry_run, ..begun }))
}

fn measure_all(args: &CompareArgs) -> Result<()> {
    check(args)?;
    if let Some(path) = &args.from {
        return present_from(&args.output, path);
    }
    if !args.others.is_empty() {
        return several::run(args);
    }
    text::check(&args.text)?;
    let opened = model::open_plain(&args.model)?;
    // A search needs many windows to split.
    let usual = || if args.search { usize::MAX } else { default_tokens(args, &opened) };
    let most = args.cut.max_tokens.unwrap_or_else(usual);
    // Beside the embedded model as it comes: what other encodings do.
    let plain = args.model.model.is_none() && args.modes.is_empty() && args.long.run.is_none();
    let tasks = tasks(args);
    // Things are hidden in the first text, unless another is named.
    let haystack = !tasks.is_empty() && args.trials.haystack.is_none() && !args.text.is_empty();
    let mut first = String::new();
    let (mut texts, mut infos) = (vec![], vec![]);
    let paths: Vec<Option<&Path>> =
        if args.text.is_empty() { vec![None] } else { args.text.iter().map(|path| Some(path.as_path())).collect() };
    for path in paths {
        let keep = (plain || haystack) && texts.is_empty();
        let read = tokens(&opened, path, &args.cut.text_field, most, &mut |part| {
            if keep && first.len() < KEPT {
                first.push_str(part);
            }
        })?;
        let Source { name, sha256, bytes, documents } = read.source;
        infos.push(TextInfo {
            name: name.clone(),
            sha256,
            bytes,
            documents,
            tokens: read.all,
            used: read.ids.len(),
            used_bytes: None,
        });
        texts.push(Text { name, tokens: read.ids });
    }
    let plan = plan(args, &opened, texts.iter().map(|text| text.tokens.len()).min().unwrap_or(0))?;
    hint(args, &opened, &plan);
    let trained = plan.rope.original_context.or(opened.model.trained_context());
    let metrics = scoring::metrics(&args.metrics, &opened, trained, args.objective)?;
    if args.search {
        return find(args, &opened, &texts, &plan, metrics, infos);
    }
    let fits = |context| opened.fits(context, |context| work(&opened.model, context));
    let comparison = Comparison::new(&opened.model, &texts, &plan, &fits)?.with_metrics(metrics)?;
    let longest = comparison.contexts().into_iter().max().unwrap_or(0);
    opened.check_kept(comparison.kept_bytes(), &work(&opened.model, longest))?;
    let mut about = about::about(&opened, &args.model, args.cut.bos, &plan, infos)?;
    about.settings.metrics = metrics.map(|metrics| metrics.settings);
    about.settings.skipped = comparison.skipped().to_vec();
    trials::warn(&about.settings.skipped, &plan);
    let info = about.texts.first().cloned().filter(|_| haystack);
    let trials = trials(args, &opened, &plan, tasks, info.map(|info| (info, first.as_str())))?;
    let grid = trials.as_ref().map(|(trials, info)| grid(&opened, trials, info.as_ref(), &mut about)).transpose()?;
    let lab = Lab::new(comparison, grid.flatten());
    let quick = || quick(args, &opened, &plan);
    if args.dry_run {
        return estimate::show(&opened, &lab, &plan, &quick, args.output.report.json);
    }
    estimate::announce(&opened, &lab, &plan, &quick)?;
    let Some(scores) = measure(args, &opened.model, &lab, &about)? else { return Ok(()) };
    let mut results = sum_up(lab.specs(), &scores, &about)?;
    if let Some(found) = &mut results.recommendation {
        found.applied = apply::applied(&opened, args.model.model.as_deref(), &plan, found)?;
    }
    if let Some(text) = texts.first().filter(|_| plain) {
        results.encodings = other_encodings(args, &opened, &plan, text.name.clone(), &first, most)?;
    }
    present(&args.output, &about, &results, None)
}

/// The embedded models of every encoding on the first tokens of a text.
fn other_encodings(
    args: &CompareArgs,
    opened: &Opened,
    plan: &Plan,
    name: String,
    text: &str,
    most: usize,
) -> Result<Vec<Cell>> {
    let model = &opened.model;
    let (dtype, device, cache) = (model.dtype(), model.device().clone(), model.cache_types());
    let options = Options { dtype, device, cache, ..Options::default() };
    let (checkpoint, models) = embedded::encodings(&options)?;
    let mut tokens = checkpoint.require_tokenizer()?.encode(text, false)?;
    tokens.truncate(most);
    let contexts: Vec<usize> = plan.contexts.iter().copied().filter(|&context| context <= tokens.len()).collect();
    let mut progress = Progress::new();
    let mut report = |share: f64| progress.set((share * 100.0) as usize, 100, "other encodings");
    let bos = model::bos_of(&checkpoint, args.cut.bos, "the models of other encodings")?;
    Ok(encodings(&models, &Text { name, tokens }, &contexts, bos, plan.seed, &mut report)?)
}

/// The retrieval tasks asked for.
fn tasks(args: &CompareArgs) -> Vec<&'static Task> {
    let of = |measured: &Measured| match measured {
        Measured::Perplexity => vec![],
        Measured::Retrieval(tasks) => tasks.0.clone(),
    };
    args.tasks.iter().flat_map(of).collect()
}

/// The grid of trials beside the perplexities, if one was asked for, with what is known of the text that things are hidden in:
/// the one that is named for it, else `first`, the first of the texts, as far as it is used.
fn trials<'a>(
    args: &CompareArgs,
    opened: &'a Opened,
    plan: &Plan,
    tasks: Vec<&'static Task>,
    first: Option<(TextInfo, &str)>,
) -> Result<Option<(RetrievalPlan<'a>, Option<TextInfo>)>> {
    if tasks.is_empty() {
        return Ok(None);
    }
    let tokenizer = opened.tokenizer()?;
    let named = args.trials.haystack.as_deref();
    let (haystack, info) = match (named, first) {
        (None, Some((info, text))) => {
            let haystack = Haystack::text(&info.name, text, tokenizer)?;
            let used = haystack.tokens();
            (haystack, Some(TextInfo { used, ..info }))
        }
        (named, _) => trials::haystack(named, &args.cut.text_field, tokenizer)?,
    };
    Ok(Some((trials::trials(&args.trials, plan.clone(), tasks, haystack, tokenizer), info)))
}

/// The grid ready to run; `None`, with a warning, if no context can be measured.
fn grid<'a>(
    opened: &Opened,
    trials: &'a RetrievalPlan<'a>,
    haystack: Option<&TextInfo>,
    about: &mut About,
) -> Result<Option<Grid<'a>>> {
    trials::check_decoder(opened)?;
    let grid = Grid::new(&opened.model, trials, &|context| trials::fits(opened, context));
    match grid {
        Ok(grid) => {
            about.settings.retrieval = Some(trials::settings(trials, &grid, haystack.cloned()));
            trials::warn(grid.skipped(), &trials.plan);
            Ok(Some(grid))
        }
        Err(error) => {
            note(&format!("warning: retrieval: {error}"));
            Ok(None)
        }
    }
}

/// Measures every cell, or goes on doing so; `None` if other machines measure some of them.
fn measure(args: &CompareArgs, model: &Model, lab: &Lab, about: &About) -> Result<Option<Vec<Option<LabScores>>>> {
    let mut fill = |indices: &[usize], done: &mut long_run::Done<'_, LabScores>| {
        let mut progress = Progress::watching(model);
        lab.run(indices, &mut |at| progress.set_cell(&at), done)
    };
    let mut next = |scores: &[Option<LabScores>]| Ok(lab.next(scores, about)?);
    long_run::measure(&args.long, args.output.report.json, about, lab.specs(), &mut fill, &mut next)
}

/// Searches for a better scaling rather than comparing the modes.
fn find(
    args: &CompareArgs,
    opened: &Opened,
    texts: &[Text],
    plan: &Plan,
    metrics: Option<Metrics>,
    infos: Vec<TextInfo>,
) -> Result<()> {
    let objective = Objective { metric: args.objective, metrics };
    let mut progress = Progress::new();
    let found = search(&opened.model, texts, plan, args.search_budget, objective, &mut |done, total| {
        progress.set(done, total, "searching");
    })?;
    drop(progress);
    let mut about = about::about(opened, &args.model, args.cut.bos, plan, infos)?;
    about.settings.metrics = metrics.map(|metrics| metrics.settings);
    let results = Results::of(vec![found.stock.clone(), found.winner.cell.clone()], plan.seed);
    present(&args.output, &about, &results, Some(&found))
}

/// What can be known to be wrong before anything is loaded.
fn check(args: &CompareArgs) -> Result<()> {
    if args.model.rope.rope_scaling.is_some() || args.model.rope.rope_factor.is_some() {
        return usage("attn compare sets the scaling itself: use --modes and --factor instead");
    }
    if args.long.shard.is_some()
        && (args.output.report.csv.is_some() || args.output.plot.is_some() || args.output.report.html.is_some())
    {
        return usage("--shard measures only a part: give --csv, --plot and --html to attn merge instead");
    }
    if args.search && args.contexts.len() != 1 {
        return usage("--search needs exactly one context: give it with --contexts");
    }
    if !args.tasks.contains(&Measured::Perplexity) {
        return usage("attn compare always measures perplexity: add ppl to --tasks, or use attn retrieval");
    }
    if args.usable && args.factor == Factor::Auto {
        return usage("--usable needs one factor for all lengths: it can't be used with --factor auto");
    }
    args.metrics.check(args.objective)?;
    long_run::check(&args.long)?;
    present::check(&args.output)
}

/// As many windows as it takes to say anything, of the longest context, or of twice the trained one if none is named.
fn default_tokens(args: &CompareArgs, opened: &Opened) -> usize {
    let longest = match args.contexts.iter().max() {
        Some(&longest) => longest,
        None => opened.model.trained_context().map_or(0, |trained| trained.saturating_mul(2)),
    };
    // A BOS takes a token of every window, so that these are a little more than are used.
    longest.saturating_mul(MIN_WINDOWS).max(DEFAULT_TOKENS)
}

/// What `--quick` would leave of the comparison, unless it was given or leaves all of it.
fn quick(args: &CompareArgs, opened: &Opened, plan: &Plan) -> Option<Quick> {
    if args.quick || !args.modes.is_empty() {
        return None;
    }
    let most = if args.contexts.is_empty() { 2 } else { plan.contexts.len() };
    let modes = quick_modes(opened).iter().map(ToString::to_string).collect();
    Some(Quick { modes, contexts: plan.contexts[..most.min(plan.contexts.len())].to_vec() })
}

/// Says so if the comparison can't show anything.
fn hint(args: &CompareArgs, opened: &Opened, plan: &Plan) {
    let trained = plan.rope.original_context.or(opened.model.trained_context());
    if let (Some(trained), true, true) =
        (trained, matches!(plan.factor, Factor::Auto | Factor::Longest), positions::has_rope(&opened.model))
        && plan.contexts.iter().all(|&context| context <= trained)
        && !args.output.report.json
    {
        note(&format!(
            "no context is longer than the {trained} tokens that the model was trained for, so there is nothing to \
             scale: give longer --contexts, and a --text that fills them"
        ));
    }
}

fn plan(args: &CompareArgs, opened: &Opened, tokens: usize) -> Result<Plan> {
    let rope = args.model.rope.to_override()?.rope;
    let trained = rope.original_context.or(opened.model.trained_context());
    let bos = opened.bos(args.cut.bos)?;
    let judged = args.usable || !tasks(args).is_empty() || args.factor == Factor::Longest;
    let contexts = unique(match args.contexts.as_slice() {
        [] if args.quick => default_contexts(trained, tokens).into_iter().take(2).collect(),
        [] => default_contexts(trained, tokens),
        named => with_trained(named, trained.filter(|_| judged && !args.search), tokens),
    });
    let between = match trained {
        _ if !args.usable => vec![],
        Some(trained) if contexts.contains(&trained) => lengths_between(trained, &contexts),
        Some(trained) => {
            return usage(format!("--usable compares lengths with the trained one: add {trained} to --contexts"));
        }
        None => return usage("--usable compares lengths with the trained one: give it with --rope-original-context"),
    };
    Ok(Plan {
        contexts,
        between,
        modes: if args.quick && args.modes.is_empty() { quick_modes(opened) } else { modes(&args.modes, opened) },
        factor: args.factor,
        stride: args.cut.stride,
        bos,
        rope,
        length: model::window_length(args.model.rope.rope_length),
        seed: args.seed,
    })
}
