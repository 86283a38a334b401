//! A comparison with retrieval beside it. Cells of both kinds are in one list, so that one run file holds them, shards divide
//! them, and one verdict sums them up.

use super::usable::next;
use super::{CellSpec, Comparison, Progress, Results, summarise};
use crate::error::{Error, Result, bail};
use crate::perplexity::Scores;
use crate::report::About;
use crate::retrieval::{self, Grid, RetrievalScores, RetrievalSpec};
use crate::run::Measurable;
use serde::{Deserialize, Serialize};

/// A cell of a comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum LabSpec {
    /// The perplexity of a text.
    Text(CellSpec),
    /// Retrieval: how much is found of what is hidden in a text.
    Retrieval(RetrievalSpec),
}

/// The measurement of a cell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum LabScores {
    /// Of a text.
    Text(Scores),
    /// Of retrieval.
    Retrieval(RetrievalScores),
}

impl LabScores {
    fn of_text(&self) -> Option<Scores> {
        if let Self::Text(scores) = self { Some(scores.clone()) } else { None }
    }

    fn of_trials(&self) -> Option<RetrievalScores> {
        if let Self::Retrieval(scores) = self { Some(scores.clone()) } else { None }
    }
}

impl Measurable for LabSpec {
    const KIND: &str = CellSpec::KIND;
    type Scores = LabScores;

    fn context(&self) -> usize {
        match self {
            Self::Text(spec) => spec.context,
            Self::Retrieval(spec) => spec.context,
        }
    }

    fn mode(&self) -> &str {
        match self {
            Self::Text(spec) => &spec.mode,
            Self::Retrieval(spec) => &spec.mode,
        }
    }

    fn text(&self) -> Option<usize> {
        match self {
            Self::Text(spec) => spec.text(),
            Self::Retrieval(spec) => spec.text(),
        }
    }

    fn is_measured(&self) -> bool {
        match self {
            Self::Text(spec) => spec.is_measured(),
            Self::Retrieval(spec) => spec.is_measured(),
        }
    }

    fn agree(a: &LabScores, b: &LabScores) -> bool {
        match (a, b) {
            (LabScores::Text(a), LabScores::Text(b)) => CellSpec::agree(a, b),
            (LabScores::Retrieval(a), LabScores::Retrieval(b)) => RetrievalSpec::agree(a, b),
            _ => false,
        }
    }

    fn figure(scores: &LabScores) -> String {
        match scores {
            LabScores::Text(scores) => CellSpec::figure(scores),
            LabScores::Retrieval(scores) => RetrievalSpec::figure(scores),
        }
    }

    fn check(&self, scores: &LabScores, about: &About) -> Result<()> {
        match (self, scores) {
            (Self::Text(spec), LabScores::Text(scores)) => spec.check(scores, about),
            (Self::Retrieval(spec), LabScores::Retrieval(scores)) => spec.check(scores, about),
            _ => bail!(Impossible, "it is a measurement of another kind"),
        }
    }
}

/// A comparison and a grid of trials ready to run.
#[derive(Debug)]
pub struct Lab<'a> {
    comparison: Comparison<'a>,
    grid: Option<Grid<'a>>,
    specs: Vec<LabSpec>,
}

impl<'a> Lab<'a> {
    /// The cells of the comparison, then those of the grid.
    pub fn new(comparison: Comparison<'a>, grid: Option<Grid<'a>>) -> Self {
        let texts = comparison.specs().iter().cloned().map(LabSpec::Text);
        let trials = grid.iter().flat_map(Grid::specs).cloned().map(LabSpec::Retrieval);
        let specs = texts.chain(trials).collect();
        Self { comparison, grid, specs }
    }

    /// The cells.
    pub fn specs(&self) -> &[LabSpec] {
        &self.specs
    }

