#!/usr/bin/env python3
"""Compares `attn perplexity --protocol` and `--metrics longppl` with the programs whose figures they reproduce.

    python scripts/reference/check_protocols.py ATTN --model FOLDER --text TEXT [--gguf FILE --llama-perplexity PROGRAM] [--json OUT]
    python scripts/reference/check_protocols.py ATTN --golden

needs torch, transformers, lm_eval and longppl (the last may be installed without its dependencies). FOLDER is a checkpoint in
Hugging Face layout; FILE, the same or another model as GGUF, is scored by llama-perplexity and by attn. On the first tokens of
TEXT, each program's own code is run: llama-perplexity; the strided recipe of transformers' page "Perplexity of fixed-length
models"; lm-evaluation-harness's `loglikelihood_rolling`; `longppl.compute_longppl`. llama.cpp is also given the options that
`attn export` prints for scalings. Figures have to agree to 0.1 % with llama-perplexity, which computes in lower precision, and to
1e-4 with the others; LongPPL has to have the same number of key tokens.
`scripts/benchmarks/setup_peers.sh` builds llama-perplexity and makes the folder and the files of SmolLM2.

--golden writes tests/golden/protocols.json instead: the figures of transformers, lm-evaluation-harness and longppl for the embedded
model and its sample text, for a test that needs none of these programs.
"""

import argparse
import json
import logging
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
failures = []


def ours(attn, model, text, *options):
    words = [str(attn), "perplexity", str(model), "--text", str(text), "--json", *map(str, options)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(words)}: {done.stderr}")
    return json.loads(done.stdout)


rows = []


def compare(name, mine, theirs, tolerance):
    off = abs(mine / theirs - 1)
    rows.append({"what": name, "ours": mine, "theirs": theirs, "off": off, "bound": tolerance})
    print(f"{name:58} {mine:12.6f} {theirs:12.6f}  off by {off:.1e}{'' if off <= tolerance else '  TOO FAR'}", flush=True)
    if not off <= tolerance:
        failures.append(name)


def same(name, mine, theirs):
    rows.append({"what": name, "ours": mine, "theirs": theirs})
    print(f"{name:58} {mine:12} {theirs:12}{'' if mine == theirs else '  DIFFERENT'}", flush=True)
    if mine != theirs:
        failures.append(name)


def llama_perplexity(program, gguf, text, context, chunks, *options):
    words = [program, "-m", gguf, "-f", text, "-c", context, "--chunks", chunks, "--no-escape", "-t", 2, *options]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    found = re.search(r"Final estimate: PPL = ([0-9.]+)", done.stdout + done.stderr)
    if not found:
        sys.exit(f"{words}: {done.stderr[-2000:]}")
    return float(found[1])


def exported(args, scaling, context, chunks):
    """A scaling set by attn's options, and by those that `attn export` prints for llama.cpp."""
    chosen = ["--rope-scaling", scaling, "--rope-factor", 2, "--rope-original-context", 1024]
    words = [args.attn, "export", args.gguf, "--json", *chosen]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=True)
    options = json.loads(done.stdout)["llama_cpp"].split()
    at = options.index("--ctx-size")
    mine = ours(args.attn, args.gguf, args.text, "--protocol", "llama.cpp", "--context", context, "--max-tokens",
                context * chunks, *chosen)
    theirs = llama_perplexity(
        args.llama_perplexity, args.gguf, args.text, context, chunks, *options[:at], *options[at + 2 :]
    )
    compare(f"llama-perplexity, {scaling}, {chunks} windows of {context}", mine["perplexity"], theirs, 1e-3)


def strided(model, ids, length, stride):
    """The recipe: new tokens of each window as labels, each window's mean loss for one label less than there are."""
    total, count, before = 0.0, 0, 0
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + length, ids.shape[1])
        new = end - before
        window = ids[:, begin:end]
        labels = window.clone()
        labels[:, :-new] = -100
        with torch.no_grad():
            loss = model(window, labels=labels).loss
        counted = (labels != -100).sum().item() - 1
        if counted > 0:
            total, count = total + loss.double().item() * counted, count + counted
        before = end
        if end == ids.shape[1]:
            break
    return float(torch.tensor(total / count).exp())


