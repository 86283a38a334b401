//! Trials of retrieval, as `attn retrieval` and `attn compare --tasks` set them up.

use crate::measure::plan::unique;
use crate::model::Opened;
use crate::options::TrialArgs;
use crate::output::note;
use crate::{memory, text};
use anyhow::{Result, ensure};
use attn_eval::Skipped;
use attn_eval::compare::{Factor, Plan};
use attn_eval::report::{RetrievalSettings, TextInfo};
use attn_eval::retrieval::{Grid, Haystack, HaystackReader, RetrievalPlan, Task};
use attn_models::Architecture;
use attn_models::memory::Workload;
use loader::Tokenizer;
use std::path::Path;

/// Tokens of an answer whose logits are held at once.
const ANSWER: usize = 128;

/// Refuses models that do not go on with a prompt.
///
/// # Errors
/// The model is no decoder.
pub(crate) fn check_decoder(opened: &Opened) -> Result<()> {
    let decoder = opened.model.architecture() == Architecture::Decoder;
    ensure!(decoder, "{} is not a decoder: retrieval needs a model that continues a prompt", opened.name);
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
    Ok((haystack, Some(TextInfo { name, sha256, bytes, documents, tokens: Some(used), used, used_bytes: None })))
}

/// The grid of trials that the options ask for.
pub(crate) fn trials<'a>(
    args: &TrialArgs,
    plan: Plan,
    tasks: Vec<&'static Task>,
    haystack: Haystack,
    tokenizer: &'a Tokenizer,
) -> RetrievalPlan<'a> {
    let (tasks, depths) = (unique(tasks), unique(args.depths.clone()));
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
        note("the factor of the scalings is still that for the omitted length; --factor sets another");
    }
}

/// What a prompt of `context` tokens and its answer ask of a model.
pub(crate) fn work(context: usize) -> Workload {
    Workload { rows: 1, pass: context, cached: context, encoded: 0, logits: ANSWER }
}

/// Why a prompt of `context` tokens does not fit into memory, if it does not.
pub(crate) fn fits(opened: &Opened, context: usize) -> Result<(), String> {
    opened.fits(context, work)
}
