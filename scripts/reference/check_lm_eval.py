#!/usr/bin/env python3
"""Runs lm-evaluation-harness with `attn` as its model and with its own `hf` model, on the same folder and tasks, and compares the
results of every document.

    python scripts/reference/check_lm_eval.py ATTN [--model FOLDER] [--limit N] [--json OUT]

needs lm_eval with torch and transformers, but no network; if one of them is missing it says so and ends. FOLDER is a checkpoint in
Hugging Face layout; by default the embedded model is used. The tasks are made here from the sample text: choosing among endings of
sentences (loglikelihood), paragraphs (loglikelihood_rolling) and continuing sentences (generate_until). They run for the model as it
is and under YaRN, which `hf` reads from a config and `attn` gets as options. Choices and generated texts have to be the same;
log-likelihoods have to agree to 1e-4 of their size, or to 1e-4 if they are smaller than 1.
"""

import argparse
import json
import logging
import os
import random
import re
import shutil
import sys
import tempfile
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
try:
    import lm_eval
    import torch
    import transformers
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from attn_lm import AttnLM
except ImportError as missing:
    print(f"skipped: {missing} (pip install 'lm_eval[hf]')")
    sys.exit(0)

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "crates" / "attn-cli" / "models"
# The most tokens of a sequence; some documents are longer.
MAX_LENGTH = 128
BOUND = 1e-4

# What the tasks' definitions have in common.
HEAD = """
task: attn_{name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
"""

CHOICES = """
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_target: "{{{{answer}}}}"
doc_to_choice: "{{{{endings}}}}"
target_delimiter: "{delimiter}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""

ROLLING = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: word_perplexity}}, {{metric: byte_perplexity}}, {{metric: bits_per_byte}}]
"""

GENERATE = """
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{target}}}}"
generation_kwargs: {{until: ["\\n\\n", ", and"], max_gen_toks: 24, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""


def documents():
    """Documents made of the sample text: questions with endings, paragraphs of all lengths, and beginnings to continue."""
    text = (MODELS / "sample.txt").read_text(encoding="utf-8")
    paragraphs = [part.strip() for part in re.split(r"\n\s*\n", text) if len(part.split()) > 12]
    chance = random.Random(0)
    choices, beginnings = [], []
    for index, part in enumerate(paragraphs[:24]):
        words = part.split()
        cut = len(words) - 4
        endings = [" ".join(words[cut:])] + [" ".join(other.split()[:n]) for n, other in zip((4, 1, 6), paragraphs[index + 1 :])]
        answer = chance.randrange(len(endings))
        endings[0], endings[answer] = endings[answer], endings[0]
        # Some contexts end in a space, and some are empty.
        context = {0: "", 1: " ".join(words[:cut]) + " "}.get(index % 8, " ".join(words[:cut]))
        choices.append({"context": context, "endings": endings, "answer": answer})
        beginnings.append({"prompt": " ".join(words[:9]), "target": " ".join(words[9:12])})
    # Documents longer than the length, about as long, short, and with characters that are not one token.
    long = [" ".join(paragraphs[:n]) for n in (1, 2, 3, 6)] + ["caf\u00e9 \u4e00\u4e8c \U0001f600", "a"]
    return choices, [{"text": part} for part in long + paragraphs[8:14]], beginnings


def write_tasks(folder):
    for name, rows in zip(("choices", "rolling", "generate"), documents()):
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        template = {"choices": CHOICES, "rolling": ROLLING, "generate": GENERATE}[name]
        (folder / f"{name}.yaml").write_text((HEAD + template).format(name=name, data=data, delimiter=" "), encoding="utf-8")


def copied(source, target, factor=None):
    """Copies the model with the names of its tokens, which the harness's own class needs; with `factor`, under YaRN."""
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    if not (target / "tokenizer_config.json").exists():
        names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"}
        (target / "tokenizer_config.json").write_text(json.dumps(names))
    if factor:
        trained = config["max_position_embeddings"]
        theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
        scaling = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": trained, "rope_theta": theta}
        config["rope_parameters"] = scaling
        config.pop("rope_scaling", None)
        config["max_position_embeddings"] = int(trained * factor)
        (target / "config.json").write_text(json.dumps(config))
    return target


