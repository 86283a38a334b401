"""Five scalings of one model on the same tokens: one `attn compare`, and five runs of llama.cpp's llama-perplexity.

Both read the same windows, load what they need and end; the time is that from start to end of the processes. llama.cpp
scores the second half of every window, attn all of it, so their perplexities are close but not equal.
"""
import os
import re
import subprocess
import time

from .common import Failed, ratio, run, table, wanted

FACTOR = 2
TOKENS = 8192
# weights, tokens per window
CASES = [("f32", 512), ("f32", 4096), ("bf16", 512), ("bf16", 4096), ("Q8_0", 512), ("Q8_0", 4096)]


THETA, HEAD_DIM = 1e5, 64  # SmolLM2's
# attn's modes, with the options that make llama.cpp do the same at a known length.
MODES = {
    "none": ["--rope-scaling", "none"],
    "linear": ["--rope-scaling", "linear", "--rope-scale", str(FACTOR)],
    "ntk": ["--rope-scaling", "none", "--rope-freq-base", str(THETA * FACTOR ** (HEAD_DIM / (HEAD_DIM - 2)))],
    # llama.cpp has no mode of this name; at a length within the trained one it is no scaling.
    "dynamic": ["--rope-scaling", "none"],
    "yarn": ["--rope-scaling", "yarn", "--rope-scale", str(FACTOR)],
}


def gguf(weights, args):
    """The GGUF file with these weights, for llama.cpp."""
    return os.path.join(args.model, weights.upper() + ".gguf")


def llama(weights, context, options, args):
    """Seconds and perplexity of one run of llama-perplexity."""
    words = [args.llama_perplexity, "-m", gguf(weights, args), "-f", args.perplexity, "-c", str(context), "-fa", "on"]
    words += ["--chunks", str(TOKENS // context), "-t", str(args.threads), *options]
    if weights.startswith("Q"):
        words += ["--no-repack"]
    start = time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    found = re.search(r"Final estimate: PPL = ([0-9.]+)", done.stdout + done.stderr)
    if done.returncode or not found:
        raise Failed(f"{' '.join(words)}: exit code {done.returncode} {done.stderr[-2000:]}")
    return seconds, float(found[1])


def ours(weights, context, args):
    """Seconds of `attn compare`, and its perplexities by mode."""
    quantized = weights.startswith("Q")
    folder = os.path.join(args.model, weights)
    model = [gguf(weights, args), "--keep-quantized"] if quantized else [folder, "--dtype", weights]
    words = [args.attn, "compare", *model, "--text", args.perplexity, "--contexts", str(context), "--json"]
    words += ["--max-tokens", str(TOKENS), "--modes", ",".join(MODES), "--factor", str(FACTOR)]
    start = time.perf_counter()
    answer, _ = run(words, args.threads)
    return time.perf_counter() - start, {cell["mode"]: cell["perplexity"] for cell in answer["cells"]}


def compare(args):
    """Runs both programs in turn on every case, `rounds` times; returns a list of results, the best of the rounds."""
    results, rows = [], []
    for weights, context in CASES:
        name = f"{weights} {TOKENS // context} x {context}"
        if not wanted(name, args):
            continue
        mine, theirs = [], []
        for _ in range(args.rounds):
            mine.append(ours(weights, context, args))
            runs = {mode: llama(weights, context, options, args) for mode, options in MODES.items()}
            theirs.append((sum(run[0] for run in runs.values()), {mode: run[1] for mode, run in runs.items()}))
            print(".", end="", flush=True)
        best, other = min(mine, key=lambda r: r[0]), min(theirs, key=lambda r: r[0])
        results.append(dict(case=name, ours_s=best[0], llama_s=other[0], ours=best[1], llama=other[1]))
        both = "; ".join(f"{mode} {best[1][mode]:.2f} {other[1][mode]:.2f}" for mode in best[1])
        rows.append([name, f"{best[0]:.1f}", f"{other[0]:.1f}", ratio(other[0], best[0]), both])
    print()
    table(["five scalings", "ours s", "llama.cpp s", "llama.cpp / ours", "perplexities"], rows)
    return results
