//! Perplexity by the protocols of other programs, LongPPL and the divergence: compared with the figures of those
//! programs for the embedded model (scripts/reference/check_protocols.py --golden); and what the metrics show for
//! damaged models.

mod common;

use common::{json, path, repository, run};
use serde_json::Value;
use std::fs;

fn golden() -> Value {
    let file = repository().join("tests/golden/protocols.json");
    serde_json::from_slice(&fs::read(&file).expect("the golden file")).expect("it is JSON")
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn close(what: &str, mine: &Value, theirs: &Value) {
    let (mine, theirs) = (number(mine), number(theirs));
    assert!((mine / theirs - 1.0).abs() < 1e-4, "{what}: {mine}, not {theirs}");
}

/// `attn perplexity` of a text, as JSON.
fn perplexity(text: &str, name: &str, options: &[&str]) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(name);
    fs::write(&file, text).unwrap();
    json(&[&["perplexity", "--json", "--text", path(&file)], options].concat())
}

#[test]
fn the_strided_recipe_is_that_of_transformers() {
    let golden = golden();
    for case in golden["stride"].as_array().unwrap() {
        let (context, stride) = (case["context"].to_string(), case["stride"].to_string());
        let options = ["--protocol", "stride", "--context", &context, "--stride", &stride];
        let mine = perplexity(golden["text"].as_str().unwrap(), "text.txt", &options);
        assert_eq!((&mine["protocol"], &mine["last_quarter_perplexity"]), (&"stride".into(), &Value::Null));
        close(&format!("{context} every {stride}"), &mine["perplexity"], &case["perplexity"]);
    }
}

#[test]
fn the_rolling_likelihood_is_that_of_lm_evaluation_harness() {
    for case in golden()["lm-eval"].as_array().unwrap() {
        let documents = case["documents"].as_array().unwrap();
        let context = case["context"].to_string();
        let options = ["--protocol", "lm-eval", "--context", &context];
        let mine = match documents.as_slice() {
            [whole] => perplexity(whole.as_str().unwrap(), "text.txt", &options),
            several => {
                let lines: String =
                    several.iter().map(|text| format!("{}\n", serde_json::json!({"text": text}))).collect();
                perplexity(&lines, "text.jsonl", &options)
            }
        };
        assert_eq!((&mine["words"], &mine["bytes"]), (&case["words"], &case["bytes"]));
        for key in ["word_perplexity", "byte_perplexity", "bits_per_byte"] {
            close(&format!("{context} {key}"), &mine[key], &case[key]);
        }
    }
}

#[test]
fn longppl_is_that_of_the_package() {
    for case in golden()["longppl"].as_array().unwrap() {
        let [tokens, trunc_len, window] = ["tokens", "trunc_len", "sliding_window"].map(|key| case[key].to_string());
        let options =
            ["--metrics", "longppl", "--context", &tokens, "--trunc-len", &trunc_len, "--sliding-window", &window];
        let mine = perplexity(case["text"].as_str().unwrap(), "text.txt", &options);
        assert_eq!(mine["longppl"]["tokens"], case["key_tokens"], "{tokens} {trunc_len} {window}");
        assert!(number(&mine["longppl"]["tokens"]) > 0.0);
        close("longppl", &mine["longppl"]["value"], &case["longppl"]);
        close("perplexity", &mine["perplexity"], &case["perplexity"]);
    }
}

#[test]
fn what_a_protocol_has_no_counterpart_for_is_refused() {
    for (options, part) in [
        (&["--protocol", "llama.cpp", "--stride", "64"][..], "--stride"),
        (&["--protocol", "lm-eval", "--max-tokens", "64"], "--max-tokens"),
        (&["--protocol", "llama.cpp", "--metrics", "ppl,kl"], "--metrics"),
        (&["--protocol", "llama"], "llama.cpp, stride, lm-eval, all"),
        (&["--trunc-len", "64"], "--metrics longppl"),
        (&["--metrics", "longppl", "--context", "128", "--trunc-len", "128"], "trunc_len"),
        (&["--metrics", "bleu"], "ppl, longppl, kl"),
    ] {
        let output = run(&[&["perplexity"], options].concat());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && stderr.contains(part), "{options:?}: {stderr}");
        assert_eq!(stderr.trim_end().lines().count(), 1, "{options:?}: {stderr}");
    }
    // Only the second half of each window is scored, and windows do not overlap.
    let llama = json(&["perplexity", "--json", "--protocol", "llama.cpp", "--context", "128", "--max-tokens", "1000"]);
    assert_eq!((&llama["windows"], &llama["tokens"]), (&7.into(), &(7 * 63).into()));
}

/// Interval of a metric of a mode.
fn ends(cells: &Value, mode: &str, context: u64, metric: &str) -> (f64, f64) {
    let cells = cells["cells"].as_array().unwrap();
    let cell = cells.iter().find(|cell| cell["mode"] == mode && cell["context"] == context).unwrap();
    (number(&cell[metric]["interval"]["low"]), number(&cell[metric]["interval"]["high"]))
}

