//! `attn requests`: a model that answers requests, one JSON document per line.

mod common;

use common::{attn, json, path, refused};
use serde_json::Value;
use std::io::Write;
use std::process::Stdio;

/// The lines that the program prints for these on stdin, the first of them what model it is.
fn answers(args: &[&str], lines: &[&[u8]]) -> Vec<Value> {
    let mut child = attn(&[&["requests"], args].concat())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("attn starts");
    let mut stdin = child.stdin.take().expect("stdin");
    lines.iter().for_each(|line| stdin.write_all(&[line, &b"\n"[..]].concat()).expect("a line is taken"));
    drop(stdin);
    let output = child.wait_with_output().expect("attn ends");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && stderr.is_empty(), "{stderr}");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect("a JSON document a line")).collect()
}

#[test]
fn a_text_is_as_likely_as_perplexity_says() {
    let folder = tempfile::tempdir().unwrap();
    let text = "It is a truth universally acknowledged, that a single man must be in want of a wife.";
    let file = folder.path().join("text.txt");
    std::fs::write(&file, text).unwrap();
    let pair = |id: &str, context: &str, continuation: &str| serde_json::json!({"id": id, "type": "loglikelihood", "context": context, "continuation": continuation});
    let requests = [
        serde_json::json!({"id": 1, "type": "loglikelihood_rolling", "text": text}),
        pair("whole", "", text),
        pair("first", "", &text[..25]),
        pair("second", &text[..25], &text[25..]),
    ];
    let lines: Vec<Vec<u8>> = requests.iter().map(|request| request.to_string().into_bytes()).collect();
    let found = answers(&[], &lines.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let hello = &found[0];
    assert_eq!((&hello["format"], &hello["max_length"]), (&"attn-requests/1".into(), &256.into()));
    assert_eq!((&hello["scaling"], &hello["factor"], &hello["prefix"]), (&"none".into(), &1.0.into(), &0.into()));
    let ids: Vec<&Value> = found[1..].iter().map(|answer| &answer["id"]).collect();
    assert_eq!(ids, [&Value::from(1), &"whole".into(), &"first".into(), &"second".into()]);
    let logprob = |index: usize| found[index]["logprob"].as_f64().unwrap();
    let alone = json(&["perplexity", "--text", path(&file), "--protocol", "lm-eval", "--json"]);
    let nats = alone["nll"].as_f64().unwrap() * alone["tokens"].as_f64().unwrap();
    assert_eq!(found[1]["tokens"], alone["tokens"]);
    assert!((logprob(1) + nats).abs() < 1e-4, "{} {nats}", logprob(1));
    assert!((logprob(2) - logprob(1)).abs() < 1e-4);
    // The sum of the parts is not quite the whole, because an empty context is replaced by a token, but nothing stands before
    // another context.
    assert!((logprob(3) + logprob(4) - logprob(1)).abs() < 5.0 && logprob(4) < 0.0);
    assert_eq!(found[4]["is_greedy"], false);
}

#[test]
fn a_prompt_goes_on_as_attn_generate_has_it() {
    let prompt = "She was not";
    let lines = [
        format!(r#"{{"id": null, "type": "generate", "prompt": "{prompt}", "max_tokens": 16}}"#),
        format!(r#"{{"id": 2, "type": "generate", "prompt": "{prompt}", "max_tokens": 16, "stop": ["the"]}}"#),
        format!(
            r#"{{"id": 3, "type": "generate", "prompt": "{prompt}", "max_tokens": 8, "temperature": 1.0, "seed": 4}}"#
        ),
    ];
    let lines: Vec<&[u8]> = lines.iter().map(String::as_bytes).collect();
    let found = answers(&["--max-length", "64"], &lines);
    let generated = common::run(&["generate", "-p", prompt, "-n", "16"]);
    let text = String::from_utf8(generated.stdout).unwrap();
    assert_eq!(found[1]["text"].as_str().unwrap(), text.trim_end_matches('\n'));
    assert_eq!((&found[1]["tokens"], &found[1]["stopped"]), (&16.into(), &false.into()));
    let stopped = found[2]["text"].as_str().unwrap();
    assert!(!stopped.contains("the") && text.starts_with(stopped));
    assert_eq!(found[3]["tokens"], 8);
    // A repeated request with the same seed gives the same text.
    assert_eq!(answers(&["--max-length", "64"], &lines)[3], found[3]);
}

/// Every line is answered, and then the next request is read.
#[test]
fn what_is_no_request_is_answered_with_what_is_wrong() {
    let good = br#"{"id": 9, "type": "loglikelihood", "context": "a", "continuation": " b"}"#;
    let bad: [(&[u8], &str); 11] = [
        (b"not json", "line 1: it is not JSON"),
        (b"[1, 2]", "line 2: a request must be a JSON object"),
        (b"\xff\xfe", "line 3: it is not JSON"),
        (br#"{"id": 4}"#, "the request has no type"),
        (br#"{"id": 5, "type": "embed", "text": "a"}"#, "unknown type \"embed\""),
        (br#"{"id": 6, "type": "loglikelihood", "context": "a"}"#, "continuation"),
        (br#"{"id": 7, "type": "loglikelihood", "context": "a", "continuation": "b", "echo": true}"#, "echo"),
        (br#"{"id": 8, "type": "generate", "prompt": "a", "max_tokens": 4, "top_p": 7}"#, "top_p"),
        (br#"{"id": 9, "type": "generate", "prompt": "a", "max_tokens": 400}"#, "leave no room"),
        (br#"{"id": 10, "type": "loglikelihood", "context": " ", "continuation": "b"}"#, "nothing before"),
        (br#"{"id": 11, "type": "loglikelihood", "context": "a", "continuation": ""}"#, "no tokens"),
    ];
    let mut lines: Vec<&[u8]> = bad.iter().map(|(line, _)| *line).collect();
    lines.extend([&b""[..], good]);
    let found = answers(&[], &lines);
    assert_eq!(found.len(), 1 + bad.len() + 1);
    for ((line, part), answer) in bad.iter().zip(&found[1..]) {
        let said = answer["error"].as_str().unwrap_or_else(|| panic!("{answer}"));
        assert!(said.contains(part), "{}: {said}", String::from_utf8_lossy(line));
    }
    assert_eq!((&found[1]["id"], &found[4]["id"]), (&Value::Null, &4.into()));
    assert!(found.last().unwrap()["logprob"].as_f64().unwrap() < 0.0);
}

#[test]
fn scalings_are_those_of_the_other_commands_and_what_can_not_be_is_refused() {
    let long = "word ".repeat(400);
    let request = serde_json::json!({"id": 1, "type": "loglikelihood_rolling", "text": long}).to_string();
    let yarn = ["--rope-scaling", "yarn", "--rope-factor", "2"];
    let found = answers(&[&["--max-length", "512"], &yarn[..]].concat(), &[request.as_bytes()]);
    assert_eq!((&found[0]["scaling"], &found[0]["factor"]), (&"yarn".into(), &2.0.into()));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("long.txt");
    std::fs::write(&file, &long).unwrap();
    let alone = ["perplexity", "--text", path(&file), "--protocol", "lm-eval", "--context", "512", "--json"];
    let alone = json(&[&alone[..], &yarn].concat());
    let nats = alone["nll"].as_f64().unwrap() * alone["tokens"].as_f64().unwrap();
    let logprob = found[1]["logprob"].as_f64().unwrap();
    assert!((logprob + nats).abs() < 1e-4 * nats, "{logprob} {nats}");
    refused(&["requests", "--max-length", "1"], &["at least 2"]);
    refused(&["requests", "tiny-learned", "--max-length", "100000"], &["learned positions"]);
}
