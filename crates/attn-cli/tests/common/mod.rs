//! The program as the tests start it.

#![allow(dead_code)] // every test file uses its own share

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

/// Runs it to its end.
pub(crate) fn run(args: &[&str]) -> Output {
    attn(args).output().expect("attn starts")
}

/// The JSON that a run prints, which has to succeed.
pub(crate) fn json(args: &[&str]) -> Value {
    let output = run(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("stdout is one JSON document")
}

/// This package's folder, which has the embedded models and the sample text.
pub(crate) fn package() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The repository's root.
pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A path as an argument.
pub(crate) fn path(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}
