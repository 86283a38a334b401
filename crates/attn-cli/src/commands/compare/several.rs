//! `attn compare MODEL MODEL...`: several models on the same bytes of the same texts.
//!
//! One model is in memory at a time. Each is loaded twice: to find out what it takes, so that everything is planned before
//! anything is measured, and to be measured.

use super::CompareArgs;
use crate::measure::estimate::{self, SHORT, spoken};
use crate::measure::plan::{named, unique};
use crate::measure::scoring::work;
use crate::measure::{about, long_run, present};
use crate::model::{self, Opened};
use crate::output::{note, print_json, print_text, usage};
use crate::parse::Measured;
use crate::progress::Progress;
use crate::text::{self, Source};
use anyhow::{Context, Result, bail, ensure};
use attn_eval::Skipped;
use attn_eval::across::{self, Encoded, ModelSpec, PassageScores, Passages, common_bytes};
use attn_eval::compare::{Factor, Mode, Plan};
use attn_eval::metrics::MetricName;
use attn_eval::report::{About, ModelInfo, TextInfo};
use attn_eval::run::{Measurable, to_measure};
use attn_eval::stats::MIN_WINDOWS;
use attn_models::Architecture;
use attn_models::memory::weight_bytes;
use candle_core::Device;
use loader::{Checkpoint, Tokenizer};
use serde_json::json;
use std::io::{IsTerminal, stderr};
use std::path::Path;
use std::time::Duration;

/// Tokens of each text that are used at least, unless others are asked for.
const DEFAULT_TOKENS: usize = 8192;
/// The context of models that don't say what they were trained for.
const DEFAULT_CONTEXT: usize = 512;

/// One of the models.
struct Rival {
    /// What reports call it.
    name: String,
    /// Absent while it is loaded.
    checkpoint: Option<Checkpoint>,
    trained: Option<usize>,
    bos: Option<u32>,
}

impl Rival {
    fn open(name: &str, args: &CompareArgs) -> Result<Self> {
        let (checkpoint, name) = model::checkpoint(Some(name), &args.model.load)?;
        let tokenizer = checkpoint.require_tokenizer().with_context(|| name.clone())?;
        tokenizer.warnings.iter().for_each(|warning| note(&format!("warning: {name}: {warning}")));
        let spec = model::spec(&checkpoint.config, &name, &args.model.load)?;
        let decoder = spec.architecture == Architecture::Decoder;
        ensure!(decoder, "{name} is not a decoder: perplexity needs a model that predicts the next token");
        let bos = model::bos_of(&checkpoint, args.cut.bos, &name)?;
        Ok(Self { name, checkpoint: Some(checkpoint), trained: spec.trained_context, bos })
    }

    fn tokenizer(&self) -> Result<&Tokenizer> {
        Ok(self.checkpoint.as_ref().context("the model is loaded")?.require_tokenizer()?)
    }

    /// Does something with the model while it is in memory.
    fn with<T>(&mut self, args: &CompareArgs, device: &Device, run: impl FnOnce(&Opened) -> Result<T>) -> Result<T> {
        let checkpoint = self.checkpoint.take().context("the model is loaded")?;
        let opened = model::load(checkpoint, self.name.clone(), &args.model, device.clone())?;
        let done = run(&opened).with_context(|| self.name.clone());
        self.checkpoint = Some(opened.checkpoint);
        done
    }
}

/// A text as every model sees it, cut for every context.
struct Cut {
    encoded: Vec<Encoded>,
    /// One for each of the plan's contexts.
    passages: Vec<Passages>,
}

/// What is known of a model before anything is measured.
struct Ready {
    plan: Plan,
    info: ModelInfo,
    /// Modes that it does not take, and why.
    left_out: Vec<String>,
    weights: u64,
    /// Bytes beside them.
    memory: u64,
    /// What each of its cells takes: tokens, and millions of floating-point operations.
    work: Vec<(usize, f64)>,
    /// Millions of floating-point operations a second, where it was asked for.
    speed: Option<f64>,
}

