//! From measurements to figures: what was found by task, mode, context and depth, with intervals; what the model can do at
//! the length it was trained for; and the usable length of each mode.

use super::grid::{RetrievalScores, RetrievalSpec};
use super::haystack::PAPER;
use super::share::Share;
use super::tasks::TASKS;
use crate::error::{Error, Result, error};
use crate::perplexity::Bucket;
use crate::report::About;
use crate::stats::{Interval, WindowNll, mean, mean_interval};
use serde::{Deserialize, Serialize};

/// A model can do a task if at the length it was trained for it finds at least this share.
pub const ABLE: f64 = 0.5;

/// What a grid of trials found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Retrieval {
    /// The text in which things were hidden.
    pub haystack: String,
    /// Seed of the trials.
    pub seed: u64,
    /// Trials per depth; tasks without depths have as many trials as the others have at all depths together.
    pub trials: usize,
    /// The tasks, with what the model can do of them.
    pub tasks: Vec<TaskResult>,
    /// Tokens of prompt and answer.
    pub contexts: Vec<usize>,
    /// The depths of what was asked for, in tasks that hide it at one depth.
    pub depths: Vec<f64>,
    /// The modes.
    pub modes: Vec<String>,
    /// The cells.
    pub cells: Vec<RetrievalCell>,
    /// All depths of a task, mode and context together.
    pub totals: Vec<Total>,
    /// The same at lengths that were measured only to find the usable length of a mode.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub between: Vec<Total>,
}

/// A task, and whether the model can do it at its trained length.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskResult {
    /// Its name.
    pub name: String,
    /// What it asks for.
    pub summary: String,
    /// Number of things asked for in a trial.
    pub wanted: usize,
    /// The length that says whether the model can do the task: the longest measured up to the trained one. Absent if all are
    /// longer.
    pub reference: Option<usize>,
    /// The share that the model as it is found there, from 0 to 1.
    pub share: Option<f64>,
    /// Its 95 % interval.
    pub interval: Option<Interval>,
    /// Whether the share is at least [`ABLE`]. Nothing is concluded about scalings from a task that the model can't do.
    pub able: bool,
}

/// A cell of the grid.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RetrievalCell {
    /// The task.
    pub task: String,
    /// The mode.
    pub mode: String,
    /// Tokens of prompt and answer.
    pub context: usize,
    /// The depth of what was asked for; absent in tasks that do not hide it at one depth.
    pub depth: Option<f64>,
    /// The scaling's factor.
    pub factor: f64,
    /// Number of trials.
    pub trials: usize,
    /// Number of things found, in all trials together.
    pub found: usize,
    /// Number of things asked for, in all trials together.
    pub wanted: usize,
    /// What a token of the right answer cost, in nats.
    pub answer_nll: f64,
    /// Number of tokens of the right answers.
    pub answer_tokens: usize,
    /// Wall-clock time, in seconds.
    pub seconds: f64,
    /// The mode whose figures these are, if the two are the same computation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_as: Option<String>,
}

/// All depths of a task together, under one mode at one context.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Total {
    /// The task.
    pub task: String,
    /// The mode.
    pub mode: String,
    /// Tokens of prompt and answer.
    pub context: usize,
    /// Number of trials.
    pub trials: usize,
    /// Number of things found, in all trials together.
    pub found: usize,
    /// Number of things asked for, in all trials together.
    pub wanted: usize,
    /// The share found, from 0 to 1.
    pub share: f64,
    /// Its 95 % interval.
    pub interval: Interval,
    /// What a token of the right answer cost, in nats.
    pub answer_nll: f64,
    /// Its bootstrap 95 % interval, trials resampled; absent with too few trials.
    pub answer_interval: Option<Interval>,
    /// The mode whose figures these are, if the two are the same computation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_as: Option<String>,
}

impl Total {
    /// The share that was found.
    pub fn found(&self) -> Share {
        Share::of(self.found, self.wanted, self.trials)
    }
}

impl RetrievalCell {
    /// The share that was found.
    pub fn found(&self) -> Share {
        Share::of(self.found, self.wanted, self.trials)
    }
}

impl Retrieval {
    /// The share that a mode found of a task at a context, at one depth or at all of them. `None` if that was not measured.
    pub fn share(&self, task: &str, mode: &str, context: usize, depth: Option<f64>) -> Option<Share> {
        let Some(depth) = depth else {
            let mut totals = self.totals.iter();
            return totals.find(|t| t.task == task && t.mode == mode && t.context == context).map(Total::found);
        };
        let asked = |cell: &&RetrievalCell| cell.task == task && cell.mode == mode && cell.context == context;
        let mut cells = self.cells.iter().filter(asked);
        cells.find(|cell| cell.depth == Some(depth)).map(RetrievalCell::found)
    }

