//! The models inside the program: each by its name, and the picture that the default comparison draws of them.

mod common;

use common::{attn, json, repository, run};
use serde_json::Value;
use std::fs;

const ENCODINGS: [(&str, &str); 6] = [
    ("rope", "tiny-rope"),
    ("alibi", "tiny-alibi"),
    ("t5", "tiny-t5"),
    ("sinusoidal", "tiny-sinusoidal"),
    ("learned", "tiny-learned"),
    ("none", "tiny-nope"),
];

/// Perplexity by encoding and context.
fn figure(document: &Value, encoding: &str, context: u64) -> Option<f64> {
    let cells = document["encodings"].as_array().expect("encodings");
    let cell = cells.iter().find(|cell| cell["mode"] == encoding && cell["context"] == context)?;
    cell["perplexity"].as_f64()
}

#[test]
fn the_default_comparison_shows_what_every_encoding_does_past_its_length() {
    let args = ["compare", "--contexts", "256,1024", "--max-tokens", "8192"];
    let document = json(&[&args[..], &["--json"]].concat());
    let at = |encoding, context| figure(&document, encoding, context).unwrap_or(f64::NAN);
    // What transformers computes, by scripts/reference/check_trained.py.
    let golden = fs::read(repository().join("tests/golden/encodings_perplexity.json")).expect("golden figures");
    let golden: Value = serde_json::from_slice(&golden).expect("golden figures are JSON");
    let figures = golden["figures"].as_array().expect("figures");
    assert_eq!(figures.len(), document["encodings"].as_array().expect("encodings").len());
    for figure in figures {
        let (encoding, context) = (figure["encoding"].as_str().expect("a name"), figure["context"].as_u64());
        let (ours, theirs) =
            (at(encoding, context.expect("a number")), figure["perplexity"].as_f64().expect("a number"));
        assert!((ours / theirs - 1.0).abs() < 1e-5, "{encoding}: {ours}, transformers {theirs}");
    }
    // As published: linear bias holds, rotary and sinusoidal positions break, a learned table ends.
    assert!(at("alibi", 1024) < 1.05 * at("alibi", 256));
    assert!(at("rope", 1024) > 1.2 * at("rope", 256));
    assert!(figure(&document, "learned", 1024).is_none() && figure(&document, "t5", 1024).is_some());

    let output = attn(&["compare", "--contexts", "256,512", "--max-tokens", "2048"])
        .env("COLUMNS", "40")
        .output()
        .expect("attn starts");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    // Options to be copied are in one piece.
    let to_read = text.lines().filter(|line| {
        !["attn", "export", "transformers", "vLLM", "llama.cpp"]
            .iter()
            .any(|program| line.strip_prefix("  ").is_some_and(|rest| rest.starts_with(program)))
    });
    assert!(to_read.into_iter().all(|line| line.chars().count() <= 40), "{text}");
    assert!(text.contains("sinusoidal") && text.contains("longer than"), "{text}");
    // With a model or an option, only that model is compared.
    for particular in [&["tiny-rope"][..], &["--modes", "none"]] {
        let document = json(&[&args[..], &["--json"], particular].concat());
        assert!(document.get("encodings").is_none(), "{particular:?}");
    }
}

#[test]
fn each_is_a_model_by_its_name_and_a_folder_that_others_read() {
    let models = repository().join("models");
    let tokenizer = fs::read(models.join("tiny-rope/tokenizer.json")).expect("a tokenizer");
    for (_, name) in ENCODINGS {
        assert_eq!(fs::read(models.join(name).join("tokenizer.json")).expect("a tokenizer"), tokenizer, "{name}");
        assert!(fs::metadata(models.join(name).join("model.safetensors")).expect("weights").len() < 4 << 20);
        let inspected = json(&["inspect", name, "--json"]);
        assert!(inspected["parameters"].as_u64().is_some_and(|n| n > 500_000), "{inspected}");
        let output = run(&["generate", name, "-p", "It was", "-n", "4"]);
        assert!(output.status.success() && !output.stdout.is_empty(), "{name}");
    }
    let missing = run(&["inspect", "tiny-ropes"]);
    assert!(!missing.status.success());
}
