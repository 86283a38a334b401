//! The page of `attn compare --html`.

use super::curves::{above_best, by_context, by_position};
use super::meanings::meanings;
use super::provenance::provenance;
use super::retrieval;
use super::{Cell, Chart, Head, Page, Table, digits};
use crate::compare::{Pair, Results, Usable, best, contexts, find, modes};
use crate::error::Result;
use crate::perplexity::{self, BUCKETS, Metric};
use crate::report::metrics;
use crate::report::{
    About, Document, ENCODINGS, RetrievalMetric, Verdict, factor, gap, search_sentence, short, verdict,
};
use crate::search::Search;
use crate::stats::{Difference, Interval};

/// The comparison as one HTML file, with the search from which it comes, if there was one.
///
/// # Errors
/// A number that JSON can't hold.
pub fn comparison(about: &About, results: &Results, search: Option<&Search>) -> Result<String> {
    let mut page = Page::new(&format!("Position scalings of {}", about.checkpoint.name));
    answer(&mut page, about, results, search);
    figures(&mut page, about, results);
    if let Some(found) = &results.retrieval {
        retrieval::found(&mut page, about, found, RetrievalMetric::Found, "found-by-context");
    }
    differences(&mut page, results);
    page.heading("Loss along the window");
    page.chart(by_position(&results.cells, about.trained_context()));
    if results.by_text.len() > 1 {
        text_by_text(&mut page, about, results);
    }
    if !results.encodings.is_empty() {
        encodings(&mut page, results);
    }
    meanings(&mut page, modes(&results.cells));
    page.heading("How this was measured");
    provenance(&mut page, about);
    page.begin_details("All cells");
    page.table(&all(&results.cells));
    page.end_details();
    page.save_button("compare.json");
    Ok(page.finish(&serde_json::to_value(Document::new(about, results).with_search(search))?))
}

/// What was compared, and the verdict.
fn answer(page: &mut Page, about: &About, results: &Results, search: Option<&Search>) {
    let trained = about.trained_context();
    let texts: Vec<&str> = about.texts.iter().map(|text| text.name.as_str()).collect();
    page.soft(&format!(
        "{}, measured on {} ({} tokens). Lower perplexity means the model predicts the text better.",
        trained.map_or("Trained context unknown".to_string(), |n| format!("Trained to {n} tokens")),
        texts.join(", "),
        about.texts.iter().map(|text| text.used).sum::<usize>()
    ));
    let Verdict { headline, lines, lengths } = verdict(results, about.one_factor(), trained);
    match search {
        Some(search) => found(page, search),
        None => page.verdict(&headline, &[lines, lengths].concat()),
    }
    applied(page, results);
    let alone = " Perplexity does not show whether a model still finds things far back: --tasks ppl,retrieval measures that too.";
    page.soft(&format!(
        "Intervals hold for text like this one: they come from resampling its windows.{}",
        if results.retrieval.is_some() { "" } else { alone }
    ));
}

fn figures(page: &mut Page, about: &About, results: &Results) {
    page.heading("Perplexity by context");
    page.chart(by_context(&results.cells, about.trained_context()));
    retrieval::left_out(page, &about.settings.skipped);
    let found = results.recommended(about.one_factor(), about.trained_context());
    let usable = found.map_or(vec![], |found| found.usable);
    page.table(&with_usable(whole_windows("perplexity", "Perplexity, with its 95% interval", &results.cells), &usable));
    if !usable.is_empty() {
        let by_retrieval = if usable.iter().any(|usable| usable.retrieval.is_some()) {
            "By retrieval: the longest length at which as much is found, in the tasks that the model can do."
        } else {
            "It says nothing about retrieval."
        };
        page.soft(&format!(
            "Usable to: the longest length measured at which the last quarter of the windows is predicted not significantly \
             worse than by the model as it is at its trained length. {by_retrieval}"
        ));
    }
    page.table(&perplexities(
        "last-quarter",
        "Perplexity of the last quarter of each window, where positions are far",
        &results.cells,
        &|cell| (cell.last_quarter_perplexity, cell.last_quarter_interval),
        short,
    ));
    type Kind = (&'static str, &'static str, fn(&perplexity::Cell) -> Option<Metric>, fn(f64) -> String);
    let kinds: [Kind; 2] =
        [("longppl", metrics::LONGPPL, |cell| cell.longppl, short), ("kl", metrics::KL, |cell| cell.kl, metrics::nats)];
    for (id, caption, of, shown) in kinds {
        if results.cells.iter().any(|cell| of(cell).is_some()) {
            let measured = |cell: &perplexity::Cell| of(cell).map_or((None, None), |m| (m.value, m.interval));
            page.table(&perplexities(id, caption, &results.cells, &measured, shown));
        }
    }
}

