//! The program as a user runs it: what it prints, what it refuses, and which files it leaves.

mod common;

use common::{attn, json, path, repository, run};
use serde_json::Value;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("stdout is UTF-8")
}

/// The one line on stderr of a command that has to fail with `code`, print nothing, and say each of `parts`.
fn refused(args: &[&str], code: i32, parts: &[&str]) -> String {
    check_refused(&run(args), args, code, parts)
}

fn check_refused(output: &Output, args: &[&str], code: i32, parts: &[&str]) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?} printed {:?}", stdout(output));
    assert_eq!(stderr.trim_end().lines().count(), 1, "{args:?}: {stderr}");
    assert!(stderr.starts_with("error: "), "{args:?}: {stderr}");
    for part in parts {
        assert!(stderr.contains(part), "{args:?} should say {part:?}: {stderr}");
    }
    stderr
}

fn golden(name: &str) -> PathBuf {
    repository().join("tests/golden").join(name)
}

/// A copy of a golden checkpoint that a test may spoil.
fn checkpoint(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for file in ["config.json", "model.safetensors"] {
        fs::copy(golden("models").join(name).join(file), folder.path().join(file)).expect("golden files");
    }
    folder
}

/// A file with these contents in a folder of its own.
fn file(name: &str, contents: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join(name);
    fs::write(&file, contents).expect("the file is written");
    (folder, file)
}

#[test]
fn help_and_version_are_no_failures() {
    for args in [&["--version"][..], &["--help"], &["compare", "--help"], &["logits", "-h"]] {
        let output = run(args);
        assert!(output.status.success() && !output.stdout.is_empty() && output.stderr.is_empty(), "{args:?}");
    }
    assert_eq!(run(&[]).status.code(), Some(2));
}

#[test]
fn wrong_usage_is_code_2_and_one_line() {
    refused(&["compare", "--modes", "none,yarm"], 2, &["yarm", "ntk-by-parts"]);
    refused(&["compare", "--rope-scaling", "yarn"], 2, &["--modes"]);
    refused(&["compare", "--contexts", "99999999999999999999"], 2, &["--contexts", "at most"]);
    refused(&["inspect", "--rope-scaling", "yarm"], 2, &["yarm", "dynamic"]);
    refused(&["inspect", "--device", "tpu"], 2, &["tpu", "cuda:N"]);
    refused(&["generate", "-p", "x", "-n", "-2"], 2, &["-2"]);
    refused(&["generate", "-p", "x", "--temperature", "-1"], 2, &["'-1'", "at least 0"]);
    refused(&["generate"], 2, &["no prompt", "-p", "-f"]);
    refused(&["compere"], 2, &["compere"]);
    refused(&["compare", "--csv", "/no/such/folder/x.csv"], 2, &["/no/such/folder"]);
    refused(&["compare", "--plot", "x.png"], 2, &["svg"]);
    refused(&["inspect", "--threads", "1000000"], 2, &["1000000"]);
}

#[test]
fn text_that_does_not_fit_is_refused_with_its_numbers() {
    let short = ["perplexity", "--max-tokens", "100", "--context", "512"];
    refused(&short, 1, &["100 tokens", "512"]);
    refused(&["compare", "--max-tokens", "100", "--contexts", "512,1024"], 1, &["100 tokens", "512"]);
    refused(&["perplexity", "--context", "256", "--stride", "300"], 1, &["300", "256"]);
    refused(&["perplexity", "--context", "4000000000"], 1, &["4000000000"]);
    let (_keep, latin1) = file("latin1.txt", b"caf\xe9");
    refused(&["perplexity", "--text", path(&latin1)], 1, &["latin1.txt", "UTF-8", "byte 3"]);
    refused(&["perplexity", "--text", "/no/such.txt"], 1, &["/no/such.txt"]);
}

