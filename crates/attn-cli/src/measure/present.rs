//! How a comparison or a grid of retrieval is shown: a table and a verdict, or JSON, and the files that were asked for.

use crate::options::{OutputArgs, ReportArgs, check_files};
use crate::output::{color, print_json, print_text, push_line, usage, width, write_file};
use crate::text;
use anyhow::{Context, Result};
use attn_eval::across::ModelResults;
use attn_eval::compare::Results;
use attn_eval::report::{
    About, Document, ENCODINGS, ModelsDocument, RetrievalDocument, RetrievalMetric, TableStyle, Verdict, answers, csv,
    found as found_table, heat, html, is_of_models, metrics, model_lines, models_csv, models_table, models_verdict,
    read_document, read_models_document, retrieval_csv, retrieval_headline, retrieval_verdict, search_sentence, svg,
    table, text_line, verdict,
};
use attn_eval::retrieval::Retrieval;
use attn_eval::search::Search;
use std::path::Path;

/// What can be known to be wrong before anything is measured.
///
/// # Errors
/// A path that can't be written, or of a kind that isn't written.
pub(crate) fn check(args: &OutputArgs) -> Result<()> {
    check_files(args.report.csv.iter().chain(&args.report.html).chain(&args.plot))?;
    if let Some(plot) = &args.plot
        && plot.extension().is_some_and(|extension| !extension.eq_ignore_ascii_case("svg"))
    {
        return usage(format!(
            "--plot {}: a chart is an .svg file; rsvg-convert or a browser turns it into another format",
            plot.display()
        ));
    }
    Ok(())
}

/// Shows a comparison.
///
/// # Errors
/// A file or stdout can't be written.
pub(crate) fn present(args: &OutputArgs, about: &About, results: &Results, search: Option<&Search>) -> Result<()> {
    if let Some(path) = &args.report.csv {
        write_file(path, |out| Ok(out.write_all(csv(results).as_bytes())?))?;
    }
    if let Some(path) = &args.plot {
        let title = format!("Perplexity of {} by context", about.checkpoint.name);
        let chart = svg(&results.cells, &title, about.trained_context());
        write_file(path, |out| Ok(out.write_all(chart.as_bytes())?))?;
    }
    if let Some(path) = &args.report.html {
        let page = html::comparison(about, results, search)?;
        write_file(path, |out| Ok(out.write_all(page.as_bytes())?))?;
    }
    if args.report.json {
        return print_json(&Document::new(about, results).with_search(search));
    }
    match search {
        Some(search) => print_text(&found(about, results, search)),
        None => print_text(&report(about, results)),
    }
}

/// Shows a comparison that `--json` wrote.
///
/// # Errors
/// The file can't be read or is none, or as [`present`].
pub(crate) fn present_from(args: &OutputArgs, path: &Path) -> Result<()> {
    let name = path.display();
    let text = text::read_file(path)?;
    if is_of_models(&text) {
        if args.plot.is_some() {
            return usage(format!("--plot works for one model, but {name} compares several: use --html"));
        }
        let (about, results) = read_models_document(&text).with_context(|| format!("can't show {name}"))?;
        return present_models(&args.report, &about, &results);
    }
    let (about, results) = read_document(&text).with_context(|| format!("can't show {name}"))?;
    present(args, &about, &results, None)
}

/// Shows a comparison of several models.
///
/// # Errors
/// A file or stdout can't be written.
pub(crate) fn present_models(report: &ReportArgs, about: &About, results: &ModelResults) -> Result<()> {
    if let Some(path) = &report.csv {
        write_file(path, |out| Ok(out.write_all(models_csv(results).as_bytes())?))?;
    }
    if let Some(path) = &report.html {
        let page = html::models(about, results)?;
        write_file(path, |out| Ok(out.write_all(page.as_bytes())?))?;
    }
    if report.json {
        return print_json(&ModelsDocument::new(about, results));
    }
    let style = TableStyle { width: width(), color: color() };
    let mut out = String::new();
    let models = model_lines(about, results);
    let texts = about.texts.iter().map(|text| format!("text  {}", text_line(text)));
    models.into_iter().chain(texts).for_each(|line| push_line(&mut out, &line, style.width));
    out.push('\n');
    out.push_str(&models_table(about, results, style));
    out.push('\n');
    models_verdict(results).iter().for_each(|said| push_line(&mut out, said, style.width));
    print_text(&out)
}

