//! `attn merge`: the run files of a comparison that was measured in parts, as one result.

use crate::args::MergeArgs;
use crate::present::{self, present};
use anyhow::{Result, bail};
use attn_eval::compare::summarise;
use attn_eval::run::Run;

/// Cells that an error about missing ones names before it only counts.
const NAMED: usize = 4;

/// Runs the command.
///
/// # Errors
/// A file is no run file, the runs are of different settings, or cells are missing.
pub(crate) fn run(args: &MergeArgs) -> Result<()> {
    present::check(&args.output)?;
    let runs: Result<Vec<_>> = args.runs.iter().map(|path| Ok((path.clone(), Run::read(path)?))).collect();
    let run = Run::merge(runs?)?;
    let missing = run.missing();
    if !missing.is_empty() {
        bail!("{}: finish the runs first", missing_cells(&run, &missing));
    }
    let about = &run.header.about;
    present(&args.output, about, &summarise(&run.header.cells, &run.scores, about.settings.seed)?)
}

fn missing_cells(run: &Run, missing: &[usize]) -> String {
    let about = &run.header.about;
    let name = |&index: &usize| {
        let cell = &run.header.cells[index];
        let text = about.texts.get(cell.text).filter(|_| about.texts.len() > 1);
        let on = text.map_or(String::new(), |text| format!(" on {}", text.name));
        format!("{} at {}{on}", cell.mode, cell.context)
    };
    let mut names: Vec<String> = missing.iter().take(NAMED).map(name).collect();
    if missing.len() > NAMED {
        names.push(format!("{} more", missing.len() - NAMED));
    }
    let all = attn_eval::compare::to_measure(&run.header.cells).count();
    format!("{} of {all} cells are missing ({})", missing.len(), names.join(", "))
}