/// Runs the command for several models.
///
/// # Errors
/// A model or a text can't be read, a tokenizer does not keep the text, a context or mode doesn't fit, or a file can't be
/// written.
pub(super) fn run(args: &CompareArgs) -> Result<()> {
    check(args)?;
    model::set_threads(args.model.load.threads)?;
    let device = model::device(args.model.load.device)?;
    let names = args.model.model.iter().chain(&args.others);
    let mut rivals: Vec<Rival> = names.map(|name| Rival::open(name, args)).collect::<Result<_>>()?;
    let contexts = contexts(args, &rivals);
    let (mut infos, encoded) = read(args, &rivals, &contexts)?;
    let mut skipped = vec![];
    let (contexts, cut) = cut(args, contexts, encoded, &mut skipped)?;
    let plan = plan(args, contexts)?;
    let timed = args.dry_run || stderr().is_terminal();
    let (mut specs, mut ready, mut first) = (vec![], vec![], None);
    for (index, rival) in rivals.iter_mut().enumerate() {
        let bos = rival.bos;
        let found = rival.with(args, &device, |opened| {
            opened.model.warnings().iter().for_each(|said| note(&format!("warning: {}: {said}", opened.name)));
            if first.is_none() {
                first = Some(about::about(opened, &args.model, args.cut.bos, &plan, vec![])?);
            }
            prepare(opened, (index, bos), &plan, &cut, timed, &mut skipped)
        })?;
        specs.extend(found.0);
        ready.push(found.1);
    }
    skipped.iter().for_each(|skipped| note(&format!("warning: {skipped}")));
    for Ready { info, left_out, .. } in &ready {
        left_out.iter().for_each(|why| note(&format!("warning: {}: {why}", info.checkpoint.name)));
    }
    let measured = |index: &usize| specs.iter().any(|spec: &ModelSpec| spec.model == *index);
    if let Some(index) = (0..rivals.len()).find(|index| !measured(index)) {
        bail!("{} can't be measured at any of the contexts", rivals[index].name)
    }
    for (info, cut) in infos.iter_mut().zip(&cut) {
        info.used_bytes = Some(common_bytes(&cut.encoded));
    }
    let first = first.context("there is no model")?;
    let about = about_all(first, infos, &ready, skipped);
    if args.dry_run {
        return show_plan(&plan, &specs, &ready, &cut, args.output.report.json);
    }
    let expected = time(&ready);
    if !args.output.report.json && expected.is_some_and(|time| time >= SHORT) {
        note(plan_lines(&plan, &specs, &ready, &cut).trim_end());
    }
    let Some(scores) = measure(args, &device, (rivals.as_mut_slice(), ready.as_slice()), &cut, &specs, &about)? else {
        return Ok(());
    };
    present::present_models(&args.output.report, &about, &across::summarise(&specs, &scores, &about)?)
}

/// What can be known to be wrong before anything is loaded, beside what is wrong for one model.
fn check(args: &CompareArgs) -> Result<()> {
    let names: Vec<&String> = args.model.model.iter().chain(&args.others).collect();
    if let Some(twice) = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)) {
        return usage(format!("{} is given twice: give it once, with several --modes", twice.1));
    }
    if args.tasks.iter().any(|task| matches!(task, Measured::Retrieval(_))) {
        return usage("--tasks retrieval works for one model only: two tokenizers would get different prompts");
    }
    if args.metrics.metrics.iter().any(|metric| *metric != MetricName::Ppl) {
        return usage("--metrics works for one model only: longppl and kl compare its modes with the model as it is");
    }
    text::check(&args.text)
}

/// The contexts asked for, else the longest that all models were trained for.
fn contexts(args: &CompareArgs, rivals: &[Rival]) -> Vec<usize> {
    match args.contexts.as_slice() {
        [] => vec![rivals.iter().filter_map(|rival| rival.trained).min().unwrap_or(DEFAULT_CONTEXT)],
        named => unique(named.to_vec()),
    }
}

/// The texts as every model sees them, as far as they are used.
fn read(args: &CompareArgs, rivals: &[Rival], contexts: &[usize]) -> Result<(Vec<TextInfo>, Vec<Vec<Encoded>>)> {
    let longest = contexts.iter().copied().max().unwrap_or(0);
    // One window more than it takes to say anything: the last is hardly ever full.
    let most = args.cut.max_tokens.unwrap_or_else(|| longest.saturating_mul(MIN_WINDOWS + 1).max(DEFAULT_TOKENS));
    let tokenizers: Vec<&Tokenizer> = rivals.iter().map(Rival::tokenizer).collect::<Result<_>>()?;
    let paths: Vec<Option<&Path>> =
        if args.text.is_empty() { vec![None] } else { args.text.iter().map(|path| Some(path.as_path())).collect() };
    let (mut infos, mut all) = (vec![], vec![]);
    for path in paths {
        let (source, text, ids) = text::tokenize_all(path, &args.cut.text_field, &tokenizers, most)?;
        let encode = |(rival, ids): (&Rival, Vec<u32>)| {
            let ends = rival
                .tokenizer()?
                .ends(&ids, &text)
                .with_context(|| format!("{} can't be compared with another model on {}", rival.name, source.name))?;
            Ok(Encoded { ids, ends, bos: rival.bos })
        };
        let encoded: Vec<Encoded> = rivals.iter().zip(ids).map(encode).collect::<Result<_>>()?;
        let used = encoded.first().map_or(0, |encoded| encoded.ids.len());
        let Source { name, sha256, bytes, documents } = source;
        infos.push(TextInfo { name, sha256, bytes, documents, tokens: None, used, used_bytes: None });
        all.push(encoded);
    }
    Ok((infos, all))
}

