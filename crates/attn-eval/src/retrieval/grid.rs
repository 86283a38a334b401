//! The grid of trials: its cells, the prompts, and how a model is measured on them.

use super::haystack::Haystack;
use super::list::numbered;
use super::tasks::{Body, Task};
use crate::clock::Clock;
use crate::compare::{Mode, Plan, Progress, check_params, cost, variants};
use crate::error::{Error, Result, Within, ensure, error};
use crate::perplexity::Bucket;
use crate::report::About;
use crate::rng::Rng;
use crate::run::Measurable;
use crate::skipped::{Fits, Skipped, has_room};
use attn_core::ops;
use attn_models::{Model, RopeLength, Session};
use candle_core::Tensor;
use loader::Tokenizer;
use serde::{Deserialize, Serialize};

/// The number of tokens by which the fixed parts of a task's prompts may differ from trial to trial.
const SLACK: usize = 8;

/// What a grid of trials measures.
#[derive(Debug)]
pub struct RetrievalPlan<'a> {
    /// Contexts, modes with their factor, and the seed; a stride has no meaning here.
    pub plan: Plan,
    /// The tasks.
    pub tasks: Vec<&'static Task>,
    /// The depths of what is asked for, from 0 (the beginning) to 1 (the end), in tasks that hide it at one depth.
    pub depths: Vec<f64>,
    /// Trials per depth. Tasks without depths have as many trials as the others have at all depths together.
    pub trials: usize,
    /// The text in which things are hidden.
    pub haystack: Haystack,
    /// The model's tokenizer.
    pub tokenizer: &'a Tokenizer,
}

/// One cell to be measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RetrievalSpec {
    /// The name of the task.
    pub task: String,
    /// Tokens of prompt and answer.
    pub context: usize,
    /// The depth of what is asked for; absent in tasks that do not hide it at one depth.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "crate::exact::optional")]
    pub depth: Option<f64>,
    /// Number of trials.
    pub trials: usize,
    /// The name of the mode.
    pub mode: String,
    /// Its factor.
    #[serde(with = "crate::exact")]
    pub factor: f64,
    /// The mode whose measurement serves this one too, the two being the same computation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_as: Option<String>,
    /// Whether it is measured only if it is asked for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub between: bool,
}

/// The measurement of a cell's trials.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RetrievalScores {
    /// Number of things found, in all trials together.
    pub found: usize,
    /// Number of things asked for, in all trials together.
    pub wanted: usize,
    /// What the tokens of the right answer cost, trial by trial.
    pub answers: Vec<Bucket>,
    /// Wall-clock time, in seconds.
    pub seconds: f64,
}

impl Measurable for RetrievalSpec {
    const KIND: &str = "retrieval";
    type Scores = RetrievalScores;

    fn context(&self) -> usize {
        self.context
    }

    fn mode(&self) -> &str {
        &self.mode
    }

    fn text(&self) -> Option<usize> {
        None
    }

    fn is_measured(&self) -> bool {
        self.same_as.is_none() && !self.between
    }

    fn agree(a: &RetrievalScores, b: &RetrievalScores) -> bool {
        (a.found, a.wanted, &a.answers) == (b.found, b.wanted, &b.answers)
    }

    fn figure(scores: &RetrievalScores) -> String {
        format!("{} of {} found", scores.found, scores.wanted)
    }

    fn check(&self, scores: &RetrievalScores, _: &About) -> Result<()> {
        let RetrievalScores { found, wanted, answers, seconds } = scores;
        let task = self.task()?;
        ensure!(
            self.trials > 0 && answers.len() == self.trials,
            Impossible,
            "it has {} trials, not {}",
            answers.len(),
            self.trials
        );
        let asked = self.trials.checked_mul(task.wanted);
        ensure!(
            asked == Some(*wanted) && found <= wanted,
            Impossible,
            "it finds {found} of {wanted} in {} trials",
            self.trials
        );
        let fine = |answer: &Bucket| answer.tokens > 0 && answer.tokens <= task.room && answer.sum.is_finite();
        ensure!(answers.iter().all(fine), Impossible, "an answer has no tokens or too many");
        ensure!(seconds.is_finite() && *seconds >= 0.0, Impossible, "it can't have taken {seconds} s");
        Ok(())
    }
}

