//! What a saved comparison of several models may say: only what a measurement can come to.

use super::{BITS, ModelCell, ModelResults, ModelVersus, best};
use crate::compare::{ROUNDING, check_setting, close, is_perplexity};
use crate::error::{Result, Within, ensure, error};
use crate::report::About;
use crate::stats::Interval;

impl ModelResults {
    /// Refuses what no comparison of `about`'s models can have come to.
    ///
    /// # Errors
    /// What can't be, with the cell.
    pub(crate) fn check(&self, about: &About) -> Result<()> {
        ensure!(about.models.len() > 1, Impossible, "it is of fewer than two models");
        ensure!(!self.cells.is_empty(), Impossible, "it has no cells");
        let sum = |sizes: Vec<usize>| sizes.into_iter().try_fold(0usize, usize::checked_add);
        let bytes = sum(about.texts.iter().map(|text| text.used_bytes.unwrap_or(0)).collect());
        let bytes = bytes.ok_or_else(|| error!(Impossible, "its texts are longer than any can be"))?;
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
            let first = best(&self.cells, cell.context).ok_or_else(|| error!(Impossible, "there is no best"))?;
            ensure!(
                (first.bytes, first.windows) == (cell.bytes, cell.windows),
                Impossible,
                "{} is of other bytes",
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
        found.ok_or_else(|| error!(Impossible, "{model:.40?} under {mode:.40?} is not there"))
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
    ensure!(printable(&cell.model) && printable(&cell.mode), Impossible, "it has no name");
    check_setting(cell.context, cell.factor, cell.seconds)?;
    let most = cell.windows.checked_mul(cell.context).map_or(0, |most| most.min(tokens));
    ensure!(
        (1..=most).contains(&cell.tokens) && (1..=bytes).contains(&cell.bytes),
        Impossible,
        "{} windows score no {} tokens of {} bytes",
        cell.windows,
        cell.tokens,
        cell.bytes
    );
    ensure!(
        cell.bits_per_byte.is_finite() && cell.bits_per_byte >= -ROUNDING,
        Impossible,
        "no byte takes {} bits",
        cell.bits_per_byte
    );
    let nll = cell.bits_per_byte / BITS * cell.bytes as f64 / cell.tokens as f64;
    let follows = is_perplexity(cell.perplexity, nll);
    ensure!(follows, Impossible, "{} bits per byte are no perplexity of {}", cell.bits_per_byte, cell.perplexity);
    check_interval(cell.interval)?;
    let perplexity = cell.perplexity_interval.is_none_or(|i| i.low >= 0.0 && i.low <= i.high);
    ensure!(perplexity, Impossible, "{:?} is no interval of a perplexity", cell.perplexity_interval);
    Ok(())
}

fn check_interval(interval: Option<Interval>) -> Result<()> {
    let fine = interval.is_none_or(|i| i.low.is_finite() && i.high.is_finite() && i.low <= i.high);
    ensure!(fine, Impossible, "{interval:?} is no interval");
    Ok(())
}
