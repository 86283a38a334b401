//! `attn compare MODEL MODEL`: several models on the same bytes, tested as a user runs it.

mod common;

use common::schema::check_schema;
use common::{figures, json, lines, path, refused, run};
use serde_json::Value;
use std::fs;

const BITS: f64 = std::f64::consts::LOG2_E;

fn number(cell: &Value, key: &str) -> f64 {
    cell[key].as_f64().unwrap_or_else(|| panic!("{key} of {cell}"))
}

fn cells(document: &Value) -> &Vec<Value> {
    document["cells"].as_array().expect("cells")
}

/// Models that share a tokenizer have the same windows as each has by itself, and the same order by bits per byte as by
/// perplexity.
#[test]
fn models_of_one_tokenizer_rank_per_byte_as_per_token() {
    let cut = ["--contexts", "256", "--max-tokens", "4096", "--json"];
    let names = ["tiny-rope", "tiny-alibi", "tiny-nope", "tiny-t5"];
    let document = json(&[&["compare"], &names[..], &cut].concat());
    check_schema(&document);
    assert_eq!(document["format"], "attn-compare-models/1");
    let found = cells(&document);
    let order = |key: &str| -> Vec<String> {
        let mut all: Vec<(f64, String)> =
            found.iter().map(|cell| (number(cell, key), cell["model"].as_str().unwrap().to_string())).collect();
        all.sort_by(|a, b| a.0.total_cmp(&b.0));
        all.into_iter().map(|(_, name)| name).collect()
    };
    assert_eq!(order("bits_per_byte"), order("perplexity"));
    for (name, cell) in names.iter().zip(found) {
        let alone = json(&[&["compare", name, "--modes", "checkpoint"], &cut[..]].concat());
        let alone = &cells(&alone)[0];
        assert_eq!((&cell["tokens"], &cell["windows"]), (&alone["tokens"], &alone["windows"]), "{name}");
        assert!((number(cell, "perplexity") / number(alone, "perplexity") - 1.0).abs() < 1e-12, "{name}");
        let nats = number(alone, "nll") * number(alone, "tokens");
        assert!((number(cell, "bits_per_byte") - nats * BITS / number(cell, "bytes")).abs() < 1e-12, "{name}");
    }
    assert_eq!(document["differences"].as_array().unwrap().len(), 6);
    let said = document["verdict"][0].as_str().unwrap();
    assert!(said.starts_with("At up to 256 tokens, ") && said.contains("needs the fewest bits per byte"), "{said}");
}

/// Models of two tokenizers score the same bytes, with modes of each, in every form of the report.
#[test]
fn models_of_two_tokenizers_are_compared_by_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let (page, csv, kept) = (folder.path().join("p.html"), folder.path().join("p.csv"), folder.path().join("p.json"));
    let args = ["compare", "tiny-austen", "tiny-alibi", "--contexts", "256,512", "--max-tokens", "4096"];
    let modes = ["--modes", "checkpoint,none,yarn"];
    let out = ["--html", path(&page), "--csv", path(&csv), "--json"];
    let output = run(&[&args[..], &modes, &out].concat());
    let warnings = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(output.status.success(), "{warnings}");
    // A mode that the model without rotation does not take is named, and the others are measured.
    assert!(warnings.contains("warning: tiny-alibi (embedded): mode yarn: "), "{warnings}");
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    check_schema(&document);
    let found = cells(&document);
    assert_eq!(found.len(), 2 * (3 + 2));
    for at in [&found[..5], &found[5..]] {
        assert!(at.iter().all(|cell| cell["bytes"] == at[0]["bytes"] && cell["windows"] == at[0]["windows"]));
        assert_ne!(at[0]["tokens"], at[3]["tokens"]);
        assert_eq!(at.iter().filter(|cell| cell["versus_best"].is_null()).count(), 1);
    }
    assert_eq!(found[1]["same_as"], "checkpoint");
    let used = document["texts"][0]["used_bytes"].as_u64().unwrap();
    assert!(number(&found[0], "bytes") <= used as f64);
    let shown = fs::read_to_string(&page).unwrap();
    assert!(shown.contains("id=\"models-512\"") && shown.contains("tiny-alibi (embedded)"));
    assert_eq!(fs::read_to_string(&csv).unwrap().lines().count(), 1 + found.len());

    fs::write(&kept, &output.stdout).unwrap();
    let again = json(&["compare", "--from", path(&kept), "--json"]);
    assert_eq!(again, document);
    let table = String::from_utf8(run(&["compare", "--from", path(&kept)]).stdout).unwrap();
    assert!(
        table.contains("A  tiny-austen (embedded), trained to 256") && table.contains("at most 512 tokens"),
        "{table}"
    );
    assert!(table.contains("don't compare it between models") && table.contains(" bytes per token, "), "{table}");
    assert!(table.lines().all(|line| line.chars().count() <= 100), "{table}");
    refused(&["compare", "--from", path(&kept), "--plot", "x.svg"], &["--plot", "several"]);
}

