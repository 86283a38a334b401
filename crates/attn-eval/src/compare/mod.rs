//! Position scalings side by side: one loaded model, the same windows of the same texts, one cell per mode, context and
//! text.
//!
//! Only where keys and queries are placed changes between modes, so a difference between two cells of one context is a difference
//! between the modes and not between texts, windows or loads. That also makes the comparison *paired*: what makes a
//! passage hard makes it hard for every mode, and the interval around a difference is far narrower than those around
//! the two perplexities.
//!
//! A comparison has three steps that can be done separately: [`Comparison::new`] lists the cells and leaves out
//! what does not fit, [`Comparison::score`] measures one of them, [`summarise`] turns the measurements into figures. Between the
//! last two lies only [`Scores`], which a run file keeps, so cells may be measured in any order, by several machines,
//! or before an interruption. A [`Lab`] is a comparison with a grid of retrieval trials beside it, and [`sum_up`] sums up
//! both.

mod advice;
mod check;
mod encodings;
mod lab;
mod mode;
pub(crate) mod results;
mod usable;
mod variants;
mod weigh;

use advice::OWN;
pub use advice::{Answer, Applied, ForConfigs, Recommendation, Versus, recommend};
pub(crate) use advice::{far_text, takes_factor};
pub(crate) use check::{ROUNDING, check_setting, close, is_perplexity};
pub use encodings::encodings;
pub use lab::{Lab, LabScores, LabSpec, sum_up};
pub use mode::{Factor, Mode};
pub use results::{MetricDifference, Pair, Results, TextResults, best, contexts, find, modes, summarise};
pub(crate) use results::{each_once, pair};
pub use usable::{ByRetrieval, Usable, lengths_between};
use variants::Variant;
pub use variants::{change, factor_at};
pub(crate) use variants::{check_params, scaled, variants};
pub use weigh::{Found, Weighed};

use crate::clock::Clock;
use crate::error::{Error, Result, Within, ensure, error};
use crate::metrics::{Metrics, Reference};
use crate::perplexity::{ScoreOptions, Scores, score};
use crate::report::{About, short};
use crate::run::{Measurable, to_measure};
use crate::skipped::{Fits, Skipped, has_room};
use crate::stats::mean;
use crate::windows::{WindowOptions, Windows};
use attn_core::RopeOverride;
use attn_models::Model;
use attn_models::spec::AttentionSpec;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::rc::Rc;

/// A text as the model sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// What reports call it.
    pub name: String,
    /// Its ids.
    pub tokens: Vec<u32>,
}

/// What to compare.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Tokens per window; each context has a row of cells.
    pub contexts: Vec<usize>,
    /// Further lengths, at which a cell is measured only if it is asked for, in order to find the usable length of its mode.
    pub between: Vec<usize>,
    /// The modes.
    pub modes: Vec<Mode>,
    /// The factor of their scalings.
    pub factor: Factor,
    /// Tokens from one window's start to the next; `None`: windows side by side.
    pub stride: Option<usize>,
    /// A token before every window, if there is to be one.
    pub bos: Option<u32>,
    /// Theta, original context and parameters that hold for every mode; its scaling and factor are ignored.
    pub rope: RopeOverride,
    /// The sequence length that length-dependent scalings resolve for; `None`: the window's.
    pub length: Option<usize>,
    /// Seed of the bootstrap.
    pub seed: u64,
}

impl Plan {
    /// A plan of these contexts and modes, with the rest as it usually is: the factor of the longest context, windows side by
    /// side without a BOS token.
    pub fn new(contexts: Vec<usize>, modes: Vec<Mode>) -> Self {
        Self {
            contexts,
            between: vec![],
            modes,
            factor: Factor::Longest,
            stride: None,
            bos: None,
            rope: RopeOverride::default(),
            length: None,
            seed: 0,
        }
    }
}

/// Where a comparison stands.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// The mode being scored.
    pub mode: Mode,
    /// The context being scored.
    pub context: usize,
    /// Work done so far over all cells, in millions of floating-point operations.
    pub done: usize,
    /// The work of all cells.
    pub total: usize,
    /// The work of one token of the cell being scored.
    pub per_token: f64,
}

/// One cell to be measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CellSpec {
    /// Index of the text.
    pub text: usize,
    /// Tokens per window.
    pub context: usize,
    /// Tokens from one window's start to the next.
    pub stride: usize,
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

