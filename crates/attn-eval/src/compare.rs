//! Position scalings side by side: one loaded model, the same windows of the same text, one cell per mode and context.
//!
//! Only the rotary frequencies change between modes, so a difference between two cells of one context is a difference
//! between the modes and not between texts, windows or loads. That also makes the comparison *paired*: what makes a
//! passage hard makes it hard for every mode, and the interval around a difference is far narrower than those around
//! the two perplexities.

use crate::perplexity::{Cell, ScoreOptions, check_room, score};
use crate::stats::paired_difference;
use crate::windows::{WindowOptions, Windows};
use anyhow::{Context, Result, bail, ensure};
use attn_core::RopeOverride;
use attn_models::Model;
use std::fmt;
use std::str::FromStr;

/// A column of a comparison: a RoPE scaling by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// What the checkpoint's own config says, scaling included.
    Checkpoint,
    /// The checkpoint without any scaling.
    None,
    /// Position interpolation: every frequency divided by the factor.
    Linear,
    /// A larger base, the same for every length.
    Ntk,
    /// A base that grows with the length.
    Dynamic,
    /// YaRN's blend of frequencies without its temperature.
    NtkByParts,
    /// YaRN.
    Yarn,
    /// Separately searched factors per frequency, from the checkpoint or from parameters.
    LongRope,
    /// Llama 3.1's blend.
    Llama3,
    /// Gemma's proportional encoding.
    Proportional,
}

use Mode::{Checkpoint, Dynamic, Linear, Llama3, LongRope, None as Unscaled, Ntk, NtkByParts, Proportional, Yarn};

impl Mode {
    /// Every mode.
    pub const ALL: [Self; 10] =
        [Checkpoint, Unscaled, Linear, Ntk, Dynamic, NtkByParts, Yarn, LongRope, Llama3, Proportional];

    /// The modes that any RoPE model can be compared across.
    pub const DEFAULT: [Self; 6] = [Unscaled, Linear, Ntk, Dynamic, NtkByParts, Yarn];

    /// Its name, as the command line and the reports spell it.
    pub fn name(self) -> &'static str {
        match self {
            Checkpoint => "checkpoint",
            Unscaled => "none",
            Linear => "linear",
            Ntk => "ntk",
            Dynamic => "dynamic",
            NtkByParts => "ntk-by-parts",
            Yarn => "yarn",
            LongRope => "longrope",
            Llama3 => "llama3",
            Proportional => "proportional",
        }
    }

    /// Whether its frequencies depend on a factor.
    fn takes_factor(self) -> bool {
        !matches!(self, Checkpoint | Unscaled | LongRope)
    }

    /// Whether this factor makes it the same computation as [`Mode::None`].
    fn is_identity(self, factor: f64) -> bool {
        self == Unscaled || (factor == 1.0 && matches!(self, Linear | Ntk | Dynamic | NtkByParts | Yarn | Llama3))
    }

    /// The config keys it reads beside the factor.
    fn params(self) -> &'static [&'static str] {
        match self {
            NtkByParts => &["beta_fast", "beta_slow", "truncate"],
            Yarn => &["beta_fast", "beta_slow", "truncate", "attention_factor", "mscale", "mscale_all_dim"],
            LongRope => &["short_factor", "long_factor", "attention_factor"],
            Llama3 => &["low_freq_factor", "high_freq_factor"],
            Proportional => &["partial_rotary_factor"],
            _ => &[],
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let same = |mode: &Self| mode.name() == text || mode.name().replace('-', "_") == text;
        Self::ALL.into_iter().find(same).ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|mode| mode.name()).collect();
            format!("unknown mode; known: {}", known.join(", "))
        })
    }
}

/// The factor of a comparison's scalings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Factor {
    /// The context over the trained context, at least 1.
    Auto,
    /// The same for every context.
    Fixed(f64),
}

/// What to compare.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Tokens per window, one row of cells each.
    pub contexts: Vec<usize>,
    /// The scalings.
    pub modes: Vec<Mode>,
    /// Their factor.
    pub factor: Factor,
    /// Tokens from one window's start to the next; `None`: windows side by side.
    pub stride: Option<usize>,
    /// A token before every window.
    pub bos: Option<u32>,
    /// Theta, original context and parameters that hold for every mode; its scaling and factor are ignored.
    pub rope: RopeOverride,
    /// The sequence length that length-dependent scalings resolve for; `None`: the window's.
    pub length: Option<usize>,
    /// Seed of the bootstrap.
    pub seed: u64,
}

