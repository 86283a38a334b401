//! The output of `attn compare --json`, shown again by `--from`: only figures that a measurement can give are accepted,
//! and they are shown in every form.
#![no_main]

use attn_eval::report::{
    Document, ModelsDocument, TableStyle, csv, html, models_csv, models_table, models_verdict, read_document,
    read_models_document, svg, table, verdict,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    of_models(text);
    let Ok((about, results)) = read_document(text) else { return };
    for width in [40, 120] {
        let _ = table(&results.cells, &[], TableStyle { width, color: true });
    }
    let _ = (verdict(&results, about.one_factor(), about.trained_context()), csv(&results));
    let chart = svg(&results.cells, &about.checkpoint.name, None);
    assert!(!chart.contains("NaN") && !chart.contains("\"inf"), "{chart}");
    let _ = html::comparison(&about, &results, None);
    // An accepted document is accepted again after it has been written.
    let text = serde_json::to_string(&Document::new(&about, &results)).expect("a document is JSON");
    read_document(&text).expect("what is written is read");
});

/// Does the same for a comparison of several models.
fn of_models(text: &str) {
    let Ok((about, results)) = read_models_document(text) else { return };
    let _ = models_table(&about, &results, TableStyle { width: 80, color: true });
    let _ = (models_verdict(&results), models_csv(&results), html::models(&about, &results));
    let text = serde_json::to_string(&ModelsDocument::new(&about, &results)).expect("a document is JSON");
    read_models_document(&text).expect("what is written is read");
}
