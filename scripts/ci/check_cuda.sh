#!/usr/bin/env bash
# Type-checks and lints the workspace with the features `cuda` and `flash-attn` on a machine without the CUDA toolkit.
#
# No kernel is compiled and nothing is linked or run. Candle's build scripts call nvcc (and git, for CUTLASS) and only check
# whether it succeeds, so stubs that write empty files are enough for them.
# Builds into a separate folder, target/check-cuda, because the features change most dependencies.
set -euo pipefail
cd "$(dirname "$0")/../.."

target=${CARGO_TARGET_DIR:-target}/check-cuda
mkdir -p "$target/stubs/bin"
stubs=$(cd "$target/stubs" && pwd)

cat > "$stubs/bin/nvcc" <<'STUB'
#!/usr/bin/env bash
# Stands in for nvcc: writes an empty file where a result is expected.
out="" folder="" ptx="" input=""
while [ $# -gt 0 ]; do
    case "$1" in
        -o) out=$2; shift ;;
        --output-directory) folder=$2; shift ;;
        --ptx) ptx=1 ;;
        --version) echo "release 12.6, V12.6.0" ;;
        *.cu) input=$1 ;;
    esac
    shift
done
[ -z "$ptx" ] || : > "$folder/$(basename "$input" .cu).ptx"
[ -z "$out" ] || : > "$out"
STUB
cat > "$stubs/bin/git" <<'STUB'
#!/usr/bin/env bash
# Stands in for git: a clone is an empty folder.
[ "${1:-}" != clone ] || mkdir -p "${@: -1}/include"
STUB
chmod +x "$stubs/bin/nvcc" "$stubs/bin/git"

export PATH="$stubs/bin:$PATH" NVCC="$stubs/bin/nvcc" CUDAFORGE_HOME="$stubs/cudaforge"
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-80} CUDARC_CUDA_VERSION=${CUDARC_CUDA_VERSION:-12060}
cargo clippy --workspace --all-targets --features attn-cli/flash-attn,integration/flash-attn --target-dir "$target" "$@" \
    -- -D warnings
echo "the types are right with the features cuda and flash-attn; nothing was built or run"