/// Cuts the texts for every context; those that a text is too short for are left out.
fn cut(
    args: &CompareArgs,
    contexts: Vec<usize>,
    encoded: Vec<Vec<Encoded>>,
    skipped: &mut Vec<Skipped>,
) -> Result<(Vec<usize>, Vec<Cut>)> {
    let mut kept = vec![];
    let mut passages: Vec<Vec<Passages>> = encoded.iter().map(|_| vec![]).collect();
    for context in contexts {
        let cut = encoded.iter().map(|texts| Passages::cut(texts, context, args.cut.stride));
        match cut.collect::<Result<Vec<_>, _>>() {
            Ok(found) => {
                kept.push(context);
                passages.iter_mut().zip(found).for_each(|(all, one)| all.push(one));
            }
            Err(error) => skipped.push(Skipped { context, task: None, reason: error.to_string() }),
        }
    }
    if kept.is_empty() {
        return Err(attn_eval::Error::NothingLeft { skipped: skipped.clone() }.into());
    }
    let cut = encoded.into_iter().zip(passages).map(|(encoded, passages)| Cut { encoded, passages });
    Ok((kept, cut.collect()))
}

fn plan(args: &CompareArgs, contexts: Vec<usize>) -> Result<Plan> {
    let modes = match args.modes.as_slice() {
        [] => vec![Mode::Checkpoint],
        asked => named(asked),
    };
    Ok(Plan {
        contexts,
        between: vec![],
        modes,
        factor: args.factor,
        stride: args.cut.stride,
        bos: None,
        rope: args.model.rope.to_override()?.rope,
        length: model::window_length(args.model.rope.rope_length),
        seed: args.seed,
    })
}

/// The cells of a model, and what they take.
fn prepare(
    opened: &Opened,
    (index, bos): (usize, Option<u32>),
    plan: &Plan,
    cut: &[Cut],
    timed: bool,
    skipped: &mut Vec<Skipped>,
) -> Result<(Vec<ModelSpec>, Ready)> {
    let (modes, left_out) = across::modes_of(&opened.model, plan)?;
    let plan = Plan { modes, bos, ..plan.clone() };
    let fits = |context| opened.fits(context, |context| work(&opened.model, context));
    let (specs, more) = across::cells(&opened.model, (index, &opened.name), cut.len(), &plan, &fits)?;
    skipped.extend(more);
    let longest = specs.iter().map(|spec| spec.context).max().unwrap_or(0);
    let of_cell = |spec: &ModelSpec| {
        if !spec.is_measured() {
            return (0, 0.0);
        }
        let passages = plan.contexts.iter().zip(&cut[spec.text].passages).find(|(c, _)| **c == spec.context);
        let tokens = passages.map_or(0, |(_, passages)| passages.windows[index].work());
        (tokens, across::work(&opened.model, tokens, spec.context))
    };
    let ready = Ready {
        info: ModelInfo {
            checkpoint: about::checkpoint(opened)?,
            modes: plan.modes.iter().map(ToString::to_string).collect(),
            bos,
            used: cut.iter().map(|cut| cut.encoded[index].ids.len()).collect(),
        },
        left_out,
        weights: weight_bytes(opened.checkpoint.weights.as_ref(), opened.model.dtype()),
        memory: opened.needed_memory(&work(&opened.model, longest)),
        work: specs.iter().map(of_cell).collect(),
        speed: if timed { Some(estimate::speed(opened)?) } else { None },
        plan,
    };
    Ok((specs, ready))
}

/// What holds for all models.
fn about_all(first: About, texts: Vec<TextInfo>, ready: &[Ready], skipped: Vec<Skipped>) -> About {
    let mut about = About { texts, models: ready.iter().map(|ready| ready.info.clone()).collect(), ..first };
    about.settings.modes = unique(about.models.iter().flat_map(|model| model.modes.clone()).collect());
    about.settings.skipped = skipped;
    // Each has its own.
    about.settings.bos = None;
    if !matches!(ready.first().map(|ready| ready.plan.factor), Some(Factor::Fixed(_))) {
        about.settings.factor = None;
    }
    about
}

