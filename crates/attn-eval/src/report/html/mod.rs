//! Reports as one HTML file each, which needs no network and shows the same figures with and without scripts.
//!
//! Every figure is in a table with header cells; scripts add charts above the tables and let them be sorted. A page contains its
//! document as JSON, so that the file has the data too. What comes from users (names of files, models, texts)
//! is escaped before it is written into markup or data. A policy in the page's head forbids it to load anything.

mod across;
mod compare;
mod curves;
mod explain;
mod meanings;
mod provenance;
mod retrieval;

pub use across::models;
pub use compare::comparison;
pub use explain::explanation;
pub use retrieval::retrieval;

#[cfg(test)]
pub(crate) use compare::tests::about as tests_about;

use super::markup::{escape, script_json};
use super::palette;
use serde::Serialize;
use serde_json::{Value, json};
use std::fmt::Write;

const CSS: &str = include_str!("../../../assets/report.css");
const JS: &str = include_str!("../../../assets/report.js");
const UPLOT_CSS: &str = include_str!("../../../assets/uplot.min.css");
const UPLOT_JS: &str = include_str!("../../../assets/uplot.min.js");
const UPLOT_LICENSE: &str = include_str!("../../../assets/uplot.LICENSE");

/// A line chart, as the script draws it.
#[derive(Debug, Clone, Default, Serialize)]
struct Chart {
    id: String,
    #[serde(skip)]
    title: String,
    /// What the chart shows and how to read it.
    #[serde(skip)]
    note: String,
    /// What the views differ in, such as "context": the label of their selection.
    #[serde(skip)]
    view_name: &'static str,
    xlabel: &'static str,
    ylabel: &'static str,
    /// The unit that is written after an x value.
    xunit: &'static str,
    xlog: bool,
    ylog: bool,
    /// Whether the y axis includes zero.
    yzero: bool,
    /// If not 0: the y axis is linear up to about this value, on both sides of zero, and logarithmic beyond, so that small and
    /// large differences are visible in one chart.
    ylinear: f64,
    /// The unit that is written after a y value.
    yunit: &'static str,
    /// Whether the x values themselves are the ticks.
    xticks: bool,
    /// The smallest x on a logarithmic axis, for those that begin at 0.
    xfloor: f64,
    views: Vec<View>,
}

/// One selection of lines over common x values.
#[derive(Debug, Clone, Default, Serialize)]
struct View {
    name: String,
    x: Vec<f64>,
    series: Vec<Series>,
    marks: Vec<Mark>,
}

/// A line. Its colour depends on its name, so it is the same in all views.
#[derive(Debug, Clone, Default, Serialize)]
struct Series {
    name: String,
    values: Vec<Option<f64>>,
    /// Ends of intervals, if there are some.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    low: Vec<Option<f64>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    high: Vec<Option<f64>>,
}

/// A vertical line with a label.
#[derive(Debug, Clone, Serialize)]
struct Mark {
    x: f64,
    label: String,
}

/// A table whose first column has the headers of the rows.
#[derive(Debug, Clone, Default)]
struct Table {
    id: String,
    caption: String,
    heads: Vec<Head>,
    rows: Vec<Vec<Cell>>,
}

/// A column's header.
#[derive(Debug, Clone)]
struct Head {
    text: String,
    numeric: bool,
}

/// A cell of a table.
#[derive(Debug, Clone, Default)]
struct Cell {
    text: String,
    /// Text in small letters below.
    small: String,
    /// The number in full precision, for sorting.
    value: Option<f64>,
    class: &'static str,
    /// The strength of the background of class `heat`, from 0 to 1.
    heat: Option<f64>,
}

impl Cell {
    fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), class: "text", ..Self::default() }
    }

    fn number(value: f64, text: impl Into<String>) -> Self {
        Self { text: text.into(), value: Some(value), ..Self::default() }
    }

    fn count(value: usize) -> Self {
        Self::number(value as f64, value.to_string())
    }

    fn optional(value: Option<f64>, text: impl Fn(f64) -> String) -> Self {
        value.map_or_else(Self::nothing, |v| Self::number(v, text(v)))
    }

    /// A cell without a value, in a column of numbers.
    fn nothing() -> Self {
        Self { text: "–".into(), ..Self::default() }
    }

    fn small(mut self, small: impl Into<String>) -> Self {
        self.small = small.into();
        self
    }

    fn class(mut self, class: &'static str) -> Self {
        self.class = class;
        self
    }

    fn heat(mut self, heat: f64) -> Self {
        self.heat = Some(heat);
        self.class("heat")
    }
}

