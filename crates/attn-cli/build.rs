//! Tells the program which version of the tensor library it is built with, for its reports.

use std::path::Path;

fn main() {
    // Cargo packs the lock file into a package; in the repository it lies at the root.
    let package = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let files = ["../../Cargo.lock", "Cargo.lock"].map(|file| Path::new(&package).join(file));
    let lock = files.iter().find_map(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
    let candle = lock
        .replace('\r', "")
        .split_once("name = \"candle-core\"\nversion = \"")
        .and_then(|(_, rest)| rest.split_once('"').map(|(version, _)| version.to_string()));
    println!("cargo::rustc-env=CANDLE_VERSION={}", candle.as_deref().unwrap_or("unknown"));
    for file in files.iter().filter(|file| file.exists()) {
        println!("cargo::rerun-if-changed={}", file.display());
    }
}
