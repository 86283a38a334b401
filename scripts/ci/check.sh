#!/usr/bin/env bash
# Runs what has to pass before a change lands: formatting, lints, tests, documentation, packages, the README's commands, and the
# types under the feature `cuda` and on other platforms.
# Needs only a Rust toolchain. Where Chromium is installed, the report and the playground are also checked in a browser.
set -euo pipefail
cd "$(dirname "$0")/../.."
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never}

step() { printf '\n== %s\n' "$*"; }

step formatting
cargo fmt --all --check
step "the README's test command (with documentation examples)"
cargo test --release --workspace
step lints
# Also checks that no API is newer than the rust-version of Cargo.toml, which may be older than the installed compiler.
cargo clippy --release --workspace --all-targets -- -D warnings -D clippy::incompatible_msrv
step "the oldest Rust that Cargo.toml allows"
oldest=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
if rustc --version | grep -qF "rustc $oldest."; then
    echo "it is the one in use: $(rustc --version)"
elif rustup toolchain list 2>/dev/null | grep -q "^$oldest"; then
    cargo "+$oldest" check --release --workspace --all-targets
else
    echo "skipped: Rust $oldest is not installed (rustup toolchain install $oldest)"
fi
step "licences, sources and known vulnerabilities of the dependencies"
if cargo deny --version >/dev/null 2>&1; then
    # Also the dependencies of other platforms, if there is a network.
    cargo fetch --locked --quiet || echo "no network: only the dependencies of this platform are checked"
    cargo deny --offline check licenses bans sources
else
    echo "skipped: cargo-deny is not installed (cargo install cargo-deny --locked)"
fi
if ! cargo audit --version >/dev/null 2>&1; then
    echo "skipped: cargo-audit is not installed (cargo install cargo-audit --locked)"
elif [ -d "${CARGO_HOME:-$HOME/.cargo}/advisory-db" ]; then
    # The same exception as in deny.toml.
    cargo audit --no-fetch --stale --ignore RUSTSEC-2024-0436
else
    echo "skipped: there is no advisory database here (cargo audit fetches it from GitHub)"
fi
step documentation
RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps
step "the packages, as a registry would get them"
scripts/ci/check_packages.sh
step "the README's main command"
cargo run --release -- compare
step "the README's length, links and commands"
scripts/ci/check_readme.py "${CARGO_TARGET_DIR:-target}/release/attn"
step "the extrapolation study, with models of two steps"
scripts/ci/check_study.py "${CARGO_TARGET_DIR:-target}/release/attn"
if command -v mdbook >/dev/null; then
    step "the book"
    mdbook build docs --dest-dir "$(mktemp -d)"
fi
# Built with the whole workspace: a single package asks its dependencies for other features, and all would be compiled again.
examples=${CARGO_TARGET_DIR:-target}/release/examples
cargo build --release --workspace --examples
step "the layer inside stock Candle models"
"$examples/stock_llama"
"$examples/stock_models"
step "encodings from outside the crate, and LoRA, trained"
"$examples/kerple"
"$examples/fox"
"$examples/lora"
step "types with the CUDA features (nothing is built or run; about two minutes the first time)"
scripts/ci/check_cuda.sh
step "types on macOS, Windows and WebAssembly (nothing is linked or run; some minutes the first time)"
scripts/ci/check_platforms.sh
if [ -n "${CHROMIUM:-}" ] || command -v chromium >/dev/null; then
    step "the report in a browser"
    pages=$(mktemp -d)
    trap 'rm -rf "$pages"' EXIT
    cargo run --release -- compare --html "$pages/compare.html" --json >"$pages/compare.json"
    scripts/ci/check_report.py "$pages/compare.html" --json "$pages/compare.json"
    cargo run --release -- explain --html "$pages/explain.html" >/dev/null
    scripts/ci/check_report.py "$pages/explain.html"
fi
step "the playground, built and in a browser"
if scripts/build_playground.sh; then
    if [ -n "${CHROMIUM:-}" ] || command -v chromium >/dev/null; then
        scripts/ci/check_playground.py "${CARGO_TARGET_DIR:-target}/release/attn"
    else
        echo "skipped: Chromium is not installed (CHROMIUM names another browser of its family)"
    fi
elif [ $? -ne 3 ]; then
    exit 1
fi
