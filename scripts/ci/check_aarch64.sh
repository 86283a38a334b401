#!/usr/bin/env bash
# Builds attn-core for aarch64 with a cross compiler and runs its unit tests, including the property tests of the NEON kernels,
# under qemu.
#   scripts/ci/check_aarch64.sh [ARGUMENT OF THE TESTS...]
# It needs, on Debian or Ubuntu: rustup target add aarch64-unknown-linux-gnu
#   apt-get install gcc-aarch64-linux-gnu g++-aarch64-linux-gnu qemu-user
#
# Instructions are emulated, so the tests show what a real machine would compute, but nothing about speed. ATTN_CPUS lists the
# processors to emulate: a Neoverse N1 has half-precision arithmetic (the crates half and gemm use it), a Cortex-A72 does not.
# ATTN_TESTS chooses other tests (default: --package attn-core --lib); "--workspace" runs all of them.
set -euo pipefail
cd "$(dirname "$0")/../.."
triple=aarch64-unknown-linux-gnu

missing() {
    echo "$1: missing, so nothing was checked for aarch64 ($2)" >&2
    exit 3
}
command -v qemu-aarch64 >/dev/null || missing qemu-aarch64 "apt-get install qemu-user"
command -v aarch64-linux-gnu-g++ >/dev/null || missing aarch64-linux-gnu-g++ "apt-get install g++-aarch64-linux-gnu"
[ -d "$(rustc --print sysroot)/lib/rustlib/$triple" ] || missing "$triple" "rustup target add $triple"

export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc CXX_aarch64_unknown_linux_gnu=aarch64-linux-gnu-g++
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
for cpu in ${ATTN_CPUS:-neoverse-n1 cortex-a72}; do
    printf '\n== %s, emulated\n' "$cpu"
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu -cpu $cpu"
    # Each word of ATTN_TESTS is a separate argument.
    # shellcheck disable=SC2086
    cargo test --release --locked --target "$triple" ${ATTN_TESTS:---package attn-core --lib} -- "$@"
done
