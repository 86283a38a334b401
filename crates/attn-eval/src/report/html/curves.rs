//! The charts of a comparison: perplexity by context, the distance to the best mode, loss by position.

use super::{Chart, Mark, Series, View};
use crate::compare::{best, contexts, find, modes};
use crate::perplexity;
use crate::stats::Interval;

pub(super) fn by_context(cells: &[perplexity::Cell], trained: Option<usize>) -> Chart {
    let mut at = contexts(cells);
    at.sort_unstable();
    type Measure = fn(&perplexity::Cell) -> (Option<f64>, Option<Interval>);
    let measures: [(&str, Measure); 2] = [
        ("all tokens", |cell| (Some(cell.perplexity), cell.interval)),
        ("last quarter of each window", |cell| (cell.last_quarter_perplexity, cell.last_quarter_interval)),
    ];
    let views = measures.into_iter().map(|(name, measure)| {
        let series = modes(cells).into_iter().map(|mode| {
            let found: Vec<_> =
                at.iter().map(|&context| find(cells, context, mode).map_or((None, None), measure)).collect();
            let some = found.iter().any(|(_, interval)| interval.is_some());
            let end = |pick: fn(Interval) -> f64| -> Vec<Option<f64>> {
                if some { found.iter().map(|(_, interval)| interval.map(pick)).collect() } else { vec![] }
            };
            Series {
                name: mode.to_string(),
                values: found.iter().map(|(value, _)| *value).collect(),
                low: end(|interval| interval.low),
                high: end(|interval| interval.high),
            }
        });
        View { name: name.to_string(), x: numbers(&at), series: series.collect(), marks: trained_mark(&at, trained) }
    });
    Chart {
        id: "by-context".into(),
        title: "Perplexity by context".into(),
        note: "One line per mode; lower is better. Upright bars are 95% intervals of each figure by itself: modes are \
               compared on the same tokens, so a difference can be significant although the bars overlap."
            .into(),
        view_name: "Tokens scored",
        xlabel: "context (tokens)",
        ylabel: "perplexity",
        xunit: "tokens",
        xlog: true,
        ylog: true,
        xticks: true,
        views: views.collect(),
        ..Chart::default()
    }
}

fn numbers(contexts: &[usize]) -> Vec<f64> {
    contexts.iter().map(|&context| context as f64).collect()
}

/// Where the trained context lies, if contexts of both sides or that context itself were measured.
fn trained_mark(contexts: &[usize], trained: Option<usize>) -> Vec<Mark> {
    let (first, last) = (contexts.first().copied(), contexts.last().copied());
    let within = trained.filter(|&n| first.is_some_and(|first| first <= n) && last.is_some_and(|last| n <= last));
    within.map(|n| Mark { x: n as f64, label: format!("trained to {n}") }).into_iter().collect()
}

/// By how much every mode is above the best one of its context, which shows differences between lines that overlap in
/// [`by_context`]. `None` if no two modes were compared.
pub(super) fn above_best(cells: &[perplexity::Cell]) -> Option<Chart> {
    let mut at = contexts(cells);
    at.sort_unstable();
    type Ends = (f64, Option<f64>, Option<f64>);
    let above = |mode: &str, context: usize| -> Option<Ends> {
        let itself = best(cells, context).is_some_and(|winner| winner.mode == mode);
        let versus = find(cells, context, mode)?.versus_best.as_ref();
        versus.map(|versus| (versus.nll, versus.low, versus.high)).or(itself.then_some((0.0, None, None)))
    };
    let percent = |nll: f64| Some(nll.exp_m1() * 100.0).filter(|percent| percent.is_finite());
    let series = modes(cells).into_iter().map(|mode| {
        let found: Vec<_> = at.iter().map(|&context| above(mode, context)).collect();
        let end = |pick: fn(Ends) -> Option<f64>| -> Vec<Option<f64>> {
            found.iter().map(|found| found.and_then(pick).and_then(percent)).collect()
        };
        Series {
            name: mode.to_string(),
            values: end(|(nll, ..)| Some(nll)),
            low: end(|(_, low, _)| low),
            high: end(|(.., high)| high),
        }
    });
    let series: Vec<Series> = series.collect();
    cells.iter().any(|cell| cell.versus_best.is_some()).then(|| Chart {
        id: "above-best".into(),
        title: "Above the best mode".into(),
        note:
            "How many percent the perplexity is above that of the best mode at the same context, with the 95% interval: \
               where a bar reaches 0, the difference is not significant. The axis is logarithmic above half a percent."
                .into(),
        xlabel: "context (tokens)",
        ylabel: "above the best mode",
        xunit: "tokens",
        xlog: true,
        xticks: true,
        ylinear: 0.5,
        yunit: "%",
        views: vec![View { name: String::new(), x: numbers(&at), series, marks: vec![] }],
        ..Chart::default()
    })
}

pub(super) fn by_position(cells: &[perplexity::Cell], trained: Option<usize>) -> Chart {
    let mut at = contexts(cells);
    at.sort_unstable_by(|a, b| b.cmp(a));
    let views = at.iter().map(|&context| {
        let parts = cells.iter().find(|cell| cell.context == context).map_or(0, |cell| cell.curve.len());
        let width = context as f64 / parts.max(1) as f64;
        let of = |mode: &&str| find(cells, context, mode).filter(|cell| cell.curve.len() == parts);
        let series = modes(cells).into_iter().filter_map(|mode| {
            let cell = of(&mode)?;
            Some(Series { name: mode.to_string(), values: cell.curve.clone(), ..Series::default() })
        });
        let marks = trained.filter(|&n| n < context).map(|n| Mark { x: n as f64, label: format!("trained to {n}") });
        View {
            name: format!("{context} tokens"),
            x: (0..parts).map(|i| (i as f64 + 0.5) * width).collect(),
            series: series.collect(),
            marks: marks.into_iter().collect(),
        }
    });
    Chart {
        id: "by-position".into(),
        title: "Loss by position in the window".into(),
        note: "Mean negative log-likelihood of the tokens around each position; lower is better. More context should \
               help, so a good mode falls or stays level to the end. A mode fails where its line rises after the dashed line."
            .into(),
        view_name: "Context",
        xlabel: "position in the window (tokens)",
        ylabel: "nats per token (log of perplexity)",
        xunit: "tokens from the start",
        views: views.collect(),
        ..Chart::default()
    }
}