#[test]
fn broken_checkpoints_are_refused_by_name() {
    refused(&["inspect", "/no/such/model"], 1, &["/no/such/model"]);
    refused(&["inspect", "./model.gguf"], 1, &["./model.gguf"]);

    let missing = checkpoint("llama");
    fs::remove_file(missing.path().join("model.safetensors")).unwrap();
    refused(&["inspect", path(missing.path())], 1, &["model.safetensors"]);

    let short = checkpoint("llama");
    let weights = short.path().join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() - 100]).unwrap();
    refused(&["inspect", path(short.path())], 1, &["model.safetensors"]);

    let shape = checkpoint("llama");
    let config = shape.path().join("config.json");
    let text = fs::read_to_string(&config).unwrap().replace("\"intermediate_size\": 56", "\"intermediate_size\": 64");
    fs::write(&config, text).unwrap();
    refused(&["inspect", path(shape.path())], 1, &["mlp", "56", "64"]);

    let rope = checkpoint("llama");
    let config = rope.path().join("config.json");
    let text = fs::read_to_string(&config).unwrap().replace("\"default\"", "\"spiral\"");
    fs::write(&config, text).unwrap();
    refused(&["inspect", path(rope.path())], 1, &["spiral"]);
}

#[test]
fn a_hub_that_does_not_answer_is_one_line() {
    let home = tempfile::tempdir().unwrap();
    let args = ["inspect", "org/name"];
    let output = attn(&args)
        .env_remove("HF_HUB_OFFLINE")
        .env("HF_HOME", home.path())
        .env("HF_ENDPOINT", "http://127.0.0.1:9")
        .output()
        .unwrap();
    check_refused(&output, &args, 1, &["org/name"]);
    let offline = attn(&["inspect", "org/name", "--offline"]).env("HF_HOME", home.path()).output().unwrap();
    check_refused(&offline, &args, 1, &["org/name"]);
}

