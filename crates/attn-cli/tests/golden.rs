//! The main job against transformers: `attn compare` on the embedded model and text.

use serde_json::Value;
use std::process::Command;

#[test]
fn compare_reproduces_the_perplexities_of_transformers() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/tiny_austen_perplexity.json");
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(golden).unwrap()).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_attn"))
        .args(["compare", "--contexts", "256,512,1024,2048", "--modes", "none,linear,dynamic,yarn"])
        .args(["--max-tokens", "16384", "--json"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let cells = report["cells"].as_array().unwrap();
    for want in golden["results"].as_array().unwrap() {
        let same = |cell: &&Value| cell["context"] == want["context"] && cell["mode"] == want["mode"];
        let cell = cells.iter().find(same).unwrap_or_else(|| panic!("no cell like {want}"));
        assert_eq!(cell["tokens"], want["tokens"], "{cell}");
        let (ours, theirs) = (cell["perplexity"].as_f64().unwrap(), want["ppl"].as_f64().unwrap());
        assert!((ours / theirs - 1.0).abs() < 0.005, "{ours} is not {theirs}: {cell}");
    }
}
