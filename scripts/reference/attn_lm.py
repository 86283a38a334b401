#!/usr/bin/env python3
"""`attn` as a model of lm-evaluation-harness (lm_eval), and a comparison of position scalings by its tasks.

As a model: import this file, which registers it under the name `attn`, and give the harness

    --model attn --model_args pretrained=MODEL,attn=PATH/TO/attn,max_length=4096,rope_scaling=yarn,rope_factor=2

where MODEL is what `attn` takes: a hub id, a folder, a .gguf file or an embedded model. Every other argument is an option of
`attn requests`: rope_scaling=yarn is --rope-scaling yarn, keep_quantized=True is --keep-quantized. One process answers all
requests, with the model loaded once.

As a comparison, with only lm_eval installed:

    python scripts/reference/attn_lm.py ATTN MODEL --tasks hellaswag,lambada_openai --modes none,yarn,ntk --factor 2
        [--max-length N] [--limit N] [--num-fewshot N] [--include-path DIR] [--option dtype=bf16] [--json OUT]

measures every mode on the same documents and prints one row per metric and one column per mode.
"""

import argparse
import json
import subprocess
import sys

from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

# The harness's settings of a generation, apart from where it ends, and attn's names for them.
SAMPLING = {
    "temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p",
    "repetition_penalty": "repeat_penalty", "seed": "seed",
}


class AttnError(RuntimeError):
    """An error that `attn` reports."""


@register_model("attn")
class AttnLM(LM):
    """A model of the harness that asks `attn requests`."""

    def __init__(self, pretrained=None, attn="attn", max_gen_toks=256, batch_size=1, max_batch_size=None, device=None, **options):
        super().__init__()
        words = [str(attn), "requests"] + ([str(pretrained)] if pretrained else [])
        if device and device != "mps":
            options.setdefault("device", device)
        for name, value in options.items():
            flag = "--" + name.replace("_", "-")
            if isinstance(value, bool):
                words += [flag] if value else []
            else:
                words += [flag, str(value)]
        self.max_gen_toks = int(max_gen_toks)
        self._asked = 0
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8")
        self.about = self._read()

    def close(self):
        """Ends the process."""
        if self._process.poll() is None:
            self._process.stdin.close()
            self._process.wait()

    def _read(self):
        line = self._process.stdout.readline()
        if not line:
            raise AttnError(f"attn has ended with code {self._process.wait()}: {' '.join(self._process.args)}")
        return json.loads(line)

    def _ask(self, **request):
        self._asked += 1
        line = json.dumps({"id": self._asked, **request}, ensure_ascii=False)
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the process has ended; _read finds its last answer, or reports the end
        answer = self._read()
        if "error" in answer:
            raise AttnError(f"{answer['error']}: {line[:200]}")
        if answer["id"] != self._asked:
            raise AttnError(f"an answer to request {answer['id']}, not to {self._asked}")
        return answer

    @property
    def max_length(self):
        return self.about["max_length"]

    def loglikelihood(self, requests, disable_tqdm=False):
        found = []
        for context, continuation in (request.args for request in requests):
            answer = self._ask(type="loglikelihood", context=context, continuation=continuation)
            found.append((answer["logprob"], answer["is_greedy"]))
            self.cache_hook.add_partial("loglikelihood", (context, continuation), found[-1])
        return found

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        found = []
        for (text,) in (request.args for request in requests):
            found.append(self._ask(type="loglikelihood_rolling", text=text)["logprob"])
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), found[-1])
        return found

    def generate_until(self, requests, disable_tqdm=False):
        found = []
        for context, given in (request.args for request in requests):
            options = dict(normalize_gen_kwargs(given, self.max_gen_toks))
            sampled = options.pop("do_sample", False)
            stop = handle_stop_sequences(options.pop("until", None), eos=None)
            most = options.pop("max_gen_toks")
            unknown = set(options) - set(SAMPLING)
            if unknown:
                raise AttnError(f"attn generates without {', '.join(sorted(unknown))}")
            sampling = {SAMPLING[name]: value for name, value in options.items() if value is not None}
            if not sampled:
                sampling["temperature"] = 0.0
            answer = self._ask(type="generate", prompt=context, max_tokens=most, stop=stop, **sampling)
            found.append(answer["text"])
            self.cache_hook.add_partial("generate_until", (context, given), answer["text"])
        return found

    def apply_chat_template(self, chat_history, add_generation_prompt=True):
        raise AttnError("attn takes prompts as they are: run the harness without --apply_chat_template")

    @property
    def tokenizer_name(self):
        return self.about["model"]


def evaluate(args, mode):
    """The harness's results of one mode."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    options = {} if mode == "checkpoint" else {"rope_scaling": mode}
    if args.factor and mode not in ("checkpoint", "none"):
        options["rope_factor"] = args.factor
    if args.max_length:
        options["max_length"] = args.max_length
    lm = AttnLM(args.model, args.attn, **options, **dict(option.split("=", 1) for option in args.option))
    try:
        manager = TaskManager(include_path=args.include_path, include_defaults=not args.only_include)
        return lm_eval.simple_evaluate(
            lm, tasks=args.tasks.split(","), num_fewshot=args.num_fewshot, limit=args.limit, task_manager=manager,
            log_samples=False,
        )["results"]
    finally:
        lm.close()


def table(found):
    """A table with a row for each metric and a column for each mode; after a value stands its standard error, if there is one."""
    modes = list(found)
    lines = [["task", "metric", *modes]]
    for task in found[modes[0]]:
        for key, value in found[modes[0]][task].items():
            name, _, kind = key.partition(",")
            if not isinstance(value, float) or name.endswith("_stderr"):
                continue
            cells = []
            for mode in modes:
                error = found[mode][task].get(f"{name}_stderr,{kind}")
                error = f" ± {error:.4f}" if isinstance(error, float) and error == error else ""
                cells.append(f"{found[mode][task][key]:.4f}{error}")
            lines.append([task, name, *cells])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("attn", help="the program")
    parser.add_argument("model", help="what attn takes: hub id, folder, .gguf file, embedded model")
    parser.add_argument("--tasks", required=True)
    parser.add_argument("--modes", default="checkpoint", help="checkpoint: as the model's config has it; else as --rope-scaling")
    parser.add_argument("--factor", type=float, help="the scalings' factor")
    parser.add_argument("--max-length", type=int, help="tokens of a sequence at most, prompt and new ones together")
    parser.add_argument("--limit", type=float)
    parser.add_argument("--num-fewshot", type=int)
    parser.add_argument("--include-path", help="a folder of task definitions")
    parser.add_argument("--only-include", action="store_true", help="of those alone, without the harness's own")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="of attn requests, such as dtype=bf16")
    parser.add_argument("--json", help="write the results here")
    args = parser.parse_args()
    found = {mode: evaluate(args, mode) for mode in args.modes.split(",")}
    if args.json:
        with open(args.json, "w", encoding="utf-8") as out:
            json.dump(found, out, indent=1, default=str)
    print(table(found))


if __name__ == "__main__":
    sys.exit(main())
