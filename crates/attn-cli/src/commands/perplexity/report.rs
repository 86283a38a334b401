//! What `attn perplexity` prints.

use super::args::PerplexityArgs;
use crate::parse::ProtocolChoice;
use attn_core::{CacheType, CacheTypes};
use attn_eval::metrics::MetricSettings;
use attn_eval::perplexity::Cell;
use attn_eval::protocol::Size;
use attn_eval::report::bos_line;
use serde::Serialize;

/// A cell, and how it was measured.
#[derive(Serialize)]
pub(super) struct Report {
    #[serde(flatten)]
    cell: Cell,
    bos: Option<u32>,
    bos_choice: &'static str,
    protocol: ProtocolChoice,
    #[serde(flatten)]
    per_size: Option<PerSize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) metrics: Option<MetricSettings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_type_k: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_type_v: Option<&'static str>,
}

impl Report {
    pub(super) fn new(cell: Cell, bos: Option<u32>, args: &PerplexityArgs, per_size: Option<PerSize>) -> Self {
        let CacheTypes { k, v } = args.model.cache.types();
        Self {
            cell,
            bos,
            bos_choice: args.cut.bos.name(),
            protocol: args.protocol,
            per_size,
            metrics: None,
            cache_type_k: k.map(CacheType::name),
            cache_type_v: v.map(CacheType::name),
        }
    }
}

/// The figures for a terminal.
pub(super) fn summary(report: &Report) -> String {
    let cell = &report.cell;
    let mut out = String::new();
    if cell.perplexity.is_finite() {
        out.push_str(&format!("perplexity  {:.4} ± {:.4}", cell.perplexity, cell.stderr));
        out.push_str("  (standard error, if tokens were independent)\n");
    } else {
        out.push_str(&format!("nats        {:.2} per token  (the perplexity is too large for a number)\n", cell.nll));
    }
    if let Some(error) = cell.stderr_windows.filter(|error| error.is_finite()) {
        out.push_str(&format!("            ± {error:.4}  (standard error, if windows were independent)\n"));
    }
    if let Some(last) = cell.last_quarter_perplexity.filter(|last| last.is_finite()) {
        out.push_str(&format!("last        {last:.4}  (last quarter of each window)\n"));
    }
    if let Some(sizes) = &report.per_size {
        out.push_str(&sizes.lines());
    }
    if let Some(protocol) = report.protocol.0 {
        out.push_str(&format!("protocol    {protocol}: {}\n", protocol.scored()));
    }
    out.push_str(&format!(
        "tokens      {} scored in {} windows of {}, one window every {} tokens\n",
        cell.tokens, cell.windows, cell.context, cell.stride
    ));
    out.push_str(&format!("BOS         {}\n", bos_line(report.bos, report.bos_choice)));
    let speed = (cell.windows * cell.context) as f64 / cell.seconds.max(1e-9);
    out.push_str(&format!("seconds     {:.1}  ({speed:.0} tokens/s)\n", cell.seconds));
    out
}

/// Figures that don't depend on the tokenizer, as lm-evaluation-harness defines them.
#[derive(Serialize)]
pub(super) struct PerSize {
    words: usize,
    bytes: usize,
    word_perplexity: f64,
    byte_perplexity: f64,
    bits_per_byte: f64,
}

impl PerSize {
    pub(super) fn new(size: Size, nll: f64) -> Self {
        let Size { bytes, words } = size;
        let (per_word, per_byte) = (nll / words as f64, nll / bytes as f64);
        let bits_per_byte = per_byte / std::f64::consts::LN_2;
        Self { words, bytes, word_perplexity: per_word.exp(), byte_perplexity: per_byte.exp(), bits_per_byte }
    }

    /// Lines for a person.
    pub(super) fn lines(&self) -> String {
        format!(
            "by word     {:.4}  ({} words)\nby byte     {:.4}  ({} bytes; {:.4} bits per byte)\n",
            self.word_perplexity, self.words, self.byte_perplexity, self.bytes, self.bits_per_byte
        )
    }
}