fn whole_windows(id: &str, caption: &str, cells: &[perplexity::Cell]) -> Table {
    perplexities(id, caption, cells, &|cell| (Some(cell.perplexity), cell.interval), short)
}

fn differences(page: &mut Page, results: &Results) {
    page.heading("Which differences are significant");
    page.text(
        "How much higher each mode's perplexity is than that of the best mode at the same context, on the same tokens. A \
         difference is significant if its 95% interval does not contain zero.",
    );
    if let Some(chart) = above_best(&results.cells) {
        page.chart(chart);
    }
    page.table(&against_best(&results.cells));
    page.begin_details("All pairs of modes");
    page.table(&pairs(&results.differences));
    page.end_details();
}

fn text_by_text(page: &mut Page, about: &About, results: &Results) {
    page.heading("Each text");
    page.text("The best mode may differ from text to text; the figures above give all tokens the same weight.");
    for (index, part) in results.by_text.iter().enumerate() {
        let name = about.texts.get(part.text).map_or("", |text| text.name.as_str());
        page.subheading(name);
        let alone = Results { cells: part.cells.clone(), differences: part.differences.clone(), ..Results::default() };
        page.text(&verdict(&alone, about.one_factor(), about.trained_context()).headline);
        page.table(&whole_windows(&format!("text-{index}"), &format!("Perplexity on {name}"), &part.cells));
    }
}

fn encodings(page: &mut Page, results: &Results) {
    page.heading("Other encodings beyond their trained length");
    page.text(ENCODINGS);
    page.chart(Chart {
        id: "encodings-by-context".into(),
        title: "Perplexity by context and encoding".into(),
        ..by_context(&results.encodings, None)
    });
    page.table(&whole_windows("encodings", "Perplexity by encoding, with its 95% interval", &results.encodings));
}

/// What a search found, and everything it tried.
fn found(page: &mut Page, search: &Search) {
    let (chosen, confirmed) = (search.choosing_windows.len(), search.confirming_windows.len());
    let tried = format!(
        "{} scalings were tried on {chosen} windows of {} tokens; the figures on this page are of {confirmed} other windows.",
        search.candidates.len(),
        search.context
    );
    page.verdict(&search_sentence(search), &[tried]);
    page.heading("To use it");
    page.code("found", "options", &search.winner.flags.join(" "));
    let rows = search.candidates.iter().map(|candidate| {
        let theta = candidate.theta.map(|theta| format!("base {theta:.6}"));
        let params = candidate.params.iter().map(|(key, value)| format!("{key}={value}"));
        let what: Vec<String> = std::iter::once(candidate.mode.clone()).chain(theta).chain(params).collect();
        vec![
            Cell::text(what.join(", ")),
            Cell::optional(candidate.factor, factor),
            Cell::count(candidate.windows),
            Cell::number(candidate.nll.exp(), short(candidate.nll.exp())),
        ]
    });
    page.begin_details("Everything that was tried");
    page.table(&Table {
        id: "candidates".into(),
        caption: "Perplexity of every scaling tried, on the windows used for the choice".into(),
        heads: vec![Head::text("scaling"), Head::number("factor"), Head::number("windows"), Head::number("perplexity")],
        rows: rows.collect(),
    });
    page.end_details();
}

/// The options for the recommended setting, program by program.
fn applied(page: &mut Page, results: &Results) {
    let lines = results.recommendation.iter().flat_map(|found| &found.applied);
    let text: Vec<String> = lines.map(|to| format!("# {}: {}\n{}", to.program, to.mode, to.options)).collect();
    if !text.is_empty() {
        page.heading("To use it");
        page.code("options", "options", &text.join("\n\n"));
    }
}

