//! The page of `attn retrieval --html`, and the part on retrieval of the page of a comparison.

use super::meanings::meanings;
use super::provenance::provenance;
use super::{Cell, Chart, Head, Page, Series, Table, View};
use crate::Skipped;
use crate::error::Result;
use crate::report::words::percent;
use crate::report::{About, RetrievalDocument, RetrievalMetric, retrieval_headline, retrieval_verdict, short};
use crate::retrieval::{Retrieval, Share, Total};

/// A grid of trials as one HTML file.
///
/// # Errors
/// A number that JSON can't hold.
pub fn retrieval(about: &About, retrieval: &Retrieval, metric: RetrievalMetric) -> Result<String> {
    let mut page = Page::new(&format!("Retrieval with {}", about.checkpoint.name));
    let trained = about.trained_context();
    page.soft(&format!(
        "{}. Things are hidden in {}, and the model is asked for them at the end; {} trials per depth and context, the same \
         for every mode.",
        trained.map_or("Trained context unknown".to_string(), |n| format!("Trained to {n} tokens")),
        hidden_in(about, retrieval),
        retrieval.trials
    ));
    page.verdict(&retrieval_headline(retrieval, trained), &retrieval_verdict(retrieval));
    found(&mut page, about, retrieval, metric, "by-context");
    meanings(&mut page, retrieval.modes.iter().map(String::as_str));
    page.heading("How this was measured");
    provenance(&mut page, about);
    page.save_button("retrieval.json");
    Ok(page.finish(&serde_json::to_value(RetrievalDocument::new(about, retrieval))?))
}

fn hidden_in<'a>(about: &About, retrieval: &'a Retrieval) -> &'a str {
    let paper = about.settings.retrieval.as_ref().is_none_or(|settings| settings.haystack.is_none());
    if paper { "a few repeated sentences" } else { retrieval.haystack.as_str() }
}

/// What was found, by context, and `metric` by depth. `id` is that of the chart.
pub(super) fn found(page: &mut Page, about: &About, retrieval: &Retrieval, metric: RetrievalMetric, id: &str) {
    page.heading("Found, by context");
    let tasks: Vec<(&str, String)> =
        retrieval.tasks.iter().map(|task| (task.name.as_str(), task.summary.clone())).collect();
    page.facts(&tasks);
    page.soft(
        "A single number counts as found if it is exactly the first number in the answer; of several things each counts that \
         the answer contains. Intervals are Wilson's, for the trials at all depths together.",
    );
    page.chart(by_context(retrieval, id));
    for (index, task) in retrieval.tasks.iter().enumerate() {
        page.table(&shares(retrieval, index, &task.name));
    }
    page.begin_details("Loss of the right answers");
    page.text(
        "Negative log-likelihood per token of the right answer after the prompt, in nats: it also compares modes that find nothing.",
    );
    for (index, task) in retrieval.tasks.iter().enumerate() {
        page.table(&answers(retrieval, index, &task.name));
    }
    page.end_details();
    left_out(page, about.settings.retrieval.as_ref().map_or(&[][..], |settings| &settings.skipped));
    let placed = retrieval
        .tasks
        .iter()
        .enumerate()
        .filter(|(_, task)| retrieval.cells.iter().any(|cell| cell.task == task.name && cell.depth.is_some()));
    page.heading("By depth in the context");
    page.text("Depth 0% is the beginning of the context, 100% its end, just before the question.");
    for (task, result) in placed {
        for (mode, name) in retrieval.modes.iter().enumerate() {
            page.table(&map(retrieval, metric, (task, &result.name), (mode, name)));
        }
    }
}

/// What could not be measured.
pub(super) fn left_out(page: &mut Page, skipped: &[Skipped]) {
    if !skipped.is_empty() {
        page.text("Some contexts could not be measured:");
        skipped.iter().for_each(|skipped| page.soft(&skipped.to_string()));
    }
}

fn by_context(retrieval: &Retrieval, id: &str) -> Chart {
    let mut contexts = retrieval.contexts.clone();
    contexts.sort_unstable();
    let views = retrieval.tasks.iter().map(|task| {
        let series = retrieval.modes.iter().map(|mode| {
            let found: Vec<Option<Share>> =
                contexts.iter().map(|&context| retrieval.share(&task.name, mode, context, None)).collect();
            let percents = |of: fn(Share) -> f64| found.iter().map(|share| share.map(|s| of(s) * 100.0)).collect();
            Series {
                name: mode.clone(),
                values: percents(|s| s.value()),
                low: percents(|s| s.interval().low),
                high: percents(|s| s.interval().high),
            }
        });
        let x = contexts.iter().map(|&context| context as f64).collect();
        View { name: task.name.clone(), x, series: series.collect(), marks: vec![] }
    });
    Chart {
        id: id.into(),
        title: "Found, by context".into(),
        note:
            "Share of the hidden things that was found, at all depths; higher is better. Upright bars are 95% intervals."
                .into(),
        view_name: "Task",
        xlabel: "context (tokens)",
        ylabel: "% found",
        xunit: "tokens",
        xlog: true,
        yzero: true,
        xticks: true,
        views: views.collect(),
        ..Chart::default()
    }
}

/// A share as a percentage; the more was found, the stronger is the background.
fn share_cell(share: Option<Share>) -> Cell {
    let Some(share) = share else { return Cell::nothing() };
    Cell::number(share.value(), percent(share.value())).heat(share.value())
}

