//! The comparison as a table for a terminal, with a row per mode and a column per context; the best mode of each context is
//! marked.
//!
//! For a narrow terminal, the space between columns is reduced first; then the contexts are divided among several tables
//! below each other. Figures are never dropped.

use super::blocks::wrap;
use super::factor;
use crate::compare::{Usable, best, contexts, modes};
use crate::perplexity::Cell;
use crate::stats::Difference;

/// The width and colour of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableStyle {
    /// Columns of the terminal.
    pub width: usize,
    /// Whether to use colour.
    pub color: bool,
}

const BEST: &str = "\x1b[1;32m";
const RESET: &str = "\x1b[0m";
/// What is shown in place of a figure that does not exist.
const MISSING: &str = "–";

/// The table, with a line that explains its marks; each line ends in a newline. If `usable` is not empty, it fills a last column,
/// or two with retrieval.
pub fn table(cells: &[Cell], usable: &[Usable], style: TableStyle) -> String {
    let first = first_column(cells);
    let mut columns: Vec<Column> =
        contexts(cells).into_iter().map(|context| Column::of_context(cells, context)).collect();
    let by_retrieval = usable.iter().any(|usable| usable.retrieval.is_some());
    if by_retrieval {
        let by = |usable: &Usable| usable.retrieval.as_ref().map(|found| (found.length, found.measured));
        columns
            .push(Column::of_usable("predicts to", cells, usable, |usable| Some((usable.perplexity, usable.measured))));
        columns.push(Column::of_usable("finds to", cells, usable, by));
    } else if !usable.is_empty() {
        columns
            .push(Column::of_usable("usable to", cells, usable, |usable| Some((usable.perplexity, usable.measured))));
    }
    let fits = |columns: &[Column], gap: usize| {
        first + columns.iter().map(|column| column.width + gap).sum::<usize>() <= style.width
    };
    let gap = if fits(&columns, WIDE) { WIDE } else { NARROW };
    let mut out = String::new();
    let mut rest = columns.as_slice();
    while !rest.is_empty() {
        let count = (1..=rest.len()).rev().find(|&n| fits(&rest[..n], gap)).unwrap_or(1);
        if !out.is_empty() {
            out.push('\n');
        }
        block(&mut out, cells, &rest[..count], (first, gap), style);
        rest = &rest[count..];
    }
    out.push_str(&legend(cells, by_retrieval, style.width));
    out
}

/// Spaces between columns, in a wide and in a narrow terminal.
const WIDE: usize = 4;
const NARROW: usize = 1;

/// One context, or the usable length of each mode.
struct Column {
    head: String,
    factor: String,
    /// A figure, its mark and whether it is the best, mode by mode.
    figures: Vec<(String, char, bool)>,
    width: usize,
}

impl Column {
    fn of_context(cells: &[Cell], context: usize) -> Self {
        let at = || cells.iter().filter(|cell| cell.context == context);
        let winner = best(cells, context).map(|cell| cell.mode.as_str());
        let figure = |mode: &str| match at().find(|cell| cell.mode == mode) {
            None => (MISSING.to_string(), ' ', false),
            Some(cell) if winner == Some(mode) => (text(cell), '*', true),
            Some(cell) => {
                let tied = cell.versus_best.as_ref().and_then(Difference::is_real) == Some(false);
                (text(cell), if tied { '~' } else { ' ' }, false)
            }
        };
        let scaled = factor(at().map(|cell| cell.factor).fold(1.0, f64::max));
        Self::new(context.to_string(), scaled, modes(cells).into_iter().map(figure).collect())
    }

    /// The usable length of each mode. `of` gives it, and the longest length measured.
    fn of_usable(
        head: &str,
        cells: &[Cell],
        usable: &[Usable],
        of: impl Fn(&Usable) -> Option<(Option<usize>, usize)>,
    ) -> Self {
        let figure = |mode: &str| {
            let found = usable.iter().find(|usable| usable.mode == mode);
            let (length, more) = match found.and_then(&of) {
                Some((Some(length), measured)) => (length.to_string(), if length == measured { '+' } else { ' ' }),
                _ => (MISSING.to_string(), ' '),
            };
            (length, more, false)
        };
        Self::new(head.to_string(), String::new(), modes(cells).into_iter().map(figure).collect())
    }

    fn new(head: String, factor: String, figures: Vec<(String, char, bool)>) -> Self {
        let widest = figures.iter().map(|(figure, _, _)| figure.chars().count()).max().unwrap_or(0);
        Self { width: widest.max(head.len()) + 1, head, factor, figures }
    }
}

/// A cell's figure, without the mark.
fn text(cell: &Cell) -> String {
    if cell.same_as.is_some() { "=".to_string() } else { super::figure(cell) }
}

fn first_column(cells: &[Cell]) -> usize {
    modes(cells).iter().map(|mode| mode.len()).chain(["context".len()]).max().unwrap_or(0)
}

