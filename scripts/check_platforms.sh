#!/usr/bin/env bash
# Type-checks the workspace for platforms that this machine is not.
#
#   scripts/check_platforms.sh [TARGET..]      (default: all that are listed below)
#
#   aarch64-apple-darwin       everything, with the feature `metal`
#   x86_64-pc-windows-msvc     everything
#   wasm32-unknown-unknown     the libraries, without the hub's downloads; the playground itself is built by build_playground.sh
#
# Nothing is linked or run. A dependency's C code (ring's) is not compiled: a stub takes the compiler's place. A target that rustup
# doesn't have installed is skipped by name (rustup target add TARGET).
set -euo pipefail
cd "$(dirname "$0")/.."

folder=${CARGO_TARGET_DIR:-target}/check-platforms
mkdir -p "$folder/stubs"
stubs=$(cd "$folder/stubs" && pwd)
cat > "$stubs/cc" <<'STUB'
#!/usr/bin/env bash
# Takes the place of a C compiler, an assembler and `ar`: an empty file where a result is expected.
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

check() {
    local target=$1
    shift
    local name=${target//-/_}
    printf '\n%s\n' "$target"
    if [ ! -d "$(rustc --print target-libdir --target "$target")" ]; then
        echo "skipped: the Rust target $target is not installed (rustup target add $target)"
        return
    fi
    env "CC_$name=$stubs/cc" "AR_$name=$stubs/cc" \
        cargo check --target "$target" --target-dir "$folder" "$@"
    echo "$target: the types are right; nothing was linked or run"
}

all=(aarch64-apple-darwin x86_64-pc-windows-msvc wasm32-unknown-unknown)
for target in "${@:-${all[@]}}"; do
    case "$target" in
        aarch64-apple-darwin) check "$target" --workspace --exclude integration --features attn-cli/metal ;;
        x86_64-pc-windows-msvc) check "$target" --workspace --exclude integration ;;
        wasm32-unknown-unknown) check "$target" -p attn-core -p attn-models -p attn-loader -p attn-eval -p attn-playground ;;
        *) echo "fault: $target is none of ${all[*]}" >&2; exit 2 ;;
    esac
done
