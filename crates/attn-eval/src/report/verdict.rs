//! What a comparison says, in a sentence per context: the best mode, by how much, and how sure that is.

use super::short;
use crate::compare::{best, contexts};
use crate::perplexity::Cell;
use crate::stats::{Difference, MIN_WINDOWS};

/// One line per context, each saying which mode is best there and how sure that is.
pub fn verdict(cells: &[Cell]) -> Vec<String> {
    contexts(cells).into_iter().filter_map(|context| line(cells, context)).collect()
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
    let mut names: Vec<&str> = tied.map(|cell| cell.mode.as_str()).collect();
    let last = names.pop()?;
    let names = if names.is_empty() { last.to_string() } else { format!("{} and {last}", names.join(", ")) };
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
