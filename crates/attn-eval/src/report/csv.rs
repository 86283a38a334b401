//! CSV for spreadsheets: one line per cell, numbers in full precision, empty where there is no value.

use crate::perplexity::{BUCKETS, Cell};

/// The cells as CSV with a header line.
pub fn csv(cells: &[Cell]) -> String {
    let mut out = String::from(
        "mode,context,stride,factor,perplexity,stderr,stderr_windows,tokens,windows,seconds,nll,\
         last_quarter_perplexity,same_as,versus,nll_difference,nll_difference_low,nll_difference_high",
    );
    for eighth in 1..=BUCKETS {
        out.push_str(&format!(",nll_eighth_{eighth}"));
    }
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
    fields
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::results::tests::cells;

    #[test]
    fn every_line_has_the_headers_columns() {
        let text = csv(&cells(&[("none", 256, 3.0), ("yarn", 256, 3.1), ("none", 4096, 3.0)]));
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(',').collect()).collect();
        assert_eq!(lines.len(), 4);
        assert!(lines.iter().all(|line| line.len() == 17 + BUCKETS), "{text}");
        assert_eq!(lines[2][..2], ["yarn", "256"]);
        let nll: f64 = lines[1][10].parse().unwrap();
        let perplexity: f64 = lines[1][4].parse().unwrap();
        assert_eq!(perplexity, nll.exp());
        assert_eq!(lines[3][6], "", "one window has no error by window");
    }
}
