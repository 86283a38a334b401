#!/usr/bin/env bash
# Packs every crate as crates.io would get it, and checks that each package has what a reader of it needs.
#
#   scripts/ci/check_packages.sh            packs and looks; a few seconds
#   scripts/ci/check_packages.sh --build    builds every package from its files alone, too (minutes, and 3 GB of disk)
#
# A crate's tests of whole files stay in the repository with their golden data; what is packed are its sources and their unit tests.
set -euo pipefail
cd "$(dirname "$0")/../.."

target=$(mktemp -d)
trap 'rm -rf "$target"' EXIT
verify=--no-verify
if [ "${1:-}" = --build ]; then
    verify=
fi
# What the packages depend on was fetched by any build before. `integration` has the tests that cross crates, and is not published.
# shellcheck disable=SC2086
cargo package --workspace --exclude integration --offline --allow-dirty $verify --target-dir "$target" 2>&1 |
    grep -v 'is not included in the published package' || { echo "fault: cargo package failed" >&2; exit 1; }

faults=0
fault() { echo "fault: $*" >&2; faults=$((faults + 1)); }
packages=0
for file in "$target"/package/*.crate; do
    name=$(basename "$file" .crate)
    packages=$((packages + 1))
    list=$(tar tzf "$file")
    for needed in README.md LICENSE-MIT LICENSE-APACHE Cargo.toml; do
        grep -qx "$name/$needed" <<<"$list" || fault "$name has no $needed"
    done
    manifest=$(tar xzOf "$file" "$name/Cargo.toml")
    for key in description readme keywords categories license rust-version documentation; do
        grep -q "^$key = " <<<"$manifest" || fault "$name: no $key"
    done
    # A link would be packed as the file it leads to; where links aren't made (Windows), as its path.
    [ "$(tar xzOf "$file" "$name/LICENSE-MIT" | wc -c)" -gt 500 ] || fault "$name: LICENSE-MIT is not the licence"
    # Sources that read files from outside the package would build here and nowhere else.
    tar xzf "$file" -C "$target"
    while IFS=: read -r source path; do
        [ -e "$(dirname "$source")/$path" ] || fault "${source#"$target/"} includes $path, which is not in the package"
    done < <(grep -rhoH 'include_\(str\|bytes\)!("[^"]*")' "$target/$name/src" | sed 's/include_[a-z]*!("\(.*\)")/\1/')
    size=$(wc -c <"$file")
    [ "$size" -le $((10 << 20)) ] || echo "note: $name has $size bytes; crates.io takes $((10 << 20)) unless it is asked for more"
done
crates=$(find crates -mindepth 2 -maxdepth 2 -name Cargo.toml | wc -l)
[ "$packages" -eq "$crates" ] || fault "$packages packages of $crates crates"
[ "$faults" -eq 0 ] && echo "$packages packages"
