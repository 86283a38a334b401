#!/usr/bin/env python3
"""Checks README.md: it has at most 1200 words, its links lead to existing files, and its commands run.

    scripts/ci/check_readme.py path/to/attn

Commands run as they are written, but with a small model and a short text instead of the reader's, and with short contexts. The model is
the embedded one; where a command needs a folder, it is a checkpoint that is trained here for two steps.
"""
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
MOST_WORDS = 1200
# Replacements for the reader's model and contexts.
STAND_INS = {"MODEL": "tiny-austen", "4096,8192,16384": "256,512", "4096,8192": "128,256", "8192": "512", "131072": "2048"}
# Options that are added so that a command ends soon.
SHORT = {
    "train": "--steps 2 --hidden 32 --intermediate 64 --layers 1 --heads 2 --kv-heads 1 --batch 2 --context 64".split(),
    "retrieval": ["--trials", "1", "--modes", "none"],
    "compare": ["--trials", "1", "--modes", "none,yarn"],
    "bench": ["--runs", "1"],
}
# Commands that need a checkpoint in a folder rather than the embedded model.
WANT_FOLDER = ("generate", "export")
# A chat template, because a model trained here has none.
TEMPLATE = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
# Commands that are not run; only their options are checked. And why.
ONLY_OPTIONS = {"playground": "serves until it is stopped"}


def commands(text):
    for block in re.findall(r"```console\n(.*?)```", text, re.S):
        for line in block.splitlines():
            if line.startswith("$ "):
                yield line[2:].split("  #")[0].strip()
    yield from (c for c in re.findall(r"`(attn [^`]*)`", text))


def unknown_options(attn, words):
    path = [w for w in words[1:3] if re.fullmatch(r"[a-z]+", w)]
    path = path[: 2 if path and path[0] == "bench" else 1]
    shown = subprocess.run([attn, *path, "--help"], capture_output=True, text=True)
    if shown.returncode:
        return [" ".join(path)]
    options = [w for w in words if w.startswith("-") and w != "-"]
    return [o for o in options if not re.search(rf"(^|[\s,]){re.escape(o.split('=')[0])}\b", shown.stdout)]


def run(attn, words, scratch):
    text = os.path.join(scratch, "text.txt")
    words = [STAND_INS.get(w, text if w.endswith(".txt") else w) for w in words]
    words = [os.path.join(scratch, w) if w in ("DIR", "report.html") or w.startswith("runs/") else w for w in words]
    if words[1] in WANT_FOLDER:
        words = [checkpoint(scratch) if w == "tiny-austen" else w for w in words]
    result = subprocess.run([attn, *words[1:], *SHORT.get(words[1], [])], capture_output=True, text=True)
    return None if result.returncode == 0 else result.stderr.strip()


def checkpoint(scratch):
    return os.path.join(scratch, "checkpoint")


def make_checkpoint(attn, scratch):
    out = checkpoint(scratch)
    command = [attn, "train", "--text", os.path.join(scratch, "text.txt"), "--out", out, *SHORT["train"]]
    subprocess.run(command, capture_output=True, check=True)
    config = os.path.join(out, "tokenizer_config.json")
    known = json.load(open(config, encoding="utf-8")) if os.path.exists(config) else {}
    json.dump({**known, "chat_template": TEMPLATE}, open(config, "w", encoding="utf-8"))


def main():
    attn = os.path.abspath(sys.argv[1])
    text = open(os.path.join(ROOT, "README.md"), encoding="utf-8").read()
    faults = []
    count = len(text.split())
    if count > MOST_WORDS:
        faults.append(f"{count} words; at most {MOST_WORDS}")
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        if not os.path.exists(os.path.join(ROOT, link)):
            faults.append(f"no file {link}")
    checked = 0
    with tempfile.TemporaryDirectory() as scratch:
        sample = open(os.path.join(ROOT, "crates", "attn-cli", "models", "sample.txt"), encoding="utf-8").read(20000)
        with open(os.path.join(scratch, "text.txt"), "w", encoding="utf-8") as file:
            file.write(sample)
        make_checkpoint(attn, scratch)
        for command in commands(text):
            words = shlex.split(command)
            if words[0] != "attn" or len(words) < 2:
                continue
            checked += 1
            unknown = unknown_options(attn, words)
            fault = f"unknown: {', '.join(unknown)}" if unknown else None
            # A command's name alone, as in running text, is not run.
            if not fault and len(words) > 2 and words[1] not in ONLY_OPTIONS:
                fault = run(attn, words, scratch)
            if fault:
                faults.append(f"{command}: {fault}")
    print(f"README.md: {count} words, {checked} commands of attn")
    for fault in faults:
        print("fault:", fault)
    sys.exit(bool(faults))


main()