/// Measures every cell, or those that a run file lacks; `None` if other machines measure some of them.
fn measure(
    args: &CompareArgs,
    device: &Device,
    (rivals, ready): (&mut [Rival], &[Ready]),
    cut: &[Cut],
    specs: &[ModelSpec],
    about: &About,
) -> Result<Option<Vec<Option<PassageScores>>>> {
    let costs: Vec<f64> = ready.iter().flat_map(|ready| ready.work.iter().map(|(_, work)| *work)).collect();
    let mut fill = |indices: &[usize], done: &mut long_run::Done<'_, PassageScores>| {
        let total: f64 = indices.iter().map(|&index| costs[index]).sum();
        let (mut progress, mut before) = (Progress::new(), 0.0);
        // The cells of a model lie together.
        for of_model in indices.chunk_by(|&a, &b| specs[a].model == specs[b].model) {
            let model = specs[of_model[0]].model;
            let plan = &ready[model].plan;
            rivals[model].with(args, device, |opened| {
                for &index in of_model {
                    let spec = &specs[index];
                    let Cut { encoded, passages } = &cut[spec.text];
                    let at = plan.contexts.iter().position(|&context| context == spec.context);
                    let passages = &passages[at.context("the text was not cut for this context")?];
                    let all = passages.windows[model].work().max(1) as f64;
                    let mut read = 0;
                    let message = format!("{} at {}", spec.row, spec.context);
                    let ids = &encoded[model].ids;
                    let scores = across::measure(&opened.model, plan, spec, ids, passages, &mut |tokens| {
                        read += tokens;
                        let share = before + costs[index] * (read as f64 / all);
                        progress.set(share as usize, total as usize, &message);
                    })?;
                    done(index, scores)?;
                    before += costs[index];
                }
                Ok(())
            })?;
        }
        Ok(())
    };
    long_run::measure(&args.long, args.output.report.json, about, specs, &mut fill, &mut |_| Ok(vec![]))
}

/// What all models together take, where it was asked for.
fn time(ready: &[Ready]) -> Option<Duration> {
    let of = |ready: &Ready| Some(ready.work.iter().map(|(_, work)| work).sum::<f64>() / ready.speed?);
    Some(Duration::from_secs_f64(ready.iter().map(of).sum::<Option<f64>>()?.min(1e9)))
}

/// Windows of each context, over all texts.
fn windows(plan: &Plan, cut: &[Cut]) -> Vec<(usize, usize)> {
    let count = |at: usize| cut.iter().map(|cut| cut.passages[at].scored.len()).sum();
    plan.contexts.iter().enumerate().map(|(at, &context)| (context, count(at))).collect()
}

/// Measurements, and tokens to read for them.
fn measurements(specs: &[ModelSpec], ready: &[Ready]) -> (usize, usize) {
    (to_measure(specs).count(), ready.iter().flat_map(|ready| &ready.work).map(|(tokens, _)| tokens).sum())
}

fn plan_lines(plan: &Plan, specs: &[ModelSpec], ready: &[Ready], cut: &[Cut]) -> String {
    let mut out = String::new();
    for Ready { info, weights, memory, .. } in ready {
        let megabytes = (weights + memory).div_ceil(1_000_000);
        let modes = info.modes.join(", ");
        out.push_str(&format!("model    {}: {modes}; about {megabytes} MB of memory\n", info.checkpoint.name));
    }
    let of_context = |(context, n): (usize, usize)| format!("{n} of at most {context} tokens");
    let windows: Vec<String> = windows(plan, cut).into_iter().map(of_context).collect();
    let (measurements, tokens) = measurements(specs, ready);
    out.push_str(&format!("windows  {}, the same bytes for all models\n", windows.join(", ")));
    out.push_str(&format!(
        "in total {measurements} measurements, {tokens} tokens to read, one model after the other\n"
    ));
    if let Some(time) = time(ready) {
        out.push_str(&format!("time     about {} on this machine\n", spoken(time)));
    }
    out
}

/// Prints what would be measured.
fn show_plan(plan: &Plan, specs: &[ModelSpec], ready: &[Ready], cut: &[Cut], as_json: bool) -> Result<()> {
    if !as_json {
        return print_text(&plan_lines(plan, specs, ready, cut));
    }
    let models: Vec<_> = ready
        .iter()
        .map(|ready| {
            json!({
                "name": ready.info.checkpoint.name, "modes": ready.info.modes, "weight_bytes": ready.weights,
                "memory_bytes": ready.memory,
            })
        })
        .collect();
    let windows: serde_json::Map<String, serde_json::Value> =
        windows(plan, cut).into_iter().map(|(context, n)| (context.to_string(), n.into())).collect();
    let (measurements, tokens) = measurements(specs, ready);
    print_json(&json!({
        "models": models, "contexts": plan.contexts, "windows": windows, "measurements": measurements, "tokens": tokens,
        "memory_bytes": ready.iter().map(|ready| ready.weights + ready.memory).max(),
        "seconds": time(ready).map(|time| time.as_secs_f64()),
    }))
}
