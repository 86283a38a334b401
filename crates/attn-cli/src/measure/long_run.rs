//! Runs that may be interrupted, or measured in parts on several machines.

use crate::options::RunArgs;
use crate::output::{check_writable, note, print_json, print_text};
use anyhow::Result;
use attn_eval::across::ModelSpec;
use attn_eval::compare::CellSpec;
use attn_eval::report::About;
use attn_eval::run::{Header, Measurable, RunFile, to_measure};
use serde_json::json;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a run that is going on has measured: what is said if it is interrupted.
#[derive(Default)]
struct Measured {
    cells: usize,
    lines: Vec<String>,
    advice: String,
}

static MEASURED: Mutex<Option<Measured>> = Mutex::new(None);

fn measured() -> MutexGuard<'static, Option<Measured>> {
    MEASURED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says on stderr what an interrupted run has measured and how it can go on; nothing if none is going on.
pub(crate) fn say_interrupted() {
    let Some(Measured { cells, lines, advice }) = measured().take() else { return };
    note(&format!("\ninterrupted after {} of {cells} measurements", lines.len()));
    lines.iter().for_each(|line| note(&format!("  {line}")));
    note(&advice);
}

fn begin<C: Measurable>(cells: usize, run: Option<&Path>) {
    let advice = match run {
        Some(path) if [CellSpec::KIND, ModelSpec::KIND].contains(&C::KIND) => {
            format!("to continue, repeat the same command, or run attn compare --run {}", path.display())
        }
        Some(_) => "to continue, repeat the same command".to_string(),
        None => "a run with --run FILE can be continued after an interruption".to_string(),
    };
    *measured() = Some(Measured { cells, lines: vec![], advice });
}

/// More cells than was known at the beginning.
fn go_on(cells: usize) {
    if let Some(measured) = measured().as_mut() {
        measured.cells += cells;
    }
}

fn took<C: Measurable>(cell: &C, scores: &C::Scores) {
    if let Some(measured) = measured().as_mut() {
        measured.lines.push(format!("{} at {}: {}", cell.mode(), cell.context(), C::figure(scores)));
    }
}

/// Takes a measured cell.
pub(crate) type Done<'a, S> = dyn FnMut(usize, S) -> Result<()> + 'a;

/// Measures the cells of these indices and hands each on.
pub(crate) type Fill<'a, S> = dyn FnMut(&[usize], &mut Done<'_, S>) -> Result<()> + 'a;

/// Says which cells are to be measured further, given what was measured.
pub(crate) type Next<'a, S> = dyn FnMut(&[Option<S>]) -> Result<Vec<usize>> + 'a;

/// What can be known to be wrong before anything is loaded.
///
/// # Errors
/// The run file can't be written.
pub(crate) fn check(args: &RunArgs) -> Result<()> {
    args.run.as_deref().map_or(Ok(()), check_writable)
}

/// Measures every cell with `fill`, or those that the run file does not have, and then what `next` asks for until it asks for
/// no more; `None` if only a part was asked for.
///
/// # Errors
/// The run file is another run's or can't be written; whatever `fill` fails with.
pub(crate) fn measure<C: Measurable>(
    args: &RunArgs,
    as_json: bool,
    about: &About,
    cells: &[C],
    fill: &mut Fill<'_, C::Scores>,
    next: &mut Next<'_, C::Scores>,
) -> Result<Option<Vec<Option<C::Scores>>>> {
    let Some(path) = &args.run else {
        let mut scores = vec![None; cells.len()];
        let mut wanted: Vec<usize> = to_measure(cells).collect();
        begin::<C>(wanted.len(), None);
        while !wanted.is_empty() {
            fill(&wanted, &mut |index, measured| {
                took(&cells[index], &measured);
                scores[index] = Some(measured);
                Ok(())
            })?;
            wanted = next(&scores)?;
            go_on(wanted.len());
        }
        measured().take();
        return Ok(Some(scores));
    };
    let mut file = RunFile::open(path, Header::new(about.clone(), cells.to_vec()))?;
    let mine: Vec<usize> = args.shard.map_or_else(|| to_measure(cells).collect(), |shard| shard.cells(cells));
    let missing: Vec<usize> = mine.iter().copied().filter(|&index| file.run.scores[index].is_none()).collect();
    if missing.len() < mine.len() && !as_json {
        note(&format!(
            "{}: {} of {} measurements are already there",
            path.display(),
            mine.len() - missing.len(),
            mine.len()
        ));
    }
    begin::<C>(missing.len(), Some(path));
    let mut wanted = missing;
    loop {
        fill(&wanted, &mut |index, scores| {
            took(&cells[index], &scores);
            Ok(file.append(index, scores)?)
        })?;
        wanted = if args.shard.is_none() { next(&file.run.scores)? } else { vec![] };
        if wanted.is_empty() {
            break;
        }
        go_on(wanted.len());
    }
    measured().take();
    let Some(shard) = args.shard else { return Ok(Some(file.run.scores)) };
    let (shard, name, still) = (shard.to_string(), path.display().to_string(), file.run.missing().len());
    if as_json {
        print_json(&json!({"run": name, "shard": shard, "cells": mine.len(), "missing": still}))?;
    } else {
        print_text(&format!(
            "shard {shard}: {} measurements are in {name}; attn merge joins the shards\n",
            mine.len()
        ))?;
    }
    Ok(None)
}