#[test]
fn a_model_that_sees_little_stands_apart() {
    let folder = tempfile::tempdir().unwrap();
    let (run_file, csv, html) =
        (folder.path().join("run.jsonl"), folder.path().join("c.csv"), folder.path().join("c.html"));
    let args = [
        &["compare", "--json", "--contexts", "256,512", "--modes", "none,yarn,window:window=8", "--max-tokens", "8192"]
            [..],
        &[
            "--metrics",
            "ppl,longppl,kl",
            "--trunc-len",
            "8",
            "--sliding-window",
            "4",
            "--run",
            path(&run_file),
            "--csv",
            path(&csv),
            "--html",
            path(&html),
        ],
    ]
    .concat();
    let first = json(&args);
    // Within the trained length the reference is the model as it is.
    assert_eq!(ends(&first, "none", 256, "kl"), (0.0, 0.0));
    for metric in ["longppl", "kl"] {
        let (whole, cut) = (ends(&first, "none", 256, metric), ends(&first, "window:window=8", 256, metric));
        assert!(whole.1 < cut.0, "{metric}: {whole:?} and {cut:?}");
        let pair = first["differences"]
            .as_array()
            .unwrap()
            .iter()
            .find(|pair| pair["mode"] == "none" && pair["versus"] == "window:window=8" && pair["context"] == 256);
        assert!(number(&pair.unwrap()[metric]["interval"]["high"]) < 0.0, "{metric}: {pair:?}");
    }
    // Past the trained length the reference reads only the nearer text, and `none` differs from it more than `yarn` does.
    assert!(ends(&first, "none", 512, "kl").0 > ends(&first, "yarn", 512, "kl").1);
    // Continuing from the run file gives the same figures to the last digit.
    assert_eq!(json(&args)["cells"], first["cells"]);
    let text = fs::read_to_string(&csv).unwrap();
    assert!(text.lines().next().unwrap().ends_with(",longppl,longppl_low,longppl_high,key_tokens,kl,kl_low,kl_high"));
    assert!(fs::read_to_string(&html).unwrap().contains("key tokens"));
    let merged = json(&["merge", path(&run_file), "--json"]);
    assert_eq!(merged["cells"], first["cells"]);
    // With other metrics the run file is refused.
    let other: Vec<&str> = args.iter().map(|arg| if *arg == "8" { "16" } else { arg }).collect();
    let output = run(&other);
    assert!(String::from_utf8_lossy(&output.stderr).contains("another --metrics"), "{output:?}");
}

/// The figures of `attn perplexity --metrics` are those of `attn compare`.
#[test]
fn one_setting_alone_has_the_same_figures() {
    let common =
        ["--json", "--max-tokens", "4096", "--metrics", "longppl,kl", "--trunc-len", "8", "--sliding-window", "8"];
    let yarn = ["--rope-scaling", "yarn", "--rope-factor", "2", "--context", "512"];
    let alone = json(&[&["perplexity"], &common[..], &yarn].concat());
    let all = json(&[&["compare", "--contexts", "512", "--factor", "2", "--modes", "yarn"], &common[..]].concat());
    for key in ["longppl", "kl", "perplexity", "nll"] {
        assert_eq!(alone[key], all["cells"][0][key], "{key}");
    }
    assert_eq!(alone["metrics"], all["settings"]["metrics"]);
}

#[test]
fn a_search_takes_either_metric_for_its_objective() {
    for objective in ["longppl", "kl"] {
        let found = json(
            &[
                &["compare", "--contexts", "512", "--search", "--search-budget", "6", "--modes", "none,yarn", "--json"]
                    [..],
                &["--max-tokens", "8192", "--objective", objective, "--metrics", "ppl,longppl", "--trunc-len", "8"],
            ]
            .concat(),
        );
        let search = &found["search"];
        assert_eq!(search["objective"], objective);
        let of = |cell: &Value| number(&cell[objective]["value"]);
        let difference = number(&search["difference"][objective]["nll"]);
        let (winner, stock) = (of(&search["winner"]["cell"]), of(&search["stock"]));
        let wanted = if objective == "kl" { winner - stock } else { (winner / stock).ln() };
        assert!((difference - wanted).abs() < 1e-9, "{objective}: {difference} {wanted}");
        // Here `yarn` is better than `none` by both objectives.
        let nll = |mode: &str| {
            let tried = search["candidates"].as_array().unwrap();
            number(&tried.iter().find(|tried| tried["mode"] == mode).unwrap()["nll"])
        };
        assert!(nll("yarn") < nll("none"), "{objective}");
    }
    let refused = run(&["compare", "--contexts", "512", "--objective", "kl"]);
    assert!(!refused.status.success());
}
