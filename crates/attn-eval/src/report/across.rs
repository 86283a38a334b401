//! Reports of several models on the same bytes: tables for a terminal, sentences, CSV and JSON.

use super::document::{parsed, part};
use super::{About, ModelInfo, TableStyle, TextInfo, factor, short};
use crate::across::{ModelCell, ModelResults, ModelVersus, best, contexts};
use crate::error::{Result, ensure};
use crate::stats::{Interval, MIN_WINDOWS};
use serde::Serialize;
use serde_json::Value;

/// The value of the key `format`.
const FORMAT: &str = "attn-compare-models/1";

/// What is compared, in a sentence or two.
pub const SAME_BYTES: &str = "Every window holds the same bytes for all models, at most the given number of tokens for each, and \
                              the same bytes are scored. Perplexity is per token, and each tokenizer has its own tokens: \
                              compare bits per byte.";

/// A comparison of several models as one JSON document.
#[derive(Debug, Serialize)]
pub struct ModelsDocument<'a> {
    format: &'static str,
    text: String,
    verdict: Vec<String>,
    #[serde(flatten)]
    about: &'a About,
    #[serde(flatten)]
    results: &'a ModelResults,
}

impl<'a> ModelsDocument<'a> {
    /// The document of these results.
    pub fn new(about: &'a About, results: &'a ModelResults) -> Self {
        let names: Vec<&str> = about.texts.iter().map(|text| text.name.as_str()).collect();
        Self { format: FORMAT, text: names.join(", "), verdict: models_verdict(results), about, results }
    }
}

/// Whether a JSON document is a comparison of several models.
pub fn is_of_models(json: &str) -> bool {
    serde_json::from_str(json).is_ok_and(|document: Value| document["format"] == FORMAT)
}

/// Reads back what a [`ModelsDocument`] was made from.
///
/// # Errors
/// It is not JSON, not a comparison of several models, or holds figures that no measurement can give.
pub fn read_models_document(json: &str) -> Result<(About, ModelResults)> {
    let document = parsed(json)?;
    ensure!(document["format"] == FORMAT, Document, "it is not a comparison of several models");
    let (about, results): (About, ModelResults) = (part(&document)?, part(&document)?);
    about.check_texts([])?;
    results.check(&about)?;
    Ok((about, results))
}

/// Bits per byte with four decimals.
pub(super) fn bits(bits: f64) -> String {
    format!("{bits:.4}")
}

pub(super) fn range(interval: Option<Interval>, shown: fn(f64) -> String) -> String {
    interval.map_or(String::new(), |i| format!("{} to {}", shown(i.low), shown(i.high)))
}

/// A letter for a model: A, B, and so on; numbers after Z.
pub(super) fn letter(index: usize) -> String {
    match u8::try_from(index).ok().filter(|&index| index < 26) {
        Some(index) => char::from(b'A' + index).to_string(),
        None => (index + 1).to_string(),
    }
}

/// A line per model: its letter, name, trained context, bytes per token and BOS token.
pub fn model_lines(about: &About, results: &ModelResults) -> Vec<String> {
    let line = |(index, model): (usize, &ModelInfo)| {
        let trained = model.checkpoint.trained_context.map_or(String::new(), |n| format!(", trained to {n}"));
        let bos = model.bos.map_or(", no BOS".to_string(), |id| format!(", BOS id {id} before each window"));
        let cell = results.cells.iter().find(|cell| cell.model == model.checkpoint.name);
        let size = cell.map_or(String::new(), |cell| format!(", {:.2} bytes per token", bytes_per_token(cell)));
        format!("{}  {}{trained}{size}{bos}", letter(index), model.checkpoint.name)
    };
    about.models.iter().enumerate().map(line).collect()
}

pub(super) fn bytes_per_token(cell: &ModelCell) -> f64 {
    cell.bytes as f64 / cell.tokens as f64
}