impl RetrievalSpec {
    /// The task.
    ///
    /// # Errors
    /// There is none of that name.
    pub(super) fn task(&self) -> Result<&'static Task> {
        let named = super::TASKS.into_iter().find(|task| task.name == self.task);
        named.ok_or_else(|| error!(Impossible, "there is no task {:.40?}", self.task))
    }

    /// Whether the other is the cell that this one takes its measurement from.
    pub(crate) fn is_twin_of(&self, other: &Self) -> bool {
        let same = (&self.task, self.context, self.depth) == (&other.task, other.context, other.depth);
        same && self.same_as.as_deref() == Some(other.mode.as_str()) && other.same_as.is_none()
    }
}

/// A prompt and what is expected of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Trial {
    /// The ids of the prompt, a context less the room for the answer.
    pub(super) prompt: Vec<u32>,
    /// The ids of the right answer, as far as there is room for it.
    pub(super) answer: Vec<u32>,
    /// What is looked for in an answer.
    pub(super) wanted: Vec<String>,
}

/// A grid ready to run.
#[derive(Debug)]
pub struct Grid<'a> {
    plan: &'a RetrievalPlan<'a>,
    specs: Vec<RetrievalSpec>,
    jobs: Vec<(Mode, Model, f64)>,
    skipped: Vec<Skipped>,
}

impl<'a> Grid<'a> {
    /// Lists the cells: context by context, task by task, mode by mode, depth by depth; the lengths between come last. `fits` says
    /// why a context is impossible, for example because there is not enough memory. Such a context is skipped, and so is one that
    /// is too short for a task or too long for the haystack.
    ///
    /// # Errors
    /// There is nothing to measure, or all contexts are skipped; a mode can't be applied to the model.
    pub fn new(model: &Model, plan: &'a RetrievalPlan<'a>, fits: &Fits<'_>) -> Result<Self> {
        let something = !plan.plan.modes.is_empty() && !plan.plan.contexts.is_empty() && !plan.tasks.is_empty();
        ensure!(
            something && !plan.depths.is_empty() && plan.trials > 0,
            Setting,
            "there is nothing to measure: name a mode, a context, a task, a depth and at least one trial"
        );
        check_params(&plan.plan)?;
        let mut grid = Self { plan, specs: vec![], jobs: vec![], skipped: vec![] };
        for (contexts, between) in [(&plan.plan.contexts, false), (&plan.plan.between, true)] {
            for &context in contexts {
                match has_room(model, context, fits) {
                    Ok(()) => grid.add(model, context, between)?,
                    // Lengths between contexts are asked for only if the longer ones are measured.
                    Err(_) if between => {}
                    Err(reason) => grid.skipped.push(Skipped::new(context, None, reason)),
                }
            }
        }
        if !grid.specs.iter().any(|spec| !spec.between) {
            return Err(Error::NothingLeft { skipped: grid.skipped });
        }
        Ok(grid)
    }

    /// A grid without cells, for tests of its trials.
    #[cfg(test)]
    pub(super) fn of(plan: &'a RetrievalPlan<'a>) -> Self {
        Self { plan, specs: vec![], jobs: vec![], skipped: vec![] }
    }