#[test]
fn perplexity_is_the_reference_and_its_json_one_cell() {
    let cell = json(&["perplexity", "--context", "256", "--max-tokens", "16384", "--json"]);
    let reference: Value = serde_json::from_slice(&fs::read(golden("tiny_austen_perplexity.json")).unwrap()).unwrap();
    let expected = reference["results"][0]["ppl"].as_f64().unwrap();
    let perplexity = cell["perplexity"].as_f64().unwrap();
    assert!((perplexity / expected - 1.0).abs() < 0.005, "{perplexity} {expected}");
    assert_eq!(cell["tokens"], 16320);
    assert_eq!((&cell["mode"], &cell["context"], &cell["stride"]), (&"none".into(), &256.into(), &256.into()));
    assert!(cell["stderr"].as_f64().unwrap() > 0.0 && cell["seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(cell["position_nll"].as_array().unwrap().len(), 8);
}

#[test]
fn compare_prints_json_and_writes_its_files_whole() {
    let folder = tempfile::tempdir().unwrap();
    let (csv, plot) = (folder.path().join("c.csv"), folder.path().join("p.svg"));
    let result = json(&[
        "compare",
        "--contexts",
        "256,512",
        "--modes",
        "none,dynamic,yarn",
        "--factor",
        "auto",
        "--max-tokens",
        "2048",
        "--json",
        "--csv",
        path(&csv),
        "--plot",
        path(&plot),
    ]);
    let cells = result["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 6);
    let keys: Vec<&String> = result.as_object().unwrap().keys().collect();
    assert!(["model", "text", "cells"].iter().all(|key| result.get(key).is_some()), "{keys:?}");
    assert_eq!(cells[0]["perplexity"], cells[2]["perplexity"]);
    assert_eq!(cells[2]["same_as"], "none");
    assert_eq!(
        (&cells[5]["mode"], &cells[5]["factor"], &cells[5]["tokens"]),
        (&"yarn".into(), &2.0.into(), &2044.into())
    );
    let none = cells[3]["perplexity"].as_f64().unwrap();
    assert!(cells[4]["perplexity"].as_f64().unwrap() < none * 0.9, "dynamic helps past the trained context");
    assert_eq!(fs::read_to_string(&csv).unwrap().lines().count(), 7);
    assert!(fs::read_to_string(&plot).unwrap().ends_with("</svg>\n"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "no temporary file is left");
}

/// A factor of 1 changes no frequencies, except those of `dynamic` past the trained context, which is measured.
#[test]
fn only_what_is_no_scaling_takes_the_figures_of_none() {
    let modes = "none,linear,ntk,dynamic,ntk-by-parts,yarn";
    let words = ["compare", "tiny-austen", "--modes", modes, "--factor", "1", "--contexts", "256,512"];
    let result = json(&[&words[..], &["--max-tokens", "1024", "--json"]].concat());
    for cell in result["cells"].as_array().unwrap() {
        let own = cell["mode"] == "none" || (cell["mode"] == "dynamic" && cell["context"] == 512);
        assert_eq!(cell.get("same_as").is_none_or(|same| same.is_null()), own, "{cell}");
    }
    let at = |mode: &str| {
        let mut cells = result["cells"].as_array().unwrap().iter();
        cells.find(|c| c["mode"] == mode && c["context"] == 512).unwrap()["perplexity"].as_f64().unwrap()
    };
    assert!(at("dynamic") < 0.95 * at("none"), "{} and {}", at("dynamic"), at("none"));
}

#[test]
fn the_table_keeps_to_narrow_terminals() {
    let args = ["compare", "--contexts", "256,512,1024", "--max-tokens", "1024", "--modes", "none,ntk-by-parts"];
    let output = attn(&args).env("COLUMNS", "40").output().unwrap();
    let text = stdout(&output);
    assert!(text.lines().all(|line| line.chars().count() <= 40), "{text}");
    assert!(text.contains("ntk-by-parts") && text.contains('*') && !text.contains('\x1b'), "{text}");
}

fn tensors(file: &Path) -> std::collections::HashMap<String, candle_core::Tensor> {
    candle_core::safetensors::load(file, &candle_core::Device::Cpu).expect("a safetensors file")
}

fn largest_difference(a: &candle_core::Tensor, b: &candle_core::Tensor) -> f32 {
    let difference = (a - b).unwrap().abs().unwrap().flatten_all().unwrap();
    difference.max(0).unwrap().to_scalar().unwrap()
}

#[test]
fn logits_are_the_reference_in_one_pass_and_token_by_token() {
    for name in ["llama", "llama-yarn", "mistral-window"] {
        let model = golden("models").join(name);
        let expected = tensors(&model.join("expected.safetensors"));
        let ids = expected["input_ids"].to_vec2::<i64>().unwrap();
        let (folder, all) = file("ids.json", serde_json::to_string(&ids).unwrap().as_bytes());
        let half: Vec<&[i64]> = ids.iter().map(|row| &row[..row.len() / 2]).collect();
        let first = folder.path().join("half.json");
        fs::write(&first, serde_json::to_string(&half).unwrap()).unwrap();
        let out = folder.path().join("out.safetensors");
        for decode in [false, true] {
            let mut args = vec!["logits", path(&model), "--ids", path(&all), "--out", path(&out)];
            args.extend(decode.then_some("--decode"));
            let output = run(&args);
            assert!(output.status.success() && output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
            let difference = largest_difference(&tensors(&out)["logits"], &expected["logits"]);
            assert!(difference < 1e-3, "{name} decode {decode}: {difference}");
        }
        run(&["logits", path(&model), "--ids", path(&first), "--out", path(&out), "--greedy", "16"]);
        let greedy = tensors(&out)["greedy"].to_vec2::<i64>().unwrap();
        assert_eq!(greedy, expected["greedy"].to_vec2::<i64>().unwrap(), "{name}");
    }
}

#[test]
fn ids_that_do_not_fit_leave_no_file() {
    let model = golden("models").join("gpt2");
    let long = serde_json::to_string(&[vec![5; 65]]).unwrap();
    for (ids, parts) in [
        ("[[1,2],[3]]", &["row 1", "ids.json"][..]),
        ("[[1,96]]", &["96", "vocabulary"]),
        ("[[1,-1]]", &["-1"]),
        ("[[1,", &["JSON"]),
        (&long, &["65", "32"]),
    ] {
        let (folder, ids) = file("ids.json", ids.as_bytes());
        let out = folder.path().join("out.safetensors");
        refused(&["logits", path(&model), "--ids", path(&ids), "--out", path(&out)], 1, parts);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "only the ids are there");
    }
}

#[test]
fn generated_text_streams_repeats_and_survives_a_reader_that_leaves() {
    let args = ["generate", "-p", "It was a truth", "-n", "24", "--temperature", "0.8", "--seed", "3"];
    let (first, second) = (run(&args), run(&args));
    assert!(first.status.success());
    assert!(!stdout(&first).trim().is_empty());
    assert_eq!(stdout(&first), stdout(&second), "a seed repeats");
    assert!(String::from_utf8_lossy(&first.stderr).contains("tokens/s"));

    let args = ["generate", "-p", "It was a truth", "-n", "200"];
    let mut child = attn(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let status = child.wait().unwrap();
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert!(status.success(), "{status}: {stderr}");
    assert!(!stderr.contains("panic") && !stderr.contains("error"), "{stderr}");
}

#[test]
fn inspect_tells_what_an_override_does() {
    let facts = json(&["inspect", "--json", "--rope-scaling", "yarn", "--rope-factor", "4"]);
    let position = &facts["position"][0];
    assert_eq!((&position["kind"], &position["rope_type"]), (&"rope".into(), &"yarn".into()));
    assert_eq!(position["layers"].as_array().unwrap().len(), 4);
    assert_eq!(position["inv_freq"].as_array().unwrap().len(), 16);
    assert!((position["attention_factor"].as_f64().unwrap() - 1.138629).abs() < 1e-6);
    assert_eq!(facts["kv_bytes_per_token"], 4 * 2 * 2 * 32 * 4);
    assert!(stdout(&run(&["inspect"])).contains("theta"));
}

#[test]
fn explain_needs_no_weights_and_fits_the_terminal() {
    let facts = json(&["explain", "--json", "--rope-scaling", "yarn", "--rope-factor", "4", "--length", "1024"]);
    let rope = &facts["position"][0]["effects"]["rope"];
    assert_eq!((&facts["length"], &facts["trained_context"]), (&1024.into(), &256.into()));
    assert_eq!(rope["pairs"].as_array().unwrap().len(), 16);
    assert_eq!(rope["scalings"][0]["name"], "configured");
    let scalings = rope["scalings"].as_array().unwrap();
    let yarn = scalings.iter().find(|scaling| scaling["name"] == "yarn").unwrap();
    assert_eq!(scalings[0]["divided_by"], yarn["divided_by"], "yarn by 4 is yarn by 4");

    let config = golden("models/llama/config.json");
    let shown = stdout(&attn(&["explain", path(&config)]).env("COLUMNS", "40").output().unwrap());
    assert!(shown.contains("Wavelengths"), "{shown}");
    assert!(shown.lines().all(|line| line.chars().count() <= 40 || line.contains("config.json")), "{shown}");

    let t5 = json(&["explain", path(&golden("models/t5")), "--json"]);
    let decoder = &t5["position"][0];
    assert_eq!((&decoder["stack"], &decoder["encoding"]["kind"]), (&"decoder".into(), &"t5".into()));
    assert!(decoder["effects"]["bias"]["values"][0].as_array().unwrap().len() > 10, "the table is read");

    refused(
        &["explain", path(&golden("models/gpt2")), "--rope-scaling", "yarn", "--rope-factor", "2"],
        1,
        &["gpt2", "rotary"],
    );
    refused(&["explain", "--length", "0"], 2, &["--length", "at least 1"]);
    let (_keep, broken) = file("config.json", b"{");
    refused(&["explain", path(&broken)], 1, &["config.json"]);
}

/// A family whose layers are unknown still has positions to explain, and says what it doesn't know.
#[test]
fn explain_says_what_it_can_of_a_family_it_does_not_know() {
    let config = r#"{"model_type": "unheard_of", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2,
        "max_position_embeddings": 128, "own_trick": true, "vocab_size": 8,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "attn_factor": 0.9, "original_max_position_embeddings": 32}}"#;
    let (_keep, known) = file("config.json", config.as_bytes());
    let facts = json(&["explain", path(&known), "--json"]);
    assert_eq!((&facts["family"], &facts["layers_known"]), (&"unheard_of".into(), &false.into()));
    let encoding = &facts["position"][0]["encoding"];
    assert_eq!((&encoding["rope_type"], &encoding["rotary_dim"]), (&"yarn".into(), &16.into()));
    let output = run(&["explain", path(&known)]);
    assert!(stdout(&output).contains("does not know the layers"), "{}", stdout(&output));
    let warned = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(warned.contains("attn_factor does nothing"), "{warned}");
    let (_keep, strange) = file("config.json", config.replace("yarn", "spiral").as_bytes());
    refused(&["explain", path(&strange)], 1, &["spiral"]);
    // A model that can be explained is not one that can be run.
    let folder = checkpoint("llama");
    fs::write(folder.path().join("config.json"), config).expect("the config is written");
    refused(&["inspect", path(folder.path())], 1, &["unheard_of"]);
}

/// Unknown keys inside a rope dictionary are treated as elsewhere, in commands that load weights and in those that don't.
#[test]
fn unknown_keys_are_refused_or_passed_over_in_every_command() {
    let folder = checkpoint("llama");
    let file = folder.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&file).expect("a config")).expect("JSON");
    config["rope_parameters"] = serde_json::json!({"rope_type": "linear", "factor": 2.0, "zeta": 1});
    fs::write(&file, config.to_string()).expect("the config is written");
    let model = path(folder.path());
    for command in [&["inspect", model][..], &["explain", model], &["export", model], &["bench", "model", model]] {
        refused(command, 1, &["zeta", "--allow-unknown-config-keys"]);
        let allowed = [command, &["--allow-unknown-config-keys"]].concat();
        if command[0] == "bench" {
            continue; // takes long; it loads the model as inspect does
        }
        let output = run(&allowed);
        let warned = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && warned.contains("zeta"), "{command:?}: {warned}");
    }
}

