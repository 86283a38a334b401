//! Checks a saved comparison: refuses figures that no measurement can give. Reports are drawn from it, and their readers take
//! the figures for measured ones.

use super::results::{MetricDifference, Pair, Results, contexts};
use crate::error::{Result, Within, ensure, error};
use crate::perplexity::{BUCKETS, CURVE, Cell, Metric};
use crate::report::About;
use crate::stats::Interval;
use std::collections::HashSet;

/// No mode has a name of more bytes than this.
const LONGEST_NAME: usize = 200;
/// Likelihoods are computed in f32, so that the logarithm of a likelihood of 1 may come out this far above 0.
pub(crate) const ROUNDING: f64 = 0.01;
/// By how much figures that follow from each other may differ: JSON is read with an error in the last digits.
const TOLERANCE: f64 = 1e-6;

impl Results {
    /// Refuses figures that no comparison on `about`'s texts can give.
    ///
    /// # Errors
    /// The figure that is impossible, and its cell.
    pub(crate) fn check(&self, about: &About) -> Result<()> {
        ensure!(!self.cells.is_empty(), Impossible, "it has no cells");
        let used: usize = about.texts.iter().map(|text| text.used).sum();
        check_part(&self.cells, &self.differences, Some(used)).within(|| "cells".into())?;
        for part in &self.by_text {
            let text = about
                .texts
                .get(part.text)
                .ok_or_else(|| error!(Impossible, "a part is of a text that is not listed"))?;
            check_part(&part.cells, &part.differences, Some(text.used)).within(|| format!("by_text {}", part.text))?;
        }
        check_part(&self.between, &[], Some(used)).within(|| "between".into())?;
        if let Some(retrieval) = &self.retrieval {
            retrieval.check().within(|| "retrieval".into())?;
        }
        check_part(&self.encodings, &[], None).within(|| "encodings".into())
    }
}

/// Checks cells of the same text or texts, of `used` tokens where that is known.
fn check_part(cells: &[Cell], differences: &[Pair], used: Option<usize>) -> Result<()> {
    let mut seen = HashSet::new();
    for cell in cells {
        let named = || format!("{:.40?} at {}", cell.mode, cell.context);
        ensure!(seen.insert((cell.context, cell.mode.as_str())), Impossible, "{} is there twice", named());
        check_cell(cell, used).within(named)?;
    }
    for context in contexts(cells) {
        let at: Vec<&Cell> = cells.iter().filter(|cell| cell.context == context).collect();
        check_against(&at)?;
    }
    for pair in differences {
        check_pair(pair, cells)
            .within(|| format!("{:.40?} against {:.40?} at {}", pair.mode, pair.versus, pair.context))?;
    }
    Ok(())
}

fn check_cell(cell: &Cell, used: Option<usize>) -> Result<()> {
    check_name(&cell.mode)?;
    check_setting(cell.context, cell.factor, cell.seconds)?;
    ensure!(
        (1..=cell.context).contains(&cell.stride),
        Impossible,
        "a stride of {} skips text or stands still",
        cell.stride
    );
    let scored = cell.windows.checked_mul(cell.context).is_some_and(|most| cell.tokens <= most);
    ensure!(
        cell.tokens > 0 && cell.windows > 0 && scored,
        Impossible,
        "{} windows can't score {} tokens",
        cell.windows,
        cell.tokens
    );
    ensure!(
        used.is_none_or(|used| cell.tokens <= used),
        Impossible,
        "it scores {} tokens, more than the text has",
        cell.tokens
    );
    check_nll(cell.nll)?;
    ensure!(
        is_perplexity(cell.perplexity, cell.nll),
        Impossible,
        "{} nats do not give a perplexity of {}",
        cell.nll,
        cell.perplexity
    );
    for error in [Some(cell.stderr), cell.stderr_windows].into_iter().flatten() {
        ensure!(error >= 0.0, Impossible, "{error} is not a standard error");
    }
    let last = cell.last_quarter_perplexity.is_none_or(|perplexity| perplexity > 0.0);
    ensure!(last, Impossible, "its last quarter can't have a perplexity of {:?}", cell.last_quarter_perplexity);
    for interval in [cell.interval, cell.last_quarter_interval].into_iter().flatten() {
        ensure!(
            interval.low >= 0.0 && interval.low <= interval.high,
            Impossible,
            "{interval:?} is not an interval of a perplexity"
        );
    }
    check_metric(cell.longppl, cell, 1.0 - ROUNDING).within(|| "LongPPL".into())?;
    check_metric(cell.kl, cell, -ROUNDING).within(|| "divergence".into())?;
    let parts = (cell.position_nll.len(), cell.curve.len());
    ensure!(parts == (BUCKETS, CURVE), Impossible, "it has {} and {} parts by position", parts.0, parts.1);
    cell.position_nll.iter().chain(&cell.curve).flatten().try_for_each(|&nll| check_nll(nll))
}

