#!/usr/bin/env bash
# Formatting, lints, tests, documentation, the README's main command and the types under the feature `cuda`: what has
# to pass before a change lands.
# Needs a Rust toolchain and nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never}

step() { printf '\n== %s\n' "$*"; }

step formatting
cargo fmt --all --check
step "the README's test command (with documentation examples)"
cargo test --release --workspace
step lints
cargo clippy --release --workspace --all-targets -- -D warnings
step documentation
RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps
step "the README's main command"
cargo run --release -- compare
step "the layer inside a stock Candle model"
cargo run --release -p integration --example stock_llama
step "types with the CUDA features (nothing is built or run; about two minutes the first time)"
scripts/check_cuda.sh