impl CellSpec {
    /// Whether the other is the cell that this one takes its measurement from.
    pub fn is_twin_of(&self, other: &Self) -> bool {
        let same = self.text == other.text && self.context == other.context;
        same && self.same_as.as_deref() == Some(other.mode.as_str())
    }
}

impl Measurable for CellSpec {
    const KIND: &str = "compare";
    type Scores = Scores;

    fn context(&self) -> usize {
        self.context
    }

    fn mode(&self) -> &str {
        &self.mode
    }

    fn text(&self) -> Option<usize> {
        Some(self.text)
    }

    fn is_measured(&self) -> bool {
        self.same_as.is_none() && !self.between
    }

    fn agree(a: &Scores, b: &Scores) -> bool {
        a.windows == b.windows && a.curve == b.curve && a.longppl == b.longppl && a.kl == b.kl
    }

    fn figure(scores: &Scores) -> String {
        format!("perplexity {}", short(mean(&scores.windows).exp()))
    }

    fn check(&self, scores: &Scores, about: &About) -> Result<()> {
        let text = about.texts.get(self.text).ok_or_else(|| error!(Impossible, "the run has no such text"))?;
        scores.check(self.context, text.used)
    }
}

/// A comparison ready to run.
#[derive(Debug)]
pub struct Comparison<'a> {
    texts: &'a [Text],
    plan: &'a Plan,
    specs: Vec<CellSpec>,
    jobs: Vec<Job>,
    skipped: Vec<Skipped>,
    metrics: Option<Metrics<'a>>,
    /// What the reference made of the windows of the last text and context that were measured.
    references: RefCell<Option<Kept>>,
}

/// What the reference makes of the windows of one text and context.
#[derive(Debug)]
struct Kept {
    of: (usize, usize),
    references: Rc<Vec<Reference>>,
}

/// What is needed to measure a cell.
#[derive(Debug)]
struct Job {
    mode: Mode,
    model: Model,
    /// Tokens to read.
    tokens: usize,
    /// Work per token, in millions of floating-point operations.
    cost: f64,
}

impl<'a> Comparison<'a> {
    /// Lists the cells, text by text and context by context, in the order of the plan.
    ///
    /// Most scalings by a factor of 1 change nothing, and neither do dynamic ones within the trained context; such cells name
    /// the one that is measured for them. `fits` says why a context is impossible, for example because there is not enough
    /// memory. Such a context is skipped, and so is one that the model has no positions for or that a text is too short for.
    ///
    /// # Errors
    /// There is nothing to compare, or all contexts are skipped; a mode can't be applied to the model, none of the modes has a
    /// parameter of the plan, or the factor is not known ([`factor_at`]).
    pub fn new(model: &Model, texts: &'a [Text], plan: &'a Plan, fits: &Fits<'_>) -> Result<Self> {
        let something = !plan.modes.is_empty() && !plan.contexts.is_empty() && !texts.is_empty();
        ensure!(something, Setting, "there is nothing to compare: name a mode, a context and a text");
        check_params(plan)?;
        let references = RefCell::new(None);
        let mut comparison =
            Self { texts, plan, specs: vec![], jobs: vec![], skipped: vec![], metrics: None, references };
        for (contexts, between) in [(&plan.contexts, false), (&plan.between, true)] {
            let contexts = comparison.those_that_fit(model, contexts, between, fits);
            for text in 0..texts.len() {
                for (context, windows) in &contexts {
                    for variant in variants(model, plan, *context)? {
                        comparison.add(text, &windows[text], variant, between);
                    }
                }
            }
        }
        if !comparison.specs.iter().any(|spec| !spec.between) {
            return Err(Error::NothingLeft { skipped: comparison.skipped });
        }
        Ok(comparison)
    }

    /// The contexts that can be measured, with the windows of every text. The others are noted as skipped, except for lengths
    /// between the contexts, since nothing asks for those if longer ones are not measured.
    fn those_that_fit(
        &mut self,
        model: &Model,
        contexts: &[usize],
        between: bool,
        fits: &Fits<'_>,
    ) -> Vec<(usize, Vec<Windows>)> {
        let mut found = vec![];
        for &context in contexts {
            let cut = |Text { name, tokens }: &Text| {
                Windows::new(tokens.len(), &window_options(self.plan, context)).within(|| name.clone())
            };
            let cut = || self.texts.iter().map(cut).collect::<Result<_>>().map_err(|error| error.to_string());
            match has_room(model, context, fits).and_then(|()| cut()) {
                Ok(windows) => found.push((context, windows)),
                Err(_) if between => {}
                Err(reason) => self.skipped.push(Skipped::new(context, Some("perplexity"), reason)),
            }
        }
        found
    }

