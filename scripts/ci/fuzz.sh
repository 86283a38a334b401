#!/usr/bin/env bash
# Runs the fuzz targets one after the other, each for a number of seconds (0: only on the existing inputs), in one thread.
#   scripts/ci/fuzz.sh [SECONDS [TARGET...]]
# Ends with an error if a target found something. The output of each target is in fuzz/logs.
# The builds use LLVM's coverage instrumentation through flags that the stable compiler has, and libFuzzer from the
# libfuzzer-sys crate, which needs a C++ compiler. A nightly toolchain is not needed. There is no address sanitizer, because
# nearly all of the fuzzed code is safe Rust. See fuzz/README.md.
set -euo pipefail
cd "$(dirname "$0")/../../fuzz"
seconds=${1:-60}
shift || true
targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
    mapfile -t targets < <(sed -n 's/^path = "fuzz_targets\/\(.*\)\.rs"$/\1/p' Cargo.toml)
fi

host=$(rustc -vV | sed -n 's/^host: //p')
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing"
# When a target is named, the flags do not apply to build scripts and procedural macros.
cargo build --release --target "$host" "${targets[@]/#/--bin=}"
binaries=${CARGO_TARGET_DIR:-target}/$host/release

limit=(-max_total_time="$seconds")
if [ "$seconds" = 0 ]; then limit=(-runs=0); fi
found=()
for target in "${targets[@]}"; do
    # The corpus of earlier runs, then the seeds; new inputs are written to the first.
    corpora=("corpus/$target" "seeds/$target")
    mkdir -p "${corpora[@]}" "artifacts/$target" logs
    if [ "$target" = config ]; then
        # The golden data already have a config of every family.
        mkdir -p corpus/config-golden
        for config in ../tests/golden/models/*/config.json; do
            cp "$config" "corpus/config-golden/$(basename "$(dirname "$config")").json"
        done
        corpora+=(corpus/config-golden)
    fi
    options=("${limit[@]}" -timeout=10 -rss_limit_mb=2048 -malloc_limit_mb=1024 -max_len=65536
        -artifact_prefix="artifacts/$target/" -print_final_stats=1)
    if [ -f "dict/$target.dict" ]; then options+=(-dict="dict/$target.dict"); fi
    printf '\n== %s, %s s\n' "$target" "$seconds"
    # The processor time shows how much was really fuzzed if the machine does other work too.
    TIMEFORMAT="processor: %U s"
    { time RAYON_NUM_THREADS=1 "$binaries/$target" "${options[@]}" "${corpora[@]}"; } 2>&1 | tee "logs/$target" ||
        found+=("$target")
done
if [ ${#found[@]} -gt 0 ]; then
    echo "found something: ${found[*]} (see fuzz/artifacts)" >&2
    exit 1
fi
