//! GGUF files as a user meets them: commands that need no tokenizer run without one, and the program says what it
//! guessed or ignored.

mod common;

use common::{json, path, repository, run};
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

/// A golden file after an edit of its bytes.
fn edited(name: &str, edit: impl Fn(&mut Vec<u8>)) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut bytes = fs::read(repository().join("tests/golden/gguf").join(name)).expect("a golden file");
    edit(&mut bytes);
    let file = folder.path().join(name);
    fs::write(&file, bytes).expect("it is written");
    (folder, file)
}

/// Where the value of a string key begins, after its type and length.
fn value_of(bytes: &[u8], key: &str) -> usize {
    let at = bytes.windows(key.len()).position(|part| part == key.as_bytes()).expect("the key");
    at + key.len() + 4 + 8
}

#[test]
fn logits_need_no_tokenizer() {
    let (folder, file) = edited("llama.gguf", |bytes| {
        let at = value_of(bytes, "tokenizer.ggml.model");
        bytes[at..at + 4].copy_from_slice(b"bert");
    });
    let ids = folder.path().join("ids.json");
    fs::write(&ids, "[[5, 6, 7]]").expect("it is written");
    let out = folder.path().join("logits.safetensors");
    let output = run(&["logits", path(&file), "--ids", path(&ids), "--out", path(&out)]);
    assert!(output.status.success() && out.exists(), "{output:?}");
    let output = run(&["generate", path(&file), "-p", "x"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("tokenizer.ggml.model") && said.contains("bert"), "{said}");
}

#[test]
fn what_nothing_reads_is_refused_by_name_or_passed_over_with_a_warning() {
    // A key of the same length, so that nothing moves.
    let (_folder, file) = edited("llama.gguf", |bytes| {
        let at = value_of(bytes, "llama.vocab_size") - 4 - 8 - "vocab_size".len();
        bytes[at..at + 10].copy_from_slice(b"cleverness");
    });
    let inspect = ["inspect", path(&file)];
    let output = run(&inspect);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("llama.cleverness"), "{said}");
    let output = run(&[&inspect[..], &["--allow-unknown-config-keys"]].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("warning:") && said.contains("llama.cleverness"), "{said}");
}

#[test]
fn a_missing_pre_tokenizer_is_said() {
    let (_folder, file) = edited("llama.gguf", |bytes| {
        let at = value_of(bytes, "tokenizer.ggml.pre") - 4 - 8 - "pre".len();
        bytes[at..at + 3].copy_from_slice(b"prX");
    });
    let output = run(&["inspect", path(&file)]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("tokenizer.ggml.pre"), "{said}");
}

#[test]
fn inspect_names_the_quantisation() {
    let file = repository().join("tests/golden/gguf/llama.gguf");
    assert_eq!(json(&["inspect", path(&file), "--json"])["quantization"], "F32");
    assert_eq!(json(&["inspect", "--json"])["quantization"], serde_json::Value::Null);
}

/// The divisors in `rope_freqs.weight` forget the context that Llama 3's scaling started from; another scaling has to
/// start from it all the same.
#[test]
fn an_override_starts_from_the_context_that_the_frequency_factors_forgot() {
    let gguf = repository().join("tests/golden/gguf/llama3.gguf");
    let folder = repository().join("tests/golden/models/llama3");
    for more in [&["--rope-scaling", "yarn", "--rope-factor", "4"][..], &["--rope-scaling", "none"], &[]] {
        let position = |model| json(&[&["inspect", path(model), "--json"], more].concat())["position"].clone();
        let (ours, theirs) = (position(&gguf), position(&folder));
        for key in ["rope_type", "original_max_position_embeddings", "attention_factor"] {
            assert_eq!(ours[0][key], theirs[0][key], "{more:?} {key}");
        }
        let frequencies = |value: &serde_json::Value| {
            let list = value[0]["inv_freq"].as_array().expect("frequencies").clone();
            list.iter().map(|f| f.as_f64().expect("a number")).collect::<Vec<_>>()
        };
        for (a, b) in frequencies(&ours).into_iter().zip(frequencies(&theirs)) {
            assert!((a / b - 1.0).abs() < 1e-9, "{more:?}: {a} {b}");
        }
    }
}