#[test]
fn quantised_weights_are_explained_and_not_loaded() {
    let folder = checkpoint("llama");
    let file = folder.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&file).expect("a config")).expect("JSON");
    config["quantization_config"] = serde_json::json!({"quant_method": "awq", "bits": 4});
    fs::write(&file, config.to_string()).expect("the config is written");
    assert_eq!(json(&["explain", path(&file), "--json"])["family"], "llama");
    refused(&["inspect", path(folder.path())], 1, &["quantization_config", "awq"]);
}

#[test]
fn bench_attention_checks_before_it_times() {
    for options in [&["--bias", "alibi"][..], &["--decode", "--bias", "relative"], &["--backward", "--bias", "dense"]] {
        let report = json(&[&["bench", "attention", "--seq", "160", "--runs", "2", "--json"], options].concat());
        let number = |key: &str| report[key].as_f64().unwrap_or_else(|| panic!("{options:?}: {key} in {report}"));
        assert!(number("error") < 4e-5 && number("checked_at") == 160.0, "{report}");
        assert!(number("median_ms") >= number("min_ms") && number("min_ms") > 0.0, "{report}");
        assert!(number("gflops") > 0.0 && number("peak_gflops") > 0.0, "{report}");
        assert_eq!(report["bandwidth_gb_per_s"].is_number(), options.contains(&"--decode"));
    }
    let plain = ["bench", "attention", "--seq", "256", "--window", "8", "--runs", "2", "--against", "plain"];
    let text = String::from_utf8(run(&plain).stdout).unwrap();
    let after = |what: &str| {
        let rest = text.split_once(what).unwrap_or_else(|| panic!("no {what:?} in {text}")).1;
        rest.split_whitespace().next().unwrap().parse::<f64>().unwrap()
    };
    let (own, other, said) = (after("time "), after("plain "), after("the call above is "));
    assert!((said - other / own).abs() < 0.02 + 0.01 * said, "{text}");
    let against = ["bench", "attention", "--seq", "64", "--dtype", "bf16", "--runs", "1", "--against", "candle"];
    let text = stdout(&run(&against));
    assert!(text.contains("reference") && text.contains("GFLOP/s") && text.contains("candle"), "{text}");
}

