//! `attn tokenize`: the ids of a text, as a list, as JSON and as `attn logits` reads them.

mod common;

use common::{attn, json, path, refused, run};
use serde_json::json;
use std::fs;
use std::io::Write;
use std::process::Stdio;

const TEXT: &str = "Vanity was the beginning and the end of Sir Walter's character; naïve “élan”.\n";
/// As the Python package tokenizers 0.23 computes them.
const IDS: &[u32] = &[
    54, 294, 504, 322, 263, 808, 260, 778, 282, 263, 834, 276, 360, 327, 402, 343, 359, 370, 767, 784, 268, 27, 293,
    65, 128, 108, 317, 221, 159, 223, 251, 128, 103, 76, 294, 159, 223, 252, 14, 199,
];

#[test]
fn ids_are_those_of_the_tokenizers_package() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("text.txt");
    fs::write(&file, TEXT).unwrap();
    let all = json(&["tokenize", "--text", path(&file), "--json"]);
    assert_eq!((&all["ids"], &all["tokens"], &all["bytes"]), (&json!(IDS), &json!(40), &json!(TEXT.len())));
    assert_eq!((&all["bos"], all["sha256"].as_str().unwrap().len()), (&json!(null), 64));

    let some = run(&["tokenize", "--text", path(&file), "--max-tokens", "4"]);
    let lines = String::from_utf8(some.stdout).unwrap();
    assert_eq!(lines, "     54 \"V\"\n    294 \"an\"\n    504 \"ity\"\n    322 \"Ġwas\"\n");
    assert!(String::from_utf8(some.stderr).unwrap().contains(": 4 tokens"));

    // BOS counts as one of the tokens, and is not doubled if the text begins with it.
    let begun = json(&["tokenize", "--text", path(&file), "--bos", "on", "--max-tokens", "3", "--json"]);
    assert_eq!((&begun["ids"], &begun["bos"]), (&json!([0, 54, 294]), &json!(0)));
    fs::write(&file, "<|endoftext|>V").unwrap();
    assert_eq!(json(&["tokenize", "--text", path(&file), "--bos", "on", "--json"])["ids"], json!([0, 54]));
}

#[test]
fn the_row_of_ids_is_what_logits_reads() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("logits.safetensors");
    let mut child = attn(&["tokenize", "--text", "-", "--ids"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(TEXT.as_bytes()).unwrap();
    let row = child.wait_with_output().unwrap().stdout;
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&row).unwrap(), json!([IDS]));
    let ids = folder.path().join("ids.json");
    fs::write(&ids, row).unwrap();
    let logits = run(&["logits", "--ids", path(&ids), "--out", path(&out)]);
    assert!(String::from_utf8(logits.stderr).unwrap().contains("logits [1, 40, "));
}

#[test]
fn what_is_no_text_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    refused(&["tokenize", "--text", path(folder.path())], &["is a folder"]);
    refused(&["tokenize", "--text", "no-such-file.txt"], &["no-such-file.txt"]);
    refused(&["tokenize", "--json", "--ids"], &["cannot be used"]);
}