/// The table with columns after the modes for their usable lengths.
fn with_usable(mut table: Table, usable: &[Usable]) -> Table {
    let by_retrieval = usable.iter().any(|usable| usable.retrieval.is_some());
    /// The usable length of a mode, and the longest length measured.
    type Reach = fn(&Usable) -> Option<(Option<usize>, usize)>;
    let mut columns: Vec<(&str, Reach)> = vec![];
    if by_retrieval {
        let of = |usable: &Usable| usable.retrieval.as_ref().map(|found| (found.length, found.measured));
        columns.push(("usable to, by retrieval", of));
    }
    if !usable.is_empty() {
        let head = if by_retrieval { "usable to, by perplexity" } else { "usable to" };
        columns.push((head, |usable| Some((usable.perplexity, usable.measured))));
    }
    for (head, of) in columns {
        table.heads.insert(1, Head::number(head));
        for row in &mut table.rows {
            let found = usable.iter().find(|usable| row.first().is_some_and(|cell| cell.text == usable.mode));
            let length = match found.and_then(of) {
                Some((Some(length), measured)) => {
                    let more = if length == measured { "the longest measured" } else { "" };
                    Cell::count(length).small(more)
                }
                _ => Cell::nothing(),
            };
            row.insert(1, length);
        }
    }
    table
}

type Measured<'a> = &'a dyn Fn(&perplexity::Cell) -> (Option<f64>, Option<Interval>);

/// A table with a row per mode and a column per context.
fn perplexities(
    id: &str,
    caption: &str,
    cells: &[perplexity::Cell],
    measured: Measured,
    shown: fn(f64) -> String,
) -> Table {
    let at = contexts(cells);
    let lowest = |context: usize| {
        let here = cells.iter().filter(|cell| cell.context == context).filter_map(|cell| measured(cell).0);
        here.fold(f64::INFINITY, f64::min)
    };
    let row = |mode: &str| {
        let figures = at.iter().map(|&context| {
            let Some(cell) = find(cells, context, mode) else { return Cell::nothing() };
            let (value, interval) = measured(cell);
            let figure = Cell::optional(value, shown);
            let figure = match (&cell.same_as, interval) {
                (Some(same), _) => figure.small(format!("same as {same}")),
                (None, Some(Interval { low, high })) => figure.small(format!("{} to {}", shown(low), shown(high))),
                (None, None) => figure,
            };
            if value.is_some_and(|value| value <= lowest(context)) { figure.class("best") } else { figure }
        });
        std::iter::once(Cell::text(mode)).chain(figures).collect()
    };
    let largest = |context: usize| {
        cells.iter().filter(|cell| cell.context == context).map(|cell| cell.factor).fold(1.0, f64::max)
    };
    // A factor that is the same at all contexts is shown once, in the caption.
    let one =
        at.first().map(|&context| largest(context)).filter(|one| at.iter().all(|&context| largest(context) == *one));
    let heads = at.iter().map(|&context| {
        let scaled = match largest(context) {
            largest if largest > 1.0 && one.is_none() => format!(" (factor {})", factor(largest)),
            _ => String::new(),
        };
        Head::number(format!("{context} tokens{scaled}"))
    });
    let same = one.filter(|one| *one > 1.0).map_or(String::new(), |one| format!("; factor {}", factor(one)));
    Table {
        id: id.to_string(),
        caption: format!("{caption}{same}"),
        heads: std::iter::once(Head::text("mode")).chain(heads).collect(),
        rows: modes(cells).into_iter().map(row).collect(),
    }
}

fn judged(low: Option<f64>, high: Option<f64>) -> &'static str {
    match low.zip(high) {
        Some((low, high)) if low > 0.0 || high < 0.0 => "significant",
        Some(_) => "not significant",
        None => "too few windows",
    }
}

fn against_best(cells: &[perplexity::Cell]) -> Table {
    let at = contexts(cells);
    let source = |cell: &perplexity::Cell| cell.same_as.clone().unwrap_or_else(|| cell.mode.clone());
    let same_as_best =
        |cell: &perplexity::Cell| best(cells, cell.context).is_some_and(|winner| source(winner) == source(cell));
    let row = |mode: &str| {
        let figures = at.iter().map(|&context| match find(cells, context, mode) {
            Some(cell) if cell.versus_best.is_some() && same_as_best(cell) => Cell::number(0.0, "the same as the best"),
            Some(cell) => match &cell.versus_best {
                Some(Difference { nll, low, high, .. }) => {
                    let range = low.zip(*high).map(|(a, b)| format!("{} to {}, ", gap(a), gap(b)));
                    let small = format!("{}{}", range.unwrap_or_default(), judged(*low, *high));
                    Cell::number(*nll, gap(*nll)).small(small)
                }
                None if best(cells, context).is_some_and(|winner| winner.mode == mode) => {
                    Cell::number(0.0, "best").class("best")
                }
                None => Cell::nothing(),
            },
            None => Cell::nothing(),
        });
        std::iter::once(Cell::text(mode)).chain(figures).collect()
    };
    Table {
        id: "against-best".into(),
        caption: "Perplexity above that of the best mode, with its 95% interval".into(),
        heads: std::iter::once(Head::text("mode"))
            .chain(at.iter().map(|context| Head::number(format!("{context} tokens"))))
            .collect(),
        rows: modes(cells).into_iter().map(row).collect(),
    }
}

