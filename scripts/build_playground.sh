#!/usr/bin/env bash
# Builds the playground's page: the project's crates as WebAssembly, the page around them, and the source files that it links to.
#
#   scripts/build_playground.sh [FOLDER]      (default: target/playground, where `attn playground` looks for it)
#
# Needs the Rust target wasm32-unknown-unknown (rustup target add wasm32-unknown-unknown) and the command wasm-bindgen in the
# version of Cargo.lock, which is built from crates.io into target/tools the first time. If one of them is not available, the script
# says so and ends with code 3. The models and the sample text are part of the `attn` program, which adds them.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
out=${1:-$target/playground}
page=crates/attn-playground/page
wasm=wasm32-unknown-unknown

skip() { echo "skipped: $*" >&2; exit 3; }

[ -d "$(rustc --print target-libdir --target $wasm)" ] ||
    skip "the Rust target $wasm is not installed (rustup target add $wasm)"
version=$(sed -n '/^name = "wasm-bindgen"$/{n;s/^version = "\(.*\)"$/\1/p}' Cargo.lock)
bindgen=wasm-bindgen
if [ "$($bindgen --version 2>/dev/null)" != "wasm-bindgen $version" ]; then
    bindgen=$target/tools/bin/wasm-bindgen
    install=(cargo install wasm-bindgen-cli --version "$version" --no-default-features --bin wasm-bindgen --debug --root "$target/tools")
    # With the versions that its authors tested, where the registry has them all.
    [ "$($bindgen --version 2>/dev/null)" = "wasm-bindgen $version" ] || "${install[@]}" --locked || "${install[@]}" ||
        skip "wasm-bindgen $version can't be installed: ${install[*]}"
fi

# Vectors of 128 bits, which every browser has since 2023.
export CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS='-C target-feature=+simd128'
cargo rustc --locked --profile web --target $wasm -p attn-playground --lib --crate-type cdylib

fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
cp -R "$page/." "$fresh"
"$bindgen" --target web --no-typescript --remove-name-section --remove-producers-section --out-dir "$fresh" --out-name program "$target/$wasm/web/attn_playground.wasm"
# The source files that the page links to: those it was built from.
for link in $(grep -oh 'href="source/[^"]*"' "$page"/*.html | sed 's/^href="source\///; s/"$//' | sort -u); do
    mkdir -p "$fresh/source/$(dirname "$link")"
    cp "$link" "$fresh/source/$link"
done
rm -rf "$out"
mkdir -p "$out"
cp -R "$fresh/." "$out"
echo "$out: $(($(find "$out" -type f -exec cat {} + | wc -c) / 1024)) KiB, of which the program $(($(wc -c <"$out/program_bg.wasm") / 1024)) KiB"