def evaluated(lm, tasks, limit):
    found = lm_eval.simple_evaluate(
        lm, tasks=["attn_choices", "attn_rolling", "attn_generate"], log_samples=True, bootstrap_iters=0, limit=limit,
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
    )
    return found["samples"], found["results"]


class Report:
    """What was compared, and what differs."""

    def __init__(self):
        self.rows, self.wrong = [], []

    def number(self, what, mine, theirs):
        off = abs(mine - theirs) / max(1.0, abs(theirs))
        self.rows.append({"what": what, "ours": mine, "theirs": theirs, "off": off})
        if not off <= BOUND:
            self.wrong.append(f"{what}: {mine} and {theirs}")

    def same(self, what, mine, theirs):
        self.rows.append({"what": what, "ours": mine, "theirs": theirs, "off": 0.0 if mine == theirs else 1.0})
        if mine != theirs:
            self.wrong.append(f"{what}: {mine!r} and {theirs!r}")

    def worst(self):
        return max(row["off"] for row in self.rows)


def hold(report, name, ours, theirs):
    """Every document's answers, and the tasks' figures."""
    (mine, my_figures), (other, their_figures) = ours, theirs
    for task in other:
        assert len(mine[task]) == len(other[task]) > 0
        for a, b in zip(sorted(mine[task], key=lambda s: s["doc_id"]), sorted(other[task], key=lambda s: s["doc_id"])):
            what = f"{name}, {task} {a['doc_id']}"
            assert len(a["resps"]) == len(b["resps"]) > 0
            for i, (x, y) in enumerate(zip(a["resps"], b["resps"])):
                x, y = x[0], y[0]
                if isinstance(y, (tuple, list)):
                    report.number(f"{what}, ending {i}", float(x[0]), float(y[0]))
                    report.same(f"{what}, ending {i} is greedy", str(x[1]), str(y[1]))
                elif isinstance(y, float):
                    report.number(what, x, y)
                else:
                    report.same(what, x, y)
        for key, value in their_figures[task].items():
            if isinstance(value, float) and value == value:
                report.number(f"{name}, {task}, {key}", my_figures[task][key], value)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("attn", type=Path)
    parser.add_argument("--model", type=Path, default=MODELS / "tiny-austen")
    parser.add_argument("--limit", type=int, help="documents of each task at most")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(2)
    report = Report()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tasks = folder / "tasks"
        tasks.mkdir()
        write_tasks(tasks)
        plain = copied(args.model, folder / "plain")
        for name, theirs, options in (
            ("as it is", plain, {}),
            ("yarn by 2", copied(args.model, folder / "yarn", 2.0), {"rope_scaling": "yarn", "rope_factor": 2}),
        ):
            ours = AttnLM(plain, args.attn.resolve(), max_length=MAX_LENGTH, **options)
            mine = evaluated(ours, tasks, args.limit)
            ours.close()
            hf = HFLM(pretrained=str(theirs), dtype="float32", device="cpu", max_length=MAX_LENGTH, batch_size=1)
            before = len(report.rows)
            hold(report, name, mine, evaluated(hf, tasks, args.limit))
            print(f"{name}: {len(report.rows) - before} figures, the worst off by {report.worst():.1e}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(report.rows, indent=1) + "\n")
    if report.wrong:
        sys.exit("\n".join(report.wrong[:20]) + f"\n{len(report.wrong)} of {len(report.rows)} figures differ")
    print(f"lm_eval {lm_eval.__version__}, transformers {transformers.__version__}: every figure of every document agrees")


if __name__ == "__main__":
    main()
