//! The page of `attn passkey --html`.

use super::compare::meanings;
use super::provenance::provenance;
use super::{Cell, Chart, Head, Page, Series, Table, View};
use crate::passkey::{Passkey, Share};
use crate::report::retrieval::percent;
use crate::report::{About, PasskeyDocument, retrieval_headline, retrieval_verdict};
use anyhow::Result;

/// The retrieval task as one HTML file.
///
/// # Errors
/// A number that JSON can't hold.
pub fn retrieval(about: &About, passkey: &Passkey) -> Result<String> {
    let mut page = Page::new(&format!("What {} finds far back", about.checkpoint.name));
    let trained = about.trained_context();
    page.soft(&format!(
        "{}. A number of {} digits is hidden in {}, and the model is asked for it at the end; {} trials per depth and \
         context, the same for every mode.",
        trained.map_or("Trained context unknown".to_string(), |n| format!("Trained to {n} tokens")),
        passkey.digits,
        if about.texts.is_empty() { "a few sentences over and over" } else { passkey.haystack.as_str() },
        passkey.trials
    ));
    page.verdict(&retrieval_headline(passkey, trained), &retrieval_verdict(passkey));
    page.soft(
        "An answer counts if it is exactly the number. Intervals are Wilson's, for the trials at all depths together.",
    );

    page.heading("Found, by context");
    page.chart(by_context(passkey));
    page.table(&shares(passkey));

    page.heading("Where in the context");
    page.text("Depth 0% is the beginning of the context, 100% its end, just before the question.");
    for (index, mode) in passkey.modes.iter().enumerate() {
        page.table(&map(passkey, index, mode));
    }
    meanings(&mut page, passkey.modes.iter().map(String::as_str));
    page.heading("How this was measured");
    provenance(&mut page, about);
    page.save_button("passkey.json");
    Ok(page.finish(&serde_json::to_value(PasskeyDocument::new(about, passkey))?))
}

fn by_context(passkey: &Passkey) -> Chart {
    let mut contexts = passkey.contexts.clone();
    contexts.sort_unstable();
    let series = passkey.modes.iter().map(|mode| {
        let found: Vec<Option<Share>> = contexts.iter().map(|&context| passkey.share(mode, context, None)).collect();
        let percents = |of: fn(Share) -> f64| found.iter().map(|share| share.map(|s| of(s) * 100.0)).collect();
        Series {
            name: mode.clone(),
            values: percents(|s| s.value()),
            low: percents(|s| s.interval().low),
            high: percents(|s| s.interval().high),
        }
    });
    let x = contexts.iter().map(|&context| context as f64).collect();
    Chart {
        id: "by-context".into(),
        title: "Found, by context".into(),
        note:
            "Share of the trials at all depths that were answered with the very number; higher is better. Upright bars \
               are 95% intervals."
                .into(),
        xlabel: "context (tokens)",
        ylabel: "% found",
        xunit: "tokens",
        xlog: true,
        yzero: true,
        xticks: true,
        views: vec![View { name: "all depths".into(), x, series: series.collect(), marks: vec![] }],
        ..Chart::default()
    }
}

/// A share as a percentage, the deeper the colour the more was found.
fn share_cell(share: Option<Share>) -> Cell {
    let Some(share) = share else { return Cell::text("–") };
    Cell::number(share.value(), percent(share.value())).heat(share.value())
}

/// Modes down, contexts across.
fn shares(passkey: &Passkey) -> Table {
    let row = |mode: &String| {
        let figures = passkey.contexts.iter().map(|&context| {
            let share = passkey.share(mode, context, None);
            let range = share.map(Share::interval).map(|i| format!("{:.0} to {:.0}%", i.low * 100.0, i.high * 100.0));
            share_cell(share).small(range.unwrap_or_default())
        });
        std::iter::once(Cell::text(mode)).chain(figures).collect()
    };
    Table {
        id: "found".into(),
        caption: "Found, at all depths together, with its 95% interval".into(),
        heads: heads(Head::text("mode"), passkey),
        rows: passkey.modes.iter().map(row).collect(),
    }
}

/// A mode's heat map: depths down, contexts across.
fn map(passkey: &Passkey, index: usize, mode: &str) -> Table {
    let row = |&depth: &f64| {
        let figures = passkey.contexts.iter().map(|&context| share_cell(passkey.share(mode, context, Some(depth))));
        std::iter::once(Cell::number(depth, percent(depth))).chain(figures).collect()
    };
    Table {
        id: format!("map-{index}"),
        caption: format!("{mode}: found, by depth and context"),
        heads: heads(Head::number("depth"), passkey),
        rows: passkey.depths.iter().map(row).collect(),
    }
}

fn heads(first: Head, passkey: &Passkey) -> Vec<Head> {
    let contexts = passkey.contexts.iter().map(|context| Head::number(format!("{context} tokens")));
    std::iter::once(first).chain(contexts).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::heat::tests::passkey;
    use crate::report::html::compare::tests::about;
    use crate::report::markup::assert_well_formed;

    #[test]
    fn a_page_shows_every_figure() {
        let (mut about, passkey) = (about(), passkey());
        let page = retrieval(&about, &passkey).unwrap();
        let (start, end) = (page.find("<main>").unwrap(), page.find("<script type=").unwrap());
        let body = &page[start..end];
        assert_well_formed(body, &super::super::VOID);
        assert!(!page.contains("<i>") && body.contains("&lt;i&gt;"));
        // Two modes of three depths and five contexts, each with the line for all depths.
        assert_eq!(body.matches("class=\"heat\"").count(), 2 * 5 * (3 + 1));
        assert!(body.contains("map-1") && body.contains("data-chart=\"by-context\"") && body.contains(">50%<"));
        about.texts.clear();
        let page = retrieval(&about, &passkey).unwrap();
        assert!(page.contains("a few sentences") && !page.contains("id=\"texts\""));
    }
}
