//! The metrics beside perplexity, for a terminal.

use super::short;
use crate::perplexity::{Cell, Metric};
use crate::stats::Interval;

/// A line that says what the divergence is.
pub(super) const KL: &str = "Divergence (KL), in nats per token, from the predictions of the model as it is within its trained \
                             length";
/// A line that says what LongPPL is.
pub(super) const LONGPPL: &str = "LongPPL: perplexity of the key tokens, which the model as it is predicts well only with distant \
                                  text";

/// A table per metric that was measured, with one row per cell, and an empty line before each table; empty without metrics.
pub fn metrics(cells: &[Cell]) -> String {
    let kinds: [Kind; 2] = [(LONGPPL, |cell| cell.longppl, short), (KL, |cell| cell.kl, nats)];
    kinds.iter().filter(|(_, of, _)| cells.iter().any(|cell| of(cell).is_some())).map(|kind| one(cells, kind)).collect()
}

/// A metric's title, the figure of a cell, and how a figure is printed.
type Kind = (&'static str, fn(&Cell) -> Option<Metric>, fn(f64) -> String);

/// Nats with four decimals.
pub(super) fn nats(nats: f64) -> String {
    format!("{nats:.4}")
}

fn one(cells: &[Cell], (title, of, shown): &Kind) -> String {
    let rows: Vec<[String; 5]> = cells.iter().filter_map(|cell| Some(row(cell, of(cell)?, *shown))).collect();
    let heads = ["context", "mode", "value", "95% interval", "tokens"].map(String::from);
    let mut widths = heads.each_ref().map(|head| head.len());
    for row in &rows {
        widths.iter_mut().zip(row).for_each(|(width, text)| *width = (*width).max(text.chars().count()));
    }
    let line = |row: &[String; 5]| {
        let [context, mode, value, interval, tokens] = row;
        let [c, m, v, i, t] = widths;
        format!("{context:>c$}  {mode:<m$}  {value:>v$}  {interval:<i$}  {tokens:>t$}\n")
    };
    let lines: String = std::iter::once(&heads).chain(&rows).map(line).collect();
    format!("\n{title}\n{lines}")
}

fn row(cell: &Cell, metric: Metric, shown: fn(f64) -> String) -> [String; 5] {
    let Metric { value, interval, tokens } = metric;
    let range = |Interval { low, high }: Interval| format!("{} to {}", shown(low), shown(high));
    [
        cell.context.to_string(),
        cell.mode.clone(),
        value.map_or("none".to_string(), shown),
        interval.map_or(String::new(), range),
        tokens.to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::results::tests::cells;

    #[test]
    fn each_metric_that_was_taken_has_a_row_per_cell() {
        let mut cells = cells(&[("none", 256, 3.0), ("yarn", 256, 3.1)]);
        assert_eq!(metrics(&cells), "");
        let interval = Some(Interval { low: 1.5, high: 2.5 });
        cells[0].longppl = Some(Metric { value: Some(2.0), interval, tokens: 7 });
        cells[1].longppl = Some(Metric { value: None, interval: None, tokens: 0 });
        let text = metrics(&cells);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 5, "{text}");
        assert_eq!(lines[3].split_whitespace().collect::<Vec<_>>(), ["256", "none", "2.00", "1.50", "to", "2.50", "7"]);
        assert_eq!(lines[4].split_whitespace().collect::<Vec<_>>(), ["256", "yarn", "none", "0"]);
        assert!(!text.contains("KL"), "{text}");
    }
}
