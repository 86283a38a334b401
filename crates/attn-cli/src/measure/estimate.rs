//! What a comparison will take, shown before it begins: its measurements, its memory, and its time, estimated by a
//! short trial on this machine.

use crate::measure::scoring::work;
use crate::measure::trials;
use crate::model::Opened;
use crate::output::{note, print_json, print_text};
use anyhow::Result;
use attn_core::attention::KernelPath;
use attn_eval::across;
use attn_eval::compare::{Lab, Plan};
use attn_eval::run::{Measurable, to_measure};
use candle_core::{DType, Tensor};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

/// Tokens of the trial.
const TRIAL: usize = 256;
/// A comparison that takes less is not announced.
pub(crate) const SHORT: Duration = Duration::from_secs(10);

/// A comparison that takes longer is announced with what would make it shorter.
const LONG: Duration = Duration::from_secs(600);

/// What `--quick` would leave of a comparison.
pub(crate) struct Quick {
    pub(crate) modes: Vec<String>,
    pub(crate) contexts: Vec<usize>,
}

/// What a comparison takes.
struct Estimate {
    measurements: usize,
    /// Windows per context.
    windows: BTreeMap<usize, usize>,
    tokens: usize,
    /// Prompts of retrieval.
    prompts: usize,
    /// Bytes beside the weights.
    memory: u64,
    time: Duration,
    /// What would make it shorter.
    sooner: Vec<String>,
}

impl Estimate {
    /// `quick` says what `--quick` would leave, and is asked only of a comparison that takes long.
    fn new(opened: &Opened, lab: &Lab, quick: &dyn Fn() -> Option<Quick>) -> Result<Self> {
        let indices: Vec<usize> = to_measure(lab.specs()).collect();
        let comparison = lab.comparison();
        let contexts = comparison.contexts();
        let longest = contexts.iter().copied().max().unwrap_or(0);
        let windows: BTreeMap<usize, usize> =
            contexts.iter().map(|&context| (context, comparison.windows(context))).collect();
        let per_second = speed(opened)?;
        let taken = |indices: &[usize]| {
            let (of_texts, of_grid) = lab.split(indices);
            let (tokens, work) = comparison.work(&of_texts);
            let (prompts, more, work_of_grid) = lab.grid().map_or((0, 0, 0.0), |grid| grid.work(&of_grid));
            let seconds = ((work + work_of_grid) / per_second).min(1e9);
            (prompts, tokens + more, Duration::from_secs_f64(seconds))
        };
        let (prompts, tokens, time) = taken(&indices);
        let memory = opened.needed_memory(&work(&opened.model, longest)) + comparison.kept_bytes();
        let of_prompts = if prompts > 0 { opened.needed_memory(&trials::work(longest)) } else { 0 };
        let left = |quick: Quick| {
            let kept = |&index: &usize| {
                let spec = &lab.specs()[index];
                quick.modes.iter().any(|mode| mode == spec.mode()) && quick.contexts.contains(&spec.context())
            };
            taken(&indices.iter().copied().filter(kept).collect::<Vec<_>>()).2
        };
        let sooner = if time > LONG { sooner(opened, quick().map(left), time)? } else { vec![] };
        let memory = memory.max(of_prompts);
        Ok(Self { measurements: indices.len(), windows, tokens, prompts, memory, time, sooner })
    }

    fn lines(&self, plan: &Plan) -> String {
        let modes: Vec<String> = plan.modes.iter().map(ToString::to_string).collect();
        let windows: Vec<String> = self.windows.iter().map(|(context, n)| format!("{n} of {context} tokens")).collect();
        let prompts =
            if self.prompts > 0 { format!("prompts  {} for retrieval\n", self.prompts) } else { String::new() };
        // How many measurements bisection takes depends on what it finds.
        let more = if plan.between.is_empty() { "" } else { ", more for --usable" };
        let sooner =
            if self.sooner.is_empty() { String::new() } else { format!("sooner   {}\n", self.sooner.join("; ")) };
        format!(
            "modes    {}\nwindows  {}\n{prompts}in total {} measurements{more}, {} tokens to read\nmemory   about {} MB in addition \
             to the weights\ntime     about {} on this machine\n{sooner}",
            modes.join(", "),
            windows.join(", "),
            self.measurements,
            self.tokens,
            self.memory.div_ceil(1_000_000),
            spoken(self.time)
        )
    }
}