    fn add(&mut self, text: usize, windows: &Windows, variant: Variant, between: bool) {
        let Variant { mode, factor, model, same_as } = variant;
        let (context, stride) = (windows.context(), windows.stride());
        let same_as = same_as.map(|mode| mode.to_string());
        self.specs.push(CellSpec { text, context, stride, mode: mode.to_string(), factor, same_as, between });
        self.jobs.push(Job { mode, cost: cost(&model, context), model, tokens: windows.work() });
    }

    /// Takes further metrics in every cell.
    ///
    /// # Errors
    /// A context for which a metric is not defined ([`Metrics::check`]).
    pub fn with_metrics(self, metrics: Option<Metrics<'a>>) -> Result<Self> {
        for (metrics, context) in metrics.iter().flat_map(|m| self.contexts().into_iter().map(move |c| (m, c))) {
            metrics.check(context)?;
        }
        Ok(Self { metrics, ..self })
    }

    /// The cells.
    pub fn specs(&self) -> &[CellSpec] {
        &self.specs
    }

    /// The contexts measured, in the order of the plan.
    pub fn contexts(&self) -> Vec<usize> {
        let measured = |context: &usize| self.specs.iter().any(|spec| spec.context == *context && !spec.between);
        self.plan.contexts.iter().copied().filter(measured).collect()
    }

    /// What could not be measured, and why.
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }

    /// The lengths at which a cell is measured only if it is asked for.
    pub fn between(&self) -> &[usize] {
        &self.plan.between
    }

    /// Windows of `context` tokens, over all texts.
    pub fn windows(&self, context: usize) -> usize {
        let count = |text: &Text| Windows::new(text.tokens.len(), &window_options(self.plan, context));
        self.texts.iter().filter_map(|text| Some(count(text).ok()?.windows().len())).sum()
    }

    /// Tokens to read for the cells of these indices, and the work in millions of floating-point operations.
    pub fn work(&self, indices: &[usize]) -> (usize, f64) {
        let jobs = indices.iter().enumerate().map(|(i, &index)| {
            let (job, more) = (&self.jobs[index], self.reference_tokens(indices, i));
            (job.tokens + more, (job.tokens + more) as f64 * job.cost)
        });
        jobs.fold((0, 0.0), |(tokens, work), (t, w)| (tokens + t, work + w))
    }

    /// Tokens that the reference reads before the `i`-th of these cells is measured: what it made of the windows is kept as
    /// long as cells of the same text and context follow.
    fn reference_tokens(&self, indices: &[usize], i: usize) -> usize {
        let Some(metrics) = &self.metrics else { return 0 };
        let of = |i: usize| (self.specs[indices[i]].text, self.specs[indices[i]].context);
        if i > 0 && of(i - 1) == of(i) {
            return 0;
        }
        let context = of(i).1;
        self.jobs[indices[i]].tokens / context * metrics.work(context)
    }

    /// The largest number of bytes that are kept of what the reference makes of the windows of one text and context.
    pub fn kept_bytes(&self) -> u64 {
        let kept = |metrics: &Metrics| {
            let cells = self.specs.iter().zip(&self.jobs);
            cells.map(|(spec, job)| metrics.kept_bytes(job.tokens / spec.context, spec.context)).max().unwrap_or(0)
        };
        self.metrics.as_ref().map_or(0, kept)
    }

    /// Measures cell `index`; `progress` is told the number of tokens read after each forward pass.
    ///
    /// # Errors
    /// Anything [`score`] refuses.
    pub fn score(&self, index: usize, progress: &mut dyn FnMut(usize)) -> Result<Scores> {
        let (spec, job) = (&self.specs[index], &self.jobs[index]);
        let windows = window_options(self.plan, spec.context);
        let options = ScoreOptions { windows, length: self.plan.length };
        let Text { name, tokens } = &self.texts[spec.text];
        let named = || format!("{name}, mode {}", job.mode);
        let Some(metrics) = &self.metrics else {
            return score(&job.model, tokens, &options, progress).within(named);
        };
        let windows = Windows::new(tokens.len(), &options.windows)?;
        let references = self.references(metrics, spec, &windows, progress)?;
        let clock = Clock::start();
        let cut = (&windows, windows.windows());
        let scores = metrics.score(&job.model, tokens, cut, &references, options.length, progress);
        scores.map(|scores| Scores { seconds: clock.seconds(), ..scores }).within(named)
    }

    /// What the reference makes of a cell's windows: kept from the cell before, or measured.
    fn references(
        &self,
        metrics: &Metrics,
        spec: &CellSpec,
        windows: &Windows,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Rc<Vec<Reference>>> {
        let of = (spec.text, spec.context);
        if let Some(kept) = self.references.borrow().as_ref().filter(|kept| kept.of == of) {
            return Ok(kept.references.clone());
        }
        // Those of another context are dropped first, to free their memory.
        self.references.replace(None);
        let Text { name, tokens } = &self.texts[spec.text];
        let measured = metrics.references(tokens, windows, windows.windows(), progress);
        let references = Rc::new(measured.within(|| format!("{name}, the model as it is"))?);
        self.references.replace(Some(Kept { of, references: references.clone() }));
        Ok(references)
    }

    /// Measures the cells with these indices in turn and hands each measurement to `done` as soon as it is known.
    ///
    /// # Errors
    /// Anything [`score`](Self::score) refuses; or an error of `done`, unchanged.
    pub fn run<E: From<Error>>(
        &self,
        indices: &[usize],
        progress: &mut dyn FnMut(Progress),
        done: &mut dyn FnMut(usize, Scores) -> Result<(), E>,
    ) -> Result<(), E> {
        let work = |tokens: usize, job: &Job| (tokens as f64 * job.cost) as usize;
        let tokens = |i: usize| self.jobs[indices[i]].tokens + self.reference_tokens(indices, i);
        let total = (0..indices.len()).map(|i| work(tokens(i), &self.jobs[indices[i]])).sum();
        let mut before = 0;
        for (i, &index) in indices.iter().enumerate() {
            let (spec, job) = (&self.specs[index], &self.jobs[index]);
            let mut read = 0;
            let mut report = |tokens| {
                read += tokens;
                let done = before + work(read, job);
                progress(Progress { mode: job.mode, context: spec.context, done, total, per_token: job.cost });
            };
            report(0);
            let scores = self.score(index, &mut report)?;
            done(index, scores)?;
            before += work(tokens(i), job);
        }
        Ok(())
    }
}

