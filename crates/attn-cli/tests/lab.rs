//! The comparison lab as a person meets it: JSON that keeps to its schema, several texts, run files, shards.

mod common;

use common::{attn, json, path, repository, run};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// The one line on stderr of a command that has to fail and say each of `parts`.
fn refused(args: &[&str], parts: &[&str]) {
    let output = run(args);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && output.stdout.is_empty(), "{args:?}: {stderr}");
    assert!(stderr.starts_with("error: ") && stderr.trim_end().lines().count() == 1, "{args:?}: {stderr}");
    for part in parts {
        assert!(stderr.contains(part), "{args:?} should say {part:?}: {stderr}");
    }
}

fn schema() -> Value {
    let text = fs::read(repository().join("docs/compare.schema.json")).expect("the schema");
    serde_json::from_slice(&text).expect("the schema is JSON")
}

/// Checks `value` against the part of JSON Schema that the schema uses, and panics where it departs from it.
fn validate(value: &Value, schema: &Value, root: &Value, at: &str) {
    if let Some(reference) = schema["$ref"].as_str() {
        let definition = root.pointer(reference.trim_start_matches('#')).expect("the definition is there");
        return validate(value, definition, root, at);
    }
    if let Some(variants) = schema["anyOf"].as_array() {
        let fits = |variant: &&Value| (variant["type"] == "null") == value.is_null();
        return validate(value, variants.iter().find(fits).expect("a variant"), root, at);
    }
    if let Some(constant) = schema.get("const") {
        return assert_eq!(value, constant, "{at}");
    }
    let kinds: Vec<&str> = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        kind => kind.as_str().into_iter().collect(),
    };
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_u64() || n.is_i64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let fits = kinds.contains(&kind) || (kind == "integer" && kinds.contains(&"number"));
    assert!(fits, "{at} is {kind}, not {kinds:?}");
    if let Value::Object(object) = value {
        for (key, value) in object {
            let at = format!("{at}.{key}");
            let known = schema["properties"].get(key).or(schema.get("additionalProperties").filter(|s| s.is_object()));
            validate(value, known.unwrap_or_else(|| panic!("{at} is not in the schema")), root, &at);
        }
        for key in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            assert!(object.contains_key(key), "{at} lacks {key}");
        }
    }
    if let Value::Array(items) = value {
        for bound in ["minItems", "maxItems"].iter().filter_map(|key| schema[key].as_u64()) {
            assert_eq!(items.len() as u64, bound, "{at}");
        }
        for (index, item) in items.iter().enumerate() {
            validate(item, &schema["items"], root, &format!("{at}[{index}]"));
        }
    }
}

fn check_schema(document: &Value) {
    let schema = schema();
    validate(document, &schema, &schema, "$");
}

/// Two texts: a plain one and one in JSON Lines.
fn texts() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let persuasion = fs::read_to_string(repository().join("tests/data/persuasion.txt")).expect("a text");
    let (plain, lines) = (folder.path().join("plain.txt"), folder.path().join("lines.jsonl"));
    fs::write(&plain, &persuasion[..20_000]).expect("a text is written");
    let documents = [&persuasion[20_000..30_000], &persuasion[30_000..40_000]];
    let documents: String = documents.iter().map(|text| format!("{}\n", serde_json::json!({"text": text}))).collect();
    fs::write(&lines, documents).expect("a text is written");
    (folder, plain, lines)
}

#[test]
fn several_texts_are_reported_each_and_together_and_keep_to_the_schema() {
    let (_keep, plain, lines) = texts();
    let args = ["compare", "--contexts", "256,512", "--modes", "none,dynamic,yarn", "--max-tokens", "2048", "--json"];
    let document = json(&[&args[..], &["--text", path(&plain), "--text", path(&lines)]].concat());
    check_schema(&document);
    assert_eq!(document["texts"][1]["documents"], 2);
    let by_text = document["by_text"].as_array().unwrap();
    assert_eq!((by_text.len(), document["cells"].as_array().unwrap().len()), (2, 6));
    for (index, cell) in document["cells"].as_array().unwrap().iter().enumerate() {
        let parts: Vec<&Value> = by_text.iter().map(|part| &part["cells"][index]).collect();
        let number = |cell: &Value, key: &str| cell[key].as_f64().unwrap();
        let tokens: f64 = parts.iter().map(|part| number(part, "tokens")).sum();
        let sum: f64 = parts.iter().map(|part| number(part, "tokens") * number(part, "nll")).sum();
        assert_eq!(number(cell, "tokens"), tokens);
        assert!((number(cell, "nll") - sum / tokens).abs() < 1e-12);
    }
    // Each text alone gives its part of that.
    let alone = json(&[&args[..], &["--text", path(&lines)]].concat());
    check_schema(&alone);
    assert_eq!(alone["by_text"].as_array().unwrap().len(), 0);
    assert_eq!(alone["cells"][5]["nll"], by_text[1]["cells"][5]["nll"]);
    let output =
        run(&["compare", "--max-tokens", "600", "--contexts", "512", "--text", path(&plain), "--text", path(&lines)]);
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("plain.txt") && table.contains("all 2 texts together, 1200 tokens"), "{table}");
    refused(&["compare", "--text", path(&plain), "--text", path(&plain)], &["given twice"]);
}

