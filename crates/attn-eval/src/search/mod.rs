//! Searches for a scaling that is better than the stock modes, that is the plan's modes as they are, for one model, one length
//! and the user's own text.
//!
//! The candidates are points of YaRN's space: base, factor, the two boundaries of its ramp and the attention factor.
//! NTK-aware scaling, static or dynamic, is the part of it with a factor of 1. From the best stock mode in that space a
//! pattern search (Hooke and Jeeves 1961) changes one coordinate at a time, in an order drawn from the seed, keeps a change that
//! is better, and halves its steps when none is. A candidate that is worse on the first half of its windows is not measured on the
//! second (successive halving with one rung), which saves nearly half the work.
//!
//! The lowest of many noisy figures is too low on average. So the windows are split: candidates are chosen on the even ones,
//! and the winner is judged on the odd ones, which are not used for any choice, against the stock mode that was best on the
//! even ones. Windows lie side by side, so that no token is in both halves.

mod cut;
mod point;

pub use cut::Span;

use crate::compare::{Mode, Pair, Plan, Text, change, check_params, pair, variants};
use crate::error::{Result, bail, ensure, error};
use crate::metrics::{MetricName, Metrics, Reference};
use crate::perplexity::{Cell, Label, Scores};
use crate::rng::Rng;
use crate::stats::{WindowNll, mean};
use attn_core::PositionOverride;
use attn_core::position::RopeConfig;
use attn_core::position::extend::Setting;
use attn_models::Model;
use cut::cut;
use point::{Point, STEPS};
use serde::Serialize;
use std::collections::BTreeMap;

/// The number of times that steps are halved.
const HALVINGS: usize = 3;

/// What a search found.
#[derive(Debug, Clone, Serialize)]
pub struct Search {
    /// Tokens per window.
    pub context: usize,
    /// The metric that was to be low: `ppl`, `longppl` or `kl`.
    pub objective: &'static str,
    /// Seed of the order and of the bootstrap.
    pub seed: u64,
    /// The windows on which candidates were chosen.
    pub choosing_windows: Vec<Span>,
    /// The windows on which the winner was judged.
    pub confirming_windows: Vec<Span>,
    /// All scalings that were tried, in the order of the search.
    pub candidates: Vec<Tried>,
    /// The best of them on the choosing windows.
    pub winner: Winner,
    /// The best stock mode, on the confirming windows.
    pub stock: Cell,
    /// The winner against the best stock mode, on the confirming windows.
    pub difference: Pair,
}

/// A scaling that was tried.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tried {
    /// Its name.
    pub mode: String,
    /// Its factor, if it has one.
    pub factor: Option<f64>,
    /// The base, if it was replaced.
    pub theta: Option<f64>,
    /// Further keys of the scaling.
    pub params: BTreeMap<String, String>,
    /// The number of windows on which it was tried.
    pub windows: usize,
    /// The objective on these windows, in nats per token that it counts.
    pub nll: f64,
}

/// The metric that a search makes low.
#[derive(Debug, Clone, Copy)]
pub struct Objective<'a> {
    /// The metric.
    pub metric: MetricName,
    /// The metrics that are measured beside perplexity; `metric` is one of them unless it is perplexity itself.
    pub metrics: Option<Metrics<'a>>,
}

impl Objective<'_> {
    /// What each window contributes to it.
    fn of(&self, scores: Scores) -> Vec<WindowNll> {
        match self.metric {
            MetricName::Ppl => scores.windows,
            MetricName::LongPpl => scores.longppl.unwrap_or_default(),
            MetricName::Kl => scores.kl.unwrap_or_default(),
        }
    }

    /// Refuses LongPPL on texts that have no key tokens in some part of the windows.
    fn check(&self, references: &[Reference]) -> Result<()> {
        let keys = |keep: fn(usize) -> bool| {
            let windows = references.iter().enumerate().filter(|(index, _)| keep(*index));
            windows.map(|(_, reference)| reference.keys.len()).sum::<usize>()
        };
        // The first rung, the second rung and the confirming windows.
        let found = [keys(|i| i % 4 == 0), keys(|i| i % 4 == 2), keys(|i| i % 2 == 1)];
        ensure!(
            self.metric != MetricName::LongPpl || !found.contains(&0),
            TextTooShort,
            "a part of the windows has no key token to search by: take a longer text, longer windows or a smaller \
             trunc_len"
        );
        Ok(())
    }
}

