#!/usr/bin/env bash
# Builds attn-core for aarch64 and runs its unit tests, property tests of the NEON kernels among them, under qemu.
#   scripts/check_aarch64.sh [FOLDER [ARGUMENT OF THE TESTS...]]
# FOLDER (ATTN_AARCH64, or target/aarch64) becomes a small Debian with a cross compiler, about 2 GB the first time, and
# keeps the build. Needs root on an x86-64 Debian or Ubuntu with debootstrap, and a network until the folder is there.
#
# Instructions are emulated, so results say what a machine would compute and nothing about speed. ATTN_CPUS lists what
# to emulate: a Neoverse N1 has half-precision arithmetic (the crates half and gemm use it), a Cortex-A72 has not.
# ATTN_PACKAGE and ATTN_TARGET (default --lib) choose other tests: ATTN_PACKAGE=integration ATTN_TARGET=--test=golden
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-${ATTN_AARCH64:-target/aarch64}}
shift || true
[ "$(id -u)" = 0 ] || { echo "needs root, for chroot" >&2; exit 1; }
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
root=$folder/debian
triple=aarch64-unknown-linux-gnu
# Debian's Rust is that of the suite; the oldest that the workspace takes is in Cargo.toml.
suite=forky mirror=${ATTN_MIRROR:-http://deb.debian.org/debian}

# Mounts are seen by this script alone and end with it.
if [ -z "${ATTN_UNSHARED:-}" ]; then
    ATTN_UNSHARED=1 exec unshare --mount --propagation private scripts/check_aarch64.sh "$folder" "$@"
fi

# The sources of every crate, as Cargo.lock has them; the build sees them read-only and goes without a network.
cargo fetch --locked --target "$triple"
registry=${CARGO_HOME:-$HOME/.cargo}/registry

if [ ! -e "$folder/complete" ]; then
    rm -rf "$root"
    # An older debootstrap may not know the suite; all of Debian's are made the same way.
    debootstrap --variant=minbase "$suite" "$root" "$mirror" /usr/share/debootstrap/scripts/sid
    # Proxies, and whether the machine's clock may be believed.
    apt-config dump | grep -E '^Acquire::(https?|Check-)' >"$root/etc/apt/apt.conf.d/50host" || true
    mount -t proc proc "$root/proc"
    chroot "$root" dpkg --add-architecture arm64
    chroot "$root" apt-get update
    DEBIAN_FRONTEND=noninteractive chroot "$root" apt-get install --yes --no-install-recommends \
        rustc cargo libstd-rust-dev:arm64 gcc g++ gcc-aarch64-linux-gnu g++-aarch64-linux-gnu libc6:arm64 \
        libstdc++6:arm64 qemu-user
    chroot "$root" apt-get clean
    umount "$root/proc"
    touch "$folder/complete"
fi

mkdir -p "$root/repository" "$root/cargo/registry" "$root/build"
mount -t proc proc "$root/proc"
mount --bind . "$root/repository"
mount -o remount,bind,ro "$root/repository"
mount --bind "$registry" "$root/cargo/registry"
mount -o remount,bind,ro "$root/cargo/registry"

for cpu in ${ATTN_CPUS:-neoverse-n1 cortex-a72}; do
    printf '\n== %s, emulated\n' "$cpu"
    chroot "$root" /usr/bin/env -i PATH=/usr/bin:/bin HOME=/root CARGO_HOME=/cargo CARGO_TARGET_DIR=/build \
        ATTN_KERNEL="${ATTN_KERNEL:-}" RAYON_NUM_THREADS="${RAYON_NUM_THREADS:-}" CARGO_TERM_COLOR=never \
        CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc CXX_aarch64_unknown_linux_gnu=aarch64-linux-gnu-g++ \
        CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
        CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -cpu $cpu" \
        cargo test --manifest-path /repository/Cargo.toml --release --locked --offline --target "$triple" \
        --package "${ATTN_PACKAGE:-attn-core}" "${ATTN_TARGET:---lib}" -- "$@"
done
