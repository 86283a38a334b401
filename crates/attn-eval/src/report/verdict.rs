//! What a comparison says, in a sentence per context: the best mode, by how much, and how sure that is.

use super::short;
use crate::compare::{Mode, best, contexts, modes};
use crate::perplexity::Cell;
use crate::stats::{Difference, MIN_WINDOWS};

/// One line per context, each saying which mode is best there and how sure that is.
pub fn verdict(cells: &[Cell]) -> Vec<String> {
    let lines = contexts(cells).into_iter().filter_map(|context| line(cells, context));
    lines.chain(far_text(cells)).collect()
}

/// Whether what lies further back than a window helped at the longest context, where a mode that drops it was measured.
fn far_text(cells: &[Cell]) -> Option<String> {
    let longest = contexts(cells).into_iter().max()?;
    let drops = |cell: &&Cell| cell.mode.parse::<Mode>().is_ok_and(Mode::drops_keys);
    let there: Vec<&Cell> = cells.iter().filter(|cell| cell.context == longest).collect();
    let winner = best(cells, longest)?;
    let short = there.iter().copied().filter(drops).min_by(|a, b| a.nll.total_cmp(&b.nll))?;
    if short.same_as.is_some() || there.iter().all(|cell| drops(cell) || same(cell, short)) {
        return None;
    }
    let (mode, name) = (&winner.mode, &short.mode);
    Some(if drops(&winner) {
        format!("Nothing beats {name} at {longest} tokens: what lies further back did not help on this text")
    } else {
        match short.versus_best.as_ref().and_then(Difference::is_real) {
            Some(true) => {
                format!("What lies further back helps on this text: {mode} beats {name}, which drops it, at {longest}")
            }
            Some(false) => format!(
                "This text can't tell {mode} from {name} at {longest} tokens: what lies further back helped too little to \
                 measure"
            ),
            None => return None,
        }
    })
}

/// The comparison in a sentence or two: which mode to use past the trained context, what that costs, how sure it is.
pub fn headline(cells: &[Cell], trained: Option<usize>) -> String {
    let mut all = contexts(cells);
    all.sort_unstable();
    let past: Vec<usize> = all.iter().copied().filter(|&context| trained.is_none_or(|n| context > n)).collect();
    let Some((&longest, winner)) = past.last().and_then(|last| Some((last, best(cells, *last)?))) else {
        return within(cells, trained, &all);
    };
    if let [mode] = modes(cells)[..] {
        let perplexity = short(winner.perplexity);
        return format!("At {longest} tokens the perplexity is {perplexity}. Nothing was compared with {mode}.");
    }
    let start = trained.map_or("Over these contexts".to_string(), |n| format!("Past the {n} tokens trained"));
    // Runs of contexts with the same winner, shortest first.
    let mut runs: Vec<(&str, usize)> = vec![];
    for &context in &past {
        let Some(winner) = best(cells, context) else { continue };
        match runs.last_mut() {
            Some((mode, last)) if *mode == winner.mode => *last = context,
            _ => runs.push((&winner.mode, context)),
        }
    }
    let unscaled = |mode: &str| {
        let none = cells.iter().find(|cell| cell.context == longest && cell.mode == "none" && cell.mode != mode);
        none.filter(|none| !same(none, winner))
            .map_or(String::new(), |n| format!(", without scaling {}", short(n.perplexity)))
    };
    if runs.len() > 1
        && let Some((mode, gap)) = good_enough(cells, &past)
    {
        let there = cells.iter().find(|cell| cell.context == longest && cell.mode == mode);
        let perplexity = there.map_or(String::new(), |cell| short(cell.perplexity));
        return format!(
            "{start} use {mode}: at every context its perplexity is within {} of the lowest. At {longest} tokens it is \
             {perplexity}{}.",
            percent(gap),
            unscaled(mode)
        );
    }
    let advice = match runs.as_slice() {
        [(mode, _)] => format!("{start} use {mode}."),
        [.., (mode, _)] => {
            let earlier = runs[..runs.len() - 1].iter().map(|(mode, last)| format!("{mode} to {last} tokens"));
            format!("{start} use {}, then {mode}.", earlier.collect::<Vec<_>>().join(", "))
        }
        [] => String::new(),
    };
    let (perplexity, none) = (short(winner.perplexity), unscaled(&winner.mode));
    format!("{advice} At {longest} tokens its perplexity is {perplexity}{none}; {}.", certainty(cells, winner))
}

