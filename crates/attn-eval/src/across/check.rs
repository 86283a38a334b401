//! Checks a saved comparison of several models: refuses figures that no measurement can give.

use super::{BITS, ModelCell, ModelResults, ModelVersus, best};
use crate::compare::{ROUNDING, check_setting, close, is_perplexity};
use crate::error::{Result, Within, ensure, error};
use crate::report::About;
use crate::stats::Interval;

impl ModelResults {
    /// Refuses figures that no comparison of `about`'s models can give.
    ///
    /// # Errors
    /// The figure that is impossible, and its cell.
    pub(crate) fn check(&self, about: &About) -> Result<()> {
        ensure!(about.models.len() > 1, Impossible, "it compares fewer than two models");
        ensure!(!self.cells.is_empty(), Impossible, "it has no cells");
        let sum = |sizes: Vec<usize>| sizes.into_iter().try_fold(0usize, usize::checked_add);
        let bytes = sum(about.texts.iter().map(|text| text.used_bytes.unwrap_or(0)).collect());
        let bytes = bytes.ok_or_else(|| error!(Impossible, "its texts are longer than any text can be"))?;
        for (index, cell) in self.cells.iter().enumerate() {
            let named = || format!("{:.40?} under {:.40?} at {}", cell.model, cell.mode, cell.context);
            let of = |other: &&ModelCell| {
                (&other.model, &other.mode, other.context) == (&cell.model, &cell.mode, cell.context)
            };
            ensure!(!self.cells[..index].iter().any(|other| of(&other)), Impossible, "{} is there twice", named());
            let model = about.models.iter().find(|model| model.checkpoint.name == cell.model);
            let model = model.ok_or_else(|| error!(Impossible, "{}: there is no such model", named()))?;
            let used = sum(model.used.clone());
            check_cell(cell, bytes, used.unwrap_or(0)).within(named)?;
            let first = best(&self.cells, cell.context).ok_or_else(|| error!(Impossible, "no cell is the best"))?;
            ensure!(
                (first.bytes, first.windows) == (cell.bytes, cell.windows),
                Impossible,
                "{} scores other bytes than the best cell of its context",
                named()
            );
            if let Some(versus) = &cell.versus_best {
                self.check_versus(cell.context, cell.bits_per_byte, versus).within(named)?;
            }
        }
        for pair in &self.differences {
            let named = || format!("{:.40?} under {:.40?} at {}", pair.model, pair.mode, pair.context);
            let bits = self.bits(pair.context, &pair.model, &pair.mode).within(named)?;
            self.check_versus(pair.context, bits, &pair.versus).within(named)?;
        }
        Ok(())
    }

    fn bits(&self, context: usize, model: &str, mode: &str) -> Result<f64> {
        let of = |cell: &&ModelCell| (cell.context, cell.model.as_str(), cell.mode.as_str()) == (context, model, mode);
        let found = self.cells.iter().find(of).map(|cell| cell.bits_per_byte);
        found.ok_or_else(|| error!(Impossible, "there is no cell of {model:.40?} under {mode:.40?}"))
    }

    fn check_versus(&self, context: usize, bits: f64, versus: &ModelVersus) -> Result<()> {
        let follows = bits - self.bits(context, &versus.model, &versus.mode)?;
        let given = versus.bits_per_byte;
        ensure!(close(given, follows), Impossible, "the cells differ by {follows} bits, not by {given}");
        check_interval(versus.interval)
    }
}

fn check_cell(cell: &ModelCell, bytes: usize, tokens: usize) -> Result<()> {
    let printable = |name: &str| !name.is_empty() && name.len() <= 4096 && !name.chars().any(char::is_control);
    ensure!(printable(&cell.model) && printable(&cell.mode), Impossible, "its model or mode has no printable name");
    check_setting(cell.context, cell.factor, cell.seconds)?;
    let most = cell.windows.checked_mul(cell.context).map_or(0, |most| most.min(tokens));
    ensure!(
        (1..=most).contains(&cell.tokens) && (1..=bytes).contains(&cell.bytes),
        Impossible,
        "{} windows can't score {} tokens of {} bytes",
        cell.windows,
        cell.tokens,
        cell.bytes
    );
    ensure!(
        cell.bits_per_byte.is_finite() && cell.bits_per_byte >= -ROUNDING,
        Impossible,
        "a byte can't take {} bits",
        cell.bits_per_byte
    );
    let nll = cell.bits_per_byte / BITS * cell.bytes as f64 / cell.tokens as f64;
    let follows = is_perplexity(cell.perplexity, nll);
    ensure!(
        follows,
        Impossible,
        "{} bits per byte do not give a perplexity of {}",
        cell.bits_per_byte,
        cell.perplexity
    );
    check_interval(cell.interval)?;
    let perplexity = cell.perplexity_interval.is_none_or(|i| i.low >= 0.0 && i.low <= i.high);
    ensure!(perplexity, Impossible, "{:?} is not an interval of a perplexity", cell.perplexity_interval);
    Ok(())
}

fn check_interval(interval: Option<Interval>) -> Result<()> {
    let fine = interval.is_none_or(|i| i.low.is_finite() && i.high.is_finite() && i.low <= i.high);
    ensure!(fine, Impossible, "{interval:?} is not an interval");
    Ok(())
}