/// The scaling that was best on the choosing windows.
#[derive(Debug, Clone, Serialize)]
pub struct Winner {
    /// Its name.
    pub mode: String,
    /// Its factor, if it has one.
    pub factor: Option<f64>,
    /// The base, if it was replaced.
    pub theta: Option<f64>,
    /// Further keys of the scaling.
    pub params: BTreeMap<String, String>,
    /// The command line's options that select it.
    pub flags: Vec<String>,
    /// Its figures on the confirming windows.
    pub cell: Cell,
}

/// Measures a scaling on the windows with these indices, in their order.
type Measure<'a> = dyn FnMut(&PositionOverride, &[usize]) -> Result<Vec<WindowNll>> + 'a;

/// The part of a search that chooses a candidate.
struct Chooser<'a, 'b> {
    measure: &'a mut Measure<'b>,
    /// The choosing windows, those of the first rung first.
    windows: Vec<usize>,
    rung: usize,
    original: Option<usize>,
    tried: Vec<Tried>,
    points: Vec<Point>,
    budget: usize,
}

impl Chooser<'_, '_> {
    /// Measures on every choosing window.
    fn full(&mut self, rope: &PositionOverride) -> Result<Vec<WindowNll>> {
        let found = (self.measure)(rope, &self.windows)?;
        self.note(rope, &found);
        Ok(found)
    }

    /// Measures a candidate, only on the first rung if it is worse there than the best one so far. Returns its scores if it is
    /// better.
    fn challenge(&mut self, point: Point, best: &[WindowNll]) -> Result<Option<Vec<WindowNll>>> {
        let rope = point.to_override(self.original).into();
        self.points.push(point);
        let mut found = (self.measure)(&rope, &self.windows[..self.rung])?;
        let stays = mean(&found) < mean(&best[..self.rung]);
        if stays {
            found.extend((self.measure)(&rope, &self.windows[self.rung..])?);
        }
        self.note(&rope, &found);
        Ok((stays && mean(&found) < mean(best)).then_some(found))
    }

    fn note(&mut self, change: &PositionOverride, found: &[WindowNll]) {
        let rope = &change.rope;
        self.tried.push(Tried {
            mode: name_of(change),
            factor: rope.factor,
            theta: rope.theta,
            params: rope.params.iter().cloned().collect(),
            windows: found.len(),
            nll: mean(found),
        });
    }

    /// Goes from `start` until no step helps or the budget is spent.
    fn descend(&mut self, start: Point, measured: Vec<WindowNll>, seed: u64) -> Result<(Point, Vec<WindowNll>)> {
        let (mut best, mut nll) = (start, measured);
        let mut steps = STEPS;
        let mut rng = Rng::new(seed);
        self.points.push(start);
        for _ in 0..=HALVINGS {
            loop {
                let mut order = [0, 1, 2, 3, 4];
                (1..order.len()).for_each(|i| order.swap(i, rng.below(i + 1)));
                let mut improved = false;
                for index in order {
                    for by in [steps[index], 1.0 / steps[index]] {
                        let Some(point) = best.moved(index, by).filter(|point| !self.points.contains(point)) else {
                            continue;
                        };
                        if self.points.len() > self.budget {
                            return Ok((best, nll));
                        }
                        if let Some(found) = self.challenge(point, &nll)? {
                            (best, nll, improved) = (point, found, true);
                            break;
                        }
                    }
                }
                if !improved {
                    break;
                }
            }
            steps = steps.map(f64::sqrt);
        }
        Ok((best, nll))
    }
}