/// Where the best mode changes from context to context: the mode that loses least against the best at its worst, if that
/// is too little to matter, and what it loses there in nats.
fn good_enough<'a>(cells: &'a [Cell], past: &[usize]) -> Option<(&'a str, f64)> {
    /// In nats: half a percent of the perplexity.
    const LITTLE: f64 = 0.005;
    let worst = |mode: &str| {
        past.iter().try_fold(0f64, |worst, &context| {
            let cell = cells.iter().find(|cell| cell.context == context && cell.mode == mode)?;
            Some(worst.max(cell.nll - best(cells, context)?.nll))
        })
    };
    let gaps = modes(cells).into_iter().filter_map(|mode| Some((mode, worst(mode)?)));
    gaps.min_by(|a, b| a.1.total_cmp(&b.1)).filter(|(_, gap)| *gap <= LITTLE)
}

/// No context is past the trained one.
fn within(cells: &[Cell], trained: Option<usize>, contexts: &[usize]) -> String {
    let Some(winner) = contexts.last().and_then(|&longest| best(cells, longest)) else {
        return "Nothing was compared.".to_string();
    };
    let (mode, perplexity) = (&winner.mode, short(winner.perplexity));
    match trained {
        Some(n) if mode == "none" || winner.same_as.is_some() => {
            format!(
                "Within the {n} tokens trained no scaling is needed: perplexity {perplexity} at {}.",
                winner.context
            )
        }
        _ => format!("{mode} has the lowest perplexity, {perplexity} at {} tokens.", winner.context),
    }
}

/// How sure the lead of the best mode at its context is.
fn certainty(cells: &[Cell], winner: &Cell) -> String {
    let others = cells.iter().filter(|cell| cell.context == winner.context && !same(cell, winner));
    let judged: Vec<(&str, Option<bool>)> =
        others.filter_map(|cell| Some((cell.mode.as_str(), cell.versus_best.as_ref()?.is_real()))).collect();
    let tied: Vec<&str> = judged.iter().filter(|(_, real)| *real == Some(false)).map(|(mode, _)| *mode).collect();
    match judged.as_slice() {
        [] => "it was compared with nothing else there".to_string(),
        judged if judged.iter().any(|(_, real)| real.is_none()) => {
            format!("{} are too few to say how sure that is", counted(winner.windows, "window"))
        }
        _ if tied.is_empty() => "its lead there is real on this text".to_string(),
        _ => format!("this text can't tell it from {} there", listed(&tied)),
    }
}

