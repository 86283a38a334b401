#!/usr/bin/env bash
# Fetches Jane Austen's six novels (public domain) into .texts/, which git ignores; scripts/studies/study.py trains on them.
# They are in Debian's package r-cran-janeaustenr, so apt-get, dpkg and python3 are needed (not R, not root).
set -euo pipefail
cd "$(dirname "$0")/../.."

novels="sensesensibility prideprejudice mansfieldpark emma northangerabbey persuasion"
for novel in $novels; do [ -s ".texts/$novel.txt" ] || missing=1; done
[ -n "${missing:-}" ] || { echo ".texts has the six novels"; exit 0; }

mkdir -p .texts
work=$(mktemp -d .texts/fetch.XXXXXX)
trap 'rm -rf "$work"' EXIT
(cd "$work" && apt-get download --quiet=2 r-cran-janeaustenr 2>&1 | grep -v unsandboxed || true)
dpkg -x "$work"/r-cran-janeaustenr_*.deb "$work"
python3 scripts/studies/austen.py "$work/usr/lib/R/site-library/janeaustenr/data/Rdata" .texts $novels