/// The table and the verdict for a terminal, for each text if there are several, and for all of them.
fn report(about: &About, results: &Results) -> String {
    let style = TableStyle { width: width(), color: color() };
    let mut out = String::new();
    let line = |out: &mut String, text: &str| push_line(out, text, style.width);
    let trained = about.checkpoint.trained_context.map_or(String::new(), |n| format!(", trained to {n}"));
    let dtype = &about.settings.dtype;
    let dtype = if dtype == "f32" { String::new() } else { format!(", computed in {dtype}") };
    line(&mut out, &format!("model {}{trained}{dtype}", about.checkpoint.name));
    line(&mut out, &format!("BOS   {}", about.settings.bos_line()));
    for part in &results.by_text {
        let text = &about.texts[part.text];
        line(&mut out, &format!("text  {}, first {} tokens", text.name, text.used));
        out.push('\n');
        out.push_str(&table(&part.cells, &[], style));
        out.push('\n');
    }
    match about.texts.as_slice() {
        [text] => line(&mut out, &format!("text  {}, first {} tokens", text.name, text.used)),
        texts => {
            let tokens: usize = texts.iter().map(|text| text.used).sum();
            line(&mut out, &format!("all {} texts together, {tokens} tokens", texts.len()));
        }
    }
    out.push('\n');
    let usable = results.recommendation.as_ref().map_or(&[][..], |found| &found.usable);
    out.push_str(&table(&results.cells, usable, style));
    out.push_str(&metrics(&results.cells));
    out.push('\n');
    if let Some(retrieval) = &results.retrieval {
        out.push_str(&found_table(retrieval, style));
        out.push('\n');
        out.push_str(&answers(retrieval, style));
        out.push('\n');
    }
    let Verdict { headline, lines, .. } = verdict(results, about.one_factor(), about.trained_context());
    line(&mut out, &headline);
    for sentence in lines {
        line(&mut out, &sentence);
    }
    applied(&mut out, results, style.width);
    if !results.encodings.is_empty() {
        out.push('\n');
        line(&mut out, ENCODINGS);
        out.push('\n');
        out.push_str(&table(&results.encodings, &[], style));
    }
    out
}

/// The options that set the recommended setting, program by program. Lines to be copied are not wrapped.
fn applied(out: &mut String, results: &Results, width: usize) {
    let mut last = "";
    for to in results.recommendation.iter().flat_map(|found| &found.applied) {
        if to.mode != last {
            push_line(out, &format!("\nTo use {}:", to.mode), width);
            last = &to.mode;
        }
        out.push_str(&format!("  {:<12} {}\n", to.program, to.options.replace('\n', "\n               ")));
    }
}

/// What a search found, for a terminal.
fn found(about: &About, results: &Results, search: &Search) -> String {
    let style = TableStyle { width: width(), color: color() };
    let mut out = String::new();
    let line = |out: &mut String, text: &str| push_line(out, text, style.width);
    let (tried, context) = (search.candidates.len(), search.context);
    let (chosen, confirmed) = (search.choosing_windows.len(), search.confirming_windows.len());
    line(&mut out, &format!("model {}", about.checkpoint.name));
    line(&mut out, &format!("BOS   {}", about.settings.bos_line()));
    let split = format!(
        "{tried} scalings tried on {chosen} windows of {context} tokens; the figures below are of {confirmed} others"
    );
    line(&mut out, &split);
    out.push('\n');
    out.push_str(&table(&results.cells, &[], style));
    out.push_str(&metrics(&results.cells));
    out.push('\n');
    line(&mut out, &search_sentence(search));
    out.push('\n');
    line(&mut out, &search.winner.flags.join(" "));
    out
}

/// Shows a grid of retrieval, by depth what `metric` says and at all depths together both.
///
/// # Errors
/// A file or stdout can't be written.
pub(crate) fn show_retrieval(
    report: &ReportArgs,
    about: &About,
    retrieval: &Retrieval,
    metric: RetrievalMetric,
) -> Result<()> {
    if let Some(path) = &report.csv {
        write_file(path, |out| Ok(out.write_all(retrieval_csv(retrieval).as_bytes())?))?;
    }
    if let Some(path) = &report.html {
        let page = html::retrieval(about, retrieval, metric)?;
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
    out.push_str(&heat(retrieval, metric, style));
    out.push('\n');
    let others = match metric {
        RetrievalMetric::Found => answers(retrieval, style),
        RetrievalMetric::AnswerNll => found_table(retrieval, style),
    };
    out.push_str(&others);
    out.push('\n');
    let headline = retrieval_headline(retrieval, about.trained_context());
    for said in std::iter::once(headline).chain(retrieval_verdict(retrieval)) {
        push_line(&mut out, &said, style.width);
    }
    print_text(&out)
}