    /// What a token of the right answers to a task cost a mode at a context, in nats, at one depth or at all of them. `None` if
    /// that was not measured.
    pub fn answer_nll(&self, task: &str, mode: &str, context: usize, depth: Option<f64>) -> Option<f64> {
        let Some(depth) = depth else {
            let mut totals = self.totals.iter();
            return totals.find(|t| t.task == task && t.mode == mode && t.context == context).map(|t| t.answer_nll);
        };
        let asked = |cell: &&RetrievalCell| cell.task == task && cell.mode == mode && cell.context == context;
        let mut cells = self.cells.iter().filter(asked);
        cells.find(|cell| cell.depth == Some(depth)).map(|cell| cell.answer_nll)
    }

    /// The share that a mode found at a context of all tasks that the model can do, every trial with the same weight. `None` if it
    /// was not measured on all of them there.
    pub fn pooled(&self, mode: &str, context: usize) -> Option<Share> {
        let found = |task: &TaskResult| {
            let totals = self.totals.iter().chain(&self.between);
            let at = |t: &&Total| t.task == task.name && t.mode == mode && t.context == context;
            totals.filter(at).map(Total::found).next()
        };
        let shares: Option<Vec<Share>> = self.able().map(found).collect();
        shares?.into_iter().reduce(Share::and)
    }

    /// The tasks that the model can do at its trained length.
    pub fn able(&self) -> impl Iterator<Item = &TaskResult> {
        self.tasks.iter().filter(|task| task.able)
    }

    /// The names of these tasks.
    pub fn able_names(&self) -> Vec<&str> {
        self.able().map(|task| task.name.as_str()).collect()
    }

    /// The mode that is the model as it is: its config's own scaling, else none.
    pub fn own(&self) -> Option<&str> {
        ["checkpoint", "none"].into_iter().find(|own| self.modes.iter().any(|mode| mode == own))
    }

    /// The share that the model as it is finds of all tasks that it can do, at the longest length measured up to its trained one.
    /// Modes are compared with it.
    pub fn reference(&self) -> Option<Share> {
        let length = self.able().filter_map(|task| task.reference).max()?;
        self.pooled(self.own()?, length)
    }

    /// For the usable length of `mode`: every length at which it was measured on all tasks that the model can do, in ascending
    /// order, and whether it does not find significantly less there than the model as it is at the reference length. `None` if
    /// there is no such reference, or if the trials are so few that a mode that finds nothing would not be significantly worse.
    pub fn carries(&self, mode: &str) -> Option<Vec<(usize, bool)>> {
        let before = self.reference().filter(|before| before.is_more_than_nothing())?;
        let totals = self.totals.iter().chain(&self.between);
        let mut lengths: Vec<usize> = totals.filter(|t| t.mode == mode).map(|t| t.context).collect();
        lengths.sort_unstable();
        lengths.dedup();
        let good = |length: usize| Some((length, before.above(self.pooled(mode, length)?).low <= 0.0));
        Some(lengths.into_iter().filter_map(good).collect())
    }
}

/// Sums up measurements, one per cell in the order of the specs. A cell with `same_as` may have none, and so may one at a length
/// between that nothing asked for.
///
/// # Errors
/// A measurement is missing, or the settings have no section on retrieval.
pub fn summarise(specs: &[RetrievalSpec], scores: &[Option<RetrievalScores>], about: &About) -> Result<Retrieval> {
    let settings = about.settings.retrieval.as_ref();
    let settings = settings.ok_or_else(|| error!(Setting, "the settings have no section on retrieval"))?;
    let seed = about.settings.seed;
    let measured = |spec: &RetrievalSpec| {
        let source = specs.iter().position(|other| match spec.same_as {
            Some(_) => spec.is_twin_of(other),
            None => spec == other,
        });
        source.and_then(|index| scores.get(index)?.as_ref())
    };
    let (mut cells, mut totals, mut between) = (vec![], vec![], vec![]);
    for group in specs.chunk_by(|a, b| (&a.task, &a.mode, a.context) == (&b.task, &b.mode, b.context)) {
        let spec = &group[0];
        let found: Option<Vec<(&RetrievalSpec, &RetrievalScores)>> =
            group.iter().map(|spec| Some((spec, measured(spec)?))).collect();
        match found {
            Some(found) if spec.between => between.push(total(spec, &found, seed)),
            Some(found) => {
                cells.extend(found.iter().map(|(spec, scores)| cell(spec, scores)));
                totals.push(total(spec, &found, seed));
            }
            None if spec.between => {}
            None => {
                let cell = format!("{} under {} at {}", spec.task, spec.mode, spec.context);
                return Err(Error::Unmeasured { cell });
            }
        }
    }
    let of_grid = || specs.iter().filter(|spec| !spec.between);
    let mut retrieval = Retrieval {
        haystack: settings.haystack.as_ref().map_or_else(|| PAPER.to_string(), |text| text.name.clone()),
        seed,
        trials: settings.trials,
        tasks: vec![],
        contexts: unique(of_grid().map(|spec| spec.context)),
        depths: unique(of_grid().filter_map(|spec| spec.depth)),
        modes: unique(of_grid().map(|spec| spec.mode.clone())),
        cells,
        totals,
        between,
    };
    let tasks = unique(of_grid().map(|spec| spec.task.clone()));
    retrieval.tasks =
        tasks.iter().map(|task| judged(task, &retrieval, about.trained_context())).collect::<Result<_>>()?;
    Ok(retrieval)
}

