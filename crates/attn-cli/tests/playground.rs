//! The playground: its figures are those of the other commands, and its page is served and written as it was built.

mod common;

use attn_playground::Playground;
use common::{attn, json, path, repository, run};
use serde_json::{Value, json as document};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;

fn answer(playground: &mut Playground, question: Value) -> Value {
    let answer = playground.answer(&question.to_string(), &mut |_| ());
    let answer = answer.unwrap_or_else(|error| panic!("{question}: {error:#}"));
    // Written as text and read again, as the page and the commands do, which may change a last digit.
    serde_json::from_str(&answer.to_string()).unwrap()
}

fn ask(question: Value) -> Value {
    answer(&mut Playground::default(), question)
}

fn with_model(name: &str) -> Playground {
    let mut playground = Playground::default();
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        playground.give(fs::read(repository().join("models").join(name).join(file)).unwrap());
    }
    assert_eq!(answer(&mut playground, document!({"ask": "load", "name": name}))["trained"], 256);
    playground
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// `explain --json` of a config.
fn explained(config: &Value, length: &str) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.json");
    fs::write(&file, config.to_string()).unwrap();
    json(&["explain", path(&file), "--length", length, "--json"])
}

#[test]
fn slopes_and_buckets_are_those_that_explain_says() {
    for heads in [4, 12] {
        let config = document!({
            "model_type": "bloom", "hidden_size": 16 * heads, "n_layer": 1, "n_head": heads, "vocab_size": 64
        });
        let expected = &explained(&config, "1024")["position"][0]["effects"];
        let found = ask(document!({"ask": "alibi", "heads": heads, "length": 1024, "distance": 8}));
        assert_eq!(found["heads"], expected["heads"]);
        let map = &expected["bias"];
        for (head, row) in map["values"].as_array().unwrap().iter().enumerate() {
            for (i, bias) in row.as_array().unwrap().iter().enumerate() {
                assert_eq!(number(&found["distances"][i]), -number(&map["distances"][i]));
                assert!((number(&found["shares"][head][i]) - number(bias).exp()).abs() < 1e-15);
            }
        }
    }
    let expected = json(&["explain", "tiny-t5", "--json"]);
    let effects = &expected["position"][0]["effects"];
    let mut ranges = effects["bucket_ranges"].as_array().unwrap().clone();
    ranges.reverse();
    assert_eq!(ask(document!({"ask": "t5", "buckets": 32, "max_distance": 128}))["buckets"], Value::Array(ranges));
    let learned = answer(&mut with_model("tiny-t5"), document!({"ask": "t5-learned"}));
    assert_eq!(learned["bias"], effects["bias"]);
}

#[test]
fn speeds_and_scalings_are_those_that_explain_says() {
    let expected = json(&["explain", "tiny-austen", "--length", "1024", "--json"]);
    let rope = &expected["position"][0]["effects"]["rope"];
    let weights = vec![1.0; 16];
    let speeds = document!({"ask": "speeds", "weights": weights, "theta": 1e4, "trained": 256, "gap": 3, "gaps": 1023});
    let found = ask(speeds);
    assert_eq!(found["pairs"], rope["pairs"]);
    for curve in rope["decay"].as_array().unwrap().iter().filter(|curve| curve["name"] == "none") {
        for (at, value) in curve["at"].as_array().unwrap().iter().zip(curve["values"].as_array().unwrap()) {
            assert_eq!(found["decay"][at.as_u64().unwrap() as usize], *value);
        }
    }
    let scalings = rope["scalings"].as_array().unwrap();
    assert!(scalings.len() >= 5, "{scalings:?}");
    for scaling in scalings {
        let found = ask(document!({
            "ask": "stretch", "mode": scaling["name"], "factor": 4.0, "theta": 1e4, "trained_theta": 1e4,
            "head_dim": 32, "trained": 256, "length": 1024,
        }));
        for key in ["factor", "attention_factor", "divided_by", "kept", "between", "divided", "horizon"] {
            assert_eq!(found["scaling"][key], scaling[key], "{key} of {scaling}");
        }
        let own = json(&[
            "explain",
            "tiny-austen",
            "--length",
            "1024",
            "--rope-factor",
            "4",
            "--json",
            "--rope-scaling",
            scaling["name"].as_str().unwrap(),
        ]);
        assert_eq!(found["after"], own["position"][0]["effects"]["rope"]["pairs"]);
    }
}