const CELLS: [&str; 8] =
    ["compare", "--contexts", "256,512,1024", "--modes", "none,ntk,dynamic,yarn", "--max-tokens", "4096", "--json"];

/// The document without what differs from run to run: times and the command line.
fn figures(mut document: Value) -> Value {
    fn forget_seconds(value: &mut Value) {
        match value {
            Value::Object(object) => {
                object.remove("seconds");
                object.values_mut().for_each(forget_seconds);
            }
            Value::Array(items) => items.iter_mut().for_each(forget_seconds),
            _ => {}
        }
    }
    forget_seconds(&mut document);
    for key in ["command", "started"] {
        document.as_object_mut().expect("an object").remove(key);
    }
    document
}

fn lines(path: &Path) -> usize {
    fs::read(path).map_or(0, |bytes| bytes.iter().filter(|byte| **byte == b'\n').count())
}

#[test]
fn a_run_killed_midway_goes_on_where_it_stopped_and_another_setting_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.jsonl");
    let args = [&CELLS[..], &["--run", path(&file)]].concat();
    let mut child = attn(&args).stdout(std::process::Stdio::null()).spawn().expect("attn starts");
    while lines(&file) < 3 {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it could be killed");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let before = fs::read(&file).unwrap();
    let done = lines(&file) - 1;
    assert!((2..9).contains(&done), "{done} of the 9 cells are there, and it was killed between two of them");
    refused(&["merge", path(&file)], &["cells are missing", "at 1024"]);

    // The last line is torn as well, as by a crash in the middle of a write.
    fs::write(&file, &before[..before.len() - 10]).unwrap();
    let resumed = json(&args);
    assert_eq!(lines(&file), 10);
    let after = fs::read(&file).unwrap();
    let kept = before[..before.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap();
    assert!(after[..kept] == before[..kept], "finished cells are not measured again");
    let whole = json(&CELLS);
    assert_eq!(figures(resumed), figures(whole.clone()));

    // Once more: nothing is left to do.
    assert_eq!(figures(json(&args)), figures(whole));
    assert!(fs::read(&file).unwrap() == after);

    refused(&[&args[..], &["--seed", "1"]].concat(), &["run.jsonl", "--seed: 0, not 1"]);
    refused(&[&args[..], &["--rope-theta", "20000"]].concat(), &["--rope-theta"]);
    assert!(fs::read(&file).unwrap() == after);
}

#[test]
fn shards_merge_to_the_result_of_one_run_to_the_last_digit() {
    let folder = tempfile::tempdir().unwrap();
    let files = ["a.jsonl", "b.jsonl"].map(|name| folder.path().join(name));
    for (file, shard) in files.iter().zip(["1/2", "2/2"]) {
        let report = json(&[&CELLS[..], &["--run", path(file), "--shard", shard]].concat());
        assert_eq!(report["shard"], shard);
        assert_eq!(lines(file), 1 + report["cells"].as_u64().unwrap() as usize);
    }
    assert_eq!(lines(&files[0]) + lines(&files[1]), 2 + 9);
    let merged = json(&["merge", path(&files[0]), path(&files[1]), "--json"]);
    check_schema(&merged);
    assert_eq!(figures(merged), figures(json(&CELLS)));
    refused(&["merge", path(&files[1]), "--json"], &["5 of 9 cells are missing", "none at 256"]);
    refused(&["compare", "--shard", "1/2"], &["--run"]);
    refused(&["compare", "--shard", "3/2", "--run", "x"], &["3/2", "i/n"]);
}