impl Head {
    fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), numeric: false }
    }

    fn number(text: impl Into<String>) -> Self {
        Self { text: text.into(), numeric: true }
    }
}

/// A page that is being written.
struct Page {
    title: String,
    body: String,
    charts: Vec<Chart>,
    /// The last heading; a chart with the same title doesn't repeat it.
    heading: String,
}

impl Page {
    fn new(title: &str) -> Self {
        let body = format!("<h1>{}</h1>\n", escape(title));
        Self { title: title.to_string(), body, charts: vec![], heading: String::new() }
    }

    fn heading(&mut self, text: &str) {
        self.heading = text.to_string();
        let _ = writeln!(self.body, "<h2>{}</h2>", escape(text));
    }

    fn subheading(&mut self, text: &str) {
        let _ = writeln!(self.body, "<h3>{}</h3>", escape(text));
    }

    fn text(&mut self, text: &str) {
        let _ = writeln!(self.body, "<p>{}</p>", escape(text));
    }

    fn soft(&mut self, text: &str) {
        let _ = writeln!(self.body, "<p class=\"soft\">{}</p>", escape(text));
    }

    /// The verdict: a sentence, and lines with details.
    fn verdict(&mut self, sentence: &str, lines: &[String]) {
        let _ = writeln!(self.body, "<div class=\"verdict\">\n<p id=\"headline\">{}</p>", escape(sentence));
        if !lines.is_empty() {
            let items: Vec<String> = lines.iter().map(|line| format!("<li>{}</li>", escape(line))).collect();
            let _ = writeln!(self.body, "<ul id=\"verdict\">\n{}\n</ul>", items.join("\n"));
        }
        self.body.push_str("</div>\n");
    }

    /// Everything up to the matching [`end_details`](Self::end_details) is collapsed until a reader opens it.
    fn begin_details(&mut self, summary: &str) {
        let _ = writeln!(self.body, "<details>\n<summary>{}</summary>", escape(summary));
    }

    fn end_details(&mut self) {
        self.body.push_str("</details>\n");
    }

    /// Text to be copied.
    fn code(&mut self, id: &str, label: &str, text: &str) {
        let _ = writeln!(
            self.body,
            "<pre id=\"{id}\" tabindex=\"0\" aria-label=\"{label}\">{}</pre>\n<div class=\"actions\">\
             <button type=\"button\" data-copy=\"{id}\">Copy the {label}</button></div>",
            text.lines().map(unbroken_options).collect::<Vec<_>>().join("\n")
        );
    }

    fn save_button(&mut self, file: &str) {
        let _ = writeln!(
            self.body,
            "<div class=\"actions\"><button type=\"button\" data-save=\"{file}\">Save all figures as JSON</button></div>"
        );
    }

    fn facts(&mut self, facts: &[(&str, String)]) {
        self.body.push_str("<dl>\n");
        for (name, value) in facts.iter().filter(|(_, value)| !value.is_empty()) {
            let _ = writeln!(self.body, "<dt>{}</dt><dd>{}</dd>", escape(name), escape(value));
        }
        self.body.push_str("</dl>\n");
    }

    fn table(&mut self, table: &Table) {
        let _ = writeln!(
            self.body,
            "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{0}\">\n\
             <table class=\"sortable\" id=\"{1}\">\n<caption><span>{0}</span></caption>\n<thead><tr>",
            escape(&table.caption),
            escape(&table.id)
        );
        for Head { text, numeric } in &table.heads {
            let (sort, class) = if *numeric { ("number", "") } else { ("text", " class=\"text\"") };
            let _ = write!(self.body, "<th scope=\"col\" data-sort=\"{sort}\"{class}>{}</th>", escape(text));
        }
        self.body.push_str("</tr></thead>\n<tbody>\n");
        for row in &table.rows {
            self.body.push_str("<tr>");
            row.iter().enumerate().for_each(|(column, cell)| self.cell(cell, column == 0));
            self.body.push_str("</tr>\n");
        }
        self.body.push_str("</tbody>\n</table>\n</div>\n");
    }

