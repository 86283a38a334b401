"""What the comparisons share: running a program and measuring its memory, ratios and tables."""
import json
import os
import subprocess
import tempfile


class Failed(Exception):
    """A program that ended with an error; says which and why."""


def run(words, threads):
    """Runs a program that prints JSON on `threads` threads: its answer, and the most memory it held in bytes."""
    env = dict(os.environ, RAYON_NUM_THREADS=str(threads), OMP_NUM_THREADS=str(threads), TOKENIZERS_PARALLELISM="false")
    env["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=errors, text=True)
        out = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = status
        if status:
            errors.seek(0)
            how = f"signal {status & 127}" if status & 127 else f"exit code {status >> 8}"
            raise Failed(f"{' '.join(words)}: {how} {errors.read().strip()}")
    return json.loads(out), usage.ru_maxrss * 1024


def ratio(theirs, ours):
    """A ratio for a table, with a dash where either is missing."""
    return f"{theirs / ours:.2f}" if theirs and ours else "-"


def wanted(name, args):
    """Whether --only leaves the case in."""
    return any(part in name for part in args.only.split("|"))


def table(head, rows):
    """Prints a Markdown table, numbers to the right; nothing without rows."""
    if not rows:
        return
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [head] + rows) for i in range(len(head))]

    def line(cells):
        padded = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths))]
        return "| " + " | ".join(padded) + " |"

    print(line(head))
    print("|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|")
    for row in rows:
        print(line(row), flush=True)
