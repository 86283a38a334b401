//! Comparisons as a user runs them: JSON that follows its schema, several texts, run files, shards.

mod common;

use common::schema::{check_schema, schema, validate};
use common::{attn, figures, json, lines, path, refused, repository, run};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

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
    let found = &document["recommendation"];
    assert_eq!((&found["answer"], &found["context"], &found["windows"]), (&"use".into(), &512.into(), &8.into()));
    assert_eq!(found["cost_at_trained"]["context"], 256);
    let programs: Vec<&str> =
        found["applied"].as_array().unwrap().iter().map(|to| to["program"].as_str().unwrap()).collect();
    assert_eq!(programs, ["attn", "export", "transformers", "vLLM", "llama.cpp"]);
    // A text that is measured by itself has the same figures as in the comparison of both.
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

const CELLS: [&str; 10] = [
    "compare",
    "--contexts",
    "256,512,1024",
    "--modes",
    "none,ntk,dynamic,yarn",
    "--factor",
    "auto",
    "--max-tokens",
    "4096",
    "--json",
];

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

    // When nothing is left to measure, the command shows the same figures and does not change the file.
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

#[test]
fn retrieval_is_a_seeded_grid_that_runs_in_parts() {
    let folder = tempfile::tempdir().unwrap();
    let args = [
        "retrieval",
        "--tasks",
        "passkey,multi-value",
        "--contexts",
        "512,640",
        "--rope-original-context",
        "512",
        "--depths",
        "0,1",
        "--modes",
        "none,yarn",
        "--trials",
        "2",
        "--json",
    ];
    let whole = json(&args);
    assert_eq!(whole["format"], "attn-retrieval/1");
    let schema = schema();
    validate(&whole["retrieval"], &schema["$defs"]["retrieval"], &schema, "$.retrieval");
    validate(&whole["settings"], &schema["$defs"]["settings"], &schema, "$.settings");
    let cells = whole["retrieval"]["cells"].as_array().unwrap();
    // Two depths of passkey and none of multi-value, which has as many trials; two modes, two contexts.
    assert_eq!(cells.len(), (2 + 1) * 2 * 2);
    assert_eq!(
        (&cells[2]["mode"], &cells[2]["context"], &cells[2]["depth"], &cells[2]["trials"]),
        (&"yarn".into(), &512.into(), &0.0.into(), &2.into())
    );
    let spread = cells.iter().find(|cell| cell["task"] == "multi-value").unwrap();
    assert_eq!((&spread["depth"], &spread["trials"], &spread["wanted"]), (&Value::Null, &4.into(), &16.into()));
    let tasks = whole["retrieval"]["tasks"].as_array().unwrap();
    assert!(tasks.iter().all(|task| task["reference"] == 512 && task["able"] == false), "{tasks:?}");
    let said = whole["verdict"].as_array().unwrap();
    let told = said.iter().filter(|line| line.as_str().unwrap().starts_with("passkey is not counted: at 512")).count();
    assert_eq!((told, said.len()), (1, 3), "{said:?}");

    let files = ["a.jsonl", "b.jsonl"].map(|name| folder.path().join(name));
    for (file, shard) in files.iter().zip(["1/2", "2/2"]) {
        json(&[&args[..], &["--run", path(file), "--shard", shard]].concat());
    }
    let (page, csv) = (folder.path().join("p.html"), folder.path().join("p.csv"));
    let files_out = ["--html", path(&page), "--csv", path(&csv)];
    let merged = json(&[&["merge", path(&files[0]), path(&files[1]), "--json"], &files_out[..]].concat());
    assert_eq!(figures(merged), figures(whole));
    let shown = std::fs::read_to_string(&page).unwrap();
    assert_eq!(shown.matches("class=\"heat\"").count(), 2 * 2 * (2 + 1) + 2 * 2);
    assert_eq!(std::fs::read_to_string(&csv).unwrap().lines().count(), 13);
    refused(&[&args[..], &["--run", path(&files[0]), "--shard", "1/2"], &files_out[..]].concat(), &["--shard"]);
    refused(&["merge", path(&files[0]), path(&files[1]), "--plot", "x.svg"], &["--plot", "retrieval"]);
    refused(&[&args[..], &["--run", path(&files[0]), "--trials", "3"]].concat(), &["cannot be used multiple times"]);
    refused(&["compare", "--run", path(&files[0]), "--contexts", "512"], &["attn retrieval"]);
    let other = [&args[..1], &args[3..], &["--tasks", "passkey", "--run", path(&files[0])]].concat();
    refused(&other, &["--tasks: [\"passkey\",\"multi-value\"], not [\"passkey\"]"]);
    refused(&["retrieval", "--tasks", "needle"], &["needle", "single-key"]);
}

