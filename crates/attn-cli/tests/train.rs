//! `attn train` as a user runs it: a run killed in the middle ends with the bits of one that was not.

mod common;

use common::attn;
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

const TEXT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/sample.txt");
const SMALL: &[&str] = &[
    "--steps",
    "12",
    "--batch",
    "2",
    "--context",
    "32",
    "--vocab",
    "300",
    "--hidden",
    "32",
    "--intermediate",
    "48",
    "--layers",
    "2",
    "--heads",
    "4",
    "--checkpoint-every",
    "3",
    "--warmup",
    "2",
    "--position",
    "alibi",
];

fn train(out: &Path, more: &[&str]) -> Command {
    let mut command = attn(&["train", "--text", TEXT, "--out"]);
    // A test's own --position replaces the usual one.
    let replaced = more.contains(&"--position");
    command.arg(out).args(if replaced { &SMALL[..SMALL.len() - 2] } else { SMALL }).args(more);
    command
}

fn run(out: &Path, more: &[&str]) -> Output {
    train(out, more).output().unwrap()
}

fn losses(out: &Path) -> Vec<(u64, f64)> {
    let log = std::fs::read_to_string(out.join("train.jsonl")).unwrap();
    let step = |line: &str| {
        let step: Value = serde_json::from_str(line).unwrap();
        (step["step"].as_u64().unwrap(), step["loss"].as_f64().unwrap())
    };
    log.lines().map(step).collect()
}

#[test]
fn a_killed_run_resumes_to_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, killed) = (folder.path().join("whole"), folder.path().join("killed"));
    let done = run(&whole, &["--json"]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let summary: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!((summary["steps"].as_u64(), summary["resumed_from"].as_u64()), (Some(12), Some(0)));
    assert!(summary["last_loss"].as_f64().unwrap() < summary["first_loss"].as_f64().unwrap());

    let mut child = train(&killed, &[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let first = killed.join("checkpoint-0000003");
    while !first.exists() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap(); // SIGKILL
    child.wait().unwrap();
    let done = run(&killed, &["--json"]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(losses(&killed), losses(&whole));
    let weights = |out: &Path| std::fs::read(out.join("checkpoint-0000012/model.safetensors")).unwrap();
    let tensors = |bytes: &[u8]| {
        let all = candle_core::safetensors::load_buffer(bytes, &candle_core::Device::Cpu).unwrap();
        let values = |t: candle_core::Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        all.into_iter().map(|(name, t)| (name, values(t))).collect::<std::collections::BTreeMap<_, _>>()
    };
    assert!(tensors(&weights(&killed)) == tensors(&weights(&whole)), "the weights differ");

    // The result is a checkpoint like any other, and can be trained further as it is.
    let model = whole.to_str().unwrap();
    let score = attn(&["perplexity", model, "--context", "32", "--max-tokens", "320", "--json"]).output().unwrap();
    assert!(score.status.success(), "{}", String::from_utf8_lossy(&score.stderr));
    let tuned = folder.path().join("tuned");
    let mut tune = attn(&["train", model, "--text", TEXT, "--steps", "2", "--batch", "2", "--context", "48", "--out"]);
    tune.arg(&tuned);
    let tuned = tune.output().unwrap();
    assert!(tuned.status.success(), "{}", String::from_utf8_lossy(&tuned.stderr));
}

#[test]
fn other_settings_in_the_same_folder_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    assert!(run(&out, &[]).status.success());
    let refused = run(&out, &["--learning-rate", "0.5"]);
    assert_eq!(refused.status.code(), Some(1));
    let message = String::from_utf8_lossy(&refused.stderr);
    assert!(message.contains("learning_rate") && message.starts_with("error:"), "{message}");
    for (flags, part) in [
        (["--heads", "5"], "heads"),
        (["--position", "magic"], "sinusoidal"),
        (["--vocab", "100"], "257"),
        (["--dtype", "f16"], "f16"),
        (["--context", "9999999"], "tokens"),
    ] {
        let fresh = folder.path().join("other");
        let refused = attn(&["train", "--text", TEXT, "--out"]).arg(&fresh).args(flags).output().unwrap();
        let message = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && message.contains(part), "{flags:?}: {message}");
        assert!(!fresh.exists(), "{flags:?} left {fresh:?} behind");
    }
}

/// A text is read twice where its tokenizer is trained first: what can be read once is refused, and doesn't hang.
#[cfg(unix)]
#[test]
fn what_cannot_be_read_twice_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (fifo, out) = (folder.path().join("fifo"), folder.path().join("out"));
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    for text in [fifo.to_str().unwrap(), "-", "/dev/zero"] {
        let refused = attn(&["train", "--text", text, "--out", out.to_str().unwrap()]).output().unwrap();
        let message = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && message.contains("read twice") && message.contains(text), "{message}");
    }
    std::fs::write(&out, "a file").unwrap();
    let refused = run(&out, &[]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("exists and is not a folder"));
    assert_eq!(std::fs::read(&out).unwrap(), b"a file");
    // With a tokenizer the text is read only once, so it may come from a pipe.
    let tokenizer = common::repository().join("models/tiny-austen/tokenizer.json");
    let piped = format!("cat {TEXT} | exec \"$0\" \"$@\"");
    let out = folder.path().join("piped");
    let args = ["train", "--text", "-", "--tokenizer", tokenizer.to_str().unwrap(), "--out", out.to_str().unwrap()];
    let small = SMALL.iter().filter(|arg| !["--vocab", "300"].contains(arg));
    let done = Command::new("sh").args(["-c", &piped, common::ATTN]).args(args).args(small).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn two_runs_do_not_write_to_one_folder() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    // Enough steps that the first run has not ended when the second starts.
    let mut long = SMALL.to_vec();
    long[1] = "100000";
    let start = || {
        let mut command = attn(&["train", "--text", TEXT, "--out"]);
        command.arg(&out).args(&long);
        command
    };
    let mut first = start().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while !out.join("train.jsonl").exists() && first.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let second = start().output().unwrap();
    let message = String::from_utf8_lossy(&second.stderr);
    assert!(second.status.code() == Some(1) && message.contains("another process"), "{message}");
    first.kill().unwrap();
    first.wait().unwrap();
}

