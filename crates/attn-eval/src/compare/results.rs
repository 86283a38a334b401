//! From measurements to figures: cells per text and over all texts, and the differences between modes.

use super::{CellSpec, Recommendation, recommend};
use crate::error::{Error, Result, bail};
use crate::perplexity::{Cell, Label, Scores};
use crate::report::About;
use crate::retrieval::Retrieval;
use crate::stats::{Interval, WindowNll, paired_difference};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::hash::Hash;

/// What a comparison found.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Results {
    /// One cell per context and mode over all texts together, context by context.
    pub cells: Vec<Cell>,
    /// The differences between every two modes, context by context.
    pub differences: Vec<Pair>,
    /// The same for each text, if there are several.
    pub by_text: Vec<TextResults>,
    /// Cells over all texts together at lengths that were measured only to find the usable length of a mode.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub between: Vec<Cell>,
    /// What retrieval found, where it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retrieval: Option<Retrieval>,
    /// Other models that differ in their position encoding alone, each as it is; a cell's mode is the encoding. They are measured
    /// beside the embedded model, and have another tokenizer than it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub encodings: Vec<Cell>,
    /// The recommendation that follows from the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recommendation: Option<Recommendation>,
}

/// What a comparison found on one text.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TextResults {
    /// Index of the text.
    pub text: usize,
    /// One cell per context and mode.
    pub cells: Vec<Cell>,
    /// The differences between every two modes.
    pub differences: Vec<Pair>,
}

/// Two modes at one context: by how much the mean negative log-likelihood of `mode` exceeds that of `versus` on the
/// same tokens. The ratio of the perplexities is the exponential.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// Tokens per window.
    pub context: usize,
    /// The first mode.
    pub mode: String,
    /// The second mode.
    pub versus: String,
    /// Nats per token.
    pub nll: f64,
    /// Its bootstrap 95 % interval, windows resampled; absent with too few of them.
    pub interval: Option<Interval>,
    /// The same over the tokens in the last quarter of their window; absent if none of them is scored.
    pub last_quarter_nll: Option<f64>,
    /// Its bootstrap 95 % interval.
    pub last_quarter_interval: Option<Interval>,
    /// The same over the key tokens, if LongPPL is measured and there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub longppl: Option<MetricDifference>,
    /// The same of the divergence, if it is measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl: Option<MetricDifference>,
}

/// By how much a metric of one mode exceeds that of another.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MetricDifference {
    /// Nats per token that the metric counts.
    pub nll: f64,
    /// Its bootstrap 95 % interval, windows resampled; absent with too few that have such tokens.
    pub interval: Option<Interval>,
}

/// Sums up measurements, one per cell in the order of the specs. A cell with `same_as` may have none, and so may one at a length
/// between that nothing asked for.
///
/// # Errors
/// A measurement is missing, or two measurements at one context are of different windows and can't be compared.
pub fn summarise(specs: &[CellSpec], scores: &[Option<Scores>], seed: u64) -> Result<Results> {
    let measured = |spec: &CellSpec| {
        let source =
            specs.iter().position(|other| if spec.same_as.is_some() { spec.is_twin_of(other) } else { spec == other });
        let scores = source.and_then(|index| scores.get(index)?.as_ref());
        scores.ok_or_else(|| Error::Unmeasured { cell: format!("{} at {}", spec.mode, spec.context) })
    };
    let texts = specs.iter().map(|spec| spec.text + 1).max().unwrap_or(0);
    let mut by_text = Vec::with_capacity(texts);
    for text in 0..texts {
        let of_text = specs.iter().filter(|spec| spec.text == text && !spec.between);
        let cells: Result<Vec<Cell>> = of_text.map(|spec| Ok(cell(spec, measured(spec)?.clone(), seed))).collect();
        let cells = cells?;
        check_windows(&cells)?;
        let (cells, differences) = compared(cells, seed);
        by_text.push(TextResults { text, cells, differences });
    }
    let pooled = |spec: &CellSpec| {
        let everywhere = specs.iter().filter(|other| other.context == spec.context && other.mode == spec.mode);
        let parts: Result<Vec<&Scores>> = everywhere.map(measured).collect();
        Ok(cell(spec, Scores::pooled(parts?), seed))
    };
    let of_first = || specs.iter().filter(|spec| spec.text == 0);
    // Not all of these were asked for.
    let between = of_first().filter(|spec| spec.between).filter_map(|spec| pooled(spec).ok()).collect();
    if let [_] = by_text.as_slice() {
        let TextResults { cells, differences, .. } = by_text.remove(0);
        return Ok(Results { cells, differences, by_text, between, ..Results::default() });
    }
    let cells = of_first().filter(|spec| !spec.between).map(pooled).collect::<Result<Vec<Cell>>>()?;
    check_windows(&cells)?;
    let (cells, differences) = compared(cells, seed);
    Ok(Results { cells, differences, by_text, between, ..Results::default() })
}

