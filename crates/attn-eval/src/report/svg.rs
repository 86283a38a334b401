//! The comparison as a line chart: perplexity on a logarithmic scale over context length, one line per mode.
//!
//! No library is needed for these few lines of geometry. The file contains its own style, so that it is readable on a light and
//! on a dark page; its figures are titles of the points, which show on hovering and are read by screen readers.

use super::markup::escape;
use super::{figure, palette, short};
use crate::compare::{contexts, modes};
use crate::perplexity::Cell;
use std::fmt::Write;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 600.0;
const TOP: f64 = 56.0;
const BOTTOM: f64 = 380.0;

const STYLE: &str = "
  svg { background: #ffffff; }
  text { font: 13px system-ui, sans-serif; fill: #222222; }
  .title { font-size: 16px; font-weight: 600; }
  .grid { stroke: #dddddd; }
  .axis { stroke: #666666; }
  .line { fill: none; stroke-width: 2.2; }
  .bar { stroke-width: 1.2; opacity: .6; }
  .trained { stroke: #666666; stroke-dasharray: 3 4; }
  @media (prefers-color-scheme: dark) {
    svg { background: #16181d; }
    text { fill: #e6e6e6; }
    .grid { stroke: #363a43; }
    .axis, .trained { stroke: #9a9a9a; }
  }
";

/// The chart as an SVG document with `title` above it; a vertical line marks the context that the model was trained for.
pub fn svg(cells: &[Cell], title: &str, trained: Option<usize>) -> String {
    let scale = Scale::new(cells);
    let order = palette::order(modes(cells));
    let place = |mode: &str| order.iter().position(|name| name == mode).unwrap_or(0);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" \
         height=\"{HEIGHT}\" role=\"img\" aria-label=\"{0}\">\n<title>{0}</title>\n<style>{STYLE}{1}</style>\n\
         <text class=\"title\" x=\"{LEFT}\" y=\"28\">{0}</text>\n",
        escape(title),
        colors()
    );
    axes(&mut out, cells, &scale);
    if let Some(trained) = trained.filter(|&trained| contexts(cells).iter().any(|&context| context >= trained)) {
        let x = scale.x(trained).max(LEFT);
        let _ = writeln!(
            out,
            "<line class=\"trained\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{BOTTOM}\"/>\n\
             <text x=\"{:.1}\" y=\"{}\">trained to {trained}</text>",
            x + 6.0,
            BOTTOM - 8.0
        );
    }
    let mut labels = vec![];
    for mode in modes(cells) {
        let i = place(mode);
        let mut points: Vec<&Cell> = cells.iter().filter(|cell| cell.mode == mode).collect();
        points.sort_by_key(|cell| cell.context);
        line(&mut out, &points, i, &scale);
        if let Some(last) = points.last() {
            labels.push((scale.y(last.nll), i, mode));
        }
    }
    legend(&mut out, labels);
    out.push_str("</svg>\n");
    out
}

/// The palette as CSS classes, for light and for dark backgrounds.
fn colors() -> String {
    let of = |colors: [&str; 8]| -> String {
        let class = |(i, color): (usize, &&str)| format!("  .s{i} {{ stroke: {color}; }} .d{i} {{ fill: {color}; }}\n");
        colors.iter().enumerate().map(class).collect()
    };
    format!("{}@media (prefers-color-scheme: dark) {{\n{}}}\n", of(palette::LIGHT), of(palette::DARK))
}

/// Maps contexts and perplexities to places on the page, both logarithmically. A perplexity is given by its logarithm, the nats
/// per token, which is finite even if the perplexity is too large for an `f64`.
struct Scale {
    x: (f64, f64),
    y: (f64, f64),
}

/// If there are more decades than this, not every one is marked.
const DECADES: f64 = 6.0;

impl Scale {
    fn new(cells: &[Cell]) -> Self {
        let range = |values: &mut dyn Iterator<Item = f64>| {
            let (low, high) = values
                .filter(|v| v.is_finite())
                .fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
            if low > high { (0.0, 1.0) } else { (low, high) }
        };
        let x = range(&mut cells.iter().map(|cell| (cell.context as f64).ln()));
        let y = range(&mut cells.iter().map(|cell| cell.nll));
        let margin = ((y.1 - y.0) * 0.06).max(0.02).max(y.1.abs() * 1e-9);
        Self { x, y: (y.0 - margin, y.1 + margin) }
    }

    fn x(&self, context: usize) -> f64 {
        let (low, high) = self.x;
        let share = if high > low { ((context as f64).ln() - low) / (high - low) } else { 0.5 };
        LEFT + 16.0 + share * (RIGHT - LEFT - 32.0)
    }

    fn y(&self, nll: f64) -> f64 {
        let share = (nll - self.y.0) / (self.y.1 - self.y.0);
        BOTTOM - share.clamp(0.0, 1.0) * (BOTTOM - TOP)
    }

    /// Places and texts of the ticks: round perplexities inside the range, at least three of them if possible.
    fn ticks(&self) -> Vec<(f64, String)> {
        let decade = std::f64::consts::LN_10;
        let (low, high) = (self.y.0 / decade, self.y.1 / decade);
        if high - low > DECADES {
            // Whole decades, `DECADES` at most; the perplexities themselves may be too large for an `f64`.
            let step = ((high - low) / DECADES).ceil();
            let first = (low / step).ceil() * step;
            let decades = (0..=DECADES as u32).map(|i| first + step * f64::from(i)).take_while(|&d| d <= high);
            return decades.map(|d| (d * decade, format!("1e{d:.0}"))).collect();
        }
        let label = |perplexity: f64| {
            let text = short(perplexity);
            if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_string() } else { text }
        };
        // A perplexity that is too large for an `f64` can only be given by its decade.
        let Some((low, high)) = Some((self.y.0.exp(), self.y.1.exp())).filter(|(_, high)| high.is_finite()) else {
            return vec![(self.y.0, format!("1e{low:.1}")), (self.y.1, format!("1e{high:.1}"))];
        };
        round(low, high).into_iter().map(|tick| (tick.ln(), label(tick))).collect()
    }
}

/// Round numbers from `low` to `high`, which lie a few decades apart at most.
fn round(low: f64, high: f64) -> Vec<f64> {
    let steps: [&[f64]; 3] =
        [&[1.0, 10.0], &[1.0, 2.0, 5.0], &[1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]];
    let within = |steps: &[f64]| -> Vec<f64> {
        let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
        let all = decades.flat_map(|d| steps.iter().map(move |s| s * 10f64.powi(d)));
        let mut ticks: Vec<f64> = all.filter(|t| (low..=high).contains(t)).collect();
        ticks.dedup_by(|a, b| (*a / *b - 1.0).abs() < 1e-9);
        ticks
    };
    if let Some(ticks) = steps.iter().map(|steps| within(steps)).find(|ticks| ticks.len() >= 3) {
        return ticks;
    }
    let step = (high - low) / 4.0;
    (0..=4).map(|i| low + step * f64::from(i)).collect()
}

fn axes(out: &mut String, cells: &[Cell], scale: &Scale) {
    for (tick, label) in scale.ticks() {
        let y = scale.y(tick);
        let _ = writeln!(out, "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>");
        let (x, y) = (LEFT - 8.0, y + 4.0);
        let _ = writeln!(out, "<text x=\"{x}\" y=\"{y:.1}\" text-anchor=\"end\">{label}</text>");
    }
    let mut contexts = contexts(cells);
    contexts.sort_unstable();
    let mut free_from = f64::NEG_INFINITY;
    for context in contexts {
        let x = scale.x(context);
        let tick = BOTTOM + 5.0;
        let _ = writeln!(out, "<line class=\"axis\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{BOTTOM}\" y2=\"{tick}\"/>");
        if x >= free_from {
            let y = BOTTOM + 21.0;
            let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{context}</text>");
            free_from = x + 9.0 * context.to_string().len() as f64;
        }
    }
    let _ = writeln!(out, "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{BOTTOM}\" y2=\"{BOTTOM}\"/>");
    let (x, y) = ((LEFT + RIGHT) / 2.0, BOTTOM + 44.0);
    let _ = writeln!(out, "<text x=\"{x}\" y=\"{y}\" text-anchor=\"middle\">context (tokens, log scale)</text>");
    let y = TOP - 10.0;
    let _ = writeln!(out, "<text x=\"{LEFT}\" y=\"{y}\">perplexity (log scale, lower is better)</text>");
}

fn line(out: &mut String, points: &[&Cell], index: usize, scale: &Scale) {
    let color = index % palette::LIGHT.len();
    let path: Vec<String> =
        points.iter().map(|cell| format!("{:.1},{:.1}", scale.x(cell.context), scale.y(cell.nll))).collect();
    let dash = dashes(index);
    let _ =
        writeln!(out, "<polyline class=\"line s{color}\" stroke-dasharray=\"{dash}\" points=\"{}\"/>", path.join(" "));
    for cell in points {
        let (x, y) = (scale.x(cell.context), scale.y(cell.nll));
        let name = escape(&cell.mode);
        let (perplexity, mut range) = (figure(cell), String::new());
        if let Some(interval) = cell.interval.filter(|interval| interval.low > 0.0 && interval.high.is_finite()) {
            let _ = writeln!(
                out,
                "<line class=\"bar s{color}\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>",
                scale.y(interval.low.ln()),
                scale.y(interval.high.ln())
            );
            range = format!(" ({} to {})", short(interval.low), short(interval.high));
        }
        let _ = writeln!(
            out,
            "<circle class=\"d{color}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"><title>{name} at {}: \
             {perplexity}{range}</title></circle>",
            cell.context
        );
    }
}

fn dashes(index: usize) -> &'static str {
    palette::DASHES[index / palette::LIGHT.len() % palette::DASHES.len()]
}

/// Names beside the ends of their lines, moved apart where they would overlap.
fn legend(out: &mut String, mut labels: Vec<(f64, usize, &str)>) {
    const GAP: f64 = 19.0;
    labels.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut at = TOP;
    for label in &mut labels {
        label.0 = label.0.max(at);
        at = label.0 + GAP;
    }
    let mut limit = BOTTOM;
    for label in labels.iter_mut().rev() {
        label.0 = label.0.min(limit);
        limit = label.0 - GAP;
    }
    for (y, index, mode) in labels {
        let (color, dash) = (index % palette::LIGHT.len(), dashes(index));
        let (x1, x2, x) = (RIGHT + 12.0, RIGHT + 40.0, RIGHT + 48.0);
        let _ = writeln!(
            out,
            "<line class=\"line s{color}\" stroke-dasharray=\"{dash}\" x1=\"{x1}\" x2=\"{x2}\" \
             y1=\"{y:.1}\" y2=\"{y:.1}\"/>\n<text x=\"{x}\" y=\"{:.1}\">{}</text>",
            y + 4.0,
            escape(mode)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::results::tests::cells;
    use crate::report::markup::assert_well_formed;

    #[test]
    fn a_chart_is_well_formed_and_has_every_point() {
        let modes = ["none", "linear", "ntk", "dynamic", "ntk-by-parts", "yarn", "llama3", "longrope"];
        let rows: Vec<_> = [256, 512, 1024, 4096]
            .iter()
            .flat_map(|&c| modes.iter().enumerate().map(move |(i, &m)| (m, c, 3.0 + i as f32 / 5.0)))
            .collect();
        let chart = svg(&cells(&rows), "a <b> & \"c\"", Some(256));
        assert_well_formed(&chart, &[]);
        assert_eq!(chart.matches("<circle").count(), 32);
        assert_eq!(chart.matches("<polyline").count(), 8);
        assert!(modes.iter().all(|mode| chart.contains(&format!(">{mode}</text>"))));
        assert!(!chart.contains("NaN") && !chart.contains("inf"), "{chart}");
        assert!(chart.contains("trained to 256") && chart.contains("class=\"bar"), "{chart}");
    }

    #[test]
    fn one_point_and_flat_lines_have_a_scale_too() {
        for rows in [vec![("none", 256, 3.0)], vec![("none", 256, 3.0), ("yarn", 512, 3.0)], vec![]] {
            let chart = svg(&cells(&rows), "t", None);
            assert_well_formed(&chart, &[]);
            assert!(!chart.contains("NaN"), "{chart}");
        }
    }

    #[test]
    fn ticks_are_round_and_inside() {
        let scale = Scale { x: (0.0, 1.0), y: (25f64.ln(), 95f64.ln()) };
        let ticks = scale.ticks();
        let inside = |(at, _): &(f64, String)| (24.999..=95.001).contains(&at.exp());
        assert!(ticks.len() >= 3 && ticks.iter().all(inside), "{ticks:?}");
        assert!(ticks.iter().any(|(_, label)| label == "50"), "{ticks:?}");
    }

    #[test]
    fn any_range_has_a_few_ticks() {
        for nats in [0.0, 1e-9, 3.0, 15.0, 650.0, 709.0, 710.0, 1e4, 1e20, 1e38] {
            for more in [0.0, 1e-12, 0.5, 12.0, 14.0, 700.0, 1e30] {
                let mut cells = cells(&[("none", 256, 3.0), ("yarn", 512, 3.0)]);
                for (cell, nll) in cells.iter_mut().zip([nats, nats + more]) {
                    (cell.nll, cell.perplexity) = (nll, f64::exp(nll));
                }
                let count = Scale::new(&cells).ticks().len();
                assert!((2..=13).contains(&count), "{nats} and {more} more: {count}");
                let chart = svg(&cells, "t", None);
                assert!(!chart.contains("NaN") && !chart.contains("inf"), "{chart}");
                assert_eq!(chart.matches("<circle").count(), 2);
            }
        }
    }
}
