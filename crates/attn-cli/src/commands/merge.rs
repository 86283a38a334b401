//! `attn merge`: the run files of a comparison that was measured in parts, as one result.

use crate::measure::present::{self, present, present_models, show_retrieval};
use crate::options::OutputArgs;
use crate::output::usage;
use anyhow::{Result, bail};
use attn_eval::across::{self, ModelSpec};
use attn_eval::compare::{LabSpec, sum_up};
use attn_eval::report::RetrievalMetric;
use attn_eval::retrieval::{self, RetrievalSpec};
use attn_eval::run::{Measurable, Run, kind, to_measure};
use clap::Args;
use std::path::PathBuf;

/// `attn merge`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  attn compare MODEL --text book.txt --shard 1/2 --run a.jsonl  # on one machine
  attn compare MODEL --text book.txt --shard 2/2 --run b.jsonl  # on another
  attn merge a.jsonl b.jsonl --json > cells.json

The result is the same, to the last digit, as that of one run without --shard. Runs with other settings \
and missing measurements are refused by name.")]
pub(crate) struct MergeArgs {
    /// Run files of one comparison
    #[arg(required = true, value_name = "RUN")]
    pub(crate) runs: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// Cells that an error about missing ones names before it only counts.
const NAMED: usize = 4;

/// Runs the command.
///
/// # Errors
/// A file is no run file, the runs are of different settings, or cells are missing.
pub(crate) fn run(args: &MergeArgs) -> Result<()> {
    present::check(&args.output)?;
    // All runs have to be of one kind; reading them says so if they are not.
    let first = args.runs.first().map(|path| kind(path)).transpose()?;
    if first.as_deref() == Some(RetrievalSpec::KIND) {
        if args.output.plot.is_some() {
            return usage("--plot works for attn compare, but these are runs of attn retrieval");
        }
        let Run { header, scores, .. } = merged::<RetrievalSpec>(args)?;
        let found = retrieval::summarise(&header.cells, &scores, &header.about)?;
        return show_retrieval(&args.output.report, &header.about, &found, RetrievalMetric::default());
    }
    if first.as_deref() == Some(ModelSpec::KIND) {
        if args.output.plot.is_some() {
            return usage("--plot works for one model, but these runs compare several");
        }
        let Run { header, scores, .. } = merged::<ModelSpec>(args)?;
        let results = across::summarise(&header.cells, &scores, &header.about)?;
        return present_models(&args.output.report, &header.about, &results);
    }
    let Run { header, scores, .. } = merged::<LabSpec>(args)?;
    let results = sum_up(&header.cells, &scores, &header.about)?;
    present(&args.output, &header.about, &results, None)
}

/// The runs as one that lacks nothing.
fn merged<C: Measurable>(args: &MergeArgs) -> Result<Run<C>> {
    let runs: Result<Vec<_>> = args.runs.iter().map(|path| Ok((path.clone(), Run::read(path)?))).collect();
    let run = Run::merge(runs?)?;
    let missing = run.missing();
    if !missing.is_empty() {
        bail!("{}: finish the runs first", missing_cells(&run, &missing));
    }
    Ok(run)
}

fn missing_cells<C: Measurable>(run: &Run<C>, missing: &[usize]) -> String {
    let about = &run.header.about;
    let name = |&index: &usize| {
        let cell = &run.header.cells[index];
        let text = cell.text().and_then(|text| about.texts.get(text)).filter(|_| about.texts.len() > 1);
        let on = text.map_or(String::new(), |text| format!(" on {}", text.name));
        format!("{} at {}{on}", cell.mode(), cell.context())
    };
    let mut names: Vec<String> = missing.iter().take(NAMED).map(name).collect();
    if missing.len() > NAMED {
        names.push(format!("{} more", missing.len() - NAMED));
    }
    let all = to_measure(&run.header.cells).count();
    format!("{} of {all} cells are missing ({})", missing.len(), names.join(", "))
}
