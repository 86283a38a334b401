#!/usr/bin/env python3
"""The extrapolation study: one small model per position encoding, trained at one length, evaluated at longer ones.

    scripts/studies/fetch_texts.sh                                  Jane Austen's novels, once
    cargo build --release
    python3 scripts/studies/study.py --out .study --steps 3000      everything: train, evaluate, fine-tune, table, figure

Every model has the same block, the same first weights, the same batches and the same tokenizer; the encoding alone differs.
Five novels are trained on, the sixth (Persuasion) is held out. The rotary model is also evaluated under scalings, and after a
short fine-tune at four times the length under linear interpolation and YaRN, from the rotary checkpoint.

The study runs in pieces that resume: training from its last checkpoint, evaluation cell by cell. Stop it at any time and give
the same command again. --jobs N trains N models side by side, one thread each, which is the better use of N cores.
Writes OUT/study.json, OUT/study.md and OUT/study.svg. Needs Python 3.9 and nothing else.
"""

import argparse
import concurrent.futures
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
ENCODINGS = ["rope", "alibi", "sinusoidal", "learned", "t5", "none"]
# Those that --encodings takes besides.
MORE = ["kerple", "kerple-power", "fire", "fox", "xpos", "ssmax", "shaw", "cope", "learned-frequencies", "rope-sinks"]
SCALINGS = ["linear", "ntk", "dynamic", "yarn"]
NOVELS = ["sensesensibility", "prideprejudice", "mansfieldpark", "emma", "northangerabbey"]
HELD_OUT = "persuasion"
TUNED = {"linear": {"rope_type": "linear", "factor": 4.0},
         "yarn": {"rope_type": "yarn", "factor": 4.0}}
COLOURS = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#7f7f7f", "#17becf", "#e377c2", "#8c564b", "#bcbd22", "#111111", "#5566aa"]


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=pathlib.Path, required=True)
    p.add_argument("--attn", type=pathlib.Path, default=ROOT / "target/release/attn")
    p.add_argument("--texts", type=pathlib.Path, default=ROOT / ".texts")
    p.add_argument("--steps", type=int, default=3000)
    p.add_argument("--tune-steps", type=int, default=0, help="default: a tenth of --steps")
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--context", type=int, default=256)
    p.add_argument("--seeds", type=int, nargs="+", default=[0])
    p.add_argument("--hidden", type=int, default=192)
    p.add_argument("--intermediate", type=int, default=512)
    p.add_argument("--heads", type=int, default=6)
    p.add_argument("--kv-heads", type=int, default=2)
    p.add_argument("--learning-rate", type=float, default=2e-3)
    p.add_argument("--eval-tokens", type=int, default=32768)
    p.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    p.add_argument("--encodings", nargs="+", choices=ENCODINGS + MORE, default=ENCODINGS)
    return p.parse_args()


