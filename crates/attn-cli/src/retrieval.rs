//! `attn retrieval`: whether a model still finds what stands far back, by position scaling.

use crate::args::ReportArgs;
use crate::lab_args::{RetrievalArgs, TrialArgs};
use crate::model::{self, Opened};
use crate::output::{color, note, print_json, print_text, push_line, usage, width, write_file};
use crate::progress::Progress;
use crate::{about, compare, long_run, memory, text};
use anyhow::{Context, Result, ensure};
use attn_eval::Skipped;
use attn_eval::compare::{Factor, Plan};
use attn_eval::report::{
    About, RetrievalDocument, RetrievalSettings, TableStyle, TextInfo, heat, html, retrieval_csv, retrieval_headline,
    retrieval_verdict,
};
use attn_eval::retrieval::{Grid, Haystack, HaystackReader, Retrieval, RetrievalPlan, Task, summarise};
use attn_models::Architecture;
use attn_models::memory::Workload;
use loader::Tokenizer;
use std::path::Path;

/// Tokens of an answer whose logits are held at once.
const ANSWER: usize = 128;

/// Runs the command, of these tasks unless others are asked for.
///
/// # Errors
/// The model or the haystack can't be read, no context can be measured, or the run file can't be written.
pub(crate) fn run(args: &RetrievalArgs, usual: Vec<&'static Task>) -> Result<()> {
    if args.model.rope.rope_scaling.is_some() || args.model.rope.rope_factor.is_some() {
        return usage("retrieval sets the scaling itself: use --modes and --factor");
    }
    if args.long.shard.is_some() && (args.report.csv.is_some() || args.report.html.is_some()) {
        return usage("--shard measures a part: give --csv and --html to attn merge");
    }
    long_run::check(&args.long)?;
    args.report.check()?;
    text::check(args.trials.haystack.as_slice())?;
    let opened = model::open_plain(&args.model)?;
    check_decoder(&opened)?;
    let (haystack, info) = haystack(args.trials.haystack.as_deref(), &args.text_field, opened.tokenizer()?)?;
    let asked: Vec<&'static Task> = args.tasks.iter().flat_map(|tasks| tasks.0.iter().copied()).collect();
    let tasks = if asked.is_empty() { usual } else { asked };
    let plan = trials(&args.trials, plan(args, &opened)?, tasks, haystack, opened.tokenizer()?);
    let grid = Grid::new(&opened.model, &plan, &|context| fits(&opened, context))?;
    let mut about = about::about(&opened, &args.model, args.bos, &plan.plan, vec![])?;
    about.settings.retrieval = Some(settings(&plan, &grid, info));
    warn(grid.skipped(), &plan.plan);
    let scores = long_run::measure(
        &args.long,
        args.report.json,
        &about,
        grid.specs(),
        &mut |indices, done| {
            let mut progress = Progress::new();
            grid.run(indices, &mut |at| progress.set_cell(&at), done)
        },
        &mut |_| Ok(vec![]),
    )?;
    let Some(scores) = scores else { return Ok(()) };
    show(&args.report, &about, &summarise(grid.specs(), &scores, &about)?)
}

/// Refuses models that do not go on with a prompt.
///
/// # Errors
/// The model is no decoder.
pub(crate) fn check_decoder(opened: &Opened) -> Result<()> {
    let decoder = opened.model.architecture() == Architecture::Decoder;
    ensure!(decoder, "{} is no decoder: retrieval is for models that go on with a prompt", opened.name);
    Ok(())
}

/// What things are hidden in, and what is known of it if it is a text of the user's.
///
/// # Errors
/// It can't be read or tokenised, or does not fit into memory.
pub(crate) fn haystack(
    path: Option<&Path>,
    field: &str,
    tokenizer: &Tokenizer,
) -> Result<(Haystack, Option<TextInfo>)> {
    let Some(path) = path else { return Ok((Haystack::paper(tokenizer)?, None)) };
    let (mut reader, mut kept) = (HaystackReader::new(tokenizer), memory::Kept::of(path));
    let source = text::each_part(path, field, &mut |part| {
        reader.push(part)?;
        kept.reach(reader.bytes())
    })?;
    let haystack = reader.finish(&source.name)?;
    let (text::Source { name, sha256, bytes, documents }, used) = (source, haystack.tokens());
    Ok((haystack, Some(TextInfo { name, sha256, bytes, documents, tokens: Some(used), used })))
}