/// A table with a row per mode and a column per context.
fn shares(retrieval: &Retrieval, index: usize, task: &str) -> Table {
    let row = |mode: &String| {
        let figures = retrieval.contexts.iter().map(|&context| {
            let share = retrieval.share(task, mode, context, None);
            let range = share.map(Share::interval).map(|i| format!("{:.0} to {:.0}%", i.low * 100.0, i.high * 100.0));
            share_cell(share).small(range.unwrap_or_default())
        });
        std::iter::once(Cell::text(mode)).chain(figures).collect()
    };
    Table {
        id: format!("found-{index}"),
        caption: format!("{task}: found, at all depths together, with its 95% interval"),
        heads: heads(Head::text("mode"), retrieval),
        rows: retrieval.modes.iter().map(row).collect(),
    }
}

/// What a token of the right answer cost, with a row per mode and a column per context.
fn answers(retrieval: &Retrieval, index: usize, task: &str) -> Table {
    let find = |mode: &str, context: usize| -> Option<&Total> {
        retrieval.totals.iter().find(|total| total.task == task && total.mode == mode && total.context == context)
    };
    let row = |mode: &String| {
        let figures = retrieval.contexts.iter().map(|&context| match find(mode, context) {
            Some(total) => {
                let range = total.answer_interval.map(|i| format!("{} to {}", short(i.low), short(i.high)));
                Cell::number(total.answer_nll, short(total.answer_nll)).small(range.unwrap_or_default())
            }
            None => Cell::nothing(),
        });
        std::iter::once(Cell::text(mode)).chain(figures).collect()
    };
    Table {
        id: format!("answers-{index}"),
        caption: format!("{task}: nats per token of the right answer (answer_nll), with the 95% interval"),
        heads: heads(Head::text("mode"), retrieval),
        rows: retrieval.modes.iter().map(row).collect(),
    }
}

/// A mode's heat map of a task, with a row per depth and a column per context.
fn map(
    retrieval: &Retrieval,
    metric: RetrievalMetric,
    (task, task_name): (usize, &str),
    (mode, mode_name): (usize, &str),
) -> Table {
    let (unit, what) = match metric {
        RetrievalMetric::Found => ("%", "found"),
        RetrievalMetric::AnswerNll => ("", "nats per token of the right answer (answer_nll)"),
    };
    let row = |&depth: &f64| {
        let of = |context: usize| match metric.figure(retrieval, (task_name, mode_name), context, Some(depth)) {
            Some((value, heat)) => Cell::number(value, format!("{}{unit}", metric.shown(value))).heat(heat),
            None => Cell::nothing(),
        };
        let figures = retrieval.contexts.iter().map(|&context| of(context));
        std::iter::once(Cell::number(depth, percent(depth))).chain(figures).collect()
    };
    Table {
        id: format!("map-{task}-{mode}"),
        caption: format!("{task_name} under {mode_name}: {what}, by depth and context"),
        heads: heads(Head::number("depth"), retrieval),
        rows: retrieval.depths.iter().map(row).collect(),
    }
}

fn heads(first: Head, retrieval: &Retrieval) -> Vec<Head> {
    let contexts = retrieval.contexts.iter().map(|context| Head::number(format!("{context} tokens")));
    std::iter::once(first).chain(contexts).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::RetrievalSettings;
    use crate::report::heat::tests::retrieval as found;
    use crate::report::html::tests_about;
    use crate::report::markup::assert_well_formed;

    #[test]
    fn a_page_shows_every_figure_and_what_is_missing() {
        let (mut about, found) = (tests_about(), found());
        let haystack = about.texts.pop();
        about.texts.clear();
        let skipped = vec![Skipped { context: 131072, task: None, reason: "<b>no memory".into() }];
        about.settings.retrieval =
            Some(RetrievalSettings { tasks: vec!["passkey".into()], haystack, depths: vec![], trials: 4, skipped });
        let page = retrieval(&about, &found, RetrievalMetric::Found).unwrap();
        let (start, end) = (page.find("<main>").unwrap(), page.find("<script type=").unwrap());
        let body = &page[start..end];
        assert_well_formed(body, &super::super::VOID);
        assert!(!page.contains("<i>") && body.contains("&lt;i&gt;") && body.contains("&lt;b&gt;no memory"));
        // Two modes of three depths and five contexts, each with the line for all depths.
        assert_eq!(body.matches("class=\"heat\"").count(), 2 * 5 * (3 + 1));
        assert!(body.contains("map-0-1") && body.contains("data-chart=\"by-context\"") && body.contains(">50%<"));
        assert!(body.contains("id=\"answers-0\"") && body.contains("id=\"texts\""));
        about.settings.retrieval = None;
        let costs = retrieval(&about, &found, RetrievalMetric::AnswerNll).unwrap();
        assert!(costs.contains("under none: nats per token of the right answer (answer_nll), by depth"));
        assert_eq!(costs.matches("data-value=\"0.5\" style=\"--v: 0.607\"").count(), 2 * 5 * 3);
        let page = retrieval(&about, &found, RetrievalMetric::Found).unwrap();
        assert!(page.contains("a few repeated sentences") && !page.contains("id=\"texts\""));
    }
}
