//! The usable length of each mode: the longest length at which it is still as good as the model as it is at its trained length,
//! by perplexity and by retrieval. Between the lengths compared it is found by bisection, if that was asked for.

use super::{OWN, Results, contexts, modes};
use crate::perplexity::Cell;
use serde::{Deserialize, Serialize};

/// The number of parts into which the lengths from the trained to the longest one are cut for bisection.
const PARTS: usize = 16;

/// The usable length of a mode.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Usable {
    /// The mode.
    pub mode: String,
    /// The longest length measured at which the last quarter is predicted as well as that of the model as it is at its
    /// trained length, as far as the intervals can tell, and so at all shorter ones; absent if there is none.
    pub perplexity: Option<usize>,
    /// The longest length measured.
    pub measured: usize,
    /// The same by retrieval, if it was measured and the model can do a task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retrieval: Option<ByRetrieval>,
}

/// The usable length of a mode by retrieval.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ByRetrieval {
    /// The longest length at which as much is found as by the model as it is at its trained length, as far as the intervals
    /// can tell, and so at all shorter ones; absent if there is none.
    pub length: Option<usize>,
    /// The longest length measured.
    pub measured: usize,
}

impl Usable {
    /// Whether it is usable to a longer length by perplexity than by retrieval: a loss that perplexity does not show.
    pub(crate) fn loses_unseen(&self) -> bool {
        let found = self.retrieval.as_ref();
        found.is_some_and(|found| self.perplexity.is_some_and(|n| n.min(found.measured) > found.length.unwrap_or(0)))
    }
}

/// Lengths at which a mode was measured, in ascending order, and whether it is good enough there.
type Known = Vec<(usize, bool)>;

/// The longest length such that the mode is good at it and at all shorter ones.
fn reach(known: &Known) -> Option<usize> {
    known.iter().take_while(|(_, good)| *good).last().map(|(length, _)| *length)
}

/// The usable length of every mode. It is empty if it is not known: with a factor for each length a row is not one setting, and
/// without the model as it is at its trained length there is nothing to compare a mode with.
pub(super) fn usable(results: &Results, one_factor: bool, trained: Option<usize>) -> Vec<Usable> {
    let of = |mode: &str| {
        let known = by_perplexity(results, mode, trained)?;
        let retrieval = results.retrieval.as_ref().and_then(|found| found.carries(mode));
        Some(Usable {
            mode: mode.to_string(),
            perplexity: reach(&known),
            measured: known.last()?.0,
            retrieval: retrieval
                .and_then(|known| Some(ByRetrieval { length: reach(&known), measured: known.last()?.0 })),
        })
    };
    let all = modes(&results.cells).into_iter().filter(|_| one_factor);
    all.filter_map(of).collect()
}

/// The lengths at which a mode is good by perplexity, as far as they were measured.
pub(super) fn by_perplexity(results: &Results, mode: &str, trained: Option<usize>) -> Option<Known> {
    let own = OWN.into_iter().find(|own| modes(&results.cells).contains(own))?;
    let cell = results.cells.iter().find(|cell| cell.mode == own && Some(cell.context) == trained)?;
    let reference = cell.last_quarter_interval.map(|interval| interval.high).or(cell.last_quarter_perplexity)?;
    let mut cells: Vec<&Cell> = results.cells.iter().chain(&results.between).filter(|cell| cell.mode == mode).collect();
    cells.sort_by_key(|cell| cell.context);
    let good = |cell: &Cell| {
        let low = cell.last_quarter_interval.map(|interval| interval.low).or(cell.last_quarter_perplexity);
        low.is_some_and(|low| low <= reference)
    };
    Some(cells.into_iter().map(|cell| (cell.context, good(cell))).collect())
}

/// The lengths at which bisection may measure: they cut the range between the trained and the longest length into sixteen
/// parts.
pub fn lengths_between(trained: usize, contexts: &[usize]) -> Vec<usize> {
    let longest = contexts.iter().copied().max().unwrap_or(trained).max(trained);
    let cut = (1..PARTS).map(|part| trained + (longest - trained) * part / PARTS);
    let mut lengths: Vec<usize> = cut.filter(|n| *n > trained && *n < longest && !contexts.contains(n)).collect();
    lengths.dedup();
    lengths
}

/// The length to measure next for the usable length of a mode: the middle one of those between the last length up to which it
/// is good and the first at which it is not.
fn middle(known: &Known, lengths: &[usize]) -> Option<usize> {
    let bad = known.iter().find(|(_, good)| !good)?.0;
    let good = reach(known)?;
    let between: Vec<usize> = lengths.iter().copied().filter(|&length| good < length && length < bad).collect();
    between.get(between.len() / 2).copied()
}

/// The next length at which to measure each mode, by perplexity and by retrieval; empty once all usable lengths are known.
pub(super) fn next(results: &Results, lengths: &[usize], trained: Option<usize>) -> Next {
    let all = modes(&results.cells);
    let of = |known: &dyn Fn(&str) -> Option<Known>| {
        let next = |mode: &&str| Some((mode.to_string(), middle(&known(mode)?, lengths)?));
        all.iter().filter_map(next).collect()
    };
    Next {
        perplexity: of(&|mode| by_perplexity(results, mode, trained)),
        retrieval: of(&|mode| results.retrieval.as_ref()?.carries(mode)),
    }
}

/// Modes with the length at which to measure them next.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Next {
    pub(super) perplexity: Vec<(String, usize)>,
    pub(super) retrieval: Vec<(String, usize)>,
}

/// Whether a mode is as good at the longest length of the comparison as the model as it is is at its trained one.
pub(super) fn carries_to_the_end(results: &Results, mode: &str, trained: Option<usize>) -> bool {
    let longest = contexts(&results.cells).into_iter().max();
    by_perplexity(results, mode, trained).is_some_and(|known| known.iter().any(|&(n, good)| Some(n) == longest && good))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The usable length of a mode that is good up to `to`, found by bisection between `contexts`, and the number of steps.
    fn found(to: usize, contexts: &[usize], lengths: &[usize]) -> (Option<usize>, usize) {
        let mut known: Known = contexts.iter().map(|&length| (length, length <= to)).collect();
        let mut steps = 0;
        while let Some(length) = middle(&known, lengths) {
            known.push((length, length <= to));
            known.sort_unstable();
            steps += 1;
        }
        (reach(&known), steps)
    }

    #[test]
    fn bisection_finds_the_last_good_length_in_few_steps() {
        let contexts = [2048, 4096, 8192];
        let lengths = lengths_between(2048, &contexts);
        assert_eq!((lengths.len(), lengths[0], *lengths.last().unwrap()), (15, 2432, 7808));
        for to in (2048..8192).step_by(17) {
            let (found, steps) = found(to, &contexts, &lengths);
            let best = lengths.iter().chain(&contexts).copied().filter(|length| *length <= to).max();
            assert!(found == best && steps <= 4, "{to}: {found:?} not {best:?} in {steps}");
        }
        assert_eq!(found(100, &contexts, &lengths), (None, 0), "not even at the trained length");
        assert_eq!(found(9000, &contexts, &lengths), (Some(8192), 0));
        assert!(lengths_between(256, &[128, 256]).is_empty() && lengths_between(256, &[260]).len() == 3);
    }
}
