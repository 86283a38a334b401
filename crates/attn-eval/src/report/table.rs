//! The comparison as a table for a terminal: modes down, contexts across, the best mode of each context marked.
//!
//! A terminal may be narrow, so the table gives up what can be missed first: the standard errors, then one table for all
//! contexts in favour of several below each other. Perplexities are never dropped.

use super::{factor, short};
use crate::compare::{best, contexts, modes};
use crate::perplexity::Cell;

/// What the table may look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableStyle {
    /// Columns of the terminal.
    pub width: usize,
    /// Whether to use colour.
    pub color: bool,
}

const BEST: &str = "\x1b[1;32m";
const RESET: &str = "\x1b[0m";
/// In place of a figure that can't be.
const MISSING: &str = "–";

/// The table, each line ending in a newline, with a line that explains its marks.
pub fn table(cells: &[Cell], style: TableStyle) -> String {
    let contexts = contexts(cells);
    let first = first_column(cells);
    let fits = |columns: &[Column]| first + columns.iter().map(|c| c.width).sum::<usize>() <= style.width;
    let with_errors: Vec<Column> = contexts.iter().map(|&context| Column::new(cells, context, true)).collect();
    let columns = if fits(&with_errors) {
        with_errors
    } else {
        contexts.iter().map(|&context| Column::new(cells, context, false)).collect()
    };
    let mut out = String::new();
    let mut rest = columns.as_slice();
    while !rest.is_empty() {
        let count = (1..=rest.len()).rev().find(|&n| fits(&rest[..n])).unwrap_or(1);
        if !out.is_empty() {
            out.push('\n');
        }
        block(&mut out, cells, &rest[..count], first, style);
        rest = &rest[count..];
    }
    out.push_str(&legend(cells, columns.iter().any(|c| c.errors), style.width));
    out
}

/// One context.
struct Column {
    context: usize,
    errors: bool,
    width: usize,
}

impl Column {
    fn new(cells: &[Cell], context: usize, errors: bool) -> Self {
        let at = cells.iter().filter(|cell| cell.context == context);
        let widest = at.map(|cell| text(cell, errors).chars().count()).max().unwrap_or(0);
        let gap = if errors { 3 } else { 1 };
        let marked = widest.max(context.to_string().len()) + 1;
        Self { context, errors, width: marked + gap }
    }
}

/// A cell's figure, without the mark.
fn text(cell: &Cell, errors: bool) -> String {
    match (&cell.same_as, errors) {
        (Some(_), _) => "=".to_string(),
        (None, false) => short(cell.perplexity),
        (None, true) => format!("{} ±{}", short(cell.perplexity), short(cell.stderr)),
    }
}

fn first_column(cells: &[Cell]) -> usize {
    modes(cells).iter().map(|mode| mode.len()).chain(["context".len()]).max().unwrap_or(0)
}