fn counted(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// `a`, `a and b`, `a, b and c`.
pub(super) fn listed(names: &[&str]) -> String {
    match names {
        [names @ .., last] if !names.is_empty() => format!("{} and {last}", names.join(", ")),
        names => names.concat(),
    }
}

fn line(cells: &[Cell], context: usize) -> Option<String> {
    let winner = best(cells, context)?;
    let mut others: Vec<&Cell> = cells
        .iter()
        .filter(|cell| cell.context == context && cell.mode != winner.mode && !same(cell, winner))
        .collect();
    others.sort_by(|a, b| a.nll.total_cmp(&b.nll));
    let (mode, perplexity) = (&winner.mode, short(winner.perplexity));
    let Some((next, difference)) = others.first().and_then(|next| Some((next, next.versus_best.as_ref()?))) else {
        let alone = cells.iter().filter(|cell| cell.context == context).count() == 1;
        let all = if alone { format!("{mode} has") } else { "all modes are the same:".to_string() };
        return Some(format!("{context}: {all} {perplexity}"));
    };
    let (name, gap) = (&next.mode, percent(difference.nll));
    let (Some(low), Some(high)) = (difference.low, difference.high) else {
        let few = format!("{} of the {MIN_WINDOWS} windows it takes to say how surely", winner.windows);
        return Some(format!("{context}: {mode} is best ({perplexity}), {name} {gap} higher; {few}"));
    };
    let interval = format!("95% interval {} to {}", percent(low), percent(high));
    if difference.is_real() == Some(true) {
        return Some(format!("{context}: {mode} is best ({perplexity}), {name} {gap} higher ({interval})"));
    }
    let tied = others.iter().filter(|cell| cell.versus_best.as_ref().and_then(Difference::is_real) == Some(false));
    let names = listed(&tied.map(|cell| cell.mode.as_str()).collect::<Vec<_>>());
    Some(format!(
        "{context}: {mode} is best ({perplexity}), but this text can't tell it from {names}: {name} {gap} higher \
         ({interval})"
    ))
}

/// Whether the two cells are one computation.
fn same(a: &Cell, b: &Cell) -> bool {
    let base = |cell: &Cell| cell.same_as.clone().unwrap_or_else(|| cell.mode.clone());
    base(a) == base(b)
}

/// A difference in nats as a ratio of perplexities.
fn percent(nll: f64) -> String {
    let percent = nll.exp_m1() * 100.0;
    if percent.abs() < 10.0 { format!("{percent:.1}%") } else { format!("{percent:.0}%") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::results::tests::cells;

    #[test]
    fn a_real_lead_is_given_with_its_interval() {
        let lines = verdict(&cells(&[("none", 256, 3.2), ("yarn", 256, 3.0), ("linear", 256, 3.1)]));
        assert_eq!(lines.len(), 1);
        assert!(lines[0].starts_with("256: yarn is best (20"), "{}", lines[0]);
        assert!(lines[0].contains("), linear 11% higher (95% interval 11% to 11%)"), "{}", lines[0]);
    }

    #[test]
    fn the_headline_says_what_to_use_and_how_sure_that_is() {
        let rows = [("none", 256, 3.0), ("yarn", 256, 3.1), ("none", 512, 3.6), ("yarn", 512, 3.2)];
        let said = headline(&cells(&rows), Some(256));
        assert!(
            said.starts_with("Past the 256 tokens trained use yarn. At 512 tokens its perplexity is 24."),
            "{said}"
        );
        assert!(
            said.contains(", without scaling 3") && said.ends_with("its lead there is real on this text."),
            "{said}"
        );

        let mixed = [("linear", 512, 3.1), ("yarn", 512, 3.2), ("linear", 1024, 3.3), ("yarn", 1024, 3.2)];
        let said = headline(&cells(&mixed), Some(256));
        assert!(said.starts_with("Past the 256 tokens trained use linear to 512 tokens, then yarn."), "{said}");

        // The best mode changes, but one is as good as the best everywhere.
        let rows =
            [("ntk", 512, 3.1), ("yarn", 512, 3.103), ("none", 1024, 3.6), ("ntk", 1024, 3.25), ("yarn", 1024, 3.2)];
        let said = headline(&cells(&rows), Some(256));
        assert!(
            said.starts_with(
                "Past the 256 tokens trained use yarn: at every context its perplexity is within 0.3% of the lowest."
            ),
            "{said}"
        );
        assert!(said.contains("At 1024 tokens it is 2") && said.contains(", without scaling 3"), "{said}");

        let mut tied = cells(&[("none", 512, 3.01), ("ntk", 512, 3.02), ("yarn", 512, 3.0)]);
        for cell in &mut tied[..2] {
            cell.versus_best = Some(Difference { mode: "yarn".into(), nll: 0.01, low: Some(-0.01), high: Some(0.03) });
        }
        let said = headline(&tied, Some(256));
        assert!(said.ends_with("this text can't tell it from none and ntk there."), "{said}");

        let few = headline(&cells(&[("none", 2048, 3.2), ("yarn", 2048, 3.0)]), None);
        assert!(few.starts_with("Over these contexts use yarn.") && few.contains("2 windows are too few"), "{few}");
        let within = headline(&cells(&[("none", 256, 3.0), ("yarn", 256, 3.1)]), Some(256));
        assert!(within.starts_with("Within the 256 tokens trained no scaling is needed"), "{within}");
        assert_eq!(headline(&[], Some(256)), "Nothing was compared.");
        let alone = headline(&cells(&[("checkpoint", 512, 3.0)]), Some(256));
        assert!(
            alone.starts_with("At 512 tokens") && alone.ends_with("Nothing was compared with checkpoint."),
            "{alone}"
        );
    }

    #[test]
    fn few_windows_and_ties_are_admitted() {
        let lines = verdict(&cells(&[("none", 2048, 3.2), ("yarn", 2048, 3.0)]));
        assert!(lines[0].contains("2 of the 4 windows"), "{}", lines[0]);
        let mut tied = cells(&[("none", 256, 3.01), ("yarn", 256, 3.0)]);
        tied[0].versus_best = Some(Difference { mode: "yarn".into(), nll: 0.01, low: Some(-0.01), high: Some(0.03) });
        let line = &verdict(&tied)[0];
        assert!(line.contains("can't tell it from none: none 1.0% higher (95% interval -1.0% to 3.0%)"), "{line}");
    }

    #[test]
    fn identical_modes_are_said_to_be_identical() {
        let mut same = cells(&[("none", 256, 3.0), ("yarn", 256, 3.0)]);
        same[1].same_as = Some("none".into());
        assert!(verdict(&same)[0].starts_with("256: all modes are the same: 20"));
        assert!(verdict(&cells(&[("none", 256, 3.0)]))[0].starts_with("256: none has"));
    }
}
