//! What new users type, and how the program answers: spellings, limits, interruptions, one option too many.

mod common;

use attn_core::attention::KernelPath;
use common::{attn, json, path, run};
use std::process::Stdio;
use std::{fs, time::Duration};

fn stderr(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn usual_spellings_are_understood() {
    let modes = "None,YaRN,PI,Self-Extend";
    let found = json(&["compare", "--context", "512", "--modes", modes, "--max-tokens", "2k", "--json"]);
    let contexts: Vec<u64> =
        found["settings"]["contexts"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
    assert_eq!(contexts, [256, 512], "the trained length is measured too");
    assert_eq!(found["texts"][0]["used"], 2048);
    let modes: Vec<&str> = found["settings"]["modes"].as_array().unwrap().iter().map(|m| m.as_str().unwrap()).collect();
    assert_eq!(modes, ["none", "yarn", "linear", "self-extend"]);
    assert_eq!(found["settings"]["factor"], 2.0);
}

#[test]
fn what_is_wrong_is_said_with_the_commands_own_help() {
    let output = run(&["compare", "--contxts", "512"]);
    let said = stderr(&output);
    assert!(said.contains("see attn compare --help") && said.contains("'--contexts'"), "{said}");
    assert!(!said.contains("to pass") && said.trim_end().lines().count() == 1, "{said}");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("one");
    let output = run(&["compare", "--html", path(&file), "--csv", path(&file)]);
    assert!(stderr(&output).contains("would replace the first") && !file.exists());
    let output = run(&["compare", "--from", "x.json", "--contexts", "512"]);
    assert!(stderr(&output).contains("--contexts"), "{}", stderr(&output));
}

#[test]
fn generation_stops_where_it_is_told_and_says_what_it_did() {
    let args = ["generate", "-p", "It was a", "-n", "24"];
    let text = String::from_utf8(run(&args).stdout).unwrap();
    let stop = text.split_whitespace().nth(3).unwrap();
    let stopped = run(&[&args[..], &["--stop", stop, "--json"]].concat());
    let lines: Vec<serde_json::Value> =
        String::from_utf8(stopped.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (figures, pieces) = lines.split_last().unwrap();
    let said: String = pieces.iter().map(|piece| piece["text"].as_str().unwrap()).collect();
    assert_eq!(said, text.split(stop).next().unwrap());
    assert!(figures["stopped"] == true && figures["prompt_seconds"].as_f64().unwrap() > 0.0, "{figures}");

    let nothing = stderr(&run(&["generate", "-p", "It was", "-n", "0"]));
    let speed: f64 = nothing.split(", ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(speed < 1e7 && !nothing.contains("generated"), "{nothing}");
    let past = stderr(&run(&["generate", "-p", "It was", "-n", "300", "--stop", " "]));
    assert!(past.contains("trained for 256"), "{past}");
    let scaled = ["generate", "-p", "It was", "-n", "300", "--stop", " ", "--rope-scaling", "rerope"];
    assert!(!stderr(&run(&scaled)).contains("trained for"));
    let output = run(&["generate", "-p", "It was", "-n", "-1", "--stop", " "]);
    assert!(output.status.success(), "{}", stderr(&output));
    let chat = stderr(&run(&["generate", "--chat", "-p", "Hello"]));
    assert!(chat.contains("chat template"), "{chat}");
    let talk = stderr(&run(&["generate", "--conversation"]));
    assert!(talk.contains("chat template"), "{talk}");
    let alone = stderr(&run(&["generate", "-p", "Hello", "--system", "Be kind"]));
    assert!(alone.contains("--chat or --conversation"), "{alone}");
}

#[test]
fn a_plan_is_shown_without_measuring_and_a_first_look_is_short() {
    let plan = json(&["compare", "--dry-run", "--json"]);
    assert_eq!(plan["windows"]["2048"], 4);
    assert!(plan["seconds"].as_f64().unwrap() > 0.0 && plan["memory_bytes"].as_u64().unwrap() > 0, "{plan}");
    let text = String::from_utf8(run(&["compare", "--dry-run", "--quick"]).stdout).unwrap();
    assert!(text.contains("modes    none, dynamic, yarn, streaming\n") && text.contains("of 512 tokens"), "{text}");
    assert!(!text.contains("1024"), "{text}");
}

/// A comparison that takes long says what takes less time, unless that was asked for. How long it takes depends on the machine.
#[test]
fn a_long_comparison_says_what_is_shorter() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("long.txt");
    fs::write(&text, "It was a long way to the house, and nobody said a word. ".repeat(80_000)).unwrap();
    let said = |more: &[&str]| {
        let args = [&["compare", "--dry-run", "--max-tokens", "9000000", "--text", path(&text)], more].concat();
        String::from_utf8(run(&args).stdout).unwrap()
    };
    let takes_long = |said: &str| {
        let time = said.lines().find_map(|line| line.strip_prefix("time     about ")).expect("a time");
        let minutes = time.split_once(" minutes").map_or(0, |(n, _)| n.parse().unwrap());
        time.contains(" hours") || minutes > 10
    };
    let whole = said(&[]);
    assert_eq!(whole.contains("sooner   --quick takes "), takes_long(&whole), "{whole}");
    let quick = said(&["--quick"]);
    assert!(!quick.contains("--quick takes"), "{quick}");
}

/// A first look computes in bf16 where that is faster, and says so; a dtype that is given is kept.
#[test]
fn a_first_look_is_computed_in_bf16_where_that_is_faster() {
    let common = ["compare", "--quick", "--contexts", "256", "--modes", "none", "--max-tokens", "1024"];
    let computed = |more: &[&str]| {
        let result = json(&[&common[..], more, &["--json"]].concat());
        result["settings"]["dtype"].as_str().unwrap().to_string()
    };
    let fast = matches!(KernelPath::choose(None).unwrap(), KernelPath::Amx | KernelPath::Avx512Bf16);
    let own = computed(&[]);
    assert_eq!(own, if fast { "bf16" } else { "f32" });
    assert_eq!(computed(&["--dtype", "f32"]), "f32");
    let text = String::from_utf8(run(&common).stdout).unwrap();
    assert_eq!(text.contains(", computed in bf16\n"), fast, "{text}");
}

#[test]
fn shells_and_man_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let script = String::from_utf8(run(&["completions", shell]).stdout).unwrap();
        assert!(script.contains("rope-scaling") && script.contains("compare"), "{shell}");
    }
    let page = String::from_utf8(run(&["completions", "man", "compare"]).stdout).unwrap();
    assert!(page.contains(".TH attn-compare") && page.contains("contexts") && !page.contains("n\\-predict"), "{page}");
    let all = String::from_utf8(run(&["completions", "man"]).stdout).unwrap();
    assert!(all.contains(".TH attn 1") && all.contains(".TH attn-generate") && !all.contains("render"), "{all}");
    assert_eq!(run(&["completions", "man", "nothing"]).status.code(), Some(2));
}

/// Ctrl-C shows what was measured, and the run file alone is enough to go on.
#[cfg(unix)]
#[test]
fn an_interrupted_comparison_shows_what_it_has_and_goes_on_by_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.jsonl");
    let args = ["compare", "--contexts", "512", "--modes", "none,yarn,dynamic", "--max-tokens", "8192", "--json"];
    let with_run = [&args[..], &["--run", path(&file)]].concat();
    let mut child = attn(&with_run).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = || fs::read(&file).map_or(0, |bytes| bytes.iter().filter(|byte| **byte == b'\n').count());
    while lines() < 3 {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it could be interrupted");
        std::thread::sleep(Duration::from_millis(2));
    }
    let killed = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let output = child.wait_with_output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("interrupted after ") && said.contains("none at 256: perplexity 2"), "{said}");
    assert!(said.contains("repeat the same command"), "{said}");
    let resumed = json(&["compare", "--run", path(&file), "--json"]);
    let whole = json(&args);
    assert_eq!(resumed["cells"].as_array().unwrap().len(), 6);
    // An option that decides figures is never passed over.
    for option in [["--factor", "3"], ["--seed", "1"], ["--rope-theta", "20000"], ["--bos", "off"], ["--dtype", "bf16"]]
    {
        let other = run(&[&["compare", "--run", path(&file)][..], &option].concat());
        assert!(
            !other.status.success() && stderr(&other).contains("is a run with another"),
            "{option:?}: {}",
            stderr(&other)
        );
    }
    for (a, b) in resumed["cells"].as_array().unwrap().iter().zip(whole["cells"].as_array().unwrap()) {
        assert_eq!((&a["mode"], &a["nll"]), (&b["mode"], &b["nll"]));
    }
}
