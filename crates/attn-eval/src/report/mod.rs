//! Reports: tables for a terminal, verdicts in sentences, CSV, SVG, HTML and JSON.
//!
//! All functions return text; the caller decides where it is written.

mod across;
pub mod blocks;
mod csv;
mod document;
mod explain;
mod heat;
pub mod html;
mod markup;
mod metrics;
pub mod palette;
mod retrieval;
mod svg;
mod table;
mod verdict;
mod weighed;
mod words;

pub use across::{
    ModelsDocument, SAME_BYTES, is_of_models, model_lines, models_csv, models_table, models_verdict,
    read_models_document, text_line,
};
pub use csv::csv;
pub use document::{
    About, CheckpointInfo, Document, FileInfo, Machine, ModelInfo, RetrievalDocument, RetrievalSettings, RopeSettings,
    Settings, TextInfo, Versions, bos_line, read_document,
};
pub use explain::{explanation, ranges};
pub use heat::{RetrievalMetric, answers, found, heat};
pub use metrics::metrics;
pub use retrieval::{retrieval_csv, retrieval_headline, retrieval_verdict};
pub use svg::svg;
pub use table::{TableStyle, table};
pub use verdict::{Verdict, search_sentence, verdict};

#[cfg(test)]
pub(crate) use across::tests::about as tests_of_models;

use crate::perplexity::Cell;

/// What the models of [`Results::encodings`](crate::compare::Results::encodings) are.
pub const ENCODINGS: &str = "Small models that differ only in their position encoding, trained with 256 tokens on the same \
                             novels, without scaling. Their tokenizer is not that of the model above: compare figures within \
                             this table, not with the other one.";

/// A cell's perplexity, or its nats per token if the perplexity is too large for an `f64`.
pub(crate) fn figure(cell: &Cell) -> String {
    if cell.perplexity.is_finite() { short(cell.perplexity) } else { format!("{:.0} nats", cell.nll) }
}

/// A perplexity, rounded for people.
pub(crate) fn short(perplexity: f64) -> String {
    match perplexity {
        x if !x.is_finite() => "over 1e308".to_string(),
        x if x < 99.995 => format!("{x:.2}"),
        x if x < 999.95 => format!("{x:.1}"),
        x if x < 99_999.5 => format!("{x:.0}"),
        x => format!("{x:.0e}"),
    }
}

/// A difference in nats as a ratio of perplexities in percent, with its sign; a difference that rounds to 0 is `+0.0%`.
pub(crate) fn gap(nll: f64) -> String {
    let percent = nll.exp_m1() * 100.0;
    match percent.abs() {
        x if !x.is_finite() => format!("{nll:+.0} nats"),
        x if x < 0.05 => "+0.0%".to_string(),
        x if x < 10.0 => format!("{percent:+.1}%"),
        _ => format!("{percent:+.0}%"),
    }
}

/// A factor without needless zeros.
pub(crate) fn factor(factor: f64) -> String {
    let text = format!("{factor:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_that_does_not_show_has_no_sign() {
        for (nll, shown) in [(-4e-4, "+0.0%"), (4e-4, "+0.0%"), (-6e-4, "-0.1%"), (0.01, "+1.0%")] {
            assert_eq!(gap(nll), shown, "{nll}");
        }
    }
}
