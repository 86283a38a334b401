//! The program as the tests start it.

#![allow(dead_code)] // every test file uses its own share

pub(crate) mod schema;

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The program that the tests are about.
pub(crate) const ATTN: &str = env!("CARGO_BIN_EXE_attn");

/// `attn` with these arguments, without a network and at its default width.
pub(crate) fn attn(args: &[&str]) -> Command {
    let mut command = Command::new(ATTN);
    command.args(args).env_remove("COLUMNS").env("HF_HUB_OFFLINE", "1");
    command
}

/// Runs `attn` to its end.
pub(crate) fn run(args: &[&str]) -> Output {
    attn(args).output().expect("attn starts")
}

/// The JSON that a successful run prints.
pub(crate) fn json(args: &[&str]) -> Value {
    let output = run(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("stdout is one JSON document")
}

/// The repository's root, whose `models` has the embedded models and the sample text.
pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A path as an argument.
pub(crate) fn path(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

/// The one line on stderr of a command that has to fail and say each of `parts`.
pub(crate) fn refused(args: &[&str], parts: &[&str]) {
    let output = run(args);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && output.stdout.is_empty(), "{args:?}: {stderr}");
    assert!(stderr.starts_with("error: ") && stderr.trim_end().lines().count() == 1, "{args:?}: {stderr}");
    for part in parts {
        assert!(stderr.contains(part), "{args:?} should say {part:?}: {stderr}");
    }
}

/// The document without times and the command line, which differ from run to run.
pub(crate) fn figures(mut document: Value) -> Value {
    fn forget_seconds(value: &mut Value) {
        match value {
            Value::Object(object) => {
                object.remove("seconds");
                object.values_mut().for_each(forget_seconds);
            }
            Value::Array(items) => items.iter_mut().for_each(forget_seconds),
            _ => {}
        }
    }
    forget_seconds(&mut document);
    for key in ["command", "started"] {
        document.as_object_mut().expect("an object").remove(key);
    }
    document
}

/// The number of complete lines of a file; 0 if there is no such file.
pub(crate) fn lines(path: &Path) -> usize {
    std::fs::read(path).map_or(0, |bytes| bytes.iter().filter(|byte| **byte == b'\n').count())
}