/// `attn passkey` measures only the pass key, here in a text of the user's. Contexts that do not fit are left out, and the
/// others are measured.
#[test]
fn one_context_that_can_not_be_measured_does_not_fail_the_others() {
    let (_keep, plain, _) = texts();
    let text = ["passkey", "--modes", "none", "--trials", "1", "--haystack", path(&plain)];
    let output = attn(&[&text[..], &["--contexts", "512"]].concat()).env("COLUMNS", "40").output().unwrap();
    let map = String::from_utf8(output.stdout).unwrap();
    assert!(map.lines().all(|line| line.chars().count() <= 40), "{map}");
    assert!(map.contains("depth  50%") && map.contains("haystack"), "{map}");
    // The trained length is measured too: it says what the model can do.
    assert!(map.contains("    256    512") && map.contains("passkey is not counted"), "{map}");
    let few = [&text[..], &["--depths", "0.5", "--contexts", "64,384,65536"]].concat();
    let output = run(&[&few[..], &["--json"]].concat());
    let warnings = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && warnings.lines().count() == 2, "{warnings}");
    let long = "warning: 65536 tokens of passkey are left out: ";
    assert!(warnings.contains(long) && warnings.contains("plain.txt has"), "{warnings}");
    assert!(warnings.contains("64 tokens of passkey are left out: a context of"), "{warnings}");
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["retrieval"]["contexts"], serde_json::json!([384]));
    assert_eq!(document["settings"]["retrieval"]["skipped"][1]["context"], 65536);
    // A context for which the machine has no memory is left out.
    let huge = [&text[..5], &["--depths", "0.5", "--contexts", "256,100000000"]].concat();
    let output = run(&huge);
    let warnings = String::from_utf8(output.stderr).unwrap();
    if cfg!(target_os = "linux") {
        assert!(output.status.success() && warnings.contains("100000000 tokens are left out: "), "{warnings}");
        assert!(warnings.contains("of memory in addition to the weights"), "{warnings}");
    }
    refused(&["passkey", "--contexts", "256", "--csv", "-"], &["not a file", "--json"]);
    refused(&["passkey", "--contexts", "64"], &["nothing can be measured", "a context of", "too short"]);
    let long =
        ["retrieval", "--contexts", "65536,131072", "--rope-original-context", "65536", "--haystack", path(&plain)];
    refused(&long, &["nothing can be measured", "plain.txt has", "131072 tokens of multi-value"]);
}

