#!/usr/bin/env bash
# Runs attn-core's unit tests, the property tests of its kernels among them, with LLVM's address sanitizer and debug
# assertions: what a kernel reads or writes outside an allocation ends the run.
#   scripts/ci/check_memory.sh [ARGUMENT OF THE TESTS...]
# Needs x86-64 and a Rust from rustup, whose stable toolchain ships the sanitizer's runtime; RUSTC_BOOTSTRAP unlocks the
# flag for it. Builds everything again, in a folder of its own: some minutes.
#
# With debug assertions, working memory is cut into allocations of the exact size (see strict_scratch.rs), so that going
# past one buffer is not hidden by the next. Not seen: what the AMX kernels' assembly does, and the standard library,
# which comes without the sanitizer.
set -euo pipefail
cd "$(dirname "$0")/../.."
triple=x86_64-unknown-linux-gnu
runtimes=$(rustc --print sysroot)/lib/rustlib/$triple/lib
if ! compgen -G "$runtimes/librustc*_rt.asan.a" >/dev/null; then
    echo "this toolchain has no address sanitizer for $triple (none in $runtimes)" >&2
    exit 1
fi
export RUSTC_BOOTSTRAP=1 CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true
export RUSTFLAGS="-Zsanitizer=address -Cforce-frame-pointers=yes"
# Threads of the pool live as long as the process, and so does what they keep.
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=0}

# Tests of attention go over all kernels that the machine has; those of products and rows take the one that is chosen.
for kernel in "" avx512 avx2 portable; do
    printf '\n== kernel: %s\n' "${kernel:-the fastest}"
    flag=${kernel/avx512/avx512f}
    if [ -n "$kernel" ] && [ "$kernel" != portable ] && ! grep -qw "$flag" /proc/cpuinfo; then
        echo "skipped: not on this machine"
        continue
    fi
    others=()
    [ -z "$kernel" ] || others=(--skip attention::laws)
    ATTN_KERNEL=$kernel cargo test --release --locked --target "$triple" \
        --target-dir "${CARGO_TARGET_DIR:-target}/memory" --package attn-core --lib -- "${others[@]}" "$@"
done