/// A line with the name of a text and how much of it is used.
pub fn text_line(text: &TextInfo) -> String {
    format!("{}, first {} bytes", text.name, text.used_bytes.unwrap_or(0))
}

const BEST: &str = "\x1b[1;32m";
const RESET: &str = "\x1b[0m";

/// A table per context with a row per model and mode, then a line that explains the marks. Each line ends in a newline.
pub fn models_table(about: &About, results: &ModelResults, style: TableStyle) -> String {
    let mut out = String::new();
    for context in contexts(&results.cells) {
        let at: Vec<&ModelCell> = results.cells.iter().filter(|cell| cell.context == context).collect();
        let Some(first) = best(&results.cells, context) else { continue };
        out.push_str(&format!(
            "at most {context} tokens per window: {} windows, {} bytes scored\n",
            first.windows, first.bytes
        ));
        let scaled = at.iter().any(|cell| cell.factor > 1.0);
        let mut rows = vec![heads(scaled)];
        rows.extend(at.iter().map(|cell| row(about, cell, first, scaled)));
        let best_row = at.iter().position(|cell| std::ptr::eq(*cell, first)).map(|index| index + 1);
        block(&mut out, &rows, best_row.filter(|_| style.color));
        out.push('\n');
    }
    out.push_str("* fewest bits");
    if results.cells.iter().any(is_tied) {
        out.push_str("  ~ not significantly more (95% level)");
    }
    if results.cells.iter().any(|cell| cell.same_as.is_some()) {
        out.push_str("  = the same computation as an earlier mode");
    }
    out.push_str("\nperplexity is per token: don't compare it between models with different tokenizers\n");
    out
}

fn is_tied(cell: &ModelCell) -> bool {
    cell.versus_best.as_ref().and_then(ModelVersus::is_real) == Some(false)
}

fn heads(scaled: bool) -> Vec<String> {
    let mut heads = vec!["", "mode", "bits per byte", "95% interval", "perplexity"];
    if scaled {
        heads.insert(2, "factor");
    }
    heads.into_iter().map(String::from).collect()
}

fn row(about: &About, cell: &ModelCell, first: &ModelCell, scaled: bool) -> Vec<String> {
    let index = about.models.iter().position(|model| model.checkpoint.name == cell.model).unwrap_or(0);
    let mark = match cell {
        cell if std::ptr::eq(cell, first) => "*",
        cell if cell.same_as.is_some() => "=",
        cell if is_tied(cell) => "~",
        _ => " ",
    };
    let mut row = vec![
        letter(index),
        cell.mode.clone(),
        format!("{}{mark}", bits(cell.bits_per_byte)),
        range(cell.interval, bits),
        short(cell.perplexity),
    ];
    if scaled {
        row.insert(2, factor(cell.factor));
    }
    row
}

/// Rows as aligned columns, the first two flush left; the row with index `colored` is printed in colour.
fn block(out: &mut String, rows: &[Vec<String>], colored: Option<usize>) {
    let widths: Vec<usize> =
        (0..rows[0].len()).map(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0)).collect();
    for (index, row) in rows.iter().enumerate() {
        let padded = row.iter().zip(&widths).enumerate().map(|(column, (text, &width))| match column {
            0 | 1 => format!("{text:<width$}"),
            // Figures are flush right; their last character is the mark.
            _ => format!("{text:>width$}"),
        });
        let line = padded.collect::<Vec<_>>().join("  ");
        let (before, after) = if colored == Some(index) { (BEST, RESET) } else { ("", "") };
        out.push_str(&format!("{before}{}{after}\n", line.trim_end()));
    }
}

/// A model under a mode, inside a sentence.
fn called(model: &str, mode: &str) -> String {
    match mode {
        "checkpoint" => model.to_string(),
        "none" => format!("{model} without scaling"),
        mode => format!("{model} under {mode}"),
    }
}