    /// The comparison of perplexities.
    pub fn comparison(&self) -> &Comparison<'a> {
        &self.comparison
    }

    /// The grid of trials, if there is one.
    pub fn grid(&self) -> Option<&Grid<'a>> {
        self.grid.as_ref()
    }

    /// Splits indices of [`specs`](Self::specs) into indices of the comparison's cells and of the grid's.
    pub fn split(&self, indices: &[usize]) -> (Vec<usize>, Vec<usize>) {
        let texts = self.comparison.specs().len();
        let (of_texts, of_grid): (Vec<usize>, Vec<usize>) = indices.iter().partition(|&&index| index < texts);
        (of_texts, of_grid.into_iter().map(|index| index - texts).collect())
    }

    /// Measures the cells with these indices in turn and hands each measurement to `done` as soon as it is known.
    ///
    /// # Errors
    /// The model fails; or an error of `done`, unchanged.
    pub fn run<E: From<Error>>(
        &self,
        indices: &[usize],
        progress: &mut dyn FnMut(Progress),
        done: &mut dyn FnMut(usize, LabScores) -> Result<(), E>,
    ) -> Result<(), E> {
        let (of_texts, of_grid) = self.split(indices);
        let texts = self.comparison.specs().len();
        let work = self.comparison.work(&of_texts).1 as usize;
        let more = self.grid.as_ref().map_or(0, |grid| grid.work(&of_grid).2 as usize);
        self.comparison.run(
            &of_texts,
            &mut |at| progress(Progress { total: work + more, ..at }),
            &mut |index, scores| done(index, LabScores::Text(scores)),
        )?;
        let Some(grid) = &self.grid else { return Ok(()) };
        grid.run(
            &of_grid,
            &mut |at| progress(Progress { done: work + at.done, total: work + more, ..at }),
            &mut |index, scores| done(texts + index, LabScores::Retrieval(scores)),
        )
    }

    /// The cells to be measured next in order to find the usable length of each mode, given what was measured; none once it is
    /// known.
    ///
    /// # Errors
    /// A cell that has to be measured before these has not been measured.
    pub fn next(&self, scores: &[Option<LabScores>], about: &About) -> Result<Vec<usize>> {
        let lengths = self.comparison.between();
        if lengths.is_empty() {
            return Ok(vec![]);
        }
        let results = sum_up(&self.specs, scores, about)?;
        let wanted = next(&results, lengths, about.trained_context());
        let able = results.retrieval.as_ref().map_or(vec![], |found| found.able_names());
        let asked = |spec: &LabSpec| match spec {
            LabSpec::Text(spec) => spec.between && wanted.perplexity.contains(&(spec.mode.clone(), spec.context)),
            LabSpec::Retrieval(spec) => {
                let is_next = || wanted.retrieval.contains(&(spec.mode.clone(), spec.context));
                spec.between && able.contains(&spec.task.as_str()) && is_next()
            }
        };
        let mut indices: Vec<usize> = vec![];
        for (index, spec) in self.specs.iter().enumerate().filter(|(_, spec)| asked(spec)) {
            // Of two cells that are the same computation, the first is measured.
            let twin = |other: &LabSpec| match (spec, other) {
                (LabSpec::Text(spec), LabSpec::Text(other)) => spec.is_twin_of(other),
                (LabSpec::Retrieval(spec), LabSpec::Retrieval(other)) => spec.is_twin_of(other),
                _ => false,
            };
            let index = self.specs.iter().position(twin).unwrap_or(index);
            if scores.get(index).is_some_and(Option::is_none) && !indices.contains(&index) {
                indices.push(index);
            }
        }
        Ok(indices)
    }
}

/// Sums up measurements, one per cell in the order of the specs, with the recommendation that follows from them.
///
/// # Errors
/// As [`summarise`].
pub fn sum_up(specs: &[LabSpec], scores: &[Option<LabScores>], about: &About) -> Result<Results> {
    let (mut texts, mut of_texts, mut trials, mut of_trials) = (vec![], vec![], vec![], vec![]);
    for (spec, scores) in specs.iter().zip(scores) {
        match spec {
            LabSpec::Text(spec) => {
                texts.push(spec.clone());
                of_texts.push(scores.as_ref().and_then(LabScores::of_text));
            }
            LabSpec::Retrieval(spec) => {
                trials.push(spec.clone());
                of_trials.push(scores.as_ref().and_then(LabScores::of_trials));
            }
        }
    }
    let mut results = summarise(&texts, &of_texts, about.settings.seed)?;
    if !trials.is_empty() {
        results.retrieval = Some(retrieval::summarise(&trials, &of_trials, about)?);
    }
    results.recommend(about);
    Ok(results)
}