/// Refuses cells of one context that scored different windows, since a difference has to be of the same tokens.
fn check_windows(cells: &[Cell]) -> Result<()> {
    for context in contexts(cells) {
        let mut at = cells.iter().filter(|cell| cell.context == context);
        let Some(first) = at.next() else { continue };
        let counts = |cell: &Cell| -> Vec<_> { cell.window_nll.iter().map(|w| (w.tokens, w.last_tokens)).collect() };
        let other = at.find(|cell| counts(cell) != counts(first));
        if let Some(other) = other {
            bail!(Incomparable, "{} at {context} was measured on other windows than {}", other.mode, first.mode);
        }
    }
    Ok(())
}

pub(super) fn cell(spec: &CellSpec, mut scores: Scores, seed: u64) -> Cell {
    if spec.same_as.is_some() {
        scores.seconds = 0.0;
    }
    let (mode, context, stride) = (spec.mode.clone(), spec.context, spec.stride);
    let label = Label { mode, factor: spec.factor, context, stride, seed };
    Cell { same_as: spec.same_as.clone(), ..scores.cell(&label) }
}

/// The cells with their difference to the best of their context, and the differences of all.
fn compared(mut cells: Vec<Cell>, seed: u64) -> (Vec<Cell>, Vec<Pair>) {
    compare_with_best(&mut cells, seed);
    let pairs = differences(&cells, seed);
    (cells, pairs)
}

/// The differences between every two modes of each context.
fn differences(cells: &[Cell], seed: u64) -> Vec<Pair> {
    let mut pairs = vec![];
    for context in contexts(cells) {
        let at: Vec<&Cell> = cells.iter().filter(|cell| cell.context == context).collect();
        for (i, a) in at.iter().enumerate() {
            pairs.extend(at[i + 1..].iter().map(|b| pair(a, b, seed)));
        }
    }
    pairs
}

impl Results {
    /// The results of one set of cells.
    pub fn of(cells: Vec<Cell>, seed: u64) -> Self {
        let (cells, differences) = compared(cells, seed);
        Self { cells, differences, ..Self::default() }
    }

    /// Fills in the recommendation, unless there is one.
    pub fn recommend(&mut self, about: &About) {
        self.recommendation = self.recommended(about.one_factor(), about.trained_context());
    }

    /// The recommendation that is there, else the one that [`recommend`] makes.
    pub(crate) fn recommended(&self, one_factor: bool, trained: Option<usize>) -> Option<Recommendation> {
        self.recommendation.clone().or_else(|| recommend(self, one_factor, trained))
    }
}

/// The difference between two modes at one context.
pub(crate) fn pair(a: &Cell, b: &Cell, seed: u64) -> Pair {
    let difference = |a: &[WindowNll], b: &[WindowNll]| {
        let d = paired_difference(a, b, "", seed);
        (d.nll, d.low.zip(d.high).map(|(low, high)| Interval { low, high }))
    };
    let last = |cell: &Cell| -> Vec<WindowNll> {
        cell.window_nll.iter().map(WindowNll::last_quarter).filter(|w| w.tokens > 0).collect()
    };
    let (last_a, last_b) = (last(a), last(b));
    let of_metric = |a: &Option<Vec<WindowNll>>, b: &Option<Vec<WindowNll>>| {
        let some = |windows: &[WindowNll]| -> Vec<_> { windows.iter().copied().filter(|w| w.tokens > 0).collect() };
        let (a, b) = (some(a.as_ref()?), some(b.as_ref()?));
        (!a.is_empty()).then(|| difference(&a, &b)).map(|(nll, interval)| MetricDifference { nll, interval })
    };
    let (nll, interval) = difference(&a.window_nll, &b.window_nll);
    let last = (!last_a.is_empty()).then(|| difference(&last_a, &last_b));
    Pair {
        context: a.context,
        mode: a.mode.clone(),
        versus: b.mode.clone(),
        nll,
        interval,
        last_quarter_nll: last.map(|(nll, _)| nll),
        last_quarter_interval: last.and_then(|(_, interval)| interval),
        longppl: of_metric(&a.longppl_nll, &b.longppl_nll),
        kl: of_metric(&a.kl_nll, &b.kl_nll),
    }
}