fn cell(spec: &RetrievalSpec, scores: &RetrievalScores) -> RetrievalCell {
    let tokens: usize = scores.answers.iter().map(|answer| answer.tokens).sum();
    RetrievalCell {
        task: spec.task.clone(),
        mode: spec.mode.clone(),
        context: spec.context,
        depth: spec.depth,
        factor: spec.factor,
        trials: spec.trials,
        found: scores.found,
        wanted: scores.wanted,
        answer_nll: scores.answers.iter().map(|answer| answer.sum).sum::<f64>() / tokens as f64,
        answer_tokens: tokens,
        seconds: if spec.same_as.is_some() { 0.0 } else { scores.seconds },
        same_as: spec.same_as.clone(),
    }
}

fn total(spec: &RetrievalSpec, parts: &[(&RetrievalSpec, &RetrievalScores)], seed: u64) -> Total {
    let sum = |of: fn(&RetrievalScores) -> usize| parts.iter().map(|(_, scores)| of(scores)).sum::<usize>();
    let (found, wanted, trials) = (sum(|s| s.found), sum(|s| s.wanted), sum(|s| s.answers.len()));
    let window = |answer: &Bucket| WindowNll { sum: answer.sum, tokens: answer.tokens, ..WindowNll::default() };
    let answers: Vec<WindowNll> = parts.iter().flat_map(|(_, scores)| scores.answers.iter().map(window)).collect();
    let share = Share::of(found, wanted, trials);
    Total {
        task: spec.task.clone(),
        mode: spec.mode.clone(),
        context: spec.context,
        trials,
        found,
        wanted,
        share: share.value(),
        interval: share.interval(),
        answer_nll: mean(&answers),
        answer_interval: mean_interval(&answers, seed),
        same_as: spec.same_as.clone(),
    }
}

/// Whether the model can do a task: by the model as it is, or by the best mode if that was not measured, at the longest length
/// measured up to the trained one.
fn judged(name: &str, retrieval: &Retrieval, trained: Option<usize>) -> Result<TaskResult> {
    let task = TASKS.into_iter().find(|task| task.name == name);
    let task = task.ok_or_else(|| error!(Impossible, "there is no task {name:.40?}"))?;
    let lengths = retrieval.totals.iter().filter(|total| total.task == name).map(|total| total.context);
    // For a model of unknown trained context the shortest length is taken.
    let reference = match trained {
        Some(trained) => lengths.filter(|&length| length <= trained).max(),
        None => lengths.min(),
    };
    let at = |length: usize| {
        let of = |mode: &str| retrieval.share(name, mode, length, None);
        let best = || {
            let all = retrieval.modes.iter().filter_map(|mode| of(mode));
            all.max_by(|a, b| a.value().total_cmp(&b.value()))
        };
        retrieval.own().and_then(of).or_else(best)
    };
    let share = reference.and_then(at);
    Ok(TaskResult {
        name: name.to_string(),
        summary: task.summary.to_string(),
        wanted: task.wanted,
        reference,
        share: share.map(Share::value),
        interval: share.map(Share::interval),
        able: share.is_some_and(|share| share.value() >= ABLE),
    })
}

fn unique<T: PartialEq>(items: impl Iterator<Item = T>) -> Vec<T> {
    items.fold(vec![], |mut kept, item| {
        if !kept.contains(&item) {
            kept.push(item);
        }
        kept
    })
}