/// Is told the number of windows measured so far, and the largest number that there will be.
pub type Progress<'a> = dyn FnMut(usize, usize) + 'a;

/// Searches for the scaling that makes the objective lowest at the plan's one context, beginning from its modes.
///
/// # Errors
/// Not exactly one context, overlapping windows, too few windows to split, a mode that can't be applied to the model, a base or
/// parameters, since these are searched for; or no key tokens with LongPPL as the objective.
pub fn search(
    model: &Model,
    texts: &[Text],
    plan: &Plan,
    budget: usize,
    objective: Objective<'_>,
    progress: &mut Progress<'_>,
) -> Result<Search> {
    let [context] = plan.contexts[..] else { bail!(Setting, "a search is for one context: name exactly one") };
    ensure!(plan.stride.is_none(), Setting, "a search needs windows side by side: leave out the stride");
    ensure!(
        plan.rope.params.is_empty() && plan.rope.theta.is_none(),
        Setting,
        "a search finds theta and parameters itself: leave them out"
    );
    check_params(plan)?;
    let mut cut = cut(texts, plan, context)?;
    if let Some(metrics) = objective.metrics {
        metrics.check(context)?;
        cut.refer(metrics)?;
        objective.check(&cut.references)?;
    }
    let stock = stock(model, plan, context)?;
    let (mut done, most) = (0, (budget + stock.len()) * cut.windows.len().div_ceil(2));
    let mut measure = |rope: &PositionOverride, windows: &[usize]| {
        progress(done, most);
        done += windows.len();
        Ok(objective.of(cut.measure(model, rope, windows, plan.length)?))
    };
    let all: Vec<usize> = (0..cut.windows.len()).collect();
    let chosen = choose(&mut measure, &stock, &all, plan.rope.original_context, budget, plan.seed)?;
    let confirming: Vec<usize> = all.iter().copied().filter(|index| index % 2 == 1).collect();
    let label =
        |mode: &str, factor: f64| Label { mode: mode.to_string(), factor, context, stride: context, seed: plan.seed };
    let judge = |rope: &PositionOverride, name: &str| -> Result<Cell> {
        let scores = cut.measure(model, rope, &confirming, plan.length)?;
        Ok(scores.cell(&label(name, rope.rope.factor.unwrap_or(1.0))))
    };
    let best = &stock[chosen.stock];
    let (winner, stock) = (judge(&chosen.winner, "searched")?, judge(&best.rope, &best.mode.to_string())?);
    let difference = pair(&winner, &stock, plan.seed);
    Ok(Search {
        context,
        objective: objective.metric.name(),
        seed: plan.seed,
        choosing_windows: cut.spans(|index| index % 2 == 0),
        confirming_windows: cut.spans(|index| index % 2 == 1),
        candidates: chosen.tried,
        winner: Winner {
            mode: name_of(&chosen.winner),
            factor: chosen.winner.rope.factor,
            theta: chosen.winner.rope.theta,
            params: chosen.winner.rope.params.iter().cloned().collect(),
            flags: flags(&chosen.winner),
            cell: winner,
        },
        stock,
        difference,
    })
}

/// The result of choosing.
struct Chosen {
    winner: PositionOverride,
    /// Index of the best stock mode.
    stock: usize,
    tried: Vec<Tried>,
}

