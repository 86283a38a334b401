//! Compares `attn compare` on the embedded model and text, and `attn logits` under methods, with what transformers computes.

mod common;

use candle_core::{Device, safetensors};
use common::{path, repository, run};
use serde_json::Value;
use std::process::Command;

fn golden(name: &str) -> Value {
    let path = format!("{}/../../tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Compares the modes and checks every figure of `golden`, whose `label` is the name of a mode.
fn check(golden: &Value, modes: &str, label: impl Fn(&Value) -> String) {
    let output = Command::new(env!("CARGO_BIN_EXE_attn"))
        .args(["compare", "--contexts", "256,512,1024,2048", "--modes", modes])
        .args(["--factor", "auto", "--max-tokens", "16384", "--json"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let cells = report["cells"].as_array().unwrap();
    for want in golden["results"].as_array().unwrap() {
        let mode = label(want);
        let same = |cell: &&Value| cell["context"] == want["context"] && cell["mode"] == mode.as_str();
        let cell = cells.iter().find(same).unwrap_or_else(|| panic!("no cell like {want}"));
        assert_eq!(cell["tokens"], want["tokens"], "{cell}");
        let (ours, theirs) = (cell["perplexity"].as_f64().unwrap(), want["ppl"].as_f64().unwrap());
        assert!((ours / theirs - 1.0).abs() < 0.005, "{ours} is not {theirs}: {cell}");
    }
}

#[test]
fn compare_reproduces_the_perplexities_of_transformers() {
    let plain = |want: &Value| want["mode"].as_str().unwrap().to_string();
    check(&golden("tiny_austen_perplexity.json"), "none,linear,dynamic,yarn", plain);
}

/// Methods that place near and far keys differently, against their definition over dense scores.
#[test]
fn compare_reproduces_the_perplexities_of_context_extension() {
    let label = |want: &Value| {
        let number = |key: &str| Some(format!(":{key}={}", want.get(key)?.as_f64()?));
        let numbers = ["group", "sinks", "window", "factor"].into_iter().filter_map(number);
        std::iter::once(want["mode"].as_str().unwrap().to_string()).chain(numbers).collect()
    };
    let golden = golden("extensions_perplexity.json");
    let mut modes: Vec<String> = golden["results"].as_array().unwrap().iter().map(label).collect();
    modes.dedup();
    modes.sort();
    modes.dedup();
    assert_eq!(modes.len(), 10);
    check(&golden, &modes.join(","), label);
}

/// Logits under every method, in one pass and token by token, against its definition over dense scores.
#[test]
fn logits_are_those_of_every_method() {
    let golden = repository().join("tests/golden");
    let (model, folder) = (golden.join("models/llama"), tempfile::tempdir().unwrap());
    let (ids, out) = (folder.path().join("ids.json"), folder.path().join("out.safetensors"));
    let mut plain = None;
    for (file, method) in [
        ("none", "none"),
        ("self-extend-group2-window8", "self-extend:group=2:window=8"),
        ("self-extend-group5-window10", "self-extend:group=5:window=10"),
        ("rerope-window9", "rerope:window=9"),
        ("leaky-rerope-window7-factor3", "leaky-rerope:window=7:factor=3"),
        ("dual-chunk-chunk12-local3", "dual-chunk:chunk=12:local=3"),
        ("dual-chunk", "dual-chunk"),
        ("string-shift11-local4", "string:shift=11:local=4"),
        ("lm-infinite-sinks3-window10", "lm-infinite:sinks=3:window=10"),
        ("streaming-sinks3-window10", "streaming:sinks=3:window=10"),
        ("log-n", "log-n"),
    ] {
        let expected = golden.join(format!("extensions/{file}.safetensors"));
        let expected = safetensors::load(expected, &Device::Cpu).unwrap();
        let off = |logits: &candle_core::Tensor| {
            let difference = (logits - &expected["logits"]).unwrap().abs().unwrap().flatten_all().unwrap();
            difference.max(0).unwrap().to_scalar::<f32>().unwrap()
        };
        let rows = expected["input_ids"].to_vec2::<i64>().unwrap();
        std::fs::write(&ids, serde_json::to_string(&rows).unwrap()).unwrap();
        for decode in [None, Some("--decode")] {
            let args = ["logits", path(&model), "--ids", path(&ids), "--out", path(&out), "--rope-scaling", method];
            let output = run(&args.into_iter().chain(decode).collect::<Vec<_>>());
            assert!(output.status.success(), "{method}: {}", String::from_utf8_lossy(&output.stderr));
            let logits = safetensors::load(&out, &Device::Cpu).unwrap().remove("logits").unwrap();
            assert!(off(&logits) < 1e-3, "{method} {decode:?}: off by {}", off(&logits));
        }
        // The text is longer than what a method leaves unchanged, so the logits have to differ.
        let without = plain.get_or_insert_with(|| expected["logits"].clone());
        assert!(file == "none" || off(without) > 1e-2, "{method} changes nothing here");
    }
}