fn block(out: &mut String, cells: &[Cell], columns: &[Column], first: usize, style: TableStyle) {
    let header = |out: &mut String, name: &str, value: &dyn Fn(usize) -> String| {
        let mut line = format!("{name:<first$}");
        for column in columns {
            line.push_str(&format!("{:>width$} ", value(column.context), width = column.width - 1));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    };
    header(out, "context", &|context| context.to_string());
    if cells.iter().any(|cell| cell.factor > 1.0) {
        header(out, "factor", &|context| {
            let at = cells.iter().filter(|cell| cell.context == context);
            factor(at.map(|cell| cell.factor).fold(1.0, f64::max))
        });
    }
    for mode in modes(cells) {
        let mut line = format!("{mode:<first$}");
        for column in columns {
            let cell = cells.iter().find(|cell| cell.mode == mode && cell.context == column.context);
            let figure = cell.map_or(MISSING.to_string(), |cell| text(cell, column.errors));
            let is_best = best(cells, column.context).is_some_and(|winner| winner.mode == mode);
            let padded = format!("{figure:>width$}", width = column.width - 1);
            match (is_best, style.color) {
                (true, true) => line.push_str(&format!("{BEST}{padded}*{RESET}")),
                (true, false) => line.push_str(&format!("{padded}*")),
                (false, _) => line.push_str(&format!("{padded} ")),
            }
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
}

/// What the marks mean, in lines of at most `width`.
fn legend(cells: &[Cell], errors: bool, width: usize) -> String {
    let mut parts = vec!["* lowest perplexity"];
    if errors {
        parts.push("± standard error");
    }
    if let Some(same) = cells.iter().find_map(|cell| cell.same_as.as_deref()) {
        parts.push(if same == "none" { "= nothing to scale, same as none" } else { "= nothing to scale" });
    }
    if contexts(cells).len() * modes(cells).len() > cells.len() {
        parts.push("– past the end of its positions");
    }
    let mut lines: Vec<String> = vec![];
    for part in parts {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 2 + part.chars().count() <= width => {
                line.push_str(&format!("  {part}"));
            }
            _ => lines.push(part.to_string()),
        }
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::results::tests::cells;

    fn sample() -> Vec<Cell> {
        let modes = [("none", 0.4), ("linear", 0.3), ("ntk-by-parts", 0.0), ("yarn", 0.1)];
        let contexts = [256, 512, 1024, 2048];
        let rows: Vec<_> =
            contexts.iter().flat_map(|&c| modes.iter().map(move |&(m, extra)| (m, c, 3.3 + extra))).collect();
        let mut cells = cells(&rows);
        cells[1].same_as = Some("none".into());
        cells
    }

    fn widest(text: &str) -> usize {
        text.lines().map(|line| line.chars().count()).max().unwrap()
    }

    #[test]
    fn a_wide_terminal_gets_errors_and_the_best_marked() {
        let text = table(&sample(), TableStyle { width: 100, color: false });
        assert!(text.contains('±'), "{text}");
        assert_eq!(text.lines().filter(|line| line.contains('*')).count(), 2, "{text}");
        let best = text.lines().find(|line| line.starts_with("ntk-by-parts")).unwrap();
        assert_eq!(best.matches('*').count(), 4, "{text}");
        assert!(text.lines().any(|line| line.starts_with("linear") && line.contains('=')), "{text}");
        assert!(!text.contains('\x1b'));
    }

    #[test]
    fn narrow_terminals_are_kept_to_and_lose_no_figure() {
        for width in [80, 60, 40, 30, 24] {
            let text = table(&sample(), TableStyle { width, color: false });
            let lines = text.lines().take_while(|line| !line.starts_with('*'));
            assert!(lines.map(|line| line.chars().count()).max().unwrap() <= width, "{width}:\n{text}");
            for context in ["256", "512", "1024", "2048"] {
                assert!(text.contains(context), "{width}:\n{text}");
            }
        }
        assert!(widest(&table(&sample(), TableStyle { width: 40, color: false })) <= 40);
        assert!(widest(&table(&sample(), TableStyle { width: 1, color: false })) > 1, "never fails");
    }

    #[test]
    fn what_ends_is_said_to_end_and_a_factor_of_one_is_not_shown() {
        let mut cells = cells(&[("alibi", 256, 3.3), ("learned", 256, 3.2), ("alibi", 512, 3.3)]);
        cells.iter_mut().for_each(|cell| cell.factor = 1.0);
        let text = table(&cells, TableStyle { width: 80, color: false });
        let learned = text.lines().find(|line| line.starts_with("learned")).unwrap();
        assert!(learned.ends_with('–') && text.contains("– past the end") && !text.contains("factor"), "{text}");
    }

    #[test]
    fn colour_changes_no_column() {
        let plain = table(&sample(), TableStyle { width: 100, color: false });
        let colored = table(&sample(), TableStyle { width: 100, color: true });
        assert!(colored.contains(BEST));
        assert_eq!(colored.replace(BEST, "").replace(RESET, ""), plain);
    }
}
