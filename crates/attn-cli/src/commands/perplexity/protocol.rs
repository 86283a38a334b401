//! `attn perplexity --protocol`: perplexity as another program takes it.

use super::args::PerplexityArgs;
use super::report::{PerSize, Report, summary};
use crate::measure::scoring::{prefix, tokens, work};
use crate::model::{self, Opened};
use crate::output::{print_json, print_text, usage};
use crate::progress::Progress;
use crate::{memory, positions, text};
use anyhow::Result;
use attn_eval::perplexity::{Label, Scores, check_room};
use attn_eval::protocol::{Pass, Protocol, Size, SizeCounter, score_passes};
use std::path::Path;

/// Bytes that are kept of a document beside its tokens: their list, its windows and their scores.
const DOCUMENT: u64 = 512;

/// Runs the command under another program's protocol.
///
/// # Errors
/// As [`super::run`], and options that the program has no counterpart for.
pub(super) fn run(args: &PerplexityArgs, protocol: Protocol) -> Result<()> {
    if args.cut.stride.is_some() && protocol != Protocol::Stride {
        return usage(format!("--stride can't be used with --protocol {protocol}: its windows don't overlap"));
    }
    if args.cut.max_tokens.is_some() && protocol == Protocol::LmEval {
        return usage(
            "--max-tokens can't be used with --protocol lm-eval, which scores whole documents: shorten the text",
        );
    }
    let opened = model::open(&args.model)?;
    let context = args.context.unwrap_or_else(|| protocol.default_context(opened.model.trained_context()));
    let stride = args.cut.stride.unwrap_or_else(|| protocol.default_stride(context));
    check_room(&opened.model, context)?;
    let bos = opened.bos(args.cut.bos)?;
    let first = match protocol {
        Protocol::LlamaCpp => bos,
        Protocol::Stride => None,
        Protocol::LmEval => prefix(&opened)?,
    };
    let documents = documents(&opened, args, protocol, bos)?;
    let cut = |(tokens, _): &(Vec<u32>, Size)| protocol.passes(tokens.len(), context, stride, first);
    let passes: Vec<Vec<Pass>> = documents.iter().map(cut).collect::<Result<_, _>>()?;
    if passes.iter().all(Vec::is_empty) {
        return usage("there is no token to score in this text");
    }
    opened.check_memory(context, |context| work(&opened.model, context))?;
    let scores = score(&opened, args, &documents, &passes)?;
    let size = documents.iter().fold(Size::default(), |sum, (_, size)| sum.and(*size));
    let nll = scores.windows.iter().map(|window| window.sum).sum();
    let (mode, factor) = positions::scaling(&opened.model);
    let mut cell = scores.cell(&Label { mode, factor, context, stride, seed: 0 });
    // Of windows of several lengths, or scored in part, the last quarter says nothing.
    (cell.last_quarter_perplexity, cell.last_quarter_interval) = (None, None);
    let per_size = (protocol == Protocol::LmEval).then(|| PerSize::new(size, nll));
    let report = Report::new(cell, bos, args, per_size);
    if args.json { print_json(&report) } else { print_text(&summary(&report)) }
}

/// The documents as the program tokenises them: with BOS at the beginning where the tokenizer has it so, whole but for
/// lm-eval, which takes those of a `.jsonl` file one by one.
fn documents(
    opened: &Opened,
    args: &PerplexityArgs,
    protocol: Protocol,
    bos: Option<u32>,
) -> Result<Vec<(Vec<u32>, Size)>> {
    let (path, field) = (args.text.as_deref(), &args.cut.text_field);
    if protocol == Protocol::LmEval {
        let (tokenizer, mut all, mut bytes) = (opened.tokenizer()?, vec![], 0);
        let mut kept = memory::Kept::of(path.unwrap_or(Path::new("-")));
        let lines = text::each_document(path, field, &mut |document| {
            let tokens = text::begun(tokenizer.encode(document, false)?, bos);
            bytes += DOCUMENT + 4 * tokens.len() as u64;
            all.push((tokens, Size::of(document)));
            kept.reach(bytes)
        })?;
        if lines {
            return Ok(all);
        }
    }
    let mut counter = SizeCounter::default();
    let most = args.cut.max_tokens.unwrap_or(usize::MAX);
    let ids = tokens(opened, path, field, most, &mut |part| counter.push(part))?.ids;
    let mut ids = text::begun(ids, bos);
    ids.truncate(most);
    Ok(vec![(ids, counter.size())])
}

fn score(
    opened: &Opened,
    args: &PerplexityArgs,
    documents: &[(Vec<u32>, Size)],
    passes: &[Vec<Pass>],
) -> Result<Scores> {
    let total = passes.iter().flatten().map(Pass::len).sum();
    let (mut progress, mut done) = (Progress::watching(&opened.model), 0);
    let length = model::window_length(args.model.rope.rope_length);
    let mut parts = vec![];
    for ((tokens, _), passes) in documents.iter().zip(passes) {
        parts.push(score_passes(&opened.model, tokens, passes, length, &mut |read| {
            done += read;
            progress.set(done, total, "scoring");
        })?);
    }
    Ok(Scores::pooled(&parts))
}
