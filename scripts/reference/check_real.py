#!/usr/bin/env python3
"""Compares perplexities of real GGUF files with those of transformers, to 0.5 %. Real files show faults that random checkpoints
cannot show (tokenizers, BOS, quantised blocks).

    scripts/fetch_models.sh; scripts/fetch_models.sh gemma3
    cargo build --release -p attn-cli; python3 scripts/reference/check_real.py [ATTN]
"""
import json
import os
import subprocess
import sys

os.chdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
ATTN = sys.argv[1] if len(sys.argv) > 1 else "target/release/attn"
TEXT = "tests/data/persuasion.txt"
GEMMA3 = ".models/gemma3/gemma-3-270m-Q4_K_M.gguf"
SMOLLM2 = ".models/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def perplexity(model, context, tokens, *more):
    command = [ATTN, "perplexity", model, "--text", TEXT, "--context", str(context), "--max-tokens", str(tokens), "--json", *more]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def check(name, ours, tokens, want):
    ratio = ours["perplexity"] / want
    fine = abs(ratio - 1) < 0.005 and ours["tokens"] == tokens
    print(f"{'ok  ' if fine else 'FAIL'} {name}: {ours['perplexity']:.4f}, transformers {want:.4f} ({(ratio - 1) * 100:+.3f} %)", flush=True)
    return fine


def gemma3():
    for row in json.load(open("tests/golden/gemma3_perplexity.json"))["results"]:
        context, bos = row["context"], row["bos"]
        for choice in ["on", "auto"] if bos else ["off"]:
            ours = perplexity(GEMMA3, context, 8192, "--bos", choice)
            assert ours["bos"] == (2 if bos else None), ours["bos"]
            yield check(f"Gemma 3 270M, windows of {context}, --bos {choice}", ours, row["tokens"], row["ppl"])


def smollm2():
    for row in json.load(open("tests/golden/smollm2_perplexity.json"))["results"]:
        if row["mode"] != "none" or row["n"] > 4096:
            continue
        context = row["n"]
        ours = perplexity(SMOLLM2, context, context)
        assert ours["bos"] is None, ours["bos"]
        yield check(f"SmolLM2 135M, one window of {context}", ours, context - 1, row["ppl"])


if __name__ == "__main__":
    results = [fine for path, run in ((GEMMA3, gemma3), (SMOLLM2, smollm2)) if os.path.exists(path) for fine in run()]
    sys.exit(0 if results and all(results) else 1)
