#!/usr/bin/env bash
# Packs every crate as crates.io would get it, and checks that each package has what a user needs.
#
#   scripts/ci/check_packages.sh            packs, checks the contents, and type-checks every package with its tests (some minutes the first time)
#   scripts/ci/check_packages.sh --test     also runs the tests of every package (some minutes, and 4 GB of disk)
#
# Only the unpacked packages are compiled, in a folder outside the repository; each uses the other packages instead of the registry's.
# A package contains the sources and their unit tests. Tests that need golden data stay in the repository.
set -euo pipefail
cd "$(dirname "$0")/../.."

# Kept between runs, like any build folder.
built=$(mkdir -p "${CARGO_TARGET_DIR:-target}" && cd "${CARGO_TARGET_DIR:-target}" && pwd)/check-packages
target=$(mktemp -d)
trap 'rm -rf "$target"' EXIT
# The dependencies were fetched by an earlier build. `integration` has the tests of several crates together and is not published.
cargo package --workspace --exclude integration --offline --allow-dirty --no-verify --target-dir "$target" 2>&1 |
    grep -v 'is not included in the published package' || { echo "fault: cargo package failed" >&2; exit 1; }

faults=0
fault() { echo "fault: $*" >&2; faults=$((faults + 1)); }
packages=0
mkdir "$target/unpacked"
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
    # A link would be packed as a copy of the file it leads to or, where git makes no links (Windows), as a file with its path.
    [ "$(tar xzOf "$file" "$name/LICENSE-MIT" | wc -c)" -gt 500 ] || fault "$name: LICENSE-MIT is not the licence"
    # Sources that read files outside the package would build in this repository and nowhere else.
    tar xzf "$file" -C "$target/unpacked"
    while IFS=: read -r source path; do
        [ -e "$(dirname "$source")/$path" ] || fault "${source#"$target/unpacked/"} includes $path, which is not in the package"
    done < <(grep -rhoH 'include_\(str\|bytes\)!("[^"]*")' "$target/unpacked/$name/src" | sed 's/include_[a-z]*!("\(.*\)")/\1/')
    size=$(wc -c <"$file")
    [ "$size" -le $((10 << 20)) ] || fault "$name has $size bytes; crates.io takes $((10 << 20))"
done
crates=$(find crates -mindepth 2 -maxdepth 2 -name Cargo.toml | wc -l)
[ "$packages" -eq "$crates" ] || fault "$packages packages of $crates crates"
[ "$faults" -eq 0 ] || exit 1

# One workspace of the packages, in which each uses the others instead of the registry's.
{
    printf '[workspace]\nresolver = "3"\nmembers = ["*"]\n\n[patch.crates-io]\n'
    for folder in "$target"/unpacked/*/; do
        folder=$(basename "$folder")
        printf '%s = { path = "%s" }\n' "${folder%-*}" "$folder"
    done
} >"$target/workspace.toml"
mv "$target/workspace.toml" "$target/unpacked/Cargo.toml"
cp Cargo.lock "$target/unpacked"
do=(check --tests)
[ "${1:-}" != --test ] || do=(test --lib --bins --release)
(cd "$target/unpacked" && cargo "${do[@]}" --workspace --offline --target-dir "$built")
echo "$packages packages"