/// Fills in every cell's paired difference to the best of its context.
pub(super) fn compare_with_best(cells: &mut [Cell], seed: u64) {
    for context in contexts(cells) {
        let Some(winner) = best(cells, context).cloned() else { continue };
        for cell in cells.iter_mut().filter(|cell| cell.context == context && cell.mode != winner.mode) {
            cell.versus_best = Some(paired_difference(&cell.window_nll, &winner.window_nll, &winner.mode, seed));
        }
    }
}

/// The cell with the lowest perplexity at `context`, the first of several equal ones; `None` without cells there.
pub fn best(cells: &[Cell], context: usize) -> Option<&Cell> {
    let at = cells.iter().filter(|cell| cell.context == context);
    at.min_by(|a, b| a.nll.total_cmp(&b.nll))
}

/// The cell of a mode at a context.
pub fn find<'a>(cells: &'a [Cell], context: usize, mode: &str) -> Option<&'a Cell> {
    cells.iter().find(|cell| cell.context == context && cell.mode == mode)
}

/// The contexts of a comparison, in its order.
pub fn contexts(cells: &[Cell]) -> Vec<usize> {
    each_once(cells.iter().map(|cell| cell.context))
}

/// Each item once, in the order of first occurrence.
pub(crate) fn each_once<T: Copy + Eq + Hash>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut seen = HashSet::new();
    items.filter(|item| seen.insert(*item)).collect()
}