#[test]
fn bench_model_reports_speed_and_memory() {
    let args = ["bench", "model", "--prompt", "24", "--generate", "3", "--depth", "40", "--batch", "2", "--runs", "2"];
    let report = json(&[&args[..], &["--json"]].concat());
    assert!(report["prompt"]["tokens_per_second"].as_f64().unwrap() > 0.0, "{report}");
    assert_eq!((&report["generate"]["tokens"], &report["batch"]), (&3.into(), &2.into()));
    assert!(report["kv_bytes"].as_u64().unwrap() >= 2 * 64 * report["kv_bytes_per_token"].as_u64().unwrap());
    assert!(report["first_token_seconds"].is_null() && report["load_seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(report["peak_rss_bytes"].is_number(), cfg!(target_os = "linux"));
    let profiled = json(&["bench", "model", "--prompt", "24", "--generate", "2", "--runs", "1", "--json", "--profile"]);
    for kind in ["prompt", "generate"] {
        let rows = profiled[kind]["profile"].as_array().unwrap_or_else(|| panic!("{profiled}"));
        let share = |name: &str| rows.iter().find(|row| row["operation"] == name).and_then(|row| row["share"].as_f64());
        for name in ["matmul", "attention", "norm", "rotary", "element-wise", "cache", "head", "embedding", "other"] {
            assert!(share(name).is_some_and(|share| share > 0.0 && share < 1.0), "{kind}: {name} in {profiled}");
        }
        let sum: f64 = rows.iter().map(|row| row["share"].as_f64().unwrap()).sum();
        assert!((sum - 1.0).abs() < 1e-6, "{sum}");
    }
    let text = stdout(&run(&["bench", "model", "--prompt", "8", "--generate", "0", "--runs", "1"]));
    assert!(text.contains("first token") && !text.contains("generate"), "{text}");
}

#[test]
fn bench_refuses_what_it_cannot_measure() {
    refused(&["bench", "attention", "--heads", "3", "--kv-heads", "2"], 2, &["--heads 3", "--kv-heads 2"]);
    refused(&["bench", "attention", "--bias", "dense", "--seq", "4000000"], 2, &["memory"]);
    refused(&["bench", "attention", "--window", "8", "--against", "candle"], 2, &["--against"]);
    refused(&["bench", "attention", "--device", "cuda", "--against", "candle"], 2, &["--against", "CPU"]);
    refused(&["bench", "attention", "--device", "cuda", "--path", "avx2"], 2, &["--path avx2"]);
    refused(&["bench", "model", "--prompt", "0", "--generate", "0"], 2, &["--prompt"]);
    refused(&["bench", "model", "--depth", "4000000000"], 1, &["memory", "would fit"]);
}

/// The data inside a page.
fn embedded(page: &str) -> Value {
    let data = page.split("id=\"data\">").nth(1).unwrap().split("</script>").next().unwrap();
    serde_json::from_str(data).expect("a page's data are JSON")
}

/// Whether values are equal except for the last digit of numbers, which reading JSON may change.
fn near(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| near(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| near(a, b)))
        }
        (Value::Number(x), Value::Number(y)) => {
            let (x, y) = (x.as_f64().unwrap(), y.as_f64().unwrap());
            (x - y).abs() <= 1e-15 * x.abs()
        }
        _ => a == b,
    }
}