/// Files can't grow past a limit, as on a full disk. Only complete files have their final names, and the same command succeeds
/// once there is room.
#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_is_full_leaves_nothing_half_written() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    // The limit is in blocks of 512 bytes: enough for the log, not for weights.
    let script = "trap '' XFSZ; ulimit -f 40; exec \"$0\" \"$@\"";
    let args: Vec<_> = train(&out, &[]).get_args().map(std::ffi::OsStr::to_os_string).collect();
    let limited = Command::new("sh").args(["-c", script, common::ATTN]).args(&args).output().unwrap();
    let message = String::from_utf8_lossy(&limited.stderr);
    assert!(limited.status.code() == Some(1) && message.contains("can't write"), "{message}");
    let names: Vec<String> =
        std::fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.iter().all(|name| name == "train.jsonl" || name.starts_with('.')), "{names:?}");
    let done = run(&out, &[]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(out.join("config.json").exists() && out.join("model.safetensors").exists());
    let hidden =
        std::fs::read_dir(&out).unwrap().filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with('.'));
    assert_eq!(hidden.count(), 0);
}

/// The held-out loss is measured at every checkpoint and shown in the log, the summary and the chart.
#[test]
fn the_loss_on_held_out_text_is_measured_along_the_way() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let held_out = ["--held-out", TEXT, "--held-out-tokens", "320"];
    let done = run(&out, &[&held_out[..], &["--json"]].concat());
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let log = std::fs::read_to_string(out.join("train.jsonl")).unwrap();
    let steps: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let measured: Vec<u64> =
        steps.iter().filter(|s| s["held_out"].is_f64()).map(|s| s["step"].as_u64().unwrap()).collect();
    assert_eq!(measured, [3, 6, 9, 12]);
    let first = steps[2]["held_out"].as_f64().unwrap();
    let last = steps[11]["held_out"].as_f64().unwrap();
    assert!(last < first, "{first}, then {last}");
    let summary: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(summary["held_out_loss"], steps[11]["held_out"]);
    assert!(std::fs::read_to_string(out.join("loss.svg")).unwrap().contains("on held-out text"));

    let short = run(&folder.path().join("short"), &["--held-out", TEXT, "--held-out-tokens", "31"]);
    let message = String::from_utf8_lossy(&short.stderr);
    assert!(short.status.code() == Some(2) && message.contains("31 tokens"), "{message}");
}

/// Gates are made of hidden states and kept in the cache; a rotation that is dropped leaves a model like any other.
#[test]
fn trained_encodings_and_dropped_positions_are_checkpoints_too() {
    let folder = tempfile::tempdir().unwrap();
    let run_json = |args: &[&str]| -> Value {
        let done = attn(args).output().unwrap();
        assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
        serde_json::from_slice(&done.stdout).unwrap()
    };
    for (position, kind) in [("fox", "fox"), ("rope", "rope")] {
        let out = folder.path().join(position);
        assert!(run(&out, &["--position", position]).status.success());
        let model = out.to_str().unwrap();
        let facts = run_json(&["inspect", model, "--json"]);
        assert_eq!(facts["position"][0]["kind"], kind, "{facts}");
        let score = run_json(&["perplexity", model, "--context", "64", "--max-tokens", "320", "--json"]);
        assert!(score["perplexity"].as_f64().is_some_and(f64::is_finite), "{score}");
    }
    let (rope, dropped) = (folder.path().join("rope"), folder.path().join("dropped"));
    let (rope, dropped) = (rope.to_str().unwrap(), dropped.to_str().unwrap());
    let steps = ["--text", TEXT, "--steps", "2", "--batch", "2", "--context", "32", "--out", dropped, "--json"];
    run_json(&[&["train", rope, "--drop-positions"][..], &steps].concat());
    let facts = run_json(&["inspect", dropped, "--json"]);
    assert_eq!(facts["position"][0]["kind"], "nope", "{facts}");
    let refused = attn(&["train", dropped, "--drop-positions", "--position", "fox"]).args(steps).output().unwrap();
    assert!(!refused.status.success());
}
