//! Checks a saved grid: refuses figures that no trials can give.

use super::results::{Retrieval, RetrievalCell, Total};
use super::tasks::TASKS;
use crate::error::{Result, Within, ensure, error};
use crate::stats::Interval;

/// By how much figures that follow from each other may differ: JSON is read with an error in the last digits.
const TOLERANCE: f64 = 1e-9;
/// Likelihoods are computed in f32, so that the logarithm of a likelihood of 1 may come out this far above 0.
const ROUNDING: f64 = 0.01;

impl Retrieval {
    /// Refuses figures that no grid of trials can give.
    ///
    /// # Errors
    /// The figure that is impossible, and its cell.
    pub(crate) fn check(&self) -> Result<()> {
        for task in &self.tasks {
            let known = TASKS.into_iter().find(|known| known.name == task.name);
            let known = known.ok_or_else(|| error!(Impossible, "there is no task {:.40?}", task.name))?;
            ensure!(task.wanted == known.wanted, Impossible, "{} asks for {} things", task.name, known.wanted);
            let share = task.share.is_none_or(|share| (0.0..=1.0).contains(&share));
            ensure!(
                share && task.interval.is_none_or(within),
                Impossible,
                "{}: the share found is impossible",
                task.name
            );
        }
        ensure!(!self.totals.is_empty(), Impossible, "it has no totals");
        for total in self.totals.iter().chain(&self.between) {
            let named = || format!("{:.40?} of {:.40?} at {}", total.mode, total.task, total.context);
            ensure!(
                self.tasks.iter().any(|task| task.name == total.task),
                Impossible,
                "{} is of a task that is not listed",
                named()
            );
            check_total(total).within(named)?;
        }
        for cell in &self.cells {
            let named = || format!("{:.40?} of {:.40?} at {}", cell.mode, cell.task, cell.context);
            check_cell(cell).within(named)?;
            ensure!(
                self.share(&cell.task, &cell.mode, cell.context, None).is_some(),
                Impossible,
                "{} has no total",
                named()
            );
        }
        Ok(())
    }
}

fn check_counts(trials: usize, found: usize, wanted: usize, nll: f64) -> Result<()> {
    let fine = trials > 0 && wanted > 0 && found <= wanted && wanted.is_multiple_of(trials);
    ensure!(fine, Impossible, "{trials} trials can't find {found} of {wanted}");
    ensure!(nll.is_finite() && nll >= -ROUNDING, Impossible, "a token of an answer can't cost {nll} nats");
    Ok(())
}

fn check_total(total: &Total) -> Result<()> {
    check_counts(total.trials, total.found, total.wanted, total.answer_nll)?;
    let (share, interval) = (total.found().value(), total.found().interval());
    let close = |a: f64, b: f64| (a - b).abs() <= TOLERANCE;
    let follows = close(share, total.share) && close(interval.low, total.interval.low);
    ensure!(
        follows && close(interval.high, total.interval.high),
        Impossible,
        "its share does not follow from its trials"
    );
    let ordered = total.answer_interval.is_none_or(|i| i.low.is_finite() && i.high.is_finite() && i.low <= i.high);
    ensure!(ordered, Impossible, "{:?} is not an interval", total.answer_interval);
    Ok(())
}

fn check_cell(cell: &RetrievalCell) -> Result<()> {
    check_counts(cell.trials, cell.found, cell.wanted, cell.answer_nll)?;
    ensure!(
        cell.depth.is_none_or(|depth| (0.0..=1.0).contains(&depth)),
        Impossible,
        "its depth can't be {:?}",
        cell.depth
    );
    ensure!(
        cell.factor.is_finite() && cell.factor > 0.0,
        Impossible,
        "a scaling can't have a factor of {}",
        cell.factor
    );
    ensure!(cell.seconds.is_finite() && cell.seconds >= 0.0, Impossible, "it can't have taken {} s", cell.seconds);
    Ok(())
}

fn within(interval: Interval) -> bool {
    interval.low >= 0.0 && interval.low <= interval.high && interval.high <= 1.0
}