/// The modes of a comparison, in its order.
pub fn modes(cells: &[Cell]) -> Vec<&str> {
    each_once(cells.iter().map(|cell| cell.mode.as_str()))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::perplexity::{ScoreOptions, score_with};
    use crate::windows::WindowOptions;

    fn scores(context: usize, stride: Option<usize>, tokens: &[u32], nll: f32) -> Scores {
        let options = ScoreOptions { windows: WindowOptions { context, stride, bos: None }, length: None };
        let mut model = |batch: &[Vec<u32>]| {
            Ok(batch.iter().map(|row| row[1..].iter().map(|&id| nll + id as f32 / 100.0).collect()).collect())
        };
        score_with(&mut model, tokens, &options, &mut |_| ()).unwrap()
    }

    fn spec(text: usize, context: usize, mode: &str) -> CellSpec {
        CellSpec { text, context, stride: context, mode: mode.into(), factor: 2.0, same_as: None, between: false }
    }

    /// A comparison as if every token cost `nll` nats under a mode, plus what the text itself adds.
    pub(crate) fn cells(rows: &[(&str, usize, f32)]) -> Vec<Cell> {
        let tokens: Vec<u32> = (0..4096u32).map(|i| i.wrapping_mul(2654435761) >> 30).collect();
        let specs: Vec<CellSpec> = rows.iter().map(|&(mode, context, _)| spec(0, context, mode)).collect();
        let scores: Vec<_> = rows.iter().map(|&(_, context, nll)| Some(scores(context, None, &tokens, nll))).collect();
        summarise(&specs, &scores, 0).unwrap().cells
    }

    #[test]
    fn every_cell_is_compared_with_the_best_of_its_context() {
        let cells = cells(&[("none", 256, 3.0), ("yarn", 256, 3.1), ("none", 512, 4.0), ("yarn", 512, 3.2)]);
        assert_eq!(best(&cells, 256).unwrap().mode, "none");
        assert_eq!(best(&cells, 512).unwrap().mode, "yarn");
        assert!(cells[0].versus_best.is_none() && cells[3].versus_best.is_none());
        let d = cells[2].versus_best.as_ref().unwrap();
        assert_eq!(d.mode, "yarn");
        assert!((d.nll - 0.8).abs() < 1e-6 && d.is_real() == Some(true), "{d:?}");
        assert_eq!(contexts(&cells), [256, 512]);
        assert_eq!(modes(&cells), ["none", "yarn"]);
    }

    /// Two texts of 8 and 4 tokens in windows of 4. The token with id `i` costs `i / 100` nats and the cost of the mode, and the
    /// first token of a window is not scored:
    ///
    /// - text 0: windows `0 100 200 300` and `0 400 500 600`, scored 6 + 15 hundreds: mean 3.5
    /// - text 1: window `0 900 900 900`: mean 9
    /// - together 21 + 27 = 48 over 9 tokens, not the mean of the two means, 6.25
    #[test]
    fn texts_are_pooled_by_token() {
        let texts: [&[u32]; 2] = [&[0, 100, 200, 300, 0, 400, 500, 600], &[0, 900, 900, 900]];
        let specs = [spec(0, 4, "none"), spec(0, 4, "yarn"), spec(1, 4, "none"), spec(1, 4, "yarn")];
        let measured: Vec<_> = specs
            .iter()
            .map(|s| Some(scores(4, None, texts[s.text], if s.mode == "yarn" { 0.5 } else { 0.0 })))
            .collect();
        let results = summarise(&specs, &measured, 0).unwrap();
        let nll: Vec<f64> = results.by_text.iter().map(|t| t.cells[0].nll).collect();
        assert_eq!(nll, [3.5, 9.0]);
        assert_eq!(results.cells.len(), 2);
        assert_eq!((results.cells[0].nll, results.cells[0].tokens, results.cells[0].windows), (48.0 / 9.0, 9, 3));
        assert_eq!(results.cells[0].perplexity, (48.0f64 / 9.0).exp());
        // The last quarter of a window of 4 is its last token: 3, 6 and 9.
        assert_eq!(results.cells[0].last_quarter_perplexity, Some(6f64.exp()));
        // Positions 1, 2, 3: means of 1, 4, 9; of 2, 5, 9; of 3, 6, 9.
        assert_eq!(results.cells[0].curve[8], Some(14.0 / 3.0));
        assert_eq!(results.cells[0].position_nll[4], Some(16.0 / 3.0));
        let pair = &results.differences[0];
        assert_eq!((pair.mode.as_str(), pair.versus.as_str(), pair.interval), ("none", "yarn", None));
        assert_eq!((pair.nll, pair.last_quarter_nll), (-0.5, Some(-0.5)));
    }

    /// Ten tokens in windows of 4 every 3: `0..4`, `3..7`, `6..10`. The first scores tokens 1 to 3, the others the
    /// three they add, so every token but the first counts once; a token's position is that in its window.
    #[test]
    fn a_stride_by_hand() {
        let tokens: Vec<u32> = (0..10).map(|i| i * 100).collect();
        let measured = scores(4, Some(3), &tokens, 0.0);
        let sums: Vec<(f64, usize, f64)> = measured.windows.iter().map(|w| (w.sum, w.tokens, w.last_sum)).collect();
        assert_eq!(sums, [(6.0, 3, 3.0), (15.0, 3, 6.0), (24.0, 3, 9.0)]);
        let specs = [CellSpec { stride: 3, ..spec(0, 4, "none") }];
        let results = summarise(&specs, &[Some(measured)], 0).unwrap();
        let cell = &results.cells[0];
        assert_eq!((cell.nll, cell.tokens, cell.windows, cell.stride), (5.0, 9, 3, 3));
        assert_eq!(cell.last_quarter_perplexity, Some(6f64.exp()));
    }

    #[test]
    fn a_cell_that_is_another_takes_its_measurement_and_a_missing_one_is_named() {
        let tokens: Vec<u32> = (0..64).collect();
        let twin = CellSpec { same_as: Some("none".into()), ..spec(0, 8, "yarn") };
        let specs = [spec(0, 8, "none"), twin];
        let results = summarise(&specs, &[Some(scores(8, None, &tokens, 1.0)), None], 0).unwrap();
        assert_eq!(results.cells[0].nll, results.cells[1].nll);
        assert_eq!((results.cells[1].seconds, results.cells[1].same_as.as_deref()), (0.0, Some("none")));
        let error = summarise(&specs, &[None, None], 0).unwrap_err().to_string();
        assert!(error.contains("none at 8"), "{error}");
    }
}