/// Checks what every cell has: its context, factor and time.
pub(crate) fn check_setting(context: usize, factor: f64, seconds: f64) -> Result<()> {
    ensure!(context >= 2, Impossible, "a window of {context} tokens scores none");
    ensure!(factor.is_finite() && factor > 0.0, Impossible, "a scaling can't have a factor of {factor}");
    ensure!(seconds.is_finite() && seconds >= 0.0, Impossible, "it can't have taken {seconds} s");
    Ok(())
}

/// Whether `nll` nats per token give this perplexity.
pub(crate) fn is_perplexity(perplexity: f64, nll: f64) -> bool {
    match nll.exp() {
        follows if follows.is_finite() => close(perplexity / follows, 1.0),
        _ => perplexity == f64::INFINITY,
    }
}

/// Checks a metric beside perplexity, which can't be below `least`.
fn check_metric(metric: Option<Metric>, cell: &Cell, least: f64) -> Result<()> {
    let Some(Metric { value, interval, tokens }) = metric else { return Ok(()) };
    ensure!(
        tokens <= cell.tokens && (tokens > 0 || value.is_none()),
        Impossible,
        "it can't be of {tokens} of {} tokens",
        cell.tokens
    );
    ensure!(value.is_none_or(|value| value >= least), Impossible, "it can't be {value:?}");
    if let Some(Interval { low, high }) = interval {
        ensure!(value.is_some() && low <= high, Impossible, "{low} to {high} is not an interval");
    }
    Ok(())
}

fn check_name(name: &str) -> Result<()> {
    let printable = !name.is_empty() && name.len() <= LONGEST_NAME && !name.chars().any(char::is_control);
    ensure!(printable, Impossible, "{name:.40?} can't be the name of a mode");
    Ok(())
}

fn check_nll(nll: f64) -> Result<()> {
    ensure!(nll.is_finite() && nll >= -ROUNDING, Impossible, "a token can't cost {nll} nats");
    ensure!(nll <= f64::from(f32::MAX), Impossible, "a token can't cost {nll} nats");
    Ok(())
}

/// Whether two figures are equal, except for what is lost in JSON.
pub(crate) fn close(a: f64, b: f64) -> bool {
    a.is_finite() && b.is_finite() && (a - b).abs() <= TOLERANCE * a.abs().max(b.abs()).max(1.0)
}

/// Checks what the cells of one context say of each other.
fn check_against(at: &[&Cell]) -> Result<()> {
    for cell in at {
        let named = || format!("{:.40?} at {}", cell.mode, cell.context);
        if let Some(twin) = &cell.same_as {
            let twin = at.iter().find(|other| other.mode == *twin && other.same_as.is_none());
            let same = twin.is_some_and(|twin| close(twin.nll, cell.nll));
            ensure!(
                same,
                Impossible,
                "{} is the same as {:.40?}, but there is no such cell with the same figures",
                named(),
                cell.same_as
            );
        }
        let Some(versus) = &cell.versus_best else { continue };
        let best = at.iter().find(|other| other.mode == versus.mode);
        let missing =
            || error!(Impossible, "{}: it is compared with {:.40?}, which is not there", named(), versus.mode);
        let best = best.ok_or_else(missing)?;
        let interval = versus.low.zip(versus.high).map(|(low, high)| Interval { low, high });
        ensure!(
            versus.low.is_some() == versus.high.is_some(),
            Impossible,
            "{}: one end of its interval is missing",
            named()
        );
        check_difference(versus.nll, interval, cell.nll - best.nll).within(named)?;
    }
    Ok(())
}