fn block(out: &mut String, cells: &[Cell], columns: &[Column], (first, gap): (usize, usize), style: TableStyle) {
    let header = |out: &mut String, name: &str, value: &dyn Fn(&Column) -> &str| {
        let mut line = format!("{name:<first$}");
        for column in columns {
            line.push_str(&format!("{:>width$} ", value(column), width = column.width + gap - 1));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    };
    header(out, "context", &|column| &column.head);
    if cells.iter().any(|cell| cell.factor > 1.0) {
        header(out, "factor", &|column| &column.factor);
    }
    for (i, mode) in modes(cells).into_iter().enumerate() {
        let mut line = format!("{mode:<first$}");
        for column in columns {
            let (figure, mark, is_best) = &column.figures[i];
            let padded = format!("{figure:>width$}{mark}", width = column.width + gap - 1);
            let (before, after) = if *is_best && style.color { (BEST, RESET) } else { ("", "") };
            line.push_str(&format!("{before}{padded}{after}"));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
}

/// What the marks mean, in lines of at most `width`.
fn legend(cells: &[Cell], by_retrieval: bool, width: usize) -> String {
    let mut parts = vec!["* lowest perplexity"];
    if cells.iter().any(|cell| cell.versus_best.as_ref().and_then(Difference::is_real) == Some(false)) {
        parts.push("~ not significantly higher (95% level)");
    }
    let mut same: Vec<&str> = cells.iter().filter_map(|cell| cell.same_as.as_deref()).collect();
    same.sort_unstable();
    same.dedup();
    let same = match same.as_slice() {
        [] => None,
        [mode] => Some(format!("= the same computation as {mode}")),
        _ => Some("= the same computation as an earlier mode".to_string()),
    };
    parts.extend(same.as_deref());
    if contexts(cells).len() * modes(cells).len() > cells.len() {
        parts.push("– longer than its table of positions");
    }
    if by_retrieval {
        parts.push("predicts to, finds to: longest length as good as the trained one, by perplexity and retrieval");
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
    lines.iter().map(|line| format!("{}\n", wrap(line, width))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::ByRetrieval;
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
    fn the_best_is_marked_and_so_is_what_can_not_be_told_from_it() {
        let mut cells = sample();
        let tied = Difference { mode: "ntk-by-parts".into(), nll: 0.1, low: Some(-0.1), high: Some(0.3) };
        cells[3].versus_best = Some(tied);
        let usable = [("none", Some(512)), ("yarn", Some(2048)), ("linear", None)].map(|(mode, perplexity)| Usable {
            mode: mode.into(),
            perplexity,
            measured: 2048,
            retrieval: None,
        });
        let text = table(&cells, &usable, TableStyle { width: 100, color: false });
        let line = |mode: &str| text.lines().find(|line| line.starts_with(mode)).unwrap().to_string();
        assert!(line("yarn").contains("~ ") && text.contains("~ not significantly"), "{text}");
        assert!(line("none").ends_with(" 512") && line("yarn").ends_with(" 2048+"), "{text}");
        assert!(line("linear").ends_with('–') && line("context").ends_with("usable to"), "{text}");
        let by = |length: Option<usize>| Some(ByRetrieval { length, measured: 1024 });
        let found = [("none", by(Some(256))), ("yarn", by(Some(1024))), ("linear", None)];
        let usable: Vec<Usable> = usable
            .into_iter()
            .zip(found)
            .map(|(usable, (mode, retrieval))| {
                assert_eq!(usable.mode, mode);
                Usable { retrieval, ..usable }
            })
            .collect();
        let text = table(&cells, &usable, TableStyle { width: 100, color: false });
        let line = |mode: &str| text.lines().find(|line| line.starts_with(mode)).unwrap().to_string();
        assert!(line("context").ends_with("predicts to     finds to"), "{text}");
        assert!(line("none").ends_with(" 512          256") && line("yarn").ends_with(" 2048+        1024+"), "{text}");
        assert!(text.contains("finds to: longest length as good as the trained one"), "{text}");
        let text = table(&sample(), &[], TableStyle { width: 100, color: false });
        assert_eq!(text.lines().filter(|line| line.contains('*')).count(), 2, "{text}");
        let best = text.lines().find(|line| line.starts_with("ntk-by-parts")).unwrap();
        assert_eq!(best.matches('*').count(), 4, "{text}");
        assert!(text.lines().any(|line| line.starts_with("linear") && line.contains('=')), "{text}");
        assert!(!text.contains('\x1b'));
    }

    #[test]
    fn narrow_terminals_are_kept_to_and_lose_no_figure() {
        for width in [80, 60, 40, 30, 24] {
            let text = table(&sample(), &[], TableStyle { width, color: false });
            let lines = text.lines().take_while(|line| !line.starts_with('*'));
            assert!(lines.map(|line| line.chars().count()).max().unwrap() <= width, "{width}:\n{text}");
            for context in ["256", "512", "1024", "2048"] {
                assert!(text.contains(context), "{width}:\n{text}");
            }
        }
        assert!(widest(&table(&sample(), &[], TableStyle { width: 40, color: false })) <= 40);
        assert!(widest(&table(&sample(), &[], TableStyle { width: 1, color: false })) > 1, "never fails");
    }

    #[test]
    fn what_ends_is_said_to_end_and_a_factor_of_one_is_not_shown() {
        let mut cells = cells(&[("alibi", 256, 3.3), ("learned", 256, 3.2), ("alibi", 512, 3.3)]);
        cells.iter_mut().for_each(|cell| cell.factor = 1.0);
        let text = table(&cells, &[], TableStyle { width: 80, color: false });
        let learned = text.lines().find(|line| line.starts_with("learned")).unwrap();
        assert!(learned.ends_with('–') && text.contains("– longer than") && !text.contains("factor"), "{text}");
    }

    #[test]
    fn colour_changes_no_column() {
        let plain = table(&sample(), &[], TableStyle { width: 100, color: false });
        let colored = table(&sample(), &[], TableStyle { width: 100, color: true });
        assert!(colored.contains(BEST));
        assert_eq!(colored.replace(BEST, "").replace(RESET, ""), plain);
    }
}
