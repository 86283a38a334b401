//! From measurements to figures: what was found by task, mode, context and depth, how sure that is, what the model can do at
//! the length it was trained for, and how far each mode carries.

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
    /// What things were hidden in.
    pub haystack: String,
    /// Seed of the trials.
    pub seed: u64,
    /// Trials per depth; tasks without depths have as many in all.
    pub trials: usize,
    /// The tasks, with what the model can do of them.
    pub tasks: Vec<TaskResult>,
    /// Tokens of prompt and answer.
    pub contexts: Vec<usize>,
    /// Where the asked-for thing stood, in tasks where it stands in one place.
    pub depths: Vec<f64>,
    /// The scalings.
    pub modes: Vec<String>,
    /// The cells.
    pub cells: Vec<RetrievalCell>,
    /// All depths of a task, mode and context together.
    pub totals: Vec<Total>,
    /// The same at lengths that were measured only to find out how far a mode carries.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub between: Vec<Total>,
}

/// A task, and whether the model can do it where it was trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskResult {
    /// Its name.
    pub name: String,
    /// What it asks for.
    pub summary: String,
    /// Things asked for in a trial.
    pub wanted: usize,
    /// The length that says whether the model can do the task: the longest measured up to the trained one. Absent if all are
    /// longer.
    pub reference: Option<usize>,
    /// What the model as it is found there, from 0 to 1.
    pub share: Option<f64>,
    /// Its 95 % interval.
    pub interval: Option<Interval>,
    /// Whether that is at least [`ABLE`]. Nothing is concluded about scalings from a task that the model can't do.
    pub able: bool,
}

/// A cell of the grid.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RetrievalCell {
    /// The task.
    pub task: String,
    /// The scaling.
    pub mode: String,
    /// Tokens of prompt and answer.
    pub context: usize,
    /// Where the asked-for thing stood; absent where it stands in no one place.
    pub depth: Option<f64>,
    /// The scaling's factor.
    pub factor: f64,
    /// Trials.
    pub trials: usize,
    /// Things found, of all trials together.
    pub found: usize,
    /// Things asked for.
    pub wanted: usize,
    /// What a token of the right answer cost, in nats.
    pub answer_nll: f64,
    /// Tokens of the right answers.
    pub answer_tokens: usize,
    /// Wall-clock time.
    pub seconds: f64,
    /// The mode whose figures these are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_as: Option<String>,
}

/// All depths of a task together, under one mode at one context.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Total {
    /// The task.
    pub task: String,
    /// The scaling.
    pub mode: String,
    /// Tokens of prompt and answer.
    pub context: usize,
    /// Trials.
    pub trials: usize,
    /// Things found, of all trials together.
    pub found: usize,
    /// Things asked for.
    pub wanted: usize,
    /// The share found, from 0 to 1.
    pub share: f64,
    /// Its 95 % interval.
    pub interval: Interval,
    /// What a token of the right answer cost, in nats.
    pub answer_nll: f64,
    /// Its bootstrap 95 % interval, trials resampled; absent with too few.
    pub answer_interval: Option<Interval>,
    /// The mode whose figures these are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_as: Option<String>,
}

impl Total {
    /// What was found.
    pub fn found(&self) -> Share {
        Share::of(self.found, self.wanted, self.trials)
    }
}

impl RetrievalCell {
    /// What was found.
    pub fn found(&self) -> Share {
        Share::of(self.found, self.wanted, self.trials)
    }
}

impl Retrieval {
    /// What a mode found of a task at a context: at one depth, or at all of them. `None` if it was not asked there.
    pub fn share(&self, task: &str, mode: &str, context: usize, depth: Option<f64>) -> Option<Share> {
        let Some(depth) = depth else {
            let mut totals = self.totals.iter();
            return totals.find(|t| t.task == task && t.mode == mode && t.context == context).map(Total::found);
        };
        let asked = |cell: &&RetrievalCell| cell.task == task && cell.mode == mode && cell.context == context;
        let mut cells = self.cells.iter().filter(asked);
        cells.find(|cell| cell.depth == Some(depth)).map(RetrievalCell::found)
    }

    /// What a token of the right answers to a task cost a mode at a context, in nats: at one depth, or at all of them. `None` if
    /// it was not asked there.
    pub fn answer_nll(&self, task: &str, mode: &str, context: usize, depth: Option<f64>) -> Option<f64> {
        let Some(depth) = depth else {
            let mut totals = self.totals.iter();
            return totals.find(|t| t.task == task && t.mode == mode && t.context == context).map(|t| t.answer_nll);
        };
        let asked = |cell: &&RetrievalCell| cell.task == task && cell.mode == mode && cell.context == context;
        let mut cells = self.cells.iter().filter(asked);
        cells.find(|cell| cell.depth == Some(depth)).map(|cell| cell.answer_nll)
    }

    /// What a mode found at a context of all tasks that the model can do, every trial weighing the same; `None` if it was not
    /// asked all of them there.
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

    /// The names of those.
    pub fn able_names(&self) -> Vec<&str> {
        self.able().map(|task| task.name.as_str()).collect()
    }

    /// The mode that is the model as it is: its config's own scaling, else none.
    pub fn own(&self) -> Option<&str> {
        ["checkpoint", "none"].into_iter().find(|own| self.modes.iter().any(|mode| mode == own))
    }

    /// What the model as it is finds at the longest length it was trained for, of all tasks that it can do: what modes are held
    /// against.
    pub fn reference(&self) -> Option<Share> {
        let length = self.able().filter_map(|task| task.reference).max()?;
        self.pooled(self.own()?, length)
    }

    /// What is known of how far `mode` carries by retrieval: every length at which it was asked all tasks that the model can
    /// do, in order, with whether it finds as much there as the model as it is does at the reference length, as far as the
    /// intervals can tell. `None` where nothing can be said, also since the trials are so few that a mode that finds nothing
    /// could not be told from one that does.
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

/// Sums up measurements, one per cell in the order of the specs; those that are measured as another, and those between that
/// nothing asked for, may be absent.
///
/// # Errors
/// A measurement is missing, or the settings say nothing of retrieval.
pub fn summarise(specs: &[RetrievalSpec], scores: &[Option<RetrievalScores>], about: &About) -> Result<Retrieval> {
    let settings = about.settings.retrieval.as_ref();
    let settings = settings.ok_or_else(|| error!(Setting, "the settings say nothing of retrieval"))?;
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

/// Whether the model can do a task: the model as it is, or the best mode where that was not measured, at the longest length
/// up to the trained one.
fn judged(name: &str, retrieval: &Retrieval, trained: Option<usize>) -> Result<TaskResult> {
    let task = TASKS.into_iter().find(|task| task.name == name);
    let task = task.ok_or_else(|| error!(Impossible, "there is no task {name:.40?}"))?;
    let lengths = retrieval.totals.iter().filter(|total| total.task == name).map(|total| total.context);
    // Of a model of unknown trained context the shortest length has to do.
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
