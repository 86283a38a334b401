//! The main job against transformers: `attn compare` on the embedded model and text.

use serde_json::Value;
use std::process::Command;

fn golden(name: &str) -> Value {
    let path = format!("{}/../../tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Compares the modes and checks every figure of `golden`, whose `label` is the name of a mode.
fn check(golden: &Value, modes: &str, label: impl Fn(&Value) -> String) {
    let output = Command::new(env!("CARGO_BIN_EXE_attn"))
        .args(["compare", "--contexts", "256,512,1024,2048", "--modes", modes])
        .args(["--factor", "auto", "--max-tokens", "16384", "--json"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let cells = report["cells"].as_array().unwrap();
    for want in golden["results"].as_array().unwrap() {
        let mode = label(want);
        let same = |cell: &&Value| cell["context"] == want["context"] && cell["mode"] == mode.as_str();
        let cell = cells.iter().find(same).unwrap_or_else(|| panic!("no cell like {want}"));
        assert_eq!(cell["tokens"], want["tokens"], "{cell}");
        let (ours, theirs) = (cell["perplexity"].as_f64().unwrap(), want["ppl"].as_f64().unwrap());
        assert!((ours / theirs - 1.0).abs() < 0.005, "{ours} is not {theirs}: {cell}");
    }
}

#[test]
fn compare_reproduces_the_perplexities_of_transformers() {
    let plain = |want: &Value| want["mode"].as_str().unwrap().to_string();
    check(&golden("tiny_austen_perplexity.json"), "none,linear,dynamic,yarn", plain);
}

/// Methods that place near and far keys differently, against their definition over dense scores.
#[test]
fn compare_reproduces_the_perplexities_of_context_extension() {
    let label = |want: &Value| {
        let number = |key: &str| Some(format!(":{key}={}", want.get(key)?.as_f64()?));
        let numbers = ["group", "sinks", "window", "factor"].into_iter().filter_map(number);
        std::iter::once(want["mode"].as_str().unwrap().to_string()).chain(numbers).collect()
    };
    let golden = golden("extensions_perplexity.json");
    let mut modes: Vec<String> = golden["results"].as_array().unwrap().iter().map(label).collect();
    modes.dedup();
    modes.sort();
    modes.dedup();
    assert_eq!(modes.len(), 10);
    check(&golden, &modes.join(","), label);
}
