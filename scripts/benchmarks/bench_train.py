#!/usr/bin/env python3
"""Compares training speed and peak memory of `attn train` with the same model in PyTorch, in turn, on the same tokens.

    python3 scripts/benchmarks/bench_train.py target/release/attn TEXT [--steps 20] [--rounds 3] [--json]

The model is attn train's default (Llama's block, rotary positions). PyTorch runs transformers' Llama with SDPA attention and
torch.optim.AdamW(fused=True), both with their default threads, in f32. The first five steps of a run are left out.
"""

import argparse
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

SKIP = 5


def torch_run(folder, text, steps, batch, context):
    import torch
    from tokenizers import Tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    config = json.loads((folder / "config.json").read_text())
    for key in ("model_type", "architectures", "dtype"):
        config.pop(key, None)
    model = LlamaForCausalLM(LlamaConfig(**config, attn_implementation="sdpa")).train()
    ids = torch.tensor(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=0.1, fused=True)
    speeds, generator = [], torch.Generator().manual_seed(0)
    for _ in range(steps):
        started = time.perf_counter()
        starts = torch.randint(len(ids) - context, (batch,), generator=generator)
        rows = torch.stack([ids[s : s + context] for s in starts])
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        speeds.append(batch * context / (time.perf_counter() - started))
    return {"tokens_per_second": statistics.median(speeds[SKIP:]),
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def attn_run(attn, text_file, out, steps):
    # A separate child process, so that its peak is not mixed with those of earlier runs.
    code = ("import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL);"
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)")
    command = [str(attn), "train", "--text", str(text_file), "--out", str(out), "--steps", str(steps), "--checkpoint-every", "100000"]
    peak = subprocess.run([sys.executable, "-c", code, *command], check=True, capture_output=True, text=True).stdout
    steps = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    return {"tokens_per_second": statistics.median(s["tokens_per_second"] for s in steps[SKIP:]), "peak_mib": int(peak) / 1024}


def main():
    p = argparse.ArgumentParser()
    p.add_argument("attn", type=pathlib.Path)
    p.add_argument("text", type=pathlib.Path)
    p.add_argument("--steps", type=int, default=20)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--json", action="store_true")
    p.add_argument("--torch-child", type=pathlib.Path, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.torch_child:
        print(json.dumps(torch_run(args.torch_child, args.text.read_text(), args.steps, 16, 256)))
        return
    runs = {"attn": [], "torch": []}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(args.rounds):
            out = pathlib.Path(folder) / str(i)
            runs["attn"].append(attn_run(args.attn, args.text, out, args.steps))
            child = [sys.executable, __file__, str(args.attn), str(args.text), "--steps", str(args.steps), "--torch-child", str(out)]
            runs["torch"].append(json.loads(subprocess.run(child, check=True, capture_output=True, text=True).stdout.splitlines()[-1]))
    best = {name: {"tokens_per_second": max(r["tokens_per_second"] for r in all), "peak_mib": min(r["peak_mib"] for r in all)}
            for name, all in runs.items()}
    ratio = best["attn"]["tokens_per_second"] / best["torch"]["tokens_per_second"]
    if args.json:
        print(json.dumps({"runs": runs, "best": best, "speed_ratio": ratio}))
        return
    for name, r in best.items():
        print(f"{name:6} {r['tokens_per_second']:8.0f} tokens/s  {r['peak_mib']:6.0f} MiB at its peak")
    print(f"attn's speed over torch's: {ratio:.2f}")


main()