fn check_pair(pair: &Pair, cells: &[Cell]) -> Result<()> {
    let find = |mode: &str| {
        let found = cells.iter().find(|cell| cell.context == pair.context && cell.mode == mode);
        found.ok_or_else(|| error!(Impossible, "there is no cell of {mode:.40?}"))
    };
    let nll = find(&pair.mode)?.nll - find(&pair.versus)?.nll;
    check_difference(pair.nll, pair.interval, nll)?;
    for MetricDifference { nll, interval } in [pair.longppl, pair.kl].into_iter().flatten() {
        check_difference(nll, interval, nll)?;
    }
    match pair.last_quarter_nll {
        // A cell keeps only the perplexity of its last quarter, which may be too large for an `f64`.
        Some(last) => check_difference(last, pair.last_quarter_interval, last),
        None => Ok(()),
    }
}

/// Checks that a difference in nats is the one that follows from two cells, and its interval.
fn check_difference(nll: f64, interval: Option<Interval>, follows: f64) -> Result<()> {
    ensure!(nll.is_finite() && close(nll, follows), Impossible, "the cells differ by {follows} nats, not by {nll}");
    if let Some(Interval { low, high }) = interval {
        ensure!(low.is_finite() && high.is_finite() && low <= high, Impossible, "{low} to {high} is not an interval");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::results::tests::cells;

    fn results() -> Results {
        Results::of(cells(&[("none", 256, 3.0), ("yarn", 256, 3.1), ("none", 512, 4.0), ("yarn", 512, 900.0)]), 0)
    }

    fn check(results: &Results) -> Result<()> {
        check_part(&results.cells, &results.differences, Some(4096))
    }

    #[test]
    fn what_was_measured_passes_and_comes_back_from_json() {
        let results = results();
        check(&results).unwrap();
        assert_eq!(results.cells[3].perplexity, f64::INFINITY);
        let read: Results = serde_json::from_str(&serde_json::to_string(&results).unwrap()).unwrap();
        check(&read).unwrap();
        assert_eq!(read.cells[3].perplexity, f64::INFINITY);
        assert_eq!(read.cells[0].nll, results.cells[0].nll);
    }

    #[test]
    fn what_no_measurement_can_be_is_refused_with_its_cell() {
        type Edit = fn(&mut Results);
        fn metric(value: f64, tokens: usize) -> Option<Metric> {
            Some(Metric { value: Some(value), interval: None, tokens })
        }
        let cases: [(&str, Edit); 22] = [
            ("scores none", |r| r.cells[1].context = 0),
            ("stride", |r| r.cells[1].stride = 0),
            ("stride", |r| r.cells[1].stride = 257),
            ("factor", |r| r.cells[1].factor = -1.0),
            ("factor", |r| r.cells[1].factor = f64::INFINITY),
            ("nats", |r| r.cells[1].nll = f64::NAN),
            ("nats", |r| r.cells[1].nll = 1e300),
            ("nats", |r| (r.cells[1].nll, r.cells[1].perplexity) = (-800.0, 0.0)),
            ("perplexity", |r| r.cells[1].perplexity *= 1.01),
            ("perplexity", |r| r.cells[1].perplexity = f64::INFINITY),
            ("standard error", |r| r.cells[1].stderr = -1.0),
            ("tokens", |r| r.cells[1].tokens = usize::MAX),
            ("tokens", |r| (r.cells[1].tokens, r.cells[1].windows) = (5000, usize::MAX)),
            ("interval", |r| r.cells[1].interval = Some(Interval { low: 3.0, high: 2.0 })),
            ("LongPPL", |r| r.cells[1].longppl = metric(0.5, 9)),
            ("divergence", |r| r.cells[1].kl = metric(-0.5, 9)),
            ("divergence", |r| r.cells[1].kl = metric(0.5, 5000)),
            ("parts", |r| r.cells[1].curve.truncate(3)),
            ("twice", |r| r.cells[1].mode = "none".into()),
            ("name", |r| r.cells[1].mode = "\u{1b}[2J".into()),
            ("differ", |r| r.differences[0].nll += 0.1),
            ("not there", |r| r.cells[1].versus_best.as_mut().unwrap().mode = "linear".into()),
        ];
        for (part, edit) in cases {
            let mut results = results();
            edit(&mut results);
            let error = check(&results).map_err(|error| error.to_string()).unwrap_err();
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}