/// Compares in one go: every cell measured and summed up.
///
/// # Errors
/// As [`Comparison::new`] and [`Comparison::score`]; a context that can't be measured.
pub fn compare(model: &Model, texts: &[Text], plan: &Plan, progress: &mut dyn FnMut(Progress)) -> Result<Results> {
    let comparison = Comparison::new(model, texts, plan, &|_| Ok(()))?;
    // The results have no field for contexts that were skipped.
    if let Some(skipped) = comparison.skipped.first().cloned() {
        return Err(Error::LeftOut { skipped });
    }
    let mut scores = vec![None; comparison.specs.len()];
    let indices: Vec<usize> = to_measure(&comparison.specs).collect();
    comparison.run(&indices, progress, &mut |index, measured| {
        scores[index] = Some(measured);
        Ok::<_, Error>(())
    })?;
    summarise(&comparison.specs, &scores, plan.seed)
}

/// An estimate of the millions of floating-point operations per token of a window of `context`: every weight once, and every
/// key and value before the token. It is used only to say how much time is left.
pub(crate) fn cost(model: &Model, context: usize) -> f64 {
    let width = |attention: &AttentionSpec| match attention {
        AttentionSpec::MultiHead(a) => a.heads * a.head_dim,
        AttentionSpec::Latent(a) => a.heads * (a.qk_nope_head_dim + a.qk_rope_head_dim),
    };
    let widths: usize = model.spec().stack.layers.iter().map(|layer| width(&layer.attention)).sum();
    (2.0 * model.parameters() as f64 + 2.0 * (context * widths) as f64) / 1e6
}

pub(crate) fn window_options(plan: &Plan, context: usize) -> WindowOptions {
    WindowOptions { context, stride: plan.stride, bos: plan.bos }
}
