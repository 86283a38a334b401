//! `attn retrieval`: whether a model still finds what stands far back, by position scaling.

use crate::measure::plan::{modes, unique, with_trained};
use crate::measure::present::show_retrieval;
use crate::measure::{about, long_run, trials};
use crate::model::{self, Opened};
use crate::options::{ModelArgs, ReportArgs, RunArgs, TrialArgs, modes_help};
use crate::output::usage;
use crate::parse::{
    BosChoice, Modes, Tasks, parse_mode_factor, parse_modes, parse_positive, parse_retrieval_metric, parse_tasks,
    tasks_help,
};
use crate::progress::Progress;
use crate::text;
use anyhow::{Context, Result};
use attn_eval::compare::{Factor, Plan};
use attn_eval::report::RetrievalMetric;
use attn_eval::retrieval::{Grid, TASKS, Task, summarise};
use clap::Args;

/// `attn retrieval`
#[derive(Debug, Args)]
#[command(after_help = tasks_list("\
Examples:
  attn retrieval MODEL --contexts 4096,8192 --modes none,dynamic,yarn
  attn retrieval MODEL --tasks all --haystack book.txt --contexts 8192
  attn retrieval MODEL --contexts 8192 --depths 0,0.5,1 --trials 10 --json"))]
pub(crate) struct RetrievalArgs {
    #[arg(long, alias = "task", value_name = "TASK,..", value_delimiter = ',', value_parser = parse_tasks, help = tasks_help())]
    pub(crate) tasks: Vec<Tasks>,
    /// Key that holds the text in each line of a .jsonl file
    #[arg(long, value_name = "KEY", default_value = "text")]
    pub(crate) text_field: String,
    /// Tokens of prompt and answer together, one column each; the trained context is added if all are longer [default: 1,
    /// 2 and 4 times the trained context]
    #[arg(long, alias = "context", value_name = "N,..", value_delimiter = ',', allow_negative_numbers = true, value_parser = parse_positive)]
    pub(crate) contexts: Vec<usize>,
    #[arg(long, value_name = "MODE,..", value_delimiter = ',', value_parser = parse_modes, help = modes_help("one grid each"))]
    pub(crate) modes: Vec<Modes>,
    /// Factor of the scalings: a number; longest: longest context / trained context, for every context, as when a model is
    /// served; auto: each context / trained context
    #[arg(long, value_name = "F", default_value = "longest", allow_negative_numbers = true, value_parser = parse_mode_factor)]
    pub(crate) factor: Factor,
    /// Seed of the hidden things and of the passages of the haystack
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Figure to show by depth: found (share of the hidden things found) or answer_nll (nats per token of the right answer)
    #[arg(long, value_name = "METRIC", default_value = "found", value_parser = parse_retrieval_metric)]
    pub(crate) metric: RetrievalMetric,
    /// Begin every prompt with the BOS token; auto: only if the tokenizer does so
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = BosChoice::Auto)]
    pub(crate) bos: BosChoice,
    #[command(flatten)]
    pub(crate) trials: TrialArgs,
    #[command(flatten)]
    pub(crate) report: ReportArgs,
    #[command(flatten)]
    pub(crate) long: RunArgs,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
}

/// What follows the options of `attn retrieval`: examples and what the tasks are.
pub(crate) fn tasks_list(examples: &str) -> String {
    let tasks: Vec<String> = TASKS.iter().map(|task| format!("  {}\n      {}", task.name, task.summary)).collect();
    format!(
        "{examples}\n\nTasks:\n{}\n\nA single number counts as found if it is exactly the first number in the answer. Every mode \
         gets the same trials. A context that can't be measured is left out with a warning. A task that the model fails \
         within its trained context is not counted.",
        tasks.join("\n")
    )
}

/// Runs the command, of these tasks unless others are asked for.
///
/// # Errors
/// The model or the haystack can't be read, no context can be measured, or the run file can't be written.
pub(crate) fn run(args: &RetrievalArgs, usual: Vec<&'static Task>) -> Result<()> {
    if args.model.rope.rope_scaling.is_some() || args.model.rope.rope_factor.is_some() {
        return usage("attn retrieval sets the scaling itself: use --modes and --factor instead");
    }
    if args.long.shard.is_some() && (args.report.csv.is_some() || args.report.html.is_some()) {
        return usage("--shard measures only a part: give --csv and --html to attn merge instead");
    }
    long_run::check(&args.long)?;
    args.report.check()?;
    text::check(args.trials.haystack.as_slice())?;
    let opened = model::open_plain(&args.model)?;
    trials::check_decoder(&opened)?;
    let (haystack, info) = trials::haystack(args.trials.haystack.as_deref(), &args.text_field, opened.tokenizer()?)?;
    let asked: Vec<&'static Task> = args.tasks.iter().flat_map(|tasks| tasks.0.iter().copied()).collect();
    let tasks = if asked.is_empty() { usual } else { asked };
    let plan = trials::trials(&args.trials, plan(args, &opened)?, tasks, haystack, opened.tokenizer()?);
    let grid = Grid::new(&opened.model, &plan, &|context| trials::fits(&opened, context))?;
    let mut about = about::about(&opened, &args.model, args.bos, &plan.plan, vec![])?;
    about.settings.retrieval = Some(trials::settings(&plan, &grid, info));
    trials::warn(grid.skipped(), &plan.plan);
    let scores = long_run::measure(
        &args.long,
        args.report.json,
        &about,
        grid.specs(),
        &mut |indices, done| {
            let mut progress = Progress::watching(&opened.model);
            grid.run(indices, &mut |at| progress.set_cell(&at), done)
        },
        &mut |_| Ok(vec![]),
    )?;
    let Some(scores) = scores else { return Ok(()) };
    show_retrieval(&args.report, &about, &summarise(grid.specs(), &scores, &about)?, args.metric)
}

fn plan(args: &RetrievalArgs, opened: &Opened) -> Result<Plan> {
    let rope = args.model.rope.to_override()?.rope;
    let trained = rope.original_context.or(opened.model.trained_context());
    let contexts = if args.contexts.is_empty() {
        let trained = trained.context("the checkpoint doesn't say what context it was trained for: give --contexts")?;
        [1, 2, 4].map(|times| times * trained).to_vec()
    } else {
        // What the model can do at all is seen at the trained length.
        unique(with_trained(&args.contexts, trained, usize::MAX))
    };
    Ok(Plan {
        contexts,
        between: vec![],
        modes: modes(&args.modes, opened),
        factor: args.factor,
        stride: None,
        bos: opened.bos(args.bos)?,
        rope,
        length: model::window_length(args.model.rope.rope_length),
        seed: args.seed,
    })
}