/// Chooses on the even windows of `all`.
fn choose(
    measure: &mut Measure<'_>,
    stock: &[Stock],
    all: &[usize],
    original: Option<usize>,
    budget: usize,
    seed: u64,
) -> Result<Chosen> {
    let even: Vec<usize> = all.iter().copied().filter(|index| index % 2 == 0).collect();
    let (first, second): (Vec<usize>, Vec<usize>) = even.iter().copied().partition(|index| index % 4 == 0);
    let rung = first.len();
    let windows = [first, second].concat();
    let mut chooser = Chooser { measure, windows, rung, original, tried: vec![], points: vec![], budget };
    let measured: Result<Vec<Vec<WindowNll>>> = stock.iter().map(|stock| chooser.full(&stock.rope)).collect();
    let measured = measured?;
    let lowest = |among: &mut dyn Iterator<Item = usize>| {
        among.min_by(|&a, &b| mean(&measured[a]).total_cmp(&mean(&measured[b])))
    };
    let best = lowest(&mut (0..stock.len()));
    let best = best.ok_or_else(|| error!(Setting, "a search begins from stock modes: name at least one"))?;
    let start = lowest(&mut (0..stock.len()).filter(|&index| stock[index].point.is_some()));
    let Some((start, point)) = start.and_then(|start| Some((start, stock[start].point?))) else {
        bail!(Setting, "a search begins from a larger base or from YaRN's blend: add none or yarn to the modes")
    };
    let (point, nll) = chooser.descend(point, measured[start].clone(), seed)?;
    // A mode outside the space may be better than any point in it; and if the start is best, it keeps its own form.
    let moved = Some(point) != stock[start].point;
    let winner = if moved && mean(&nll) < mean(&measured[best]) {
        point.to_override(original).into()
    } else {
        stock[best].rope.clone()
    };
    Ok(Chosen { winner, stock: best, tried: chooser.tried })
}

/// A stock mode, and its point in the space if it has one.
struct Stock {
    mode: Mode,
    rope: PositionOverride,
    point: Option<Point>,
}

fn stock(model: &Model, plan: &Plan, context: usize) -> Result<Vec<Stock>> {
    let variants = variants(model, plan, context)?;
    let own = variants.into_iter().filter(|variant| variant.same_as.is_none());
    let each = own.map(|variant| {
        let rope = change(plan, variant.mode, variant.factor)?;
        let plain = variant.mode != Mode::Checkpoint && rope.extend.is_none();
        let point = match plain {
            true => Point::of(&rope_of(&variant.model)?, plan.length.unwrap_or(context)),
            false => None,
        };
        Ok(Stock { mode: variant.mode, rope, point })
    });
    each.collect()
}

/// The rotary encoding of the first layer that has one.
fn rope_of(model: &Model) -> Result<RopeConfig> {
    let layers = &model.spec().stack.layers;
    let rope = layers.iter().find_map(|layer| layer.attention.position().rope().cloned());
    let none = || error!(UnsuitableModel, "{} has no rotary position encoding to search for", model.spec().family);
    rope.ok_or_else(none)
}

/// The value of `--rope-scaling` for an override; empty if it changes neither the scaling nor the method.
fn name_of(change: &PositionOverride) -> String {
    let extend = Setting { extend: change.extend, ..Setting::default() }.to_string();
    let words = change.rope.scaling.iter().chain(Some(&extend).filter(|words| !words.is_empty()));
    words.map(String::as_str).collect::<Vec<_>>().join("+")
}

/// The command line's options for an override.
pub fn flags(change: &PositionOverride) -> Vec<String> {
    let rope = &change.rope;
    let mut flags = vec![];
    let mut add = |flag: &str, value: String| flags.extend([flag.to_string(), value]);
    let name = name_of(change);
    if !name.is_empty() {
        add("--rope-scaling", name);
    }
    if let Some(factor) = rope.factor {
        add("--rope-factor", factor.to_string());
    }
    if let Some(theta) = rope.theta {
        add("--rope-theta", theta.to_string());
    }
    if let Some(original) = rope.original_context {
        add("--rope-original-context", original.to_string());
    }
    for (key, value) in &rope.params {
        add("--rope-param", format!("{key}={value}"));
    }
    flags
}

#[cfg(test)]
mod tests;