    fn cell(&mut self, cell: &Cell, heads_row: bool) {
        let (tag, scope) = if heads_row { ("th", " scope=\"row\"") } else { ("td", "") };
        let class = if cell.class.is_empty() { String::new() } else { format!(" class=\"{}\"", cell.class) };
        let value = cell.value.map_or(String::new(), |value| format!(" data-value=\"{value}\""));
        let heat = cell.heat.map_or(String::new(), |heat| format!(" style=\"--v: {heat:.3}\""));
        let small =
            if cell.small.is_empty() { String::new() } else { format!("<small>{}</small>", escape(&cell.small)) };
        let _ = write!(self.body, "<{tag}{scope}{class}{value}{heat}>{}{small}</{tag}>", escape(&cell.text));
    }

    /// A chart, and its figures as tables below it.
    fn chart(&mut self, chart: Chart) {
        let (id, title) = (chart.id.clone(), escape(&chart.title));
        let named = if chart.title == self.heading { String::new() } else { format!("<strong>{title}.</strong> ") };
        let _ = writeln!(
            self.body,
            "<figure data-chart=\"{id}\">\n<figcaption id=\"{id}-note\">{named}{}</figcaption>",
            escape(&chart.note)
        );
        if chart.views.len() > 1 {
            let options = chart.views.iter().map(|view| format!("<option>{}</option>", escape(&view.name)));
            let _ = writeln!(
                self.body,
                "<label>{} <select>{}</select></label>",
                escape(chart.view_name),
                options.collect::<String>()
            );
        }
        let _ = writeln!(
            self.body,
            "<fieldset class=\"keys\"><legend class=\"hidden\">Lines shown: {title}</legend></fieldset>\n\
             <div class=\"chart\" tabindex=\"0\" role=\"application\" aria-roledescription=\"chart\" \
             aria-label=\"{title}: arrow keys read the values\" aria-describedby=\"{id}-note\"></div>\n\
             <p class=\"hidden\" aria-live=\"polite\"></p>\n<noscript><p class=\"noscript\">The chart needs scripts; its \
             figures are in the table below.</p></noscript>\n</figure>"
        );
        self.begin_details(&format!("Figures of this chart ({})", chart.title));
        for (index, view) in chart.views.iter().enumerate() {
            let many = chart.views.len() > 1;
            let caption = if many { format!("{}: {}", chart.title, view.name) } else { chart.title.clone() };
            self.table(&figures(&format!("{id}-{index}"), caption, chart.xlabel, view));
        }
        self.end_details();
        self.charts.push(chart);
    }

    /// The whole file, which contains `document` as data.
    fn finish(self, document: &Value) -> String {
        let views = self.charts.iter().flat_map(|chart| &chart.views);
        let order = palette::order(views.flat_map(|view| &view.series).map(|series| series.name.as_str()));
        let data = script_json(&json!({ "charts": self.charts, "order": order, "document": document }).to_string());
        let css = CSS
            .replace("--palette: light;", &palette::variables(palette::LIGHT))
            .replace("--palette: dark;", &palette::variables(palette::DARK));
        let license = UPLOT_LICENSE.replace("*/", "* /");
        let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; \
                      base-uri 'none'; form-action 'none'";
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n\
             <meta name=\"generator\" content=\"attn {version}\">\n<title>{title}</title>\n\
             <style>{UPLOT_CSS}\n{css}</style>\n</head>\n<body>\n<main>\n{body}</main>\n\
             <script type=\"application/json\" id=\"data\">{data}</script>\n\
             <script>\n/*\n{license}*/\n{UPLOT_JS}\n</script>\n<script>\n{JS}</script>\n</body>\n</html>\n",
            version = env!("CARGO_PKG_VERSION"),
            title = escape(&self.title),
            body = self.body,
        )
    }
}

