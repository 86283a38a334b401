#!/usr/bin/env python3
"""The extrapolation study: small models that differ only in the position encoding, trained at one length and evaluated at longer ones.

    scripts/studies/fetch_texts.sh                                  Jane Austen's novels, once
    cargo build --release
    python3 scripts/studies/study.py --out .study                   train, measure, fine-tune, tables, figures

Every model has the same block, initial weights, batches and tokenizer. Five novels are trained on, with passages of them in which
a key is hidden and asked for; the sixth, Persuasion, is held out. The rotary models are also evaluated under every scaling and
method, under a larger base, and after fine-tuning for a tenth of the steps. `attn compare` measures perplexity and how often the
key is found.

The study can be stopped at any time and continued with the same command: training continues from its last checkpoint, measurements
cell by cell. Seeds are done one after the other, and the report covers those that are complete. --jobs N runs N models at the same
time with one thread each, which uses N cores better than one model with N threads.
Writes OUT/study.json, study.md, extrapolation.svg, retrieval.svg and loss.svg. Needs only Python 3.9.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import study_report
import study_texts

ROOT = next(folder for folder in pathlib.Path(__file__).resolve().parents if (folder / "Cargo.lock").exists())
ENCODINGS = ["rope", "alibi", "sinusoidal", "learned", "t5", "none", "kerple", "fire", "fox", "xpos", "ssmax"]
# Further encodings that --encodings accepts.
MORE = ["sandwich", "kerple-power", "shaw", "cope", "learned-frequencies", "rope-sinks"]
# A base that reaches far past the trained context without training; perplexity looks fine under it (Men et al. 2024).
LARGE_BASE = 500000
TUNED = ["linear", "yarn", "base", "dropped"]


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=pathlib.Path, required=True)
    p.add_argument("--attn", type=pathlib.Path, default=ROOT / "target/release/attn")
    p.add_argument("--texts", type=pathlib.Path, default=ROOT / ".texts")
    p.add_argument("--encodings", nargs="+", choices=ENCODINGS + MORE, default=ENCODINGS)
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--steps", type=int, default=3000)
    p.add_argument("--tune-steps", type=int, default=0, help="default: a tenth of --steps")
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--context", type=int, default=256)
    p.add_argument("--hidden", type=int, default=128)
    p.add_argument("--intermediate", type=int, default=352)
    p.add_argument("--heads", type=int, default=4)
    p.add_argument("--kv-heads", type=int, default=2)
    p.add_argument("--learning-rate", type=float, default=3e-3)
    p.add_argument("--keys", type=float, default=0.25, help="share of the training tokens that are passages with a key")
    p.add_argument("--contexts", type=int, nargs="+", help="default: 1 to 32 times --context, by doubling")
    p.add_argument("--eval-tokens", type=int, default=65536)
    p.add_argument("--trials", type=int, default=8, help="keys asked for, at each of four depths")
    p.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    args = p.parse_args()
    args.tune_steps = args.tune_steps or max(1, args.steps // 10)
    args.contexts = args.contexts or [args.context * 2**i for i in range(6)]
    return args


class Study:
    def __init__(self, args):
        self.args = args
        self.env = {**os.environ, "RAYON_NUM_THREADS": "1"} if args.jobs > 1 else dict(os.environ)
        args.out.mkdir(parents=True, exist_ok=True)
        self.texts = study_texts.prepare(args.out, args.texts, args.steps * args.batch * args.context, args.keys)
        self.held_out = args.texts / f"{study_texts.HELD_OUT}.txt"

    def attn(self, *words):
        done = subprocess.run([self.args.attn, *map(str, words)], env=self.env, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"attn {' '.join(map(str, words))}\n{done.stderr}")
        return json.loads(done.stdout)

    def train(self, out, what, *words):
        """Runs `attn train`, unless its result exists; the same command resumes a run that was stopped."""
        if not (out / "loss.svg").exists():
            started = time.time()
            texts = [word for path in self.texts for word in ("--text", path)]
            result = self.attn("train", *words, "--json", "--out", out, *texts, "--held-out", self.held_out)
            print(f"{what}: held-out loss {result['held_out_loss']:.3f}, {(time.time() - started) / 60:.0f} min", flush=True)
        return out

    def tokenizer(self):
        """The tokenizer that all models share, trained on the texts."""
        a, out = self.args, self.args.out / "tokenizer"
        self.train(out, "tokenizer", "--steps", 1, "--hidden", 32, "--intermediate", 32, "--layers", 1, "--heads", 2,
                   "--kv-heads", 2, "--context", a.context)
        return out / "tokenizer.json"

    def model(self, encoding, seed):
        a = self.args
        return self.train(a.out / f"{encoding}-{seed}", f"{encoding}, seed {seed}", "--position", encoding, "--seed", seed,
                          "--tokenizer", a.out / "tokenizer/tokenizer.json", "--steps", a.steps, "--batch", a.batch,
                          "--context", a.context, "--learning-rate", a.learning_rate, "--hidden", a.hidden,
                          "--intermediate", a.intermediate, "--heads", a.heads, "--kv-heads", a.kv_heads)

    def tuned(self, how, seed):
        """Trains the rotary model further: at four times its length under a scaling or a larger base, as the papers on PI and
        YaRN do, or at its length without its rotation."""
        a = self.args
        source, out = a.out / f"rope-{seed}", a.out / f"rope-{seed}-{how}"
        words = ["--seed", seed, "--steps", a.tune_steps, "--warmup", 10, "--learning-rate", a.learning_rate / 6]
        if how == "dropped":
            words = [*words, "--drop-positions", "--batch", a.batch, "--context", a.context]
        else:
            source = self.rescaled(source, a.out / f"rope-{seed}-{how}-start", how)
            words = [*words, "--batch", max(1, a.batch // 4), "--context", 4 * a.context]
        return self.train(out, f"rope, seed {seed}, {how}", source, *words)

    def rescaled(self, source, start, how):
        """A copy of the checkpoint, with a config for four times its length."""
        a = self.args
        shutil.copytree(source, start, dirs_exist_ok=True, ignore=shutil.ignore_patterns("checkpoint-*", "train.jsonl", "loss.svg"))
        config = json.loads((start / "config.json").read_text())
        theta = config.pop("rope_theta", None) or config["rope_parameters"]["rope_theta"]
        parameters = {"linear": {"rope_type": "linear", "factor": 4.0},
                      "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": a.context},
                      "base": {"rope_type": "default"}}[how]
        config["rope_parameters"] = {**parameters, "rope_theta": LARGE_BASE if how == "base" else theta}
        config["max_position_embeddings"] = 4 * a.context
        (start / "config.json").write_text(json.dumps(config, indent=2))
        return start

    def measure(self, name, seed, model, modes, *words):
        """Cells of a model by mode and context, from `attn compare`."""
        a = self.args
        # A table of learned positions cannot be used past its end.
        contexts = [n for n in a.contexts if name != "learned" or n <= a.context]
        run = a.out / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}.run"
        result = self.attn("compare", model, "--json", "--run", run, "--text", self.held_out, "--haystack", self.held_out,
                           "--contexts", ",".join(map(str, contexts)), "--modes", modes, "--factor", "auto",
                           "--max-tokens", a.eval_tokens, "--tasks", "ppl,passkey", "--depths", "0,0.25,0.5,0.75",
                           "--trials", a.trials, *words)
        return study_report.cells(result, name, seed)

    def measurements(self, seed):
        """What is measured for one seed: name, model, modes and further options."""
        a = self.args
        for encoding in a.encodings:
            yield encoding, a.out / f"{encoding}-{seed}", "none", ()
        if "rope" in a.encodings:
            rope = a.out / f"rope-{seed}"
            yield "rope, scaled", rope, "all", ()
            yield f"rope, base {LARGE_BASE}", rope, "none", ("--rope-theta", LARGE_BASE)
            for how in TUNED:
                yield f"rope, {how}, tuned", a.out / f"rope-{seed}-{how}", "checkpoint", ()

    def seed(self, pool, seed):
        """Trains and measures all models of one seed."""
        a = self.args
        list(pool.map(lambda encoding: self.model(encoding, seed), a.encodings))
        if "rope" in a.encodings:
            list(pool.map(lambda how: self.tuned(how, seed), TUNED))
        found = pool.map(lambda m: self.measure(m[0], seed, m[1], m[2], *m[3]), list(self.measurements(seed)))
        return [cell for cells in found for cell in cells]

    def losses(self, seed):
        """Held-out loss by step, of every encoding."""
        logs = {encoding: self.args.out / f"{encoding}-{seed}/train.jsonl" for encoding in self.args.encodings}
        steps = {name: map(json.loads, log.read_text().splitlines()) for name, log in logs.items()}
        return {name: [[s["step"], s["held_out"]] for s in found if "held_out" in s] for name, found in steps.items()}

    def run(self):
        a, cells, losses, done = self.args, [], {}, []
        self.tokenizer()
        with concurrent.futures.ThreadPoolExecutor(a.jobs) as pool:
            for seed in a.seeds:
                cells += self.seed(pool, seed)
                losses[seed] = self.losses(seed)
                done.append(seed)
                settings = {k: str(v) if isinstance(v, pathlib.Path) else v for k, v in vars(a).items()}
                study = {"settings": {**settings, "seeds": done}, "cells": cells, "held_out_loss": losses}
                study_report.write(a.out, study)
        print((a.out / "study.md").read_text())


if __name__ == "__main__":
    Study(arguments()).run()
