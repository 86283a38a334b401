//! CSV for spreadsheets: one line per cell, numbers in full precision, empty fields where there is no value. If retrieval was
//! measured, its cells are further lines with further columns.

use crate::compare::Results;
use crate::perplexity::{BUCKETS, Cell};
use crate::retrieval::RetrievalCell;

/// Columns of retrieval alone.
const RETRIEVAL: [&str; 6] = ["task", "depth", "trials", "found", "wanted", "answer_nll"];

/// The cells as CSV with a header line.
pub fn csv(results: &Results) -> String {
    let mut out = of_texts(&results.cells);
    let Some(retrieval) = &results.retrieval else { return out };
    let lines: Vec<&str> = out.lines().collect();
    let columns: Vec<&str> = lines[0].split(',').chain(RETRIEVAL).collect();
    let mut all = vec![columns.join(",")];
    all.extend(lines[1..].iter().map(|line| format!("{line}{}", ",".repeat(RETRIEVAL.len()))));
    all.extend(retrieval.cells.iter().map(|cell| {
        let fields: Vec<String> = columns.iter().map(|column| field(cell, column)).collect();
        fields.join(",")
    }));
    out = all.join("\n");
    out.push('\n');
    out
}

/// What a cell of retrieval has in a column.
fn field(cell: &RetrievalCell, column: &str) -> String {
    match column {
        "mode" => cell.mode.clone(),
        "context" => cell.context.to_string(),
        "factor" => cell.factor.to_string(),
        "seconds" => format!("{:.3}", cell.seconds),
        "same_as" => cell.same_as.clone().unwrap_or_default(),
        "task" => cell.task.clone(),
        "depth" => cell.depth.map_or(String::new(), |depth| depth.to_string()),
        "trials" => cell.trials.to_string(),
        "found" => cell.found.to_string(),
        "wanted" => cell.wanted.to_string(),
        "answer_nll" => cell.answer_nll.to_string(),
        _ => String::new(),
    }
}

fn of_texts(cells: &[Cell]) -> String {
    let mut out = String::from(
        "mode,context,stride,factor,perplexity,stderr,stderr_windows,tokens,windows,seconds,nll,\
         last_quarter_perplexity,same_as,versus,nll_difference,nll_difference_low,nll_difference_high",
    );
    for eighth in 1..=BUCKETS {
        out.push_str(&format!(",nll_eighth_{eighth}"));
    }
    out.push_str(",longppl,longppl_low,longppl_high,key_tokens,kl,kl_low,kl_high");
    out.push('\n');
    for cell in cells {
        out.push_str(&line(cell).join(","));
        out.push('\n');
    }
    out
}

fn line(cell: &Cell) -> Vec<String> {
    let optional = |value: Option<f64>| value.map_or(String::new(), |value| value.to_string());
    let versus = cell.versus_best.as_ref();
    let mut fields = vec![
        cell.mode.clone(),
        cell.context.to_string(),
        cell.stride.to_string(),
        cell.factor.to_string(),
        cell.perplexity.to_string(),
        cell.stderr.to_string(),
        optional(cell.stderr_windows),
        cell.tokens.to_string(),
        cell.windows.to_string(),
        format!("{:.3}", cell.seconds),
        cell.nll.to_string(),
        optional(cell.last_quarter_perplexity),
        cell.same_as.clone().unwrap_or_default(),
        versus.map_or(String::new(), |d| d.mode.clone()),
        optional(versus.map(|d| d.nll)),
        optional(versus.and_then(|d| d.low)),
        optional(versus.and_then(|d| d.high)),
    ];
    fields.extend(cell.position_nll.iter().map(|&nll| optional(nll)));
    for metric in [cell.longppl, cell.kl] {
        let interval = metric.and_then(|metric| metric.interval);
        fields.push(optional(metric.and_then(|metric| metric.value)));
        fields.extend([interval.map(|i| i.low), interval.map(|i| i.high)].map(optional));
    }
    let keys = cell.longppl.map_or(String::new(), |metric| metric.tokens.to_string());
    fields.insert(fields.len() - 3, keys);
    fields
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::results::tests::cells;
    use crate::perplexity::Metric;
    use crate::report::heat::tests::retrieval;
    use crate::stats::Interval;

    #[test]
    fn every_line_has_the_headers_columns() {
        let mut results = Results::of(cells(&[("none", 256, 3.0), ("yarn", 256, 3.1), ("none", 4096, 3.0)]), 0);
        let text = csv(&results);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(',').collect()).collect();
        assert_eq!(lines.len(), 4);
        assert!(lines.iter().all(|line| line.len() == 24 + BUCKETS), "{text}");
        assert_eq!(lines[2][..2], ["yarn", "256"]);
        let nll: f64 = lines[1][10].parse().unwrap();
        let perplexity: f64 = lines[1][4].parse().unwrap();
        assert_eq!(perplexity, nll.exp());
        assert_eq!(lines[3][6], "", "one window has no error by window");
        results.retrieval = Some(retrieval());
        let both = csv(&results);
        let columns = both.lines().next().unwrap().split(',').count();
        assert!(both.lines().all(|line| line.split(',').count() == columns), "{both}");
        assert!(both.lines().count() == 1 + 3 + 30 && both.starts_with(text.lines().next().unwrap()), "{both}");
        assert!(both.contains("\nntk-by-parts,8192,,2,") && both.contains(",passkey,0.5,4,2,4,0.5\n"), "{both}");
        let interval = Some(Interval { low: 1.5, high: 2.5 });
        results.retrieval = None;
        results.cells.truncate(1);
        results.cells[0].longppl = Some(Metric { value: Some(2.0), interval, tokens: 7 });
        results.cells[0].kl = Some(Metric { value: Some(0.25), interval: None, tokens: 255 });
        assert!(csv(&results).ends_with(",2,1.5,2.5,7,0.25,,\n"), "{}", csv(&results));
    }
}
