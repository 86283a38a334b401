"""Perplexity of every quantised format: attn's, in its blocks and widened to f32, and llama-perplexity's, on the same windows.

Every file of one model in a folder is read; all score the second half of every window, as llama-perplexity does. The
column f32 is the perplexity of the file's weights without further rounding; the others are compared with it.
"""
import os
import re
import subprocess

from .common import Failed, run, table, wanted

CONTEXT = 512


def theirs(file, args):
    """The perplexity that llama-perplexity computes."""
    words = [args.llama_perplexity, "-m", file, "-f", args.formats, "-c", str(CONTEXT), "-fa", "on", "--no-escape"]
    words += ["--chunks", str(args.windows), "-t", str(args.threads)]
    for more in ([], ["--no-repack"]):
        done = subprocess.run(words + more, capture_output=True, text=True)
        found = re.search(r"Final estimate: PPL = ([0-9.]+)", done.stdout + done.stderr)
        if done.returncode == 0 and found:
            return float(found[1])
    raise Failed(f"{' '.join(words)}: exit code {done.returncode} {done.stderr[-2000:]}")


def ours(file, options, args):
    """The perplexity that attn computes."""
    words = [args.attn, "perplexity", file, "--protocol", "llama.cpp", "--json", "--text", args.formats]
    words += ["--context", str(CONTEXT), "--max-tokens", str(CONTEXT * args.windows), *options]
    answer, _ = run(words, args.threads)
    return answer["perplexity"]


def compare(args):
    """Measures every file; returns a list of results."""
    results, rows = [], []
    for name in sorted(os.listdir(args.model)):
        weights, kind = os.path.splitext(name)
        if kind != ".gguf" or not wanted(weights, args):
            continue
        file = os.path.join(args.model, name)
        own = {"F32": [], "F16": ["--dtype", "f16"], "BF16": ["--dtype", "bf16"]}
        exact = ours(file, [], args)
        kept = ours(file, own.get(weights, ["--keep-quantized"]), args)
        other = theirs(file, args)
        results.append(dict(format=weights, exact=exact, ours=kept, llama=other))
        off = [f"{100 * (x / exact - 1):+.2f} %" for x in (kept, other)]
        rows.append([weights, f"{exact:.4f}", f"{kept:.4f}", f"{other:.4f}", *off])
    table(["perplexity", "f32", "ours", "llama.cpp", "ours / f32", "llama.cpp / f32"], rows)
    return results
