//! `attn passkey`: whether a model still finds what stands far back, by position scaling.

use crate::args::ReportArgs;
use crate::lab_args::PasskeyArgs;
use crate::model::{self, Opened};
use crate::output::{color, print_json, print_text, push_line, usage, width, write_file};
use crate::progress::Progress;
use crate::{about, compare, long_run, text};
use anyhow::{Context, Result, ensure};
use attn_eval::compare::Plan;
use attn_eval::passkey::{Haystack, Passkey, PasskeyPlan, Retrieval, summarise};
use attn_eval::report::{
    About, PasskeyDocument, PasskeySettings, TableStyle, TextInfo, heat, html, retrieval_csv, retrieval_headline,
    retrieval_verdict,
};
use attn_models::Architecture;

/// Runs the command.
///
/// # Errors
/// The model or the haystack can't be read, a context doesn't fit the task, or the run file can't be written.
pub(crate) fn run(args: &PasskeyArgs) -> Result<()> {
    if args.model.rope.rope_scaling.is_some() || args.model.rope.rope_factor.is_some() {
        return usage("passkey sets the scaling itself: use --modes and --factor");
    }
    if args.long.shard.is_some() && (args.report.csv.is_some() || args.report.html.is_some()) {
        return usage("--shard measures a part: give --csv and --html to attn merge");
    }
    long_run::check(&args.long)?;
    args.report.check()?;
    let source = args.haystack.as_deref().map(|path| text::read_text(path, &args.text_field)).transpose()?;
    let opened = model::open_plain(&args.model)?;
    let decoder = opened.model.architecture() == Architecture::Decoder;
    ensure!(decoder, "{} is no decoder: retrieval is for models that go on with a prompt", opened.name);
    let tokenizer = opened.tokenizer()?;
    let (haystack, infos) = match source {
        None => (Haystack::paper(tokenizer)?, vec![]),
        Some((text, source)) => {
            let haystack = Haystack::text(&source.name, &text, tokenizer)?;
            let (text::Source { name, sha256, bytes, documents }, used) = (source, haystack.tokens());
            (haystack, vec![TextInfo { name, sha256, bytes, documents, tokens: Some(used), used }])
        }
    };
    let plan = plan(args, &opened)?;
    let mut about = about::about(&opened, &args.model, args.bos, &plan, infos)?;
    let depths = compare::unique(args.depths.clone());
    about.settings.passkey = Some(PasskeySettings { depths: depths.clone(), trials: args.trials });
    let plan = PasskeyPlan { plan, depths, trials: args.trials, haystack, tokenizer };
    let grid = Retrieval::new(&opened.model, &plan)?;
    let scores = long_run::measure(&args.long, args.report.json, &about, grid.specs(), &mut |indices, done| {
        let mut progress = Progress::new();
        let mut report = |at: attn_eval::compare::Progress| {
            progress.set(at.done, at.total, &format!("{} at {}", at.mode, at.context));
        };
        grid.run(indices, &mut report, done)
    })?;
    let Some(scores) = scores else { return Ok(()) };
    show(&args.report, &about, &summarise(&plan.haystack.name, args.seed, args.trials, grid.specs(), &scores)?)
}

fn plan(args: &PasskeyArgs, opened: &Opened) -> Result<Plan> {
    let rope = args.model.rope.to_override()?.rope;
    let trained = rope.original_context.or(opened.model.trained_context());
    let contexts = if args.contexts.is_empty() {
        let trained = trained.context("the checkpoint doesn't say what context it was trained for: give --contexts")?;
        [1, 2, 4].map(|times| times * trained).to_vec()
    } else {
        compare::unique(args.contexts.clone())
    };
    Ok(Plan {
        contexts,
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
pub(crate) fn show(report: &ReportArgs, about: &About, passkey: &Passkey) -> Result<()> {
    if let Some(path) = &report.csv {
        write_file(path, |out| Ok(out.write_all(retrieval_csv(passkey).as_bytes())?))?;
    }
    if let Some(path) = &report.html {
        let page = html::retrieval(about, passkey)?;
        write_file(path, |out| Ok(out.write_all(page.as_bytes())?))?;
    }
    if report.json {
        return print_json(&PasskeyDocument::new(about, passkey));
    }
    let style = TableStyle { width: width(), color: color() };
    let mut out = String::new();
    let trained = about.checkpoint.trained_context.map_or(String::new(), |n| format!(", trained to {n}"));
    push_line(&mut out, &format!("model    {}{trained}", about.checkpoint.name), style.width);
    let hidden = if about.texts.is_empty() { "the paper's sentences" } else { &passkey.haystack };
    push_line(&mut out, &format!("haystack {hidden}"), style.width);
    push_line(&mut out, &format!("BOS      {}", about.settings.bos_line()), style.width);
    out.push('\n');
    out.push_str(&heat(passkey, style));
    out.push('\n');
    for said in std::iter::once(retrieval_headline(passkey, about.trained_context())).chain(retrieval_verdict(passkey))
    {
        push_line(&mut out, &said, style.width);
    }
    print_text(&out)
}