/// The grid of trials that the options ask for.
pub(crate) fn trials<'a>(
    args: &TrialArgs,
    plan: Plan,
    tasks: Vec<&'static Task>,
    haystack: Haystack,
    tokenizer: &'a Tokenizer,
) -> RetrievalPlan<'a> {
    let (tasks, depths) = (compare::unique(tasks), compare::unique(args.depths.clone()));
    RetrievalPlan { plan, tasks, depths, trials: args.trials, haystack, tokenizer }
}

/// The settings of a grid, for reports.
pub(crate) fn settings(plan: &RetrievalPlan, grid: &Grid, haystack: Option<TextInfo>) -> RetrievalSettings {
    RetrievalSettings {
        tasks: plan.tasks.iter().map(|task| task.name.to_string()).collect(),
        haystack,
        depths: plan.depths.clone(),
        trials: plan.trials,
        skipped: grid.skipped().to_vec(),
    }
}

/// Says what is left out, and why; and what that leaves as it is.
pub(crate) fn warn(skipped: &[Skipped], plan: &Plan) {
    skipped.iter().for_each(|skipped| note(&format!("warning: {skipped}")));
    let longest = plan.contexts.iter().max();
    let scales = plan.factor == Factor::Longest && plan.modes.iter().any(|mode| mode.takes_factor());
    if scales && skipped.iter().any(|skipped| Some(&skipped.context) == longest) {
        note("the scalings' factor is still the one for that length; --factor sets another");
    }
}

/// What a prompt of `context` tokens and its answer ask of a model.
pub(crate) fn work(context: usize) -> Workload {
    Workload { rows: 1, pass: context, cached: context, encoded: 0, logits: ANSWER }
}

/// Refuses a prompt that does not fit into memory.
///
/// # Errors
/// It does not.
pub(crate) fn fits(opened: &Opened, context: usize) -> Result<()> {
    memory::check(opened, context, work)
}

fn plan(args: &RetrievalArgs, opened: &Opened) -> Result<Plan> {
    let rope = args.model.rope.to_override()?.rope;
    let trained = rope.original_context.or(opened.model.trained_context());
    let contexts = if args.contexts.is_empty() {
        let trained = trained.context("the checkpoint doesn't say what context it was trained for: give --contexts")?;
        [1, 2, 4].map(|times| times * trained).to_vec()
    } else {
        // What the model can do at all is seen at the trained length.
        compare::unique(compare::with_trained(&args.contexts, trained, usize::MAX))
    };
    Ok(Plan {
        contexts,
        between: vec![],
        modes: compare::modes(&args.modes, opened),
        factor: args.factor,
        stride: None,
        bos: opened.bos(args.bos)?,
        rope,
        length: model::window_length(args.model.rope.rope_length),
        seed: args.seed,
    })
}

/// Shows a grid.
///
/// # Errors
/// A file or stdout can't be written.
pub(crate) fn show(report: &ReportArgs, about: &About, retrieval: &Retrieval) -> Result<()> {
    if let Some(path) = &report.csv {
        write_file(path, |out| Ok(out.write_all(retrieval_csv(retrieval).as_bytes())?))?;
    }
    if let Some(path) = &report.html {
        let page = html::retrieval(about, retrieval)?;
        write_file(path, |out| Ok(out.write_all(page.as_bytes())?))?;
    }
    if report.json {
        return print_json(&RetrievalDocument::new(about, retrieval));
    }
    let style = TableStyle { width: width(), color: color() };
    let mut out = String::new();
    let trained = about.checkpoint.trained_context.map_or(String::new(), |n| format!(", trained to {n}"));
    push_line(&mut out, &format!("model    {}{trained}", about.checkpoint.name), style.width);
    let own = about.settings.retrieval.as_ref().is_some_and(|settings| settings.haystack.is_some());
    let hidden = if own { &retrieval.haystack } else { "the passkey paper's sentences" };
    push_line(&mut out, &format!("haystack {hidden}"), style.width);
    push_line(&mut out, &format!("BOS      {}", about.settings.bos_line()), style.width);
    out.push('\n');
    out.push_str(&heat(retrieval, style));
    out.push('\n');
    let headline = retrieval_headline(retrieval, about.trained_context());
    for said in std::iter::once(headline).chain(retrieval_verdict(retrieval)) {
        push_line(&mut out, &said, style.width);
    }
    print_text(&out)
}
