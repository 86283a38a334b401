//! Every command that reads text puts BOS before it as the tokenizer does, unless an option says otherwise, and prints which
//! was done.

mod common;

use common::{attn, json, path, repository, run};
use serde_json::{Value, json};
use std::fs;
use tempfile::TempDir;

/// The embedded model as a folder whose tokenizer says this about BOS, which is token 0, `<|endoftext|>`.
fn model(tokenizer_config: Option<&Value>, post_processor: bool) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = repository().join("models/tiny-austen");
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(source.join(file), folder.path().join(file)).expect("the embedded model's files");
    }
    if let Some(config) = tokenizer_config {
        fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).expect("it is written");
    }
    if post_processor {
        let file = folder.path().join("tokenizer.json");
        let mut tokenizer: Value = serde_json::from_slice(&fs::read(&file).expect("it is read")).expect("JSON");
        tokenizer["post_processor"] = json!({
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
        });
        fs::write(&file, tokenizer.to_string()).expect("it is written");
    }
    folder
}

fn perplexity(folder: &TempDir, more: &[&str]) -> Value {
    let text = repository().join("models/sample.txt");
    let args = ["perplexity", path(folder.path()), "--text", path(&text), "--context", "64", "--max-tokens", "640"];
    json(&[&args[..], &["--json"], more].concat())
}

#[test]
fn auto_follows_the_tokenizer_wherever_it_says_so() {
    let adds = json!({"add_bos_token": true, "bos_token": "<|endoftext|>"});
    let does_not = json!({"add_bos_token": false, "bos_token": "<|endoftext|>"});
    for (config, post_processor, bos) in [
        (None, false, None),
        (Some(&adds), false, Some(0)),
        (Some(&does_not), false, None),
        (None, true, Some(0)),
        (Some(&does_not), true, None),
    ] {
        let folder = model(config, post_processor);
        let auto = perplexity(&folder, &[]);
        assert_eq!((&auto["bos"], &auto["bos_choice"]), (&json!(bos), &json!("auto")), "{config:?} {post_processor}");
        let (on, off) = (perplexity(&folder, &["--bos", "on"]), perplexity(&folder, &["--bos", "off"]));
        let same = if bos.is_some() { &on } else { &off };
        assert_eq!(auto["nll"], same["nll"]);
        assert_ne!(on["nll"], off["nll"]);
        // With BOS a window is 63 tokens of text, all scored; without it the first is not.
        assert_eq!(
            (&on["stride"], &on["tokens"], &off["stride"], &off["tokens"]),
            (&63.into(), &630.into(), &64.into(), &630.into())
        );
    }
}

#[test]
fn every_command_does_the_same_and_says_so() {
    let folder = model(Some(&json!({"add_bos_token": true, "bos_token": "<|endoftext|>"})), false);
    let text = repository().join("models/sample.txt");
    let (model, text) = (path(folder.path()), path(&text));
    let compare = ["compare", model, "--text", text, "--contexts", "64", "--modes", "none", "--max-tokens", "640"];
    let passkey = ["passkey", model, "--contexts", "192", "--modes", "none", "--depths", "0.5", "--trials", "1"];
    let search = ["compare", model, "--text", text, "--contexts", "64", "--search", "--search-budget", "2"];
    for args in [&compare[..], &passkey, &[&search[..], &["--max-tokens", "2560"]].concat()] {
        for (more, bos, choice) in
            [(&[][..], Some(0), "auto"), (&["--bos", "on"], Some(0), "on"), (&["--bos", "off"], None, "off")]
        {
            let document = json(&[args, &["--json"], more].concat());
            let settings = &document["settings"];
            assert_eq!((&settings["bos"], &settings["bos_choice"]), (&json!(bos), &json!(choice)), "{args:?}");
        }
    }
    for args in
        [&compare[..], &passkey, &["perplexity", model, "--text", text, "--context", "64", "--max-tokens", "640"]]
    {
        let printed = String::from_utf8(run(args).stdout).expect("UTF-8");
        assert!(printed.contains("id 0 before each, following the tokenizer"), "{printed}");
    }
    let cells = json(&[&compare[..], &["--json"]].concat());
    assert_eq!(cells["cells"][0]["nll"], perplexity(&folder, &[])["nll"]);
}

#[test]
fn a_run_goes_on_only_with_the_same_bos() {
    let folder = model(None, false);
    let text = repository().join("models/sample.txt");
    let file = folder.path().join("run.jsonl");
    let args = ["compare", path(folder.path()), "--text", path(&text), "--contexts", "64", "--modes", "none"];
    let args = [&args[..], &["--max-tokens", "640", "--run", path(&file), "--json"]].concat();
    json(&args);
    json(&[&args[..], &["--bos", "off"]].concat());
    let output = run(&[&args[..], &["--bos", "on"]].concat());
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("another --bos"), "{output:?}");
}

#[test]
fn generation_keeps_a_bos_that_was_typed() {
    let counted = |folder: &TempDir, prompt: &str, more: &[&str]| {
        let args = ["generate", path(folder.path()), "-p", prompt, "-n", "1"];
        let output = attn(&[&args[..], more].concat()).output().expect("attn starts");
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8(output.stderr).expect("UTF-8");
        let tokens = said.split_once("[prompt: ").and_then(|(_, rest)| rest.split_once(" tokens")).expect("a count");
        (tokens.0.parse::<usize>().expect("a number"), said.contains("including BOS (0)"))
    };
    let adds = model(Some(&json!({"add_bos_token": true, "bos_token": "<|endoftext|>"})), false);
    let does_not = model(Some(&json!({"add_bos_token": false, "bos_token": "<|endoftext|>"})), true);
    let (plain, _) = counted(&does_not, "Emma", &[]);
    assert_eq!(counted(&does_not, "Emma", &["--bos", "on"]), (plain + 1, true));
    assert_eq!(counted(&adds, "Emma", &[]), (plain + 1, true));
    assert_eq!(counted(&adds, "Emma", &["--bos", "off"]), (plain, false));
    for (folder, more) in
        [(&adds, &[][..]), (&adds, &["--bos", "off"]), (&does_not, &[]), (&does_not, &["--bos", "on"])]
    {
        assert_eq!(counted(folder, "<|endoftext|>Emma", more), (plain + 1, true), "{more:?}");
    }
    let output = run(&["generate", path(adds.path()), "-p", "x", "--chat", "--bos", "on"]);
    assert!(!output.status.success());
}