/// A comparison leaves out what does not fit as retrieval does, and names it in every form of its report.
#[test]
fn one_context_that_does_not_fit_does_not_fail_a_comparison() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("page.html");
    let args = ["compare", "--modes", "none,yarn", "--max-tokens", "2048"];
    let some = ["--contexts", "256,512,65536", "--json", "--html", path(&page)];
    let output = run(&[&args[..], &some].concat());
    let warnings = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{warnings}");
    let reason = "65536 tokens of perplexity are left out: embedded sample: the text has 2048 tokens";
    assert!(warnings.contains(&format!("warning: {reason}")) && warnings.contains("--factor"), "{warnings}");
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    check_schema(&document);
    let skipped = &document["settings"]["skipped"];
    assert!(skipped.as_array().unwrap().len() == 1 && skipped[0]["context"] == 65536, "{skipped}");
    let cells = document["cells"].as_array().unwrap();
    let at: Vec<(u64, f64)> = cells
        .iter()
        .filter(|cell| cell["mode"] == "yarn")
        .map(|cell| (cell["context"].as_u64().unwrap(), cell["factor"].as_f64().unwrap()))
        .collect();
    assert_eq!(at, [(256, 256.0), (512, 256.0)]);
    assert!(fs::read_to_string(&page).unwrap().contains(reason));

    // Each task measures the contexts that it can: the sentences in which keys are hidden are repeated to any length.
    let both = ["--contexts", "256,4096", "--tasks", "ppl,passkey", "--trials", "1", "--depths", "0.5", "--json"];
    let output = run(&[&args[..], &both].concat());
    let warnings = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && warnings.contains("4096 tokens of perplexity are left out"), "{warnings}");
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    check_schema(&document);
    assert_eq!(document["retrieval"]["contexts"], serde_json::json!([256, 4096]));

    // A context without enough memory is left out; a text too short for every context is an error.
    let huge = run(&[&args[..], &["--contexts", "256,100000000", "--usable"]].concat());
    let warnings = String::from_utf8(huge.stderr).unwrap();
    assert!(huge.status.success() && warnings.matches("are left out").count() == 1, "{warnings}");
    if cfg!(target_os = "linux") {
        assert!(warnings.contains("of memory in addition to the weights"), "{warnings}");
    }
    let none = ["--contexts", "4096,8192", "--factor", "2"];
    refused(&[&args[..], &none].concat(), &["nothing can be measured", "4096 tokens", "8192 tokens", "too few"]);
}

/// Retrieval and perplexity in one run file, with bisection for usable lengths; the run is continued and shown again.
#[test]
fn perplexity_and_retrieval_end_in_one_document() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.jsonl");
    let args = [
        "compare",
        "--tasks",
        "ppl,passkey",
        "--usable",
        "--contexts",
        "256,1024",
        "--modes",
        "none,yarn",
        "--depths",
        "0.5",
        "--trials",
        "2",
        "--max-tokens",
        "4096",
        "--json",
    ];
    let whole = json(&args);
    check_schema(&whole);
    assert_eq!(whole["retrieval"]["cells"].as_array().unwrap().len(), 4);
    // "none" breaks between 256 and 1024, and four measurements find out where to a sixteenth of that.
    let usable = &whole["recommendation"]["usable"][0];
    let length = usable["perplexity"].as_u64().unwrap();
    assert!((256..1024).contains(&length) && (length - 256).is_multiple_of(48), "{usable}");
    let between = whole["between"].as_array().unwrap();
    let at: Vec<u64> =
        between.iter().filter(|cell| cell["mode"] == "none").map(|cell| cell["context"].as_u64().unwrap()).collect();
    assert!(at.len() == 4 && at.iter().all(|length| (length - 256).is_multiple_of(48)), "{at:?}");
    // tiny-austen finds no pass keys, so the report says that retrieval shows nothing.
    assert!(usable.get("retrieval").is_none() && whole["recommendation"].get("retrieval").is_none());
    let told = |document: &Value| document["verdict"].to_string().matches("passkey is not counted").count();
    assert_eq!(told(&whole), 1);

    let run_args = [&args[..], &["--run", path(&file)]].concat();
    assert_eq!(figures(json(&run_args)), figures(whole.clone()));
    let before = fs::read(&file).unwrap();
    let page = folder.path().join("page.html");
    let again = [&["compare", "--run", path(&file), "--json"], &["--html", path(&page)][..]].concat();
    assert_eq!(figures(json(&again)), figures(whole.clone()));
    assert!(fs::read(&file).unwrap() == before, "nothing is measured again");
    // `applied` needs the model, which `merge` does not have.
    let mut without = figures(whole.clone());
    without["recommendation"].as_object_mut().unwrap().remove("applied");
    assert_eq!(figures(json(&["merge", path(&file), "--json"])), without);
    let saved = folder.path().join("saved.json");
    fs::write(&saved, whole.to_string()).unwrap();
    let shown = String::from_utf8(run(&["compare", "--from", path(&saved)]).stdout).unwrap();
    assert!(shown.contains("usable to") && shown.contains("% found") && shown.contains("not counted"), "{shown}");
    assert!(fs::read_to_string(&page).unwrap().contains("id=\"found-0\""));
    let seed = [&run_args[..], &["--seed", "3"]].concat();
    refused(&seed, &["--seed"]);
    refused(&[&args[..3], &["--usable", "--run", "x", "--shard", "1/2"]].concat(), &["--usable", "--shard"]);
    refused(&["compare", "--tasks", "retrieval"], &["add ppl"]);
    refused(&["compare", "--usable", "--factor", "auto"], &["--factor auto"]);
    refused(&["compare", "--tasks", "ppl,needles"], &["needles", "multi-key", "ppl"]);
    // Shards of both kinds of cells.
    let files = ["a.jsonl", "b.jsonl"].map(|name| folder.path().join(name));
    let plain: Vec<&str> = args.iter().copied().filter(|arg| *arg != "--usable").collect();
    for (file, shard) in files.iter().zip(["1/2", "2/2"]) {
        json(&[&plain[..], &["--run", path(file), "--shard", shard]].concat());
    }
    let merged = json(&["merge", path(&files[0]), path(&files[1]), "--json"]);
    check_schema(&merged);
    let mut without = figures(json(&plain));
    without["recommendation"].as_object_mut().unwrap().remove("applied");
    assert_eq!(figures(merged), without);
}