fn pairs(differences: &[Pair]) -> Table {
    let ends = |interval: Option<Interval>| (interval.map(|i| i.low), interval.map(|i| i.high));
    let range = |interval: Option<Interval>| {
        interval.map_or(String::new(), |Interval { low, high }| format!("{} to {}", gap(low), gap(high)))
    };
    let rows = differences.iter().map(|pair| {
        let (low, high) = ends(pair.interval);
        vec![
            Cell::text(format!("{} compared with {}", pair.mode, pair.versus)),
            Cell::count(pair.context),
            Cell::number(pair.nll, gap(pair.nll)).small(range(pair.interval)),
            Cell::text(judged(low, high)),
            Cell::optional(pair.last_quarter_nll, gap).small(range(pair.last_quarter_interval)),
        ]
    });
    Table {
        id: "pairs".into(),
        caption: "How much higher the perplexity of the first mode is than that of the second".into(),
        heads: vec![
            Head::text("modes"),
            Head::number("context"),
            Head::number("difference"),
            Head::text("verdict"),
            Head::number("in the last quarter"),
        ],
        rows: rows.collect(),
    }
}

fn all(cells: &[perplexity::Cell]) -> Table {
    let mut heads = vec![Head::text("mode")];
    let numbers = ["context", "factor", "perplexity", "± by window", "last quarter", "tokens", "windows", "seconds"];
    heads.extend(numbers.map(Head::number));
    heads.extend((1..=BUCKETS).map(|eighth| Head::number(format!("nats, eighth {eighth}"))));
    let rows = cells.iter().map(|cell| {
        let mut row = vec![
            Cell::text(&cell.mode),
            Cell::count(cell.context),
            Cell::number(cell.factor, factor(cell.factor)),
            Cell::number(cell.perplexity, digits(cell.perplexity)),
            Cell::optional(cell.stderr_windows, digits),
            Cell::optional(cell.last_quarter_perplexity, digits),
            Cell::count(cell.tokens),
            Cell::count(cell.windows),
            Cell::number(cell.seconds, format!("{:.1}", cell.seconds)),
        ];
        row.extend(cell.position_nll.iter().map(|nll| Cell::optional(*nll, digits)));
        row
    });
    Table { id: "cells".into(), caption: "All cells".into(), heads, rows: rows.collect() }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::compare::TextResults;
    use crate::compare::results::tests::cells;
    use crate::report::markup::assert_well_formed;
    use crate::report::{CheckpointInfo, Machine, RopeSettings, Settings, TextInfo, Versions, read_document};

    const NASTY: &str = "<i>\"a\"&'b'</i></script>";

    pub(crate) fn about() -> About {
        let text = TextInfo {
            name: NASTY.into(),
            sha256: "0123".into(),
            bytes: 10,
            documents: 1,
            tokens: Some(4096),
            used: 4096,
            used_bytes: None,
        };
        About {
            command: ["attn", "compare", "--text", NASTY].map(String::from).to_vec(),
            started: 951_827_696,
            versions: Versions { attn: "0.1.0".into(), candle: "0.11.1".into() },
            checkpoint: CheckpointInfo {
                name: NASTY.into(),
                revision: None,
                sha256: "4567".into(),
                files: vec![],
                family: "llama".into(),
                parameters: 1000,
                trained_context: Some(256),
                rope_type: "none".into(),
            },
            models: vec![],
            texts: vec![text.clone(), text],
            settings: Settings {
                modes: vec![],
                contexts: vec![],
                factor: None,
                stride: None,
                bos: None,
                bos_choice: None,
                length: None,
                seed: 0,
                rope: RopeSettings::default(),
                dtype: "f32".into(),
                device: "cpu".into(),
                keep_quantized: false,
                cache_type_k: None,
                cache_type_v: None,
                metrics: None,
                usable: false,
                skipped: vec![],
                retrieval: None,
            },
            machines: vec![Machine { os: "linux".into(), arch: "x86_64".into(), cpu: None, cores: 2, threads: 2 }],
        }
    }

    fn results() -> Results {
        let rows = [("none", 256, 3.0), ("yarn", 256, 3.0), ("none", 512, 4.0), ("yarn", 512, 3.2)];
        let mut cells = cells(&rows);
        cells[1].same_as = Some("none".into());
        let part = |text| TextResults { text, cells: cells.clone(), differences: vec![] };
        let by_text = vec![part(0), part(1)];
        let differences = vec![Pair {
            context: 512,
            mode: "none".into(),
            versus: "yarn".into(),
            nll: 0.8,
            interval: Some(Interval { low: 0.7, high: 0.9 }),
            last_quarter_nll: None,
            last_quarter_interval: None,
            longppl: None,
            kl: None,
        }];
        Results { cells, differences, by_text, ..Results::default() }
    }

    #[test]
    fn a_page_shows_every_figure_and_escapes_every_name() {
        let (about, results) = (about(), results());
        let page = comparison(&about, &results, None).unwrap();
        let (start, end) = (page.find("<main>").unwrap(), page.find("<script type=").unwrap());
        let body = &page[start..end];
        assert_well_formed(body, &super::super::VOID);
        assert!(!page.contains("<i>") && body.matches("&lt;i&gt;").count() >= 6);
        for cell in &results.cells {
            assert!(body.contains(&format!("data-value=\"{}\"", cell.perplexity)), "{}", cell.perplexity);
        }
        for said in ["use yarn", "same as none", "factor 2", "2000-02-29 12:34 UTC"] {
            assert!(body.contains(said), "{said}");
        }
        assert!(body.contains("+123%") && body.contains(">significant<"), "the difference of 0.8 nats");
    }

    /// A comparison with retrieval beside it, in JSON and in the page.
    #[test]
    fn retrieval_is_shown_beside_perplexity_and_comes_back_from_json() {
        let mut about = about();
        about.settings.factor = Some(4.0);
        about.settings.rope.original_context = Some(4096);
        let rows = [("none", 256, 3.0), ("ntk-by-parts", 256, 3.0), ("none", 512, 4.0), ("ntk-by-parts", 512, 3.2)];
        let mut results = Results::of(cells(&rows), 0);
        results.retrieval = Some(crate::report::heat::tests::retrieval());
        results.recommend(&about);
        let page = comparison(&about, &results, None).unwrap();
        let (start, end) = (page.find("<main>").unwrap(), page.find("<script type=").unwrap());
        assert_well_formed(&page[start..end], &super::super::VOID);
        assert!(page.contains("id=\"found-0\"") && page.contains("data-chart=\"found-by-context\""));
        let json = serde_json::to_string(&Document::new(&about, &results)).unwrap();
        let (_, again) = read_document(&json).unwrap();
        assert_eq!(again.retrieval.unwrap().cells.len(), 30);
        for (was, wrong) in [("\"found\":4", "\"found\":5"), ("\"task\":\"passkey\"", "\"task\":\"other\"")] {
            let edited = json.replacen(was, wrong, 1);
            let error = read_document(&edited).unwrap_err().to_string();
            assert!(edited != json && error.contains("retrieval"), "{error}");
        }
    }

    #[test]
    fn what_json_holds_can_be_shown_again() {
        let (about, results) = (about(), results());
        let json = serde_json::to_string(&Document::new(&about, &results)).unwrap();
        let (about_again, results_again) = read_document(&json).unwrap();
        assert_eq!(about_again, about);
        assert_eq!(results_again.by_text.len(), results.by_text.len());
        for (again, was) in results_again.cells.iter().zip(&results.cells) {
            assert_eq!((&again.mode, again.context, &again.same_as), (&was.mode, was.context, &was.same_as));
            // Reading JSON may change the last digit.
            assert!((again.perplexity - was.perplexity).abs() <= 1e-15 * was.perplexity);
        }
        let tables = |page: &str| page.matches("<table").count();
        let (again, was) =
            (comparison(&about_again, &results_again, None).unwrap(), comparison(&about, &results, None).unwrap());
        assert_eq!(tables(&again), tables(&was));
        let other = json.replace("attn-compare/1", "attn-compare/9");
        assert!(read_document(&other).unwrap_err().to_string().contains("attn-compare/9"));
        assert!(read_document("{}").unwrap_err().to_string().contains("none"));
        let elsewhere = json.replacen("\"text\":1", "\"text\":2", 1);
        assert!(elsewhere != json && read_document(&elsewhere).unwrap_err().to_string().contains("of text 2"));
    }
}