def rolling(model, tokenizer, documents, length):
    """Log-likelihoods of documents by lm-evaluation-harness."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    # If the tokenizer does not name the token, the checkpoint does.
    known = tokenizer.bos_token_id is not None or tokenizer.eos_token_id is not None
    prefix = None if known else model.config.bos_token_id
    lm = HFLM(pretrained=model, tokenizer=tokenizer, max_length=length, batch_size=1, prefix_token_id=prefix)
    requests = [
        Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=i) for i, text in enumerate(documents)
    ]
    return lm.loglikelihood_rolling(requests, disable_tqdm=True)


def sizes(documents, likelihoods):
    """The three figures of lm-evaluation-harness's perplexity tasks (tasks/wikitext)."""
    import math

    words = sum(len(re.split(r"\s+", text)) for text in documents)
    count = sum(len(text.encode()) for text in documents)
    total = -sum(likelihoods)
    return {
        "word_perplexity": math.exp(total / words),
        "byte_perplexity": math.exp(total / count),
        "bits_per_byte": total / count / math.log(2),
        "words": words,
        "bytes": count,
    }


def long_ppl(model, tokenizer, text, trunc_len, sliding_window):
    from longppl.longppl import compute_longppl

    with torch.no_grad():
        return compute_longppl(
            text, model, model, tokenizer, tokenizer, trunc_len=trunc_len, sliding_window=sliding_window
        )


def load(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def beginning(tokenizer, text, tokens):
    """The beginning of the text that has about so many tokens, cut after a word so that it has the same tokens by itself."""
    offsets = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
    cut = text.rfind(" ", 0, offsets[min(tokens, len(offsets)) - 1][1])
    return text[:cut]


def documents_of(text, count=3):
    parts = [part for part in text.split("\n\n") if part.strip()]
    step = max(1, len(parts) // count)
    return ["\n\n".join(parts[i : i + step]) for i in range(0, len(parts), step)]


def check(args):
    model, tokenizer = load(args.model)
    text = args.text.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if args.gguf and args.llama_perplexity:
            for context, chunks in ((512, 16), (511, 8), (2048, 4)):
                mine = ours(args.attn, args.gguf, args.text, "--protocol", "llama.cpp", "--context", context,
                            "--max-tokens", context * chunks)
                theirs = llama_perplexity(args.llama_perplexity, args.gguf, args.text, context, chunks)
                compare(f"llama-perplexity, {chunks} windows of {context}", mine["perplexity"], theirs, 1e-3)
            for scaling in ("linear", "ntk", "yarn"):
                exported(args, scaling, 2048, 2)
        part = folder / "part.txt"
        part.write_text(beginning(tokenizer, text, args.tokens), encoding="utf-8")
        ids = tokenizer(part.read_text(encoding="utf-8"), return_tensors="pt")["input_ids"]
        for length, stride in ((1024, 512), (1024, 1024), (512, 300)):
            mine = ours(args.attn, args.model, part, "--protocol", "stride", "--context", length, "--stride", stride)
            theirs = strided(model, ids, length, stride)
            compare(f"transformers, windows of {length} every {stride}", mine["perplexity"], theirs, 1e-4)
        whole = part.read_text(encoding="utf-8")
        lines = folder / "documents.jsonl"
        lines.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents_of(whole)))
        for name, path, documents in (("one document", part, [whole]), ("documents", lines, documents_of(whole))):
            theirs = sizes(documents, rolling(model, tokenizer, documents, 1024))
            mine = ours(args.attn, args.model, path, "--protocol", "lm-eval", "--context", 1024)
            for key in ("words", "bytes"):
                same(f"lm-eval, {name}, {key}", mine[key], theirs[key])
            for key in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
                compare(f"lm-eval, {name}, {key}", mine[key], theirs[key], 1e-4)
        for tokens, trunc_len, window in ((args.tokens, 1024, 256), (8192, 2048, 1024)):
            path = folder / "long.txt"
            path.write_text(beginning(tokenizer, text, tokens), encoding="utf-8")
            longppl(args.attn, args.model, model, tokenizer, path, trunc_len, window)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    if failures:
        sys.exit(f"{len(failures)} figures differ: {', '.join(failures)}")
    print("every figure agrees")