class Study:
    def __init__(self, args):
        self.args = args
        self.env = {**os.environ, "RAYON_NUM_THREADS": "1"} if args.jobs > 1 else dict(os.environ)
        self.texts = [arg for novel in NOVELS for arg in ("--text", str(args.texts / f"{novel}.txt"))]
        self.cells = args.out / "cells.jsonl"
        args.out.mkdir(parents=True, exist_ok=True)

    def attn(self, *words):
        done = subprocess.run([self.args.attn, *map(str, words)], env=self.env, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"attn {' '.join(map(str, words))}\n{done.stderr}")
        return json.loads(done.stdout)

    def train(self, encoding, seed):
        a, out = self.args, self.args.out / f"{encoding}-{seed}"
        if not (out / "loss.svg").exists():
            started = time.time()
            result = self.attn("train", "--json", "--out", out, *self.texts, "--position", encoding, "--seed", seed,
                               "--steps", a.steps, "--batch", a.batch, "--context", a.context, "--learning-rate", a.learning_rate,
                               "--hidden", a.hidden, "--intermediate", a.intermediate, "--heads", a.heads, "--kv-heads", a.kv_heads)
            print(f"trained {encoding} seed {seed}: loss {result['last_loss']:.3f}, {(time.time() - started) / 60:.0f} min", flush=True)
        return out

    def tune(self, scaling, seed):
        """Fine-tunes the rotary model at four times its length, as the papers on PI and YaRN do."""
        a, out = self.args, self.args.out / f"rope-{seed}-{scaling}-tuned"
        if not (out / "loss.svg").exists():
            source = self.args.out / f"rope-{seed}-{scaling}-start"
            shutil.copytree(self.args.out / f"rope-{seed}", source, dirs_exist_ok=True,
                            ignore=shutil.ignore_patterns("checkpoint-*", "train.jsonl", "loss.svg"))
            config = json.loads((source / "config.json").read_text())
            config["rope_parameters"] = {"rope_theta": config["rope_theta"], "original_max_position_embeddings": a.context, **TUNED[scaling]}
            if scaling == "linear":
                del config["rope_parameters"]["original_max_position_embeddings"]
            del config["rope_theta"]
            config["max_position_embeddings"] = 4 * a.context
            (source / "config.json").write_text(json.dumps(config, indent=2))
            self.attn("train", source, "--json", "--out", out, *self.texts, "--seed", seed, "--batch", max(1, a.batch // 4),
                      "--context", 4 * a.context, "--steps", a.tune_steps or max(1, a.steps // 10), "--warmup", 10, "--learning-rate", 5e-4)
            print(f"tuned {scaling} seed {seed}", flush=True)
        return out

    def evaluate(self, name, model, seed, length, flags=()):
        key = [name, seed, length]
        for line in self.cells.read_text().splitlines() if self.cells.exists() else []:
            cell = json.loads(line)
            if cell["key"] == key and cell["eval_tokens"] == self.args.eval_tokens and cell["steps"] == self.args.steps:
                return cell
        result = self.attn("perplexity", model, "--json", "--text", self.args.texts / f"{HELD_OUT}.txt", "--context", length,
                           "--max-tokens", self.args.eval_tokens, *flags)
        cell = {"key": key, "name": name, "seed": seed, "context": length, "perplexity": result["perplexity"],
                "stderr_windows": result["stderr_windows"], "last_quarter_perplexity": result["last_quarter_perplexity"],
                "tokens": result["tokens"], "eval_tokens": self.args.eval_tokens, "steps": self.args.steps}
        with self.cells.open("a") as file:
            file.write(json.dumps(cell) + "\n")
        return cell

    def lengths(self):
        return [self.args.context * 2**i for i in range(5)]

    def run(self):
        a = self.args
        with concurrent.futures.ThreadPoolExecutor(a.jobs) as pool:
            list(pool.map(lambda job: self.train(*job), [(e, s) for s in a.seeds for e in a.encodings]))
            if "rope" in a.encodings:
                list(pool.map(lambda job: self.tune(*job), [(m, s) for s in a.seeds for m in TUNED]))
        cells = []
        for seed in a.seeds:
            for encoding in a.encodings:
                model = a.out / f"{encoding}-{seed}"
                for length in self.lengths():
                    if encoding == "learned" and length > a.context:
                        continue  # the table ends there
                    cells.append(self.evaluate(encoding, model, seed, length))
            if "rope" not in a.encodings:
                continue
            for scaling in SCALINGS:
                for length in self.lengths()[1:]:
                    flags = ["--rope-scaling", scaling, "--rope-factor", length / a.context]
                    cells.append(self.evaluate(f"rope, {scaling}", a.out / f"rope-{seed}", seed, length, flags))
            for scaling in TUNED:
                for length in self.lengths():
                    cells.append(self.evaluate(f"rope, {scaling}, tuned", a.out / f"rope-{seed}-{scaling}-tuned", seed, length))
        return cells


def summary(cells, names, lengths):
    """Mean over seeds, with half the spread between them, or with one seed the 95 % interval over windows."""
    rows = {}
    for name in names:
        for length in lengths:
            found = [c for c in cells if c["name"] == name and c["context"] == length]
            if not found:
                continue
            values = [c["perplexity"] for c in found]
            spread = (max(values) - min(values)) / 2 if len(found) > 1 else 1.96 * (found[0]["stderr_windows"] or math.nan)
            rows[name, length] = (sum(values) / len(values), spread)
    return rows


def table(rows, names, lengths, args):
    lines = ["| encoding | " + " | ".join(map(str, lengths)) + " |", "|---|" + "---|" * len(lengths)]
    for name in names:
        cells = []
        for length in lengths:
            if (name, length) in rows:
                mean, spread = rows[name, length]
                cells.append(f"{mean:.1f} ±{spread:.1f}")
            else:
                cells.append("ends" if name == "learned" else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    spread = "half the range over seeds" if len(args.seeds) > 1 else "1.96 standard errors over windows"
    lines += ["", f"Perplexity on {args.eval_tokens} tokens of Persuasion, trained {args.steps} steps of {args.batch} rows of "
              f"{args.context} tokens, seeds {', '.join(map(str, args.seeds))}; ± is {spread}."]
    return "\n".join(lines) + "\n"


def figure(rows, names, lengths, context):
    width, height, left, right, top, bottom = 760, 420, 60, 190, 20, 46
    values = [mean for mean, _ in rows.values()]
    low, high = math.log(min(values) * 0.95), math.log(max(values) * 1.05)
    x = lambda n: left + (width - left - right) * math.log2(n / lengths[0]) / max(1e-9, math.log2(lengths[-1] / lengths[0]))
    y = lambda v: top + (height - top - bottom) * (high - math.log(v)) / (high - low)
    svg = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12" role="img" '
           f'aria-label="perplexity by evaluation length, one line per position encoding">',
           f'<rect width="{width}" height="{height}" fill="white"/>']
    for n in lengths:
        svg.append(f'<line x1="{x(n):.1f}" x2="{x(n):.1f}" y1="{top}" y2="{height - bottom}" stroke="#ddd"/>'
                   f'<text x="{x(n):.1f}" y="{height - bottom + 18}" text-anchor="middle">{n}</text>')
    tick = 10 ** math.floor(math.log10(math.exp(low)))
    while tick < math.exp(high):
        for m in (1, 2, 5):
            if math.exp(low) <= tick * m <= math.exp(high):
                svg.append(f'<line x1="{left}" x2="{width - right}" y1="{y(tick * m):.1f}" y2="{y(tick * m):.1f}" stroke="#ddd"/>'
                           f'<text x="{left - 6}" y="{y(tick * m) + 4:.1f}" text-anchor="end">{tick * m:g}</text>')
        tick *= 10
    svg.append(f'<text x="{(left + width - right) / 2}" y="{height - 8}" text-anchor="middle">evaluation length (trained at {context})</text>'
               f'<text x="{left}" y="13">perplexity</text>')
    for i, name in enumerate(names):
        points = [(x(n), y(rows[name, n][0])) for n in lengths if (name, n) in rows]
        if not points:
            continue
        colour, dash = COLOURS[i % len(COLOURS)], ' stroke-dasharray="5 3"' if "," in name else ""
        svg.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2"{dash} points="' + " ".join(f"{a:.1f},{b:.1f}" for a, b in points) + '"/>')
        svg += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in points]
        at = top + 10 + 18 * i
        svg.append(f'<line x1="{width - right + 14}" x2="{width - right + 38}" y1="{at}" y2="{at}" stroke="{colour}" stroke-width="2"{dash}/>'
                   f'<text x="{width - right + 44}" y="{at + 4}">{name}</text>')
    return "\n".join([*svg, "</svg>", ""])


def main():
    args = arguments()
    study = Study(args)
    cells = study.run()
    lengths = study.lengths()
    names = list(dict.fromkeys(c["name"] for c in cells))
    rows = summary(cells, names, lengths)
    settings = {k: str(v) if isinstance(v, pathlib.Path) else v for k, v in vars(args).items()}
    (args.out / "study.json").write_text(json.dumps({"settings": settings, "cells": cells}, indent=1))
    (args.out / "study.md").write_text(table(rows, names, lengths, args))
    (args.out / "study.svg").write_text(figure(rows, names, lengths, args.context))
    print((args.out / "study.md").read_text())


main()