#[test]
fn a_report_is_the_json_in_another_form() {
    let text = fs::read(repository().join("models/sample.txt")).unwrap();
    let (folder, text) = file("<b>&'x.txt", &text);
    let [page, again, saved] = ["a.html", "b.html", "c.json"].map(|name| folder.path().join(name));
    let small = ["--contexts", "128,384", "--max-tokens", "2048", "--modes", "none,yarn", "--text", path(&text)];
    let args = [&["compare", "--json", "--html", path(&page)][..], &small].concat();
    let printed = stdout(&run(&args));
    fs::write(&saved, &printed).unwrap();
    let page = fs::read_to_string(&page).unwrap();
    assert!(page.contains("&lt;b&gt;&amp;&#39;x.txt") && !page.contains("<b>"), "names are escaped");
    let document: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(embedded(&page)["document"], document);

    let shown = stdout(&run(&["compare", "--from", path(&saved), "--html", path(&again)]));
    assert!(shown.contains("Beyond the trained length of 256 tokens"), "{shown}");
    let again: Value = embedded(&fs::read_to_string(&again).unwrap());
    assert!(near(&again["document"], &document), "shown again without measuring");
    refused(&["compare", "--from", path(&text)], 1, &["x.txt", "JSON"]);
    refused(&["compare", "--from", path(&saved), "--html", "/no/such/folder/x.html"], 2, &["/no/such/folder"]);
}

/// Names in a file are shown as what they are: they don't steer the terminal, and a long one is cut.
#[test]
fn names_from_files_are_spelled_out_and_cut() {
    let folder = checkpoint("llama");
    let weights = |name: &str| {
        let header = serde_json::json!({name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).to_string();
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 4]].concat();
        fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    };
    let model = path(folder.path());
    let key = "\u{1b}]52;c;cm0=\u{7}".to_string() + &"x".repeat(100_000);
    weights(&key);
    let mut config: Value = serde_json::from_slice(&fs::read(folder.path().join("config.json")).unwrap()).unwrap();
    config[&key] = 1.into();
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    for command in ["inspect", "explain"] {
        let args = [command, model];
        let output = run(&args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && stderr.contains("\\u{1b}]52;c;cm0=\\u{7}"), "{args:?}: {:.300}", stderr);
        assert!(
            stderr.len() < 20_000 && stderr.chars().all(|c| c == '\n' || !c.is_control()),
            "{args:?}: {:.300}",
            stderr
        );
    }
}