/// Options with which a comparison takes less time: fewer modes, with the time that those take at most, and a dtype that the
/// machine multiplies faster.
fn sooner(opened: &Opened, quick: Option<Duration>, whole: Duration) -> Result<Vec<String>> {
    let (dtype, on_cpu) = (opened.model.dtype(), opened.model.device().is_cpu());
    let faster = dtype == DType::F32 && on_cpu && bf16_is_faster()?;
    let quick = quick.filter(|&quick| quick < whole).map(|quick| match faster {
        true => format!("--quick takes less than {}: it compares fewer modes, in bf16", spoken(quick)),
        false => format!("--quick takes about {}: it compares fewer modes", spoken(quick)),
    });
    let bf16 = faster.then(|| "--dtype bf16 is faster than f32 on this machine".to_string());
    Ok(quick.into_iter().chain(bf16).collect())
}

/// Whether this processor multiplies bf16 faster than f32.
///
/// # Errors
/// `ATTN_KERNEL` names a path that it can't run.
pub(crate) fn bf16_is_faster() -> Result<bool> {
    Ok(matches!(KernelPath::choose(None)?, KernelPath::Amx | KernelPath::Avx512Bf16))
}

/// Millions of floating-point operations that the model does in a second, by a trial.
///
/// # Errors
/// The trial fails.
pub(crate) fn speed(opened: &Opened) -> Result<f64> {
    let tokens = opened.model.max_context().unwrap_or(usize::MAX).min(TRIAL);
    Ok(across::work(&opened.model, tokens, tokens) / trial(opened, tokens)?.as_secs_f64().max(1e-6))
}

/// The time that a forward pass over a few tokens takes, once the weights have been touched.
fn trial(opened: &Opened, tokens: usize) -> Result<Duration> {
    let ids = Tensor::zeros((1, tokens), candle_core::DType::U32, opened.model.device())?;
    let mut best = Duration::MAX;
    for _ in 0..2 {
        let started = Instant::now();
        opened.model.nll(&ids, tokens)?.to_vec2::<f32>()?;
        best = best.min(started.elapsed());
    }
    Ok(best)
}

/// A time for people.
pub(crate) fn spoken(time: Duration) -> String {
    match time.as_secs() {
        s @ 0..=89 => format!("{s} seconds"),
        s @ 90..=5399 => format!("{} minutes", s.div_ceil(60)),
        s => format!("{:.1} hours", s as f64 / 3600.0),
    }
}

/// Prints what would be measured.
///
/// # Errors
/// The trial fails, or stdout can't be written.
pub(crate) fn show(
    opened: &Opened,
    lab: &Lab,
    plan: &Plan,
    quick: &dyn Fn() -> Option<Quick>,
    as_json: bool,
) -> Result<()> {
    let estimate = Estimate::new(opened, lab, quick)?;
    if as_json {
        let modes: Vec<String> = plan.modes.iter().map(ToString::to_string).collect();
        return print_json(&json!({
            "modes": modes, "contexts": plan.contexts, "windows": estimate.windows, "tokens": estimate.tokens,
            "measurements": estimate.measurements, "prompts": estimate.prompts, "memory_bytes": estimate.memory,
            "seconds": estimate.time.as_secs_f64(),
        }));
    }
    print_text(&estimate.lines(plan))
}

/// Prints the estimate to stderr if that is a terminal and the comparison takes long.
///
/// # Errors
/// The trial fails.
pub(crate) fn announce(opened: &Opened, lab: &Lab, plan: &Plan, quick: &dyn Fn() -> Option<Quick>) -> Result<()> {
    if !stderr().is_terminal() {
        return Ok(());
    }
    let estimate = Estimate::new(opened, lab, quick)?;
    if estimate.time >= SHORT {
        note(estimate.lines(plan).trim_end());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_said_as_people_say_them() {
        let said = |s: u64| spoken(Duration::from_secs(s));
        assert_eq!(
            [said(7), said(89), said(90), said(3600), said(7200)].join("; "),
            "7 seconds; 89 seconds; 2 minutes; 60 minutes; 2.0 hours"
        );
    }
}