#[test]
fn a_search_is_judged_on_windows_it_was_not_chosen_on() {
    let args = ["compare", "--contexts", "512", "--search", "--search-budget", "6", "--max-tokens", "6144"];
    let modes = ["--modes", "none,linear,dynamic,yarn"];
    let document = json(&[&args[..], &modes, &["--json"]].concat());
    check_schema(&document);
    let search = &document["search"];
    let spans = |key: &str| -> Vec<(u64, u64)> {
        let spans = search[key].as_array().unwrap().iter();
        spans.map(|span| (span["from"].as_u64().unwrap(), span["to"].as_u64().unwrap())).collect()
    };
    let (choosing, confirming) = (spans("choosing_windows"), spans("confirming_windows"));
    assert_eq!((choosing.len(), confirming.len()), (6, 6));
    assert!(choosing.iter().all(|a| confirming.iter().all(|b| a.1 <= b.0 || b.1 <= a.0)));
    assert_eq!(search["candidates"].as_array().unwrap().len(), 4 + 6);
    assert_eq!(search["winner"]["cell"]["windows"], 6);
    // The flags select the very scaling: measured by itself on the whole text, some window has its figures.
    let flags: Vec<&str> = search["winner"]["flags"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let alone = json(&[&["perplexity", "--context", "512", "--max-tokens", "6144", "--json"], &flags[..]].concat());
    assert!(alone["perplexity"].as_f64().unwrap() > 1.0);
    refused(&["compare", "--search"], &["--contexts"]);
    refused(&[&args[..], &["--max-tokens", "2048"]].concat(), &["cannot be used multiple times"]);
    refused(&["compare", "--contexts", "512", "--search", "--max-tokens", "2048"], &["8 windows", "there are 4"]);
}

/// Rows of ids as a file for `attn logits`.
fn ids(folder: &Path) -> PathBuf {
    let file = folder.join("ids.json");
    let row: Vec<u32> = (0..48).map(|i| i * 7 % 90).collect();
    fs::write(&file, serde_json::to_string(&[row]).unwrap()).unwrap();
    file
}

#[test]
fn an_export_computes_bit_for_bit_what_the_options_do() {
    let golden = repository().join("tests/golden/models");
    let folder = tempfile::tempdir().unwrap();
    let (ids, options_out, export_out) = (ids(folder.path()), folder.path().join("a"), folder.path().join("b"));
    let scalings: [&[&str]; 9] = [
        &["--rope-scaling", "none"],
        &["--rope-scaling", "linear", "--rope-factor", "2"],
        &["--rope-scaling", "ntk", "--rope-factor", "2"],
        &["--rope-scaling", "dynamic", "--rope-factor", "2", "--rope-original-context", "16"],
        &["--rope-scaling", "ntk-by-parts", "--rope-factor", "2", "--rope-original-context", "16"],
        &[
            "--rope-scaling",
            "yarn",
            "--rope-factor",
            "4",
            "--rope-param",
            "beta_fast=8",
            "--rope-param",
            "attention_factor=1.2",
        ],
        &["--rope-scaling", "llama3", "--rope-factor", "2", "--rope-theta", "20000"],
        &[],
        &["--rope-scaling", "ntk-mixed", "--rope-factor", "4", "--rope-param", "exponent=0.75"],
    ];
    for model in ["llama", "llama-v4-config", "qwen2", "phi", "gpt-neox", "phi3-longrope", "gemma3"] {
        for (index, scaling) in scalings.iter().enumerate() {
            // transformers' Phi-3 knows only longrope and other bases.
            if model == "phi3-longrope" && ![0, 2, 7].contains(&index) {
                continue;
            }
            let source = golden.join(model);
            let out = folder.path().join(format!("{model}-{index}"));
            let report = json(&[&["export", path(&source), "--out", path(&out), "--json"], *scaling].concat());
            assert!(report["files"].as_array().unwrap().contains(&"model.safetensors".into()), "{report}");
            let args = ["logits", "--ids", path(&ids), "--out"];
            let first = run(&[&args[..], &[path(&options_out), path(&source)], *scaling].concat());
            let second = run(&[&args[..], &[path(&export_out), path(&out)]].concat());
            assert!(first.status.success() && second.status.success(), "{}", String::from_utf8_lossy(&second.stderr));
            let same = fs::read(&options_out).unwrap() == fs::read(&export_out).unwrap();
            assert!(same, "{model} {scaling:?}: {report}");
            let config: Value = serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
            // transformers' class takes the base from nowhere else if there is a `rope_scaling`.
            assert!(model != "gpt-neox" || config["rotary_emb_base"] == config["rope_theta"], "{config}");
        }
    }
}

/// A model without rotation is without scaling as it stands; what would scale it is refused.
#[test]
fn no_scaling_can_be_asked_of_models_without_rotation() {
    let cut = ["--contexts", "128,256", "--max-tokens", "1024", "--json"];
    for model in ["tiny-alibi", "tiny-learned"] {
        let compared = json(&[&["compare", model, "--modes", "none"][..], &cut].concat());
        let perplexity = |context: usize, scaling: &[&str]| {
            let context = context.to_string();
            let cut = ["perplexity", model, "--context", &context, "--max-tokens", "1024", "--json"];
            json(&[&cut[..], scaling].concat())["perplexity"].clone()
        };
        for (i, context) in [128, 256].into_iter().enumerate() {
            assert_eq!(compared["cells"][i]["perplexity"], perplexity(context, &[]), "{model} at {context}");
            assert_eq!(perplexity(context, &["--rope-scaling", "none"]), perplexity(context, &[]));
        }
        refused(&[&["compare", model, "--modes", "none,yarn"][..], &cut].concat(), &["yarn", "no rotary"]);
        refused(&["perplexity", model, "--rope-scaling", "none", "--rope-theta", "1e5"], &["no rotary"]);
    }
}

#[test]
fn an_export_is_refused_where_a_config_cannot_say_it() {
    let golden = repository().join("tests/golden/models");
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let model = |name: &str| golden.join(name).display().to_string();
    let yarn = ["--rope-scaling", "yarn", "--rope-factor", "2"];
    let words = ["not supported for phi3, only longrope"];
    refused(&[&["export", &model("phi3-longrope"), "--out", path(&out)], &yarn[..]].concat(), &words);
    for scaling in ["yarn", "ntk"] {
        let options = ["--rope-scaling", scaling, "--rope-factor", "2"];
        let words = ["can't express", scaling];
        refused(&[&["export", &model("gptj-interleaved"), "--out", path(&out)], &options[..]].concat(), &words);
    }
    refused(&["export", &model("bloom"), "--out", path(&out)], &["no rotary"]);
    assert!(!out.exists(), "nothing is written");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("x"), "x").unwrap();
    refused(&["export", &model("llama"), "--out", path(&out)], &["not an empty folder"]);
    // If a program would compute something else, a comment that says so is printed instead of options.
    let dynamic = ["export", "--rope-scaling", "dynamic", "--rope-factor", "2"];
    let text = String::from_utf8(run(&dynamic).stdout).unwrap();
    assert!(text.matches("# no equivalent options").count() == 2 && !text.contains("vllm serve"), "{text}");
    // Gemma 3: the scaling applies to the layers with full attention, the others keep their own.
    let gemma = json(&[&["export", &model("gemma3"), "--json"], &yarn[..]].concat());
    let types = &gemma["rope_parameters"];
    assert_eq!(
        (&types["full_attention"]["rope_type"], &types["sliding_attention"]["rope_type"]),
        (&"yarn".into(), &"default".into())
    );
    assert!(gemma["llama_cpp"].as_str().unwrap().starts_with("# no equivalent options"), "{gemma}");
    // Without a folder only the options are printed. The embedded model can be exported too.
    let text = String::from_utf8(run(&[&["export"], &yarn[..]].concat()).stdout).unwrap();
    assert!(text.contains("--hf-overrides") && text.contains("--yarn-orig-ctx 256"), "{text}");
    let embedded = folder.path().join("embedded");
    json(&[&["export", "--out", path(&embedded), "--json"], &yarn[..]].concat());
    let config: Value = serde_json::from_slice(&fs::read(embedded.join("config.json")).unwrap()).unwrap();
    assert_eq!((&config["rope_scaling"]["factor"], &config["rope_theta"]), (&2.0.into(), &10000.0.into()));
    assert_eq!(
        (&config["rope_parameters"]["rope_theta"], &config["max_position_embeddings"]),
        (&10000.0.into(), &512.into())
    );
    json(&["perplexity", path(&embedded), "--context", "256", "--max-tokens", "512", "--json"]);
}

/// An export that fails half-way, as on a full disk, leaves no folder, and the same command does it afterwards.
#[cfg(target_os = "linux")]
#[test]
fn an_export_is_whole_or_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("model");
    let args = ["export", "--rope-scaling", "yarn", "--rope-factor", "2", "--out", path(&out)];
    for empty in [false, true] {
        if empty {
            fs::create_dir(&out).unwrap();
        }
        // The limit is in blocks of 512 bytes: enough for the tokenizer, not for the weights. Exceeding it is an error of the
        // write if the signal is ignored, and otherwise kills the process.
        for trap in ["trap '' XFSZ;", ""] {
            let script = format!("{trap} ulimit -f 1000; exec \"$0\" \"$@\"");
            let limited =
                std::process::Command::new("sh").args(["-c", &script, common::ATTN]).args(args).output().unwrap();
            assert!(!limited.status.success());
            assert!(!out.join("config.json").exists() && !out.join("model.safetensors").exists());
            assert_eq!(out.exists(), empty);
        }
        let done = attn(&args).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let names = || fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>();
        assert_eq!(names(), ["model"]);
        assert!(out.join("config.json").exists() && out.join("model.safetensors").exists());
        fs::remove_dir_all(&out).unwrap();
    }
}