def longppl(attn, folder, model, tokenizer, path, trunc_len, window):
    text = path.read_text(encoding="utf-8")
    theirs = long_ppl(model, tokenizer, text, trunc_len, window)
    if theirs["longppl"] is None:
        sys.exit(f"no key token in {theirs['n_token']} tokens: take another text")
    mine = ours(attn, folder, path, "--metrics", "longppl", "--context", theirs["n_token"], "--trunc-len", trunc_len,
                "--sliding-window", window)
    name = f"longppl, {theirs['n_token']} tokens against {trunc_len} and {window}"
    same(f"{name}: key tokens", mine["longppl"]["tokens"], theirs["n_key_token"])
    compare(f"{name}: LongPPL", mine["longppl"]["value"], float(theirs["longppl"]), 1e-4)
    compare(f"{name}: perplexity", mine["perplexity"], float(theirs["ppl"]), 1e-4)


def golden():
    model, tokenizer = load(ROOT / "crates" / "attn-cli" / "models" / "tiny-austen")
    whole = (ROOT / "crates" / "attn-cli" / "models" / "sample.txt").read_text(encoding="utf-8")
    text = beginning(tokenizer, whole, 2000)
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    documents = documents_of(text)
    strides = [
        {"context": length, "stride": stride, "perplexity": strided(model, ids, length, stride)}
        for length, stride in ((256, 128), (256, 256), (100, 30))
    ]
    rollings = [
        {"context": length, "documents": parts, **sizes(parts, rolling(model, tokenizer, parts, length))}
        for length, parts in ((256, [text]), (100, documents))
    ]
    longppls = []
    # The last document has characters that the tokenizer cuts into bytes.
    curly = whole[20000:].replace('"', "\u201c").replace("'", "\u2019")
    for start, tokens, trunc_len, window in ((whole[10000:], 256, 64, 16), (whole[10000:], 250, 4, 4), (whole[20000:], 256, 16, 5),
                                             (curly, 256, 5, 3)):
        part = beginning(tokenizer, start, tokens)
        # The package fails on a last window of one token.
        while (len(tokenizer(part)["input_ids"]) - trunc_len) % window == 1:
            window += 1
        found = long_ppl(model, tokenizer, part, trunc_len, window)
        longppls.append({
            "text": part, "trunc_len": trunc_len, "sliding_window": window, "tokens": found["n_token"],
            "key_tokens": found["n_key_token"], "longppl": float(found["longppl"]), "perplexity": float(found["ppl"]),
        })
    import lm_eval
    import transformers

    about = {
        "made_by": f"scripts/reference/check_protocols.py --golden, transformers {transformers.__version__}, lm_eval {lm_eval.__version__}, "
        "longppl 0.3.0",
        "text": text, "stride": strides, "lm-eval": rollings, "longppl": longppls,
    }
    path = ROOT / "tests" / "golden" / "protocols.json"
    path.write_text(json.dumps(about, indent=1) + "\n")
    print(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("attn", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--llama-perplexity", type=Path)
    parser.add_argument("--tokens", type=int, default=4000, help="of the text, for transformers and lm-eval (4000)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--golden", action="store_true")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(2)
    if args.golden:
        golden()
    elif args.model and args.text:
        check(args)
    else:
        parser.error("--model and --text are needed, or --golden")


if __name__ == "__main__":
    main()