#[test]
fn a_run_of_several_models_goes_on_and_its_shards_merge() {
    let folder = tempfile::tempdir().unwrap();
    let files = ["a.jsonl", "b.jsonl", "c.jsonl"].map(|name| folder.path().join(name));
    let args =
        ["compare", "tiny-austen", "tiny-rope", "--modes", "none,yarn", "--contexts", "256,512", "--factor", "2"];
    let cut = ["--max-tokens", "2600", "--json"];
    let whole = json(&[&args[..], &cut].concat());
    for (file, shard) in files.iter().zip(["1/2", "2/2"]) {
        json(&[&args[..], &cut, &["--run", path(file), "--shard", shard]].concat());
    }
    let merged = json(&["merge", path(&files[0]), path(&files[1]), "--json"]);
    check_schema(&merged);
    assert_eq!(figures(merged), figures(whole.clone()));
    refused(&["merge", path(&files[0])], &["4 of 8 cells are missing", "tiny-austen (embedded), yarn at 256"]);

    // If the last measurement is missing or cut off, only that one is measured again, also with `--run` as the only option.
    json(&[&args[..], &cut, &["--run", path(&files[2])]].concat());
    let bytes = fs::read(&files[2]).unwrap();
    assert_eq!(lines(&files[2]), 1 + 8);
    fs::write(&files[2], &bytes[..bytes.len() - 20]).unwrap();
    let resumed = json(&["compare", "--run", path(&files[2]), "--json"]);
    assert_eq!(figures(resumed), figures(whole));
    assert_eq!(lines(&files[2]), 1 + 8);
    let other = ["compare", "tiny-austen", "tiny-alibi", "--contexts", "256,512", "--run", path(&files[2])];
    refused(&other, &["c.jsonl is a run with another"]);
    refused(&["compare", "tiny-austen", "--run", path(&files[2])], &["a run file of attn compare of several models"]);
}

#[test]
fn what_is_of_one_model_is_refused_by_name_and_the_plan_is_said() {
    let two = ["compare", "tiny-austen", "tiny-alibi"];
    for (more, parts) in [
        (&["--search", "--contexts", "256"][..], &["--search"][..]),
        (&["--usable"], &["--usable"]),
        (&["--quick"], &["--quick"]),
        (&["--plot", "x.svg"], &["--plot"]),
        (&["--rope-theta", "1000"], &["--rope-theta"]),
        (&["--rope-scaling", "yarn"], &["--modes"]),
        (&["--tasks", "ppl,retrieval"], &["--tasks", "one model"]),
        (&["--metrics", "kl"], &["--metrics", "one model"]),
        (&["tiny-austen"], &["tiny-austen is given twice"]),
        (&["--modes", "yarn"], &["tiny-alibi", "none of the modes", "checkpoint"]),
        (&["--contexts", "100000"], &["nothing can be measured", "100000 tokens are left out", "bytes to use"]),
    ] {
        refused(&[&two[..], more].concat(), parts);
    }
    let plan = json(&[&two[..], &["--dry-run", "--json"]].concat());
    assert_eq!((plan["models"].as_array().unwrap().len(), &plan["measurements"]), (2, &2.into()));
    assert!(plan["windows"]["256"].as_u64().unwrap() >= 4 && plan["seconds"].as_f64().unwrap() > 0.0, "{plan}");
    assert!(plan["memory_bytes"].as_u64().unwrap() > 1_000_000 && plan["tokens"].as_u64().unwrap() > 2000, "{plan}");
    let said = String::from_utf8(run(&[&two[..], &["--dry-run"]].concat()).stdout).unwrap();
    assert!(said.contains("model    tiny-alibi (embedded): checkpoint;") && said.contains("one model after"), "{said}");
}

/// A tokenizer that folds case predicts less than the text, and is refused with the place.
#[test]
fn a_tokenizer_that_does_not_keep_the_text_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("lower");
    fs::create_dir(&model).unwrap();
    let source = common::repository().join("models/tiny-austen");
    for file in ["config.json", "model.safetensors"] {
        fs::copy(source.join(file), model.join(file)).unwrap();
    }
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(source.join("tokenizer.json")).unwrap()).unwrap();
    tokenizer["normalizer"] = serde_json::json!({"type": "Lowercase"});
    fs::write(model.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    refused(&["compare", "tiny-alibi", path(&model)], &["lower can't be compared", "don't reproduce the text", "byte"]);
}

/// Several texts are pooled with the same weight for every byte, and with a stride a window scores what no earlier one did.
#[test]
fn texts_are_pooled_by_byte() {
    let folder = tempfile::tempdir().unwrap();
    let texts = ["a.txt", "b.txt"].map(|name| folder.path().join(name));
    let persuasion = fs::read_to_string(common::repository().join("tests/data/persuasion.txt")).unwrap();
    for (text, start) in texts.iter().zip([0, 20_000]) {
        let start = persuasion[start..].find(' ').unwrap() + start;
        fs::write(text, &persuasion[start..persuasion.floor_char_boundary(start + 9000)]).unwrap();
    }
    let args = ["compare", "tiny-austen", "tiny-alibi", "--contexts", "128", "--json"];
    let of = |more: &[&str]| json(&[&args[..], more].concat());
    let parts = [of(&["--text", path(&texts[0])]), of(&["--text", path(&texts[1])])];
    let both = of(&["--text", path(&texts[0]), "--text", path(&texts[1])]);
    for (index, cell) in cells(&both).iter().enumerate() {
        let parts = parts.each_ref().map(|part| &cells(part)[index]);
        let bits: f64 = parts.iter().map(|cell| number(cell, "bits_per_byte") * number(cell, "bytes")).sum();
        let bytes: f64 = parts.iter().map(|cell| number(cell, "bytes")).sum();
        assert_eq!(number(cell, "bytes"), bytes);
        assert!((number(cell, "bits_per_byte") * bytes / bits - 1.0).abs() < 1e-12);
    }
    let strided = of(&["--text", path(&texts[0]), "--stride", "64"]);
    let bytes = |document: &Value| number(&cells(document)[0], "bytes");
    assert!(bytes(&strided) > 8900.0 && bytes(&strided) > bytes(&parts[0]));
}
