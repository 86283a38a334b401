//! `--cache-type-k` and `--cache-type-v`, tested as a user runs them.

mod common;

use common::{json, path, run};

const TYPES: [&str; 5] = ["f32", "f16", "bf16", "q8_0", "q4_0"];

fn refused(args: &[&str], code: i32, parts: &[&str]) {
    let output = run(args);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    assert!(parts.iter().all(|part| stderr.contains(part)), "{args:?} should say {parts:?}: {stderr}");
}

/// Scoring goes through the cache, so that the cost of its types is measured; keys and values each have their own type.
#[test]
fn perplexity_is_that_of_the_cache() {
    let measured = |more: &[&str]| {
        let cell = json(&[&["perplexity", "--context", "128", "--max-tokens", "1024", "--json"], more].concat());
        (cell["perplexity"].as_f64().unwrap(), cell)
    };
    let (exact, plain) = measured(&[]);
    assert!(plain.get("cache_type_k").is_none() && plain.get("cache_type_v").is_none(), "{plain}");
    for kind in TYPES {
        let (keys, cell) = measured(&["--cache-type-k", kind]);
        assert_eq!((&cell["cache_type_k"], cell.get("cache_type_v")), (&kind.into(), None));
        let (values, _) = measured(&["-ctv", kind]);
        let (both, cell) = measured(&["-ctk", kind, "-ctv", kind]);
        assert_eq!(cell["cache_type_v"], kind);
        let most = if kind == "q4_0" { 0.1 } else { 0.01 };
        for cost in [keys, values, both].map(|perplexity| (perplexity / exact - 1.0).abs()) {
            assert_eq!(cost == 0.0, kind == "f32", "{kind}: {cost:e}");
            assert!(cost < most, "{kind}: {cost:e}");
        }
        assert!(kind == "f32" || keys != values && values != both, "{kind}: keys and values are not the same");
    }
}

/// `compare` and `perplexity` measure the same under a cache type, and a run file can be continued only with its types.
#[test]
fn comparisons_say_their_types_and_keep_to_them() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.jsonl");
    let compare = ["compare", "--contexts", "128", "--modes", "none", "--max-tokens", "1024", "--json"];
    let with = |more: &[&'static str]| [&compare[..], more, &["--run", path(&file)]].concat();
    let results = json(&with(&["-ctk", "q8_0", "-ctv", "q4_0"]));
    let settings = &results["settings"];
    assert_eq!((&settings["cache_type_k"], &settings["cache_type_v"]), (&"q8_0".into(), &"q4_0".into()));
    let alone = ["perplexity", "--context", "128", "--max-tokens", "1024", "--json", "-ctk", "q8_0", "-ctv", "q4_0"];
    let cells = results["cells"].as_array().unwrap();
    let own = cells.iter().find(|cell| cell["context"] == 128 && cell["mode"] == "none").unwrap();
    assert_eq!(own["perplexity"], json(&alone)["perplexity"]);
    // With another type or with none the run is refused; without further options it continues with its own types.
    refused(&with(&["-ctk", "q8_0", "-ctv", "f16"]), 1, &["--cache-type-v", "q4_0", "f16"]);
    refused(&with(&[]), 1, &["--cache-type-k", "q8_0", "absent"]);
    let again = json(&["compare", "--run", path(&file), "--json"]);
    assert_eq!(again["settings"], *settings);
}

#[test]
fn a_text_goes_on_under_every_type() {
    let text = |kind: &str| {
        let args = ["generate", "-p", "It was a truth", "-n", "12", "--temperature", "0", "-ctk", kind, "-ctv", kind];
        let output = run(&args);
        assert!(output.status.success(), "{kind}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let plain = text("f32");
    assert_eq!(text("f16"), plain, "half precision does not change the likeliest word so soon");
    assert!(TYPES.into_iter().all(|kind| text(kind).len() > 10));
}

#[test]
fn memory_is_that_of_the_types() {
    // The model has four layers with two kv heads of 32 numbers.
    for (k, v, bytes) in [("q8_0", "q4_0", 34 + 18), ("f16", "f32", 64 + 128), ("bf16", "q8_0", 64 + 34)] {
        let facts = json(&["inspect", "--json", "--cache-type-k", k, "--cache-type-v", v]);
        assert_eq!(facts["kv_bytes_per_token"], 4 * 2 * bytes);
        assert_eq!((&facts["cache_type_k"], &facts["cache_type_v"]), (&k.into(), &v.into()));
        let report = json(&[
            "bench",
            "model",
            "--prompt",
            "40",
            "--generate",
            "0",
            "--runs",
            "1",
            "--json",
            "-ctk",
            k,
            "-ctv",
            v,
        ]);
        assert_eq!(report["kv_bytes"], 40 * 4 * 2 * bytes);
        assert_eq!((&report["cache_type_k"], &report["kv_bytes_per_token"]), (&k.into(), &(4 * 2 * bytes).into()));
    }
    assert_eq!(json(&["inspect", "--json", "--dtype", "bf16"])["cache_type_v"], "bf16");
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    refused(&["inspect", "-ctk", "q5_1"], 2, &["--cache-type-k", "q5_1", "q8_0"]);
    refused(&["explain", "-ctk", "f16"], 2, &["--cache-type-k", "explain"]);
    refused(&["export", "--cache-type-v", "f16"], 2, &["--cache-type-v", "export"]);
    let golden = common::repository().join("tests/golden/models");
    let latent = golden.join("deepseek-v3");
    refused(&["inspect", path(&latent), "-ctk", "f16", "-ctv", "bf16"], 1, &["cache type", "one latent"]);
    let encoder = golden.join("bert");
    refused(&["inspect", path(&encoder), "-ctv", "f16"], 1, &["cache type", "encoder"]);
    // A head of 8 numbers is not a whole number of blocks.
    refused(&["inspect", path(&golden.join("llama")), "-ctk", "q4_0"], 1, &["q4_0", "head_dim", "32"]);
}
