//! What `attn compare --json` wrote, shown again by `--from`: only what a measurement can come to, and that in every form.
#![no_main]

use attn_eval::report::{Document, TableStyle, csv, html, read_document, svg, table, verdict};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((about, results)) = std::str::from_utf8(data).ok().and_then(|text| read_document(text).ok()) else { return };
    for width in [40, 120] {
        let _ = table(&results.cells, &[], TableStyle { width, color: true });
    }
    let _ = (verdict(&results, about.one_factor(), about.trained_context()), csv(&results));
    let chart = svg(&results.cells, &about.checkpoint.name, None);
    assert!(!chart.contains("NaN") && !chart.contains("\"inf"), "{chart}");
    let _ = html::comparison(&about, &results, None);
    // What is accepted is accepted again once it is written.
    let text = serde_json::to_string(&Document::new(&about, &results)).expect("a document is JSON");
    read_document(&text).expect("what is written is read");
});
