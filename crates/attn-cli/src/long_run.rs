//! Runs that may be interrupted, or measured in parts on several machines.

use crate::lab_args::RunArgs;
use crate::output::{check_writable, note, print, print_json};
use anyhow::Result;
use attn_eval::report::About;
use attn_eval::run::{Header, Measurable, RunFile, to_measure};
use serde_json::json;

/// Takes a measured cell.
pub(crate) type Done<'a, S> = dyn FnMut(usize, S) -> Result<()> + 'a;

/// Measures the cells of these indices and hands each on.
pub(crate) type Fill<'a, S> = dyn FnMut(&[usize], &mut Done<'_, S>) -> Result<()> + 'a;

/// What can be known to be wrong before anything is loaded.
///
/// # Errors
/// The run file can't be written.
pub(crate) fn check(args: &RunArgs) -> Result<()> {
    args.run.as_deref().map_or(Ok(()), check_writable)
}

/// Measures every cell with `fill`, or those that the run file does not have; `None` if only a part was asked for.
///
/// # Errors
/// The run file is another run's or can't be written; whatever `fill` fails with.
pub(crate) fn measure<C: Measurable>(
    args: &RunArgs,
    as_json: bool,
    about: &About,
    cells: &[C],
    fill: &mut Fill<'_, C::Scores>,
) -> Result<Option<Vec<Option<C::Scores>>>> {
    let Some(path) = &args.run else {
        let mut scores = vec![None; cells.len()];
        fill(&to_measure(cells).collect::<Vec<_>>(), &mut |index, measured| {
            scores[index] = Some(measured);
            Ok(())
        })?;
        return Ok(Some(scores));
    };
    let mut file = RunFile::open(path, Header::new(about.clone(), cells.to_vec()))?;
    let mine: Vec<usize> = args.shard.map_or_else(|| to_measure(cells).collect(), |shard| shard.cells(cells));
    let missing: Vec<usize> = mine.iter().copied().filter(|&index| file.run.scores[index].is_none()).collect();
    if missing.len() < mine.len() && !as_json {
        note(&format!("{}: {} of {} cells are there already", path.display(), mine.len() - missing.len(), mine.len()));
    }
    fill(&missing, &mut |index, scores| file.append(index, scores))?;
    let Some(shard) = args.shard else { return Ok(Some(file.run.scores)) };
    let (shard, name, still) = (shard.to_string(), path.display().to_string(), file.run.missing().len());
    if as_json {
        print_json(&json!({"run": name, "shard": shard, "cells": mine.len(), "missing": still}))?;
    } else {
        print(&format!("shard {shard}: {} cells are in {name}; attn merge joins the shards\n", mine.len()))?;
    }
    Ok(None)
}