    fn add(&mut self, model: &Model, context: usize, between: bool) -> Result<()> {
        let variants = variants(model, &self.plan.plan, context)?;
        for &task in &self.plan.tasks {
            if let Err(error) = self.try_out(task, context) {
                if !between {
                    self.skipped.push(Skipped::new(context, Some(task.name), error.to_string()));
                }
                continue;
            }
            let depths: Vec<Option<f64>> =
                if task.placed { self.plan.depths.iter().copied().map(Some).collect() } else { vec![None] };
            let trials = if task.placed { self.plan.trials } else { self.plan.trials * self.plan.depths.len() };
            for variant in &variants {
                for &depth in &depths {
                    self.specs.push(RetrievalSpec {
                        task: task.name.to_string(),
                        context,
                        depth,
                        trials,
                        mode: variant.mode.to_string(),
                        factor: variant.factor,
                        same_as: variant.same_as.map(|mode| mode.to_string()),
                        between,
                    });
                    let work = cost(&variant.model, context) * (context * trials) as f64;
                    self.jobs.push((variant.mode, variant.model.clone(), work));
                }
            }
        }
        Ok(())
    }

    /// Checks that a context has room for a task, and that the haystack has enough text to fill it.
    fn try_out(&self, task: &Task, context: usize) -> Result<()> {
        let short = || error!(Setting, "a context of {context} is too short");
        let context = context.checked_sub(SLACK).ok_or_else(short)?;
        self.trial(task, context, self.plan.depths.first().copied(), 0).map(drop)
    }

    /// The cells.
    pub fn specs(&self) -> &[RetrievalSpec] {
        &self.specs
    }

