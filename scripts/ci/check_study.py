#!/usr/bin/env python3
"""Runs the extrapolation study from end to end at a size that means nothing: models of two steps, on parts of the sample text.

    scripts/ci/check_study.py path/to/attn

Checks that it trains, measures, fine-tunes and reports, and that a second run finds everything done.
"""
import json
import os
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "scripts", "studies"))
import study_texts  # noqa: E402

SMALL = "--steps 2 --batch 2 --context 128 --hidden 32 --intermediate 32 --heads 2 --kv-heads 1 --seeds 0 --encodings rope learned " \
    "--contexts 128 256 --eval-tokens 1024 --trials 1 --jobs 1".split()
FILES = ["study.json", "study.md", "extrapolation.svg", "retrieval.svg", "loss.svg"]


def main():
    attn = os.path.abspath(sys.argv[1])
    sample = open(os.path.join(ROOT, "crates", "attn-cli", "models", "sample.txt"), encoding="utf-8").read()
    names = [*study_texts.NOVELS, study_texts.HELD_OUT]
    with tempfile.TemporaryDirectory() as scratch:
        part = len(sample) // len(names)
        for i, name in enumerate(names):
            with open(os.path.join(scratch, f"{name}.txt"), "w", encoding="utf-8") as file:
                file.write(sample[i * part:(i + 1) * part])
        out = os.path.join(scratch, "out")
        words = [sys.executable, os.path.join(ROOT, "scripts", "studies", "study.py"), "--out", out, "--attn", attn, "--texts", scratch]
        for run in ("first", "second"):
            done = subprocess.run([*words, *SMALL], capture_output=True, text=True)
            if done.returncode != 0:
                sys.exit(f"the {run} run fails:\n{done.stdout}{done.stderr}")
            if run == "second" and "held-out loss" in done.stdout:
                sys.exit(f"the second run trains again:\n{done.stdout}")
        missing = [name for name in FILES if not os.path.getsize(os.path.join(out, name))]
        study = json.load(open(os.path.join(out, "study.json"), encoding="utf-8"))
        measured = {cell["name"] for cell in study["cells"]}
        wanted = {"rope", "learned", "rope, yarn", "rope, yarn, tuned", "rope, dropped, tuned"}
        if missing or not wanted <= measured:
            sys.exit(f"missing: {missing} {wanted - measured}")
    print(f"the study runs, with {len(study['cells'])} cells of {len(measured)} names")


main()
