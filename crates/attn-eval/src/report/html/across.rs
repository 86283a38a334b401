//! The page of a comparison of several models.

use super::meanings::meanings;
use super::provenance::provenance;
use super::retrieval::left_out;
use super::{Cell, Head, Page, Table};
use crate::across::{ModelCell, ModelResults, contexts};
use crate::error::Result;
use crate::report::across::{bits, bytes_per_token, range};
use crate::report::{About, ModelInfo, ModelsDocument, SAME_BYTES, factor, models_verdict, short, text_line};

/// A comparison of several models as one HTML file.
///
/// # Errors
/// A number that JSON can't hold.
pub fn models(about: &About, results: &ModelResults) -> Result<String> {
    let names: Vec<&str> = about.models.iter().map(|model| model.checkpoint.name.as_str()).collect();
    let mut page = Page::new(&format!("Bits per byte of {}", names.join(" and ")));
    let texts: Vec<String> = about.texts.iter().map(text_line).collect();
    page.soft(&format!("On {}. {SAME_BYTES}", texts.join("; ")));
    let mut lines = models_verdict(results);
    // The last context is usually the longest one, which matters most.
    let headline = lines.pop().unwrap_or_else(|| "Nothing was compared.".to_string());
    page.verdict(&headline, &lines);
    for context in contexts(&results.cells) {
        page.heading(&format!("At most {context} tokens per window"));
        page.table(&figures(results, context));
    }
    left_out(&mut page, &about.settings.skipped);
    page.begin_details("Differences between all pairs");
    page.text("How many more bits per byte the first needs than the second on the same bytes, with the 95% interval of this difference.");
    page.table(&differences(results));
    page.end_details();
    meanings(&mut page, about.settings.modes.iter().map(String::as_str));
    page.heading("The models");
    page.table(&models_table(&about.models, results));
    page.heading("How this was measured");
    provenance(&mut page, about);
    page.save_button("models.json");
    Ok(page.finish(&serde_json::to_value(ModelsDocument::new(about, results))?))
}

fn figures(results: &ModelResults, context: usize) -> Table {
    let row = |cell: &ModelCell| {
        let versus = cell.versus_best.as_ref();
        let class = if versus.is_none() { "best" } else { "" };
        let same = cell.same_as.as_ref().map_or(String::new(), |same| format!("the same as {same}"));
        vec![
            Cell::text(&cell.model),
            Cell::text(&cell.mode).small(same),
            Cell::number(cell.factor, factor(cell.factor)),
            Cell::number(cell.bits_per_byte, bits(cell.bits_per_byte)).small(range(cell.interval, bits)).class(class),
            Cell::optional(versus.map(|versus| versus.bits_per_byte), |more| format!("{more:+.4}"))
                .small(range(versus.and_then(|versus| versus.interval), bits)),
            Cell::number(cell.perplexity, short(cell.perplexity)).small(range(cell.perplexity_interval, short)),
            Cell::number(bytes_per_token(cell), format!("{:.2}", bytes_per_token(cell))),
            Cell::count(cell.windows),
            Cell::count(cell.bytes),
        ]
    };
    let heads = [
        "factor",
        "bits per byte",
        "more than the best",
        "perplexity per token",
        "bytes per token",
        "windows",
        "bytes",
    ];
    Table {
        id: format!("models-{context}"),
        caption: format!("Bits per byte with at most {context} tokens per window, with 95% intervals"),
        heads: [Head::text("model"), Head::text("mode")].into_iter().chain(heads.map(Head::number)).collect(),
        rows: results.cells.iter().filter(|cell| cell.context == context).map(row).collect(),
    }
}

fn differences(results: &ModelResults) -> Table {
    let rows = results.differences.iter().map(|pair| {
        let versus = &pair.versus;
        vec![
            Cell::text(format!("{}, {}", pair.model, pair.mode)),
            Cell::text(format!("{}, {}", versus.model, versus.mode)),
            Cell::count(pair.context),
            Cell::number(versus.bits_per_byte, format!("{:+.4}", versus.bits_per_byte))
                .small(range(versus.interval, bits)),
        ]
    });
    Table {
        id: "model-differences".into(),
        caption: "Differences in bits per byte".into(),
        heads: vec![Head::text("first"), Head::text("second"), Head::number("context"), Head::number("bits per byte")],
        rows: rows.collect(),
    }
}

fn models_table(models: &[ModelInfo], results: &ModelResults) -> Table {
    let row = |model: &ModelInfo| {
        let checkpoint = &model.checkpoint;
        let seconds: f64 =
            results.cells.iter().filter(|cell| cell.model == checkpoint.name).map(|cell| cell.seconds).sum();
        vec![
            Cell::text(&checkpoint.name).small(checkpoint.revision.clone().unwrap_or_default()),
            Cell::text(&checkpoint.family),
            Cell::count(checkpoint.parameters),
            Cell::optional(checkpoint.trained_context.map(|n| n as f64), |n| format!("{n:.0}")),
            Cell::text(&checkpoint.rope_type),
            Cell::text(model.bos.map_or("none".to_string(), |id| format!("id {id}"))),
            Cell::count(model.used.iter().sum()),
            Cell::number(seconds, format!("{seconds:.1}")),
            Cell::text(&checkpoint.sha256),
        ]
    };
    Table {
        id: "models".into(),
        caption: "Models".into(),
        heads: vec![
            Head::text("model"),
            Head::text("family"),
            Head::number("weights"),
            Head::number("trained to"),
            Head::text("own scaling"),
            Head::text("BOS"),
            Head::number("tokens used"),
            Head::number("seconds"),
            Head::text("sha256"),
        ],
        rows: models.iter().map(row).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::across::tests::{about, results};
    use crate::report::markup::assert_well_formed;

    #[test]
    fn a_page_shows_every_model_and_figure_and_escapes_names() {
        let (mut about, results) = (about(), results());
        about.settings.skipped =
            vec![crate::Skipped { context: 4096, task: Some("b".into()), reason: "<b>no memory".into() }];
        let page = models(&about, &results).unwrap();
        let (start, end) = (page.find("<main>").unwrap(), page.find("<script type=").unwrap());
        let body = &page[start..end];
        assert_well_formed(body, &super::super::VOID);
        assert!(!body.contains("<i>") && body.contains("&lt;i&gt;") && body.contains("&lt;b&gt;no memory"));
        assert!(
            body.contains("id=\"models-256\"") && body.contains("id=\"models-512\"") && body.contains("id=\"models\"")
        );
        for cell in &results.cells {
            assert!(body.contains(&format!("data-value=\"{}\"", cell.bits_per_byte)), "{cell:?}");
        }
    }
}