#[test]
fn losses_are_those_that_compare_measures() {
    let text = fs::read_to_string(repository().join("models/sample.txt")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("text.txt");
    fs::write(&file, &text).unwrap();
    let modes = ["none", "linear", "dynamic", "yarn", "self-extend", "rerope", "streaming", "log-n"];
    let names = modes.join(",");
    let args = ["compare", "tiny-austen", "--text", path(&file), "--contexts", "512", "--max-tokens", "512"];
    let expected = json(&[&args[..], &["--modes", &names, "--factor", "2", "--json"]].concat());
    let mut playground = with_model("tiny-austen");
    for mode in modes {
        let cells = expected["cells"].as_array().unwrap();
        let cell = cells.iter().find(|cell| cell["mode"] == mode && cell["context"] == 512).expect(mode);
        let mut parts = vec![];
        let question = document!({
            "ask": "score", "model": "tiny-austen", "mode": mode, "factor": 2.0, "text": text, "context": 512
        });
        let mut emit = |part: &Value| parts.push(number(&part["nll"]));
        let found = playground.answer(&question.to_string(), &mut emit).unwrap();
        assert_eq!((found["cell"]["tokens"].as_u64(), found["tokens"].as_u64()), (Some(511), Some(512)));
        // The text is read in parts here and at once there, so sums are rounded differently.
        let close = |a: f64, b: f64| (a - b).abs() < 1e-4;
        assert!(close(number(&found["cell"]["nll"]), number(&cell["nll"])), "{mode}");
        let curve = cell["curve"].as_array().unwrap();
        assert_eq!((curve.len(), parts.len()), (32, 32));
        for ((part, ours), theirs) in parts.iter().zip(found["cell"]["curve"].as_array().unwrap()).zip(curve) {
            assert!(close(number(ours), number(theirs)), "{mode}: {ours} instead of {theirs}");
            assert!((part - number(ours)).abs() < 1e-9, "{mode}");
        }
    }
}

#[test]
fn texts_are_those_that_generate_writes() {
    for (model, tokens, temperature) in
        [("tiny-rope", "40", "0"), ("tiny-alibi", "40", "0.7"), ("tiny-learned", "400", "0")]
    {
        let args = ["generate", model, "-p", "It was a truth", "-n", tokens, "--temperature", temperature, "--json"];
        let sampling = ["--top-p", "1", "--top-k", "0", "--min-p", "0", "--repeat-penalty", "1", "--seed", "0"];
        let found = answer(
            &mut with_model(model),
            document!({
                "ask": "generate", "model": model, "prompt": "It was a truth", "seed": 0,
                "tokens": tokens.parse::<usize>().unwrap(), "temperature": temperature.parse::<f64>().unwrap(),
            }),
        );
        if model == "tiny-learned" {
            // A learned table ends, so the page writes fewer tokens than wanted; the command refuses.
            let total = number(&found["prompt_tokens"]) + number(&found["new_tokens"]);
            assert!(found["at_the_end"] == true && (total == 256.0 || found["stopped"] == true), "{found}");
            continue;
        }
        let output = run(&[&args[..], &sampling].concat());
        let lines = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let (figures, pieces) = lines.split_last().unwrap();
        let text: String = pieces.iter().map(|piece| piece["text"].as_str().unwrap()).collect();
        assert_eq!(found["text"], text, "{model}");
        for key in ["prompt_tokens", "new_tokens", "stopped"] {
            assert_eq!(found[key], figures[key], "{key}");
        }
    }
}

#[test]
fn a_config_is_explained_as_explain_does_and_its_settings_are_those_of_export() {
    let file = repository().join("models/tiny-rope/config.json");
    let text = fs::read_to_string(&file).unwrap();
    let found = ask(document!({"ask": "config", "name": path(&file), "text": text, "length": 1024}));
    assert_eq!(found["explained"], json(&["explain", path(&file), "--length", "1024", "--json"]));
    for setting in found["settings"].as_array().unwrap() {
        let mode = setting["mode"].as_str().unwrap();
        let exported = json(&["export", "tiny-rope", "--rope-scaling", mode, "--rope-factor", "4", "--json"]);
        assert_eq!(setting["rope_parameters"], exported["rope_parameters"]);
        assert_eq!(setting["max_position_embeddings"], exported["max_position_embeddings"]);
        match setting["llama_cpp"].as_str() {
            Some(options) => assert_eq!(exported["llama_cpp"], options),
            None => assert!(exported["llama_cpp"].as_str().unwrap().starts_with('#')),
        }
    }
    for model in ["bloom", "t5", "gpt2", "llama4-irope"] {
        let file = repository().join(format!("tests/golden/models/{model}/config.json"));
        let text = fs::read_to_string(&file).unwrap();
        let found = ask(document!({"ask": "config", "name": path(&file), "text": text, "length": null}));
        assert_eq!(found["explained"], json(&["explain", path(&file), "--json"]), "{model}");
    }
}

/// A folder `page` like that of scripts/build_playground.sh, beside a file that is no part of it.
fn built() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("secret"), "no").unwrap();
    for (name, contents) in
        [("index.html", "<!doctype html>"), ("program_bg.wasm", "\0asm"), ("scenes/order.js", "export {}")]
    {
        let file = folder.path().join("page").join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, contents).unwrap();
    }
    folder
}