/// A sentence per context: which model needs the fewest bits, how many more the others need, and whether that is significant.
pub fn models_verdict(results: &ModelResults) -> Vec<String> {
    let sentence = |context: usize| {
        let first = best(&results.cells, context)?;
        let name = called(&first.model, &first.mode);
        let interval = first.interval.map_or(String::new(), |_| format!(" ({})", range(first.interval, bits)));
        let mut said = format!(
            "At up to {context} tokens, {name} needs the fewest bits per byte: {}{interval}",
            bits(first.bits_per_byte)
        );
        // A mode that is the same computation as another adds nothing to the sentence.
        let others: Vec<&ModelCell> =
            results.cells.iter().filter(|cell| cell.context == context && cell.same_as.is_none()).collect();
        let mut others: Vec<&&ModelCell> = others.iter().filter(|cell| cell.versus_best.is_some()).collect();
        others.sort_by(|a, b| a.bits_per_byte.total_cmp(&b.bits_per_byte));
        let than: Vec<String> = others.iter().filter_map(|cell| versus(cell)).collect();
        if !than.is_empty() {
            said.push_str(&format!("; {}", than.join("; ")));
        }
        if first.windows < MIN_WINDOWS {
            let windows =
                if first.windows == 1 { "1 window is".to_string() } else { format!("{} windows are", first.windows) };
            said.push_str(&format!(
                ". {windows} too little text to compare models (at least {MIN_WINDOWS} are needed)"
            ));
        }
        Some(said + ".")
    };
    contexts(&results.cells).into_iter().filter_map(sentence).collect()
}

fn versus(cell: &ModelCell) -> Option<String> {
    let found = cell.versus_best.as_ref()?;
    let name = called(&cell.model, &cell.mode);
    let more = found.bits_per_byte;
    let interval = found.interval.map_or(String::new(), |_| format!(" ({})", range(found.interval, bits)));
    Some(match found.is_real() {
        Some(false) => format!("{name} needs {} more{interval}, which is not significant", bits(more)),
        _ => format!("{name} needs {} more{interval}", bits(more)),
    })
}

/// The cells as CSV with a header line, numbers in full precision.
pub fn models_csv(results: &ModelResults) -> String {
    let mut out = String::from(
        "model,mode,context,factor,bits_per_byte,bits_per_byte_low,bits_per_byte_high,bytes,windows,tokens,perplexity,\
         seconds,same_as,versus_model,versus_mode,bits_difference,bits_difference_low,bits_difference_high\n",
    );
    let optional = |value: Option<f64>| value.map_or(String::new(), |value| value.to_string());
    for cell in &results.cells {
        let versus = cell.versus_best.as_ref();
        let difference = versus.and_then(|versus| versus.interval);
        let fields = [
            quoted(&cell.model),
            cell.mode.clone(),
            cell.context.to_string(),
            cell.factor.to_string(),
            cell.bits_per_byte.to_string(),
            optional(cell.interval.map(|i| i.low)),
            optional(cell.interval.map(|i| i.high)),
            cell.bytes.to_string(),
            cell.windows.to_string(),
            cell.tokens.to_string(),
            cell.perplexity.to_string(),
            format!("{:.3}", cell.seconds),
            cell.same_as.clone().unwrap_or_default(),
            versus.map_or(String::new(), |versus| quoted(&versus.model)),
            versus.map_or(String::new(), |versus| versus.mode.clone()),
            optional(versus.map(|versus| versus.bits_per_byte)),
            optional(difference.map(|i| i.low)),
            optional(difference.map(|i| i.high)),
        ];
        out.push_str(&fields.join(","));
        out.push('\n');
    }
    out
}

/// A field that may hold commas and quotes, written as in RFC 4180.
fn quoted(field: &str) -> String {
    match field.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", field.replace('"', "\"\"")),
        false => field.to_string(),
    }
}

#[cfg(test)]
#[path = "across_tests.rs"]
pub(crate) mod tests;