/// Where a comparison stands.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// The mode being scored.
    pub mode: Mode,
    /// The context being scored.
    pub context: usize,
    /// Tokens read so far, over all cells.
    pub done: usize,
    /// Tokens to read in all.
    pub total: usize,
}

/// Scores every mode at every context; cells come context by context, in the order of the plan.
///
/// Everything that can be refused is refused before the first window is scored. At factor 1 most scalings are no
/// scaling at all; such cells are computed once and marked with [`Cell::same_as`].
///
/// # Errors
/// Anything [`score`] refuses, a mode that the model can't take, or `auto` on a model of unknown trained context.
pub fn compare(model: &Model, tokens: &[u32], plan: &Plan, progress: &mut dyn FnMut(Progress)) -> Result<Vec<Cell>> {
    ensure!(!plan.modes.is_empty() && !plan.contexts.is_empty(), "there is nothing to compare");
    let jobs = jobs(model, tokens, plan)?;
    let total = jobs.iter().filter(|job| job.same_as.is_none()).map(|job| job.work).sum();
    let mut done = 0;
    let mut cells: Vec<Cell> = Vec::with_capacity(jobs.len());
    for job in &jobs {
        progress(Progress { mode: job.mode, context: job.context, done, total });
        let twin = job.same_as.and_then(|mode| find(&cells, job.context, mode));
        let cell = match twin {
            Some(twin) => Cell {
                mode: job.mode.to_string(),
                factor: job.factor,
                seconds: 0.0,
                same_as: Some(twin.mode.clone()),
                ..twin.clone()
            },
            None => {
                let report = &mut |n| {
                    done += n;
                    progress(Progress { mode: job.mode, context: job.context, done, total });
                };
                run(job, tokens, plan, report).with_context(|| format!("mode {}", job.mode))?
            }
        };
        cells.push(cell);
    }
    compare_with_best(&mut cells, plan.seed);
    Ok(cells)
}

fn find(cells: &[Cell], context: usize, mode: Mode) -> Option<&Cell> {
    cells.iter().find(|cell| cell.context == context && cell.mode == mode.name())
}

/// One cell to be filled.
struct Job {
    mode: Mode,
    context: usize,
    factor: f64,
    model: Model,
    work: usize,
    same_as: Option<Mode>,
}

fn jobs(model: &Model, tokens: &[u32], plan: &Plan) -> Result<Vec<Job>> {
    check_params(plan)?;
    let mut jobs: Vec<Job> = vec![];
    for &context in &plan.contexts {
        check_room(model, context)?;
        let work = Windows::new(tokens.len(), &window_options(plan, context))?.work();
        for &mode in &plan.modes {
            let factor = factor_at(model, plan, context)?;
            let changed = scaled(model, plan, mode, factor).with_context(|| format!("mode {mode}"))?;
            let identity = |mode: Mode, factor: f64| {
                mode.is_identity(factor) && !plan.rope.params.iter().any(|(key, _)| takes(mode, key))
            };
            let twin = |job: &&Job| job.context == context && identity(job.mode, job.factor);
            let same_as = jobs.iter().find(twin).filter(|_| identity(mode, factor)).map(|job| job.mode);
            jobs.push(Job { mode, context, factor, model: changed, work, same_as });
        }
    }
    Ok(jobs)
}

/// The factor for `context`; every mode's cell is labelled with it, used or not. On a model of unknown trained context
/// `auto` is 1 as long as no mode needs it.
fn factor_at(model: &Model, plan: &Plan, context: usize) -> Result<f64> {
    match plan.factor {
        Factor::Fixed(factor) => Ok(factor),
        Factor::Auto => match plan.rope.original_context.or(model.trained_context()) {
            Some(trained) => Ok((context as f64 / trained as f64).max(1.0)),
            None if !plan.modes.iter().any(|mode| mode.takes_factor()) => Ok(1.0),
            None => bail!("the checkpoint doesn't say what context it was trained for: give a factor"),
        },
    }
}

