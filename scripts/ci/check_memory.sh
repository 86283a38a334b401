#!/usr/bin/env bash
# Runs attn-core's unit tests, including the property tests of its kernels, with LLVM's address sanitizer and debug
# assertions. The run ends with an error if a kernel reads or writes outside an allocation.
#   scripts/ci/check_memory.sh [ARGUMENT OF THE TESTS...]
# Needs x86-64 and a Rust from rustup, whose stable toolchain ships the sanitizer's runtime; RUSTC_BOOTSTRAP unlocks the
# flag for it. Builds everything again in a separate folder, which takes some minutes.
#
# With debug assertions, every part of the working memory is an allocation of its exact size (see strict_scratch.rs), so that an
# access past one buffer cannot land in the next. The sanitizer does not check the assembly of the AMX kernels, nor the standard
# library, which is built without it.
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
# The threads of the pool live as long as the process, and so does the memory they keep; it is not a leak.
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=0}

# Tests of attention run all kernels that the machine has; those of products and rows run only the one that is chosen.
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
