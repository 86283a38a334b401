#!/usr/bin/env bash
# Type-checks and lints the workspace for platforms other than this machine's, on which CI cannot run the tests.
#
#   scripts/ci/check_platforms.sh [TARGET..]      (default: all of these)
#
#   aarch64-apple-darwin       every crate, with the feature `metal`
#   x86_64-pc-windows-msvc     every crate
#   wasm32-unknown-unknown     the libraries without the hub's downloads; build_playground.sh builds the page that uses them
#
# Nothing is linked or run, and no C is compiled: the hub's TLS contains C (ring), for which a stub stands in for the compiler. A target
# that rustup has not installed is skipped by name. All targets share one build folder; the first run takes a few minutes.
set -euo pipefail
cd "$(dirname "$0")/../.."

folder=${CARGO_TARGET_DIR:-target}/check-platforms
mkdir -p "$folder/stubs"
stubs=$(cd "$folder/stubs" && pwd)
cat > "$stubs/cc" <<'STUB'
#!/usr/bin/env bash
# Stands in for a C compiler, an assembler and `ar`: writes an empty file where a result is expected.
while [ $# -gt 0 ]; do
    case "$1" in
        -o) : > "$2"; shift ;;
        -Fo*) : > "${1#-Fo}" ;;
        -out:*) : > "${1#-out:}" ;;
        *.a|*.lib) : > "$1" ;;
    esac
    shift
done
STUB
chmod +x "$stubs/cc"

check() { # TARGET CARGO-ARGUMENT..
    local target=$1 name=${1//-/_}
    shift
    env "CC_$name=$stubs/cc" "AR_$name=$stubs/cc" cargo clippy --target "$target" --target-dir "$folder" "$@" -- -D warnings
    # Whoever builds on attn-eval for another platform needs no C compiler for it, unless the hub is asked for.
    if cargo tree --package attn-eval --target "$target" --edges normal,build --prefix none | grep -E '^(ring|openssl-sys|aws-lc-sys) '; then
        echo "fault: for $target attn-eval depends on the crates above, which have C code" >&2
        exit 1
    fi
    echo "$target: the types are right; nothing was linked or run"
}

all=(aarch64-apple-darwin x86_64-pc-windows-msvc wasm32-unknown-unknown)
for target in "${@:-${all[@]}}"; do
    printf '\n%s\n' "$target"
    if [ ! -d "$(rustc --print target-libdir --target "$target")" ]; then
        echo "skipped: the Rust target $target is not installed (rustup target add $target)"
        continue
    fi
    case "$target" in
        # The package `integration` has tests alone.
        aarch64-apple-darwin) check "$target" --workspace --exclude integration --features attn-cli/metal ;;
        x86_64-pc-windows-msvc) check "$target" --workspace --exclude integration ;;
        wasm32-unknown-unknown)
            check "$target" --no-default-features -p attn-core -p attn-models -p attn-loader -p attn-eval -p attn-playground ;;
        *) echo "fault: $target is not one of ${all[*]}" >&2; exit 2 ;;
    esac
done
