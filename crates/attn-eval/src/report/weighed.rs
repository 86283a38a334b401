//! The sentences that retrieval adds to the verdict on perplexities.

use super::retrieval::{cannot, with_interval};
use super::short;
use super::words::{called, finder, listed, percent};
use crate::compare::{Answer, Found, Recommendation, Results, Usable, Weighed};
use crate::retrieval::Retrieval;

/// For the headline: what the recommended setting and the model as it is find. Empty if retrieval is not counted.
pub(super) fn finds(found: &Recommendation) -> String {
    let Some(weighed) = &found.retrieval else { return String::new() };
    let Some(of_mode) = of(weighed, &found.mode) else { return String::new() };
    let own = found.baselines.iter().filter(|other| other.is_own()).find_map(|other| of(weighed, &other.mode));
    let own = own.filter(|own| own.mode != found.mode).map_or(String::new(), |own| {
        let name =
            if own.mode == "none" { "without scaling".to_string() } else { format!("with {}", called(&own.mode)) };
        format!(", {name} {}", percent(own.share))
    });
    format!(" It finds {} of what is hidden in {} tokens{own}.", percent(of_mode.share), weighed.context)
}

/// For the headline: what the setting and the model as it is find, if perplexity and retrieval disagree.
pub(super) fn disagreement(found: &Recommendation) -> String {
    let own = found.retrieval.as_ref().and_then(|weighed| {
        let own = found.baselines.iter().find(|other| other.is_own())?;
        Some((weighed, of(weighed, &own.mode)?, of(weighed, &found.mode)?))
    });
    own.map_or(String::new(), |(weighed, own, other)| {
        format!(
            "{} finds {} of what is hidden in {} tokens, {} {}.",
            finder(&own.mode),
            share(own),
            weighed.context,
            called(&other.mode),
            share(other)
        )
    })
}

/// The sentences after the headline: what every mode finds, what that changes in the recommendation, and which modes no longer
/// find things at lengths at which their perplexity is still good.
pub(super) fn sentences(results: &Results, found: &Recommendation) -> Vec<String> {
    let Some(retrieval) = &results.retrieval else { return vec![] };
    let mut lines: Vec<String> = retrieval.tasks.iter().filter_map(cannot).collect();
    let Some(weighed) = &found.retrieval else { return lines };
    lines.push(shares(weighed));
    lines.extend(too_few(retrieval));
    lines.extend(weighed.instead_of.as_ref().and_then(|mode| instead(found, weighed, mode)));
    lines.extend(better(results, found, weighed));
    lines.extend(unseen(&found.usable));
    lines
}

fn of<'a>(weighed: &'a Weighed, mode: &str) -> Option<&'a Found> {
    weighed.found.iter().find(|found| found.mode == mode)
}

/// `96% (80% to 99%)`.
fn share(found: &Found) -> String {
    let (low, high) = (percent(found.interval.low), percent(found.interval.high));
    format!("{} ({low} to {high})", percent(found.share))
}

fn shares(weighed: &Weighed) -> String {
    let tasks: Vec<&str> = weighed.tasks.iter().map(String::as_str).collect();
    let trials = weighed.found.iter().map(|found| found.trials).max().unwrap_or(0);
    let all: Vec<String> =
        weighed.found.iter().map(|found| format!("{} {}", called(&found.mode), share(found))).collect();
    format!(
        "Found of what is hidden in {} tokens, in {trials} trials of {}: {}.",
        weighed.context,
        listed(&tasks),
        all.join(", ")
    )
}

/// A sentence for the case that there are too few trials to say up to which length a mode finds things.
fn too_few(retrieval: &Retrieval) -> Option<String> {
    let share = retrieval.reference().filter(|share| !share.is_more_than_nothing())?;
    Some(format!(
        "{} trials are too few to say how far a mode finds what is hidden: at the length it was trained for the model \
         finds {}.",
        share.trials(),
        with_interval(share)
    ))
}

/// What perplexity alone would recommend.
fn instead(found: &Recommendation, weighed: &Weighed, mode: &str) -> Option<String> {
    let (lost, kept) = (of(weighed, mode)?, of(weighed, &found.mode)?);
    let why =
        if lost.share < kept.share { format!("but it finds only {}", percent(lost.share)) } else { String::new() };
    let why = if why.is_empty() { "but it finds no more than the model as it is".to_string() } else { why };
    Some(format!("By perplexity alone the recommendation would be {}, {why}.", called(mode)))
}

/// Modes that find significantly more than what is recommended, with their perplexities.
fn better(results: &Results, found: &Recommendation, weighed: &Weighed) -> Option<String> {
    if found.answer == Answer::Disagree {
        return None;
    }
    let perplexity = |mode: &str| {
        let at = results.cells.iter().find(|cell| cell.mode == mode && cell.context == found.context);
        at.map_or(String::new(), |cell| format!(" at a perplexity of {}", short(cell.perplexity)))
    };
    let modes: Vec<String> =
        weighed.better.iter().map(|mode| format!("{}{}", called(mode), perplexity(mode))).collect();
    let names: Vec<&str> = modes.iter().map(String::as_str).collect();
    let what = if found.answer == Answer::Use { "the recommended mode" } else { called(&found.mode) };
    let more = || format!("More is found with {} than with {what}: choose by what matters to you.", listed(&names));
    (!names.is_empty()).then(more)
}

/// Modes that still predict well at lengths at which they no longer find as much, so that perplexity alone misleads (Men et al.
/// 2024 show this for a larger base).
fn unseen(usable: &[Usable]) -> Option<String> {
    let said: Vec<String> = usable
        .iter()
        .filter(|usable| usable.loses_unseen())
        .filter_map(|usable| {
            let (read, found) = (usable.perplexity?, usable.retrieval.as_ref()?);
            let found = found.length.map_or("at no length measured".to_string(), |n| format!("to {n}"));
            Some(format!("{} (predicts well to {read} tokens, finds {found})", called(&usable.mode)))
        })
        .collect();
    let names: Vec<&str> = said.iter().map(String::as_str).collect();
    (!names.is_empty()).then(|| format!("Perplexity does not show that retrieval fails under {}.", listed(&names)))
}