/// The model under `mode`; a model without rotary layers can only be had as it is.
fn scaled(model: &Model, plan: &Plan, mode: Mode, factor: f64) -> Result<Model> {
    let rope = &plan.rope;
    if mode == Checkpoint && *rope == RopeOverride::default() {
        return Ok(model.clone());
    }
    Ok(model.with_rope(&RopeOverride {
        scaling: (mode != Checkpoint).then(|| mode.to_string()),
        factor: mode.takes_factor().then_some(factor),
        theta: rope.theta,
        original_context: rope.original_context,
        params: rope.params.iter().filter(|(key, _)| takes(mode, key)).cloned().collect(),
    })?)
}

fn takes(mode: Mode, key: &str) -> bool {
    mode == Checkpoint || mode.params().contains(&key)
}

/// A parameter that no mode of the plan reads would otherwise change nothing without a word.
fn check_params(plan: &Plan) -> Result<()> {
    match plan.rope.params.iter().find(|(key, _)| !plan.modes.iter().any(|&mode| takes(mode, key))) {
        Some((key, _)) => bail!("none of the modes compared has a parameter {key:?}"),
        None => Ok(()),
    }
}

fn window_options(plan: &Plan, context: usize) -> WindowOptions {
    WindowOptions { context, stride: plan.stride, bos: plan.bos }
}

fn run(job: &Job, tokens: &[u32], plan: &Plan, progress: &mut dyn FnMut(usize)) -> Result<Cell> {
    let options = ScoreOptions {
        windows: window_options(plan, job.context),
        length: plan.length,
        mode: job.mode.to_string(),
        factor: job.factor,
    };
    score(&job.model, tokens, &options, progress)
}

/// The cell of the lowest perplexity at `context`; of equals the first.
pub fn best(cells: &[Cell], context: usize) -> Option<&Cell> {
    let at = cells.iter().filter(|cell| cell.context == context);
    at.min_by(|a, b| a.nll.total_cmp(&b.nll))
}

/// The contexts of a comparison, in its order.
pub fn contexts(cells: &[Cell]) -> Vec<usize> {
    let mut contexts: Vec<usize> = cells.iter().map(|cell| cell.context).collect();
    let mut seen = std::collections::HashSet::new();
    contexts.retain(|&context| seen.insert(context));
    contexts
}

/// The modes of a comparison, in its order.
pub fn modes(cells: &[Cell]) -> Vec<&str> {
    let mut modes: Vec<&str> = cells.iter().map(|cell| cell.mode.as_str()).collect();
    let mut seen = std::collections::HashSet::new();
    modes.retain(|&mode| seen.insert(mode));
    modes
}

/// Fills in every cell's paired difference to the best of its context.
fn compare_with_best(cells: &mut [Cell], seed: u64) {
    for context in contexts(cells) {
        let Some(winner) = best(cells, context).cloned() else { continue };
        for cell in cells.iter_mut().filter(|cell| cell.context == context && cell.mode != winner.mode) {
            cell.versus_best = Some(paired_difference(&cell.window_nll, &winner.window_nll, &winner.mode, seed));
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::perplexity::score_with;

    /// A comparison as if every token cost `nll` nats under a mode, plus what the text itself adds.
    pub(crate) fn cells(rows: &[(&str, usize, f32)]) -> Vec<Cell> {
        let tokens: Vec<u32> = (0..4096u32).map(|i| i.wrapping_mul(2654435761) >> 30).collect();
        let mut cells: Vec<Cell> = rows
            .iter()
            .map(|&(mode, context, nll)| {
                let options = ScoreOptions {
                    windows: WindowOptions { context, stride: None, bos: None },
                    length: None,
                    mode: mode.to_string(),
                    factor: 2.0,
                };
                let mut model = |batch: &[Vec<u32>]| {
                    Ok(batch.iter().map(|row| row[1..].iter().map(|&id| nll + id as f32 / 100.0).collect()).collect())
                };
                score_with(&mut model, &tokens, &options, &mut |_| ()).unwrap()
            })
            .collect();
        compare_with_best(&mut cells, 0);
        cells
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

    #[test]
    fn modes_are_known_by_either_spelling_and_unknown_ones_refused_by_list() {
        for mode in Mode::ALL {
            assert_eq!(mode.name().parse(), Ok(mode));
        }
        assert_eq!("ntk_by_parts".parse(), Ok(NtkByParts));
        let error = "yarm".parse::<Mode>().unwrap_err();
        assert!(error.contains("unknown mode") && error.contains("ntk-by-parts"), "{error}");
    }
}