/// A line of a command that a narrow page breaks between options, and never after the hyphens of an option.
fn unbroken_options(line: &str) -> String {
    let word = |word: &str| match word.starts_with('-') {
        true => format!("<span class=\"option\">{}</span>", escape(word)),
        false => escape(word),
    };
    line.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

/// A view as a table with a row per x value and a column per line.
fn figures(id: &str, caption: String, xlabel: &str, view: &View) -> Table {
    let lines = view.series.iter().map(|series| Head::number(&series.name));
    let row = |(i, x): (usize, &f64)| {
        let values = view.series.iter().map(|series| {
            let ends = series.low.get(i).copied().flatten().zip(series.high.get(i).copied().flatten());
            let interval = ends.map_or(String::new(), |(low, high)| format!("{} to {}", digits(low), digits(high)));
            Cell::optional(series.values[i], digits).small(interval)
        });
        std::iter::once(Cell::number(*x, digits(*x))).chain(values).collect()
    };
    let rows = view.x.iter().enumerate().map(row).collect();
    Table { id: id.into(), caption, heads: std::iter::once(Head::number(xlabel)).chain(lines).collect(), rows }
}

/// About four digits, as on the axes of the charts.
fn digits(x: f64) -> String {
    match x.abs() {
        a if a != 0.0 && !(1e-3..1e6).contains(&a) => format!("{x:.2e}"),
        a if (x - x.round()).abs() <= 1e-9 * a => format!("{x:.0}"),
        a if a >= 1000.0 => format!("{x:.0}"),
        a if a >= 100.0 => format!("{x:.1}"),
        a if a >= 1.0 => format!("{x:.2}"),
        _ => format!("{x:.4}"),
    }
}

/// Elements without an end tag, for the check in tests.
#[cfg(test)]
const VOID: [&str; 3] = ["meta", "!doctype", "br"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::markup::assert_well_formed;

    const NASTY: &str = "</script><img src=x onerror=alert(1)>\"'&<!--";

    fn page() -> String {
        let mut page = Page::new(NASTY);
        page.heading(NASTY);
        page.verdict(NASTY, &[NASTY.to_string()]);
        page.code("command", "command", NASTY);
        page.facts(&[(NASTY, NASTY.to_string())]);
        let cell = Cell::text(NASTY).small(NASTY);
        let table = Table {
            id: "t".into(),
            caption: NASTY.into(),
            heads: vec![Head::text(NASTY), Head::number("n")],
            rows: vec![vec![cell, Cell::number(0.125, "0.13").heat(0.5)]],
        };
        page.table(&table);
        let series = Series { name: NASTY.into(), values: vec![Some(1.5), None], ..Series::default() };
        let mark = Mark { x: 1.0, label: NASTY.into() };
        let view = View { name: NASTY.into(), x: vec![1.0, 2.0], series: vec![series], marks: vec![mark] };
        let views = vec![view.clone(), view];
        page.chart(Chart { id: "c".into(), title: NASTY.into(), note: NASTY.into(), views, ..Chart::default() });
        page.finish(&json!({ "name": NASTY, NASTY: [1.5] }))
    }

    /// The markup of the body without the scripts, to which other rules apply.
    fn markup(page: &str) -> String {
        let (start, end) = (page.find("<main>").unwrap(), page.find("<script type=").unwrap());
        page[start..end].to_string()
    }

    #[test]
    fn nothing_from_users_becomes_markup() {
        let page = page();
        assert_well_formed(&markup(&page), &VOID);
        assert!(!page.contains("<img") && !page.contains("<!--"), "escaped everywhere");
        assert_eq!(page.matches("</script>").count(), 3, "data, library, program");
        assert_eq!(page.matches("<script").count(), 3);
        let data = page.split("id=\"data\">").nth(1).unwrap().split("</script>").next().unwrap();
        let data: Value = serde_json::from_str(data).unwrap();
        assert_eq!(data["document"]["name"], NASTY, "and is the same in the data");
        assert_eq!(data["charts"][0]["views"][0]["series"][0]["values"], json!([1.5, null]));
    }

    #[test]
    fn a_page_loads_nothing_and_carries_the_library_with_its_licence() {
        let page = page();
        assert!(page.contains("default-src 'none'") && page.contains("The MIT License") && page.contains("uPlot"));
        for loaded in ["<link", "src=\"", "@import", "url("] {
            assert!(!page.contains(loaded), "{loaded}");
        }
        assert!(page.len() < 120_000, "{} bytes", page.len());
        for asset in [CSS, JS, UPLOT_CSS, UPLOT_JS, UPLOT_LICENSE] {
            assert!(!asset.contains("</script") && !asset.contains("</style") && !asset.contains("<!--"));
        }
    }

    #[test]
    fn tables_head_columns_and_rows_and_keep_full_precision() {
        let page = page();
        assert!(page.contains("<th scope=\"col\" data-sort=\"number\">n</th>"));
        assert!(page.contains("<td class=\"heat\" data-value=\"0.125\" style=\"--v: 0.500\">0.13</td>"));
        assert!(page.contains("<th scope=\"row\""));
        assert_eq!(
            [0.0, 12.0, 0.1234567, 24.678, 123.45, 4096.0, 2.5e-7].map(digits)[2..5],
            ["0.1235", "24.68", "123.5"]
        );
    }
}
