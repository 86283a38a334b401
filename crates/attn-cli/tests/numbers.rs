//! Figures that are not numbers are refused; those too large for a number are reported in another unit.

mod common;

use common::{attn, json, path, repository, run};
use serde_json::Value;
use std::fs;

/// The embedded model with every number of `tensor` replaced.
fn with_weights(tensor: &str, value: u16) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer.json"] {
        fs::copy(repository().join("models/tiny-austen").join(name), folder.path().join(name)).unwrap();
    }
    let mut bytes = fs::read(repository().join("models/tiny-austen/model.safetensors")).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let table: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    assert_eq!(table[tensor]["dtype"], "BF16");
    let at = |i: usize| 8 + header + table[tensor]["data_offsets"][i].as_u64().unwrap() as usize;
    for pair in bytes[at(0)..at(1)].chunks_exact_mut(2) {
        pair.copy_from_slice(&value.to_le_bytes());
    }
    fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    folder
}

#[test]
fn no_command_makes_anything_of_logits_that_are_no_numbers() {
    const NAN: u16 = 0x7fc0;
    const INFINITE: u16 = 0x7f80;
    let scratch = tempfile::tempdir().unwrap();
    let (ids, out) = (scratch.path().join("ids.json"), scratch.path().join("out.safetensors"));
    fs::write(&ids, "[[1, 2, 3, 4], [5, 6, 7, 8]]").unwrap();
    for (tensor, value) in [("model.norm.weight", NAN), ("model.embed_tokens.weight", INFINITE)] {
        let folder = with_weights(tensor, value);
        let (model, ids, out) = (path(folder.path()), path(&ids), path(&out));
        for args in [
            &["generate", model, "-p", "It was", "-n", "4"][..],
            &["generate", model, "-p", "It was", "-n", "4", "--temperature", "1"],
            &["perplexity", model, "--context", "64", "--max-tokens", "256"],
            &["compare", model, "--contexts", "64", "--modes", "none,yarn", "--max-tokens", "256"],
            &["compare", model, "--contexts", "64", "--search", "--max-tokens", "1024"],
            &["passkey", model, "--contexts", "256", "--modes", "none", "--depths", "0.5", "--trials", "1"],
            &["logits", model, "--ids", ids, "--out", out],
            &["logits", model, "--ids", ids, "--out", out, "--decode"],
            &["logits", model, "--ids", ids, "--out", out, "--greedy", "4"],
        ] {
            let output = run(args);
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
            assert!(
                output.stdout.trim_ascii().is_empty(),
                "{args:?} printed {:?}",
                String::from_utf8_lossy(&output.stdout)
            );
            let said = ["contain NaN", "contain inf", "contain -inf", "log-likelihood of"];
            assert!(said.iter().any(|part| stderr.contains(part)), "{args:?}: {stderr}");
        }
        assert!(!std::path::Path::new(out).exists());
    }
}

/// Logits so large that the perplexity is past 10^308: it is given in nats, drawn, written and read back.
#[test]
fn a_perplexity_that_is_too_large_for_a_number_is_told_in_nats() {
    // 2^20 in bfloat16.
    let folder = with_weights("model.norm.weight", 0x4980);
    let model = path(folder.path());
    let args = ["perplexity", model, "--context", "64", "--max-tokens", "512"];
    let shown = String::from_utf8(run(&args).stdout).unwrap();
    assert!(shown.starts_with("nats ") && !shown.contains("inf") && !shown.contains("NaN"), "{shown}");
    let cell = json(&[&args[..], &["--json"]].concat());
    assert!(cell["perplexity"].is_null() && cell["nll"].as_f64().is_some_and(|nll| nll > 710.0), "{cell}");

    let compare = ["compare", model, "--contexts", "64,128", "--modes", "none,yarn", "--max-tokens", "1024"];
    let table = String::from_utf8(run(&compare).stdout).unwrap();
    assert!(table.contains(" nats") && !table.contains("inf") && !table.contains("NaN"), "{table}");
    let scratch = tempfile::tempdir().unwrap();
    let (saved, plot) = (scratch.path().join("cells.json"), scratch.path().join("plot.svg"));
    fs::write(&saved, run(&[&compare[..], &["--json"]].concat()).stdout).unwrap();
    let again = attn(&["compare", "--from", path(&saved), "--plot", path(&plot)]).output().unwrap();
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    assert_eq!(String::from_utf8(again.stdout).unwrap(), table);
    let plot = fs::read_to_string(&plot).unwrap();
    assert!(!plot.contains("NaN") && !plot.contains("inf") && plot.matches("<circle").count() == 4, "{plot}");
}

/// Saved figures that no measurement can give are refused, in every form of output.
#[test]
fn saved_figures_are_those_of_a_measurement() {
    let scratch = tempfile::tempdir().unwrap();
    let (saved, plot) = (scratch.path().join("cells.json"), scratch.path().join("plot.svg"));
    let compare = ["compare", "--contexts", "64,128", "--modes", "none,yarn", "--max-tokens", "1024", "--json"];
    let document = json(&compare);
    type Edit = fn(&mut Value);
    let edits: [(&str, Edit); 6] = [
        ("perplexity", |cell| cell["perplexity"] = 1e-320.into()),
        ("nats", |cell| (cell["nll"], cell["perplexity"]) = (1e39.into(), Value::Null)),
        ("nats", |cell| (cell["nll"], cell["perplexity"]) = ((-1e9).into(), 0.0.into())),
        ("scores none", |cell| cell["context"] = 0.into()),
        ("tokens", |cell| cell["tokens"] = u64::MAX.into()),
        ("name of a mode", |cell| cell["mode"] = "\u{1b}]0;owned\u{7}".into()),
    ];
    for (part, edit) in edits {
        let mut spoilt = document.clone();
        edit(&mut spoilt["cells"][1]);
        fs::write(&saved, spoilt.to_string()).unwrap();
        let output = run(&["compare", "--from", path(&saved), "--plot", path(&plot)]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{part}: {stderr}");
        assert!(stderr.contains(part) && stderr.contains("cells.json"), "{part}: {stderr}");
        assert!(output.stdout.is_empty() && !stderr.contains('\u{1b}') && !plot.exists(), "{part}: {stderr}");
    }
}
