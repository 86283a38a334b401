#!/usr/bin/env python3
"""Checks that transformers computes from an export what `attn` computes from the options with which it was made.

    python scripts/reference/check_export.py ATTN

needs torch, transformers (5 or 4) and safetensors. ATTN is the program. Golden checkpoints of several families are
exported under several scalings; transformers loads the folder, and its logits have to agree with those of `attn logits`
under the same options. What a family's configs can't express has to be refused. Prints one line per export and fails on
the first that disagrees.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers import __version__ as version

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "golden" / "models"
MODELS = [
    *("llama", "llama-v4-config", "llama-longrope", "qwen2", "phi", "gpt-neox"),
    *("phi3-longrope", "gemma3", "gptj-interleaved"),
]
# transformers' Phi-3 reads only longrope, and any base; its GPT-J reads no scaling. Their other exports have to be refused.
ONLY = {"phi3-longrope": ["none", "ntk", "checkpoint"], "gptj-interleaved": ["none", "checkpoint"]}
SCALINGS = {
    "none": [],
    "linear": ["--rope-factor", "2"],
    "ntk": ["--rope-factor", "2"],
    "dynamic": ["--rope-factor", "2", "--rope-original-context", "16"],
    "ntk-by-parts": ["--rope-factor", "2", "--rope-original-context", "16"],
    "ntk-mixed": ["--rope-factor", "4", "--rope-param", "exponent=0.75"],
    "yarn": ["--rope-factor", "4", "--rope-param", "beta_fast=8", "--rope-original-context", "16"],
    "llama3": ["--rope-factor", "2", "--rope-theta", "20000", "--rope-original-context", "16"],
    "checkpoint": [],
}
TOLERANCE = 1e-3


def run(*args):
    done = subprocess.run([str(a) for a in args], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, args))}: {done.stderr}")
    return done.stdout


def must_refuse(*args):
    if subprocess.run([str(a) for a in args], capture_output=True).returncode != 1:
        sys.exit(f"{' '.join(map(str, args))}: should be refused")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("attn", type=Path)
    attn = parser.parse_args().attn.resolve()
    torch.manual_seed(0)
    worst = 0.0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        ids = torch.randint(0, 90, (2, 48))
        (folder / "ids.json").write_text(json.dumps(ids.tolist()))
        for name in MODELS:
            for scaling, options in SCALINGS.items():
                chosen = [] if scaling == "checkpoint" else ["--rope-scaling", scaling, *options]
                if scaling not in ONLY.get(name, SCALINGS):
                    must_refuse(attn, "export", GOLDEN / name, "--out", folder / "refused", *chosen)
                    print(f"{name:16} {scaling:14} refused")
                    continue
                out, logits = folder / f"{name}-{scaling}", folder / "logits.safetensors"
                run(attn, "export", GOLDEN / name, "--out", out, *chosen)
                run(attn, "logits", GOLDEN / name, "--ids", folder / "ids.json", "--out", logits, *chosen)
                ours = load_file(logits)["logits"]
                model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
                with torch.no_grad():
                    theirs = model(ids).logits
                difference = (ours - theirs).abs().max().item()
                worst = max(worst, difference)
                print(f"{name:16} {scaling:14} {difference:.2e}")
                if not difference < TOLERANCE:
                    sys.exit(f"{name} under {scaling}: transformers {version} differs by {difference}")
    print(f"transformers {version} agrees on every export, to {worst:.1e}")


if __name__ == "__main__":
    main()