    /// What could not be measured, and why.
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }

    /// For the cells with these indices: the number of prompts, the tokens to read, and the work in millions of floating-point
    /// operations.
    pub fn work(&self, indices: &[usize]) -> (usize, usize, f64) {
        indices.iter().fold((0, 0, 0.0), |(prompts, tokens, work), &index| {
            let spec = &self.specs[index];
            (prompts + spec.trials, tokens + spec.trials * spec.context, work + self.jobs[index].2)
        })
    }

    /// Measures the cells with these indices in turn and hands each measurement to `done` as soon as it is known.
    ///
    /// # Errors
    /// The model fails; or an error of `done`, unchanged.
    pub fn run<E: From<Error>>(
        &self,
        indices: &[usize],
        progress: &mut dyn FnMut(Progress),
        done: &mut dyn FnMut(usize, RetrievalScores) -> Result<(), E>,
    ) -> Result<(), E> {
        let total = indices.iter().map(|&index| self.jobs[index].2 as usize).sum();
        let mut before = 0;
        for &index in indices {
            let (mode, model, work) = &self.jobs[index];
            let spec = &self.specs[index];
            let task = spec.task()?;
            let clock = Clock::start();
            let wanted = spec.trials * task.wanted;
            let mut scores = RetrievalScores { found: 0, wanted, answers: vec![], seconds: 0.0 };
            for trial in 0..spec.trials {
                let part = (work * trial as f64 / spec.trials as f64) as usize;
                let per_token = work / (spec.trials * spec.context) as f64;
                progress(Progress { mode: *mode, context: spec.context, done: before + part, total, per_token });
                let trial = self.trial(task, spec.context, spec.depth, trial)?;
                let asked = self.ask(model, task, &trial, spec.context);
                let (found, answer) = asked.within(|| format!("{}, mode {mode}", task.name))?;
                scores.found += found;
                scores.answers.push(answer);
            }
            scores.seconds = clock.seconds();
            done(index, scores)?;
            before += *work as usize;
        }
        Ok(())
    }

    /// A trial of a task. It depends on the seed, the task, the context, the depth and the trial's number, but not on the mode.
    pub(super) fn trial(&self, task: &Task, context: usize, depth: Option<f64>, number: usize) -> Result<Trial> {
        let mut rng = Rng::new(self.plan.plan.seed);
        let depth_bits = depth.filter(|_| task.placed).map_or(0, f64::to_bits);
        let name = task.name.bytes().map(u64::from);
        for part in name.chain([context as u64, depth_bits, number as u64]) {
            rng = Rng::new(rng.next_u64() ^ part);
        }
        let draft = (task.draft)(&mut rng, depth.unwrap_or(0.5));
        let encode = |text: &str| self.plan.tokenizer.encode(text, false);
        let mut prompt: Vec<u32> = self.plan.plan.bos.into_iter().collect();
        prompt.extend(encode(&draft.opening)?);
        let question = encode(&draft.question)?;
        let mut answer = self.after(&draft.question, &question, &draft.answer)?;
        answer.truncate(task.room);
        ensure!(!answer.is_empty(), UnsuitableModel, "the tokenizer gives no tokens for an answer");
        let mut fixed = prompt.len() + question.len() + task.room;
        let body = match draft.body {
            Body::Hidden(needles) => {
                let mut hidden = vec![];
                for (depth, text) in &needles {
                    let ids = encode(text)?;
                    fixed += ids.len();
                    hidden.push((*depth, ids));
                }
                let count = left(context, fixed)?;
                if let Some(reason) = self.plan.haystack.lacks(count) {
                    return Err(Error::TextTooShort { reason });
                }
                let first = self.plan.haystack.first(|n| rng.below(n));
                self.plan.haystack.around(&hidden, first, count)
            }
            Body::Words { common, others, order } => {
                numbered(&common, &others, order, left(context, fixed)?, self.plan.tokenizer)?
            }
        };
        prompt.extend(body);
        prompt.extend(question);
        Ok(Trial { prompt, answer, wanted: draft.wanted })
    }

    /// The tokens of `answer` after `question`, whose own tokens are `ids`.
    fn after(&self, question: &str, ids: &[u32], answer: &str) -> Result<Vec<u32>> {
        let together = self.plan.tokenizer.encode(&format!("{question}{answer}"), false)?;
        Ok(match together.strip_prefix(ids) {
            Some(rest) => rest.to_vec(),
            // A token of the two together crosses the end of the question.
            None => self.plan.tokenizer.encode(answer, false)?,
        })
    }

    /// How many of the things asked for are in the model's greedy answer, and what the right answer would have cost it.
    fn ask(&self, model: &Model, task: &Task, trial: &Trial, context: usize) -> Result<(usize, Bucket)> {
        let length = RopeLength::Declared(self.plan.plan.length.unwrap_or(context));
        let row = |ids: &[u32]| Tensor::new(ids, model.device())?.unsqueeze(0);
        let mut session = Session::new(model, length, None)?;
        let after = session.feed(&row(&trial.prompt)?)?;
        let (mut ids, mut answer) = (vec![], String::new());
        let mut logits = after.clone();
        while ids.len() < task.room {
            let token = Model::greedy(&logits)?.flatten_all()?.to_vec1::<u32>()?[0];
            ids.push(token);
            answer = self.plan.tokenizer.decode(&ids, false)?;
            if task.ended(&answer, &trial.wanted) || ids.len() == task.room {
                break;
            }
            logits = session.feed(&row(&[token])?)?;
        }
        // A sliding window may have dropped keys that the answer has to see.
        if session.truncate(trial.prompt.len()).is_err() {
            session = Session::new(model, length, None)?;
            session.feed(&row(&trial.prompt)?)?;
        }
        let (tokens, mut rows) = (trial.answer.len(), vec![after]);
        if tokens > 1 {
            rows.push(session.feed_all(&row(&trial.answer[..tokens - 1])?)?.squeeze(0)?);
        }
        let targets = Tensor::new(trial.answer.as_slice(), model.device())?;
        let nll = ops::nll(&Tensor::cat(&rows, 0)?, &targets)?.to_vec1::<f32>()?;
        let sum: f64 = nll.into_iter().map(f64::from).sum();
        ensure!(sum.is_finite(), NotFinite, "the right answer has a log-likelihood of {}", -sum);
        Ok((task.found(&answer, &trial.wanted), Bucket { sum, tokens }))
    }
}

/// The number of tokens of a trial's body, if all else takes `fixed` of them.
fn left(context: usize, fixed: usize) -> Result<usize> {
    let left = context.checked_sub(fixed).filter(|&left| left > 0);
    let short = || error!(Setting, "a context of {context} is too short: the task itself takes {fixed} tokens");
    left.ok_or_else(short)
}