#[test]
fn the_page_is_served_to_this_machine_and_nothing_beside_it() {
    let folder = built();
    let page = folder.path().join("page");
    let args = ["playground", "--no-open", "--dir", path(&page)];
    let mut server = attn(&args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut url = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut url).unwrap();
    let address = url.trim().strip_prefix("http://").unwrap().trim_end_matches('/').to_string();
    assert!(address.starts_with("127.0.0.1:"), "{url}");
    let get = |request: &str| {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.write_all(format!("{request} HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes()).unwrap();
        let mut bytes = vec![];
        stream.read_to_end(&mut bytes).unwrap();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.to_string(), body.to_string())
    };
    for (request, kind, body) in [
        ("GET /", "text/html", "<!doctype html>"),
        ("GET /program_bg.wasm?v=1", "application/wasm", "\0asm"),
        ("GET /scenes/order.js", "text/javascript", "export {}"),
        ("HEAD /index.html", "text/html", ""),
    ] {
        let (head, found) = get(request);
        assert!(head.starts_with("HTTP/1.1 200 OK") && head.contains(kind), "{request}: {head}");
        assert_eq!(found, body, "{request}");
    }
    let config = fs::read_to_string(repository().join("models/tiny-t5/config.json")).unwrap();
    assert_eq!(get("GET /models/tiny-t5/config.json").1, config);
    assert!(get("GET /sample.txt").1.len() > 50_000);
    for outside in ["GET /../secret", "GET //etc/passwd", "GET /scenes", "GET /%2e%2e/x"] {
        assert!(get(outside).0.starts_with("HTTP/1.1 404"), "{outside}");
    }
    assert!(get("POST /").0.starts_with("HTTP/1.1 405"));
    server.kill().unwrap();
    server.wait().unwrap();
}

#[test]
fn the_page_is_written_for_a_web_host_and_its_absence_is_said() {
    let folder = built();
    let (page, out) = (folder.path().join("page"), folder.path().join("site"));
    let args = ["playground", "--dir", path(&page), "--out", path(&out)];
    let output = run(&args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for file in
        ["index.html", "program_bg.wasm", "scenes/order.js", "sample.txt", "models/tiny-austen/model.safetensors"]
    {
        assert!(out.join(file).is_file(), "{file}");
    }
    let again = run(&args);
    assert_eq!(again.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&again.stderr).contains("not an empty folder"));
    let missing = run(&["playground", "--dir", path(folder.path())]);
    let said = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(missing.status.code() == Some(2) && said.contains("scripts/build_playground.sh"), "{said}");
}
