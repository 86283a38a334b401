#!/usr/bin/env python3
"""Runs `attn compare` in parts on a Ray cluster and joins the parts:

    pip install ray
    scripts/ray/ray_compare.py --address auto --shards 16 --dir /shared/run -- \\
        MODEL --text book.txt --contexts 4096,8192,16384 --html report.html

What follows -- are the arguments of `attn compare`. Every shard is one task: `attn compare ... --shard i/n --run FILE`,
on --cpus processors of any machine that is free. A shard that fails, or whose machine is lost, is tried again up to --retries
times; if --dir is a folder that all machines share, it continues after the last finished cell. At the end `attn merge` joins the
shards, with the options that say how to show the result (--html, --json, --csv, ...). The result is that of one run on one
machine.

Every machine needs attn (--attn names it), and the model and the texts under the names given here, in the same working folder: use
a shared file system, or a hub id and copies. Runs are checked when they are joined, so the part of a machine with another model or
text is refused. Starting the same command again continues where it stopped.
"""

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import ray

# Arguments of compare that say how to show a result; merge gets them. True: a value follows.
SHOWN = {"--html": True, "--csv": True, "--plot": True, "--parquet": True, "--json": False}


def die_with_parent():
    """Makes Linux end attn when its Ray worker is killed; otherwise attn would go on and keep the run file locked."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def measure(command, folder, run):
    """Measures a shard on some machine of the cluster and returns its run file."""
    os.makedirs(os.path.dirname(run), exist_ok=True)
    done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          preexec_fn=die_with_parent)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip() or f"attn ended with {done.returncode}")
    return Path(run).read_bytes()


def split(arguments):
    """The arguments that every shard gets, and those of the merge."""
    shard, merge = [], []
    rest = iter(arguments)
    for argument in rest:
        name = argument.split("=", 1)[0]
        if name not in SHOWN:
            shard.append(argument)
            continue
        merge.append(argument)
        if SHOWN[name] and "=" not in argument:
            merge += [next(rest, "")]
    return shard, merge


def keep(path, contents):
    """Writes a shard's run file to this machine, unless the folder is shared and already has it."""
    if path.exists() and path.read_bytes() == contents:
        return
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_bytes(contents)
    temporary.replace(path)


def note(text):
    print(text, file=sys.stderr, flush=True)


def fan_out(args, shard_arguments):
    """Measures all shards, each until it succeeds, and returns the paths of their run files."""
    folder, base = os.getcwd(), args.dir.resolve()
    threads = [] if "--threads" in shard_arguments or "-t" in shard_arguments else ["--threads", str(args.cpus)]
    paths = {i: base / f"shard-{i}-of-{args.shards}.jsonl" for i in range(1, args.shards + 1)}
    task = ray.remote(num_cpus=args.cpus, max_retries=0)(measure)
    running, failures = {}, dict.fromkeys(paths, 0)

    def start(i):
        command = [args.attn, "compare", *shard_arguments, *threads, "--shard", f"{i}/{args.shards}", "--run", str(paths[i])]
        running[task.remote(command, folder, str(paths[i]))] = i

    for i in paths:
        start(i)
    finished = 0
    while running:
        (ready, *_), _ = ray.wait(list(running), num_returns=1)
        i = running.pop(ready)
        try:
            keep(paths[i], ray.get(ready))
        except ray.exceptions.RayError as error:
            failures[i] += 1
            reason = str(getattr(error, "cause", None) or error).strip().splitlines()[-1]
            if failures[i] > args.retries:
                sys.exit(f"error: shard {i}/{args.shards} failed {failures[i]} times: {reason}")
            note(f"shard {i}/{args.shards} failed, trying again ({failures[i]} of {args.retries}): {reason}")
            # The process that held the run file may not have ended yet.
            time.sleep(min(2 ** failures[i], 30) / 2)
            start(i)
            continue
        finished += 1
        note(f"shard {i}/{args.shards} is done, {args.shards - finished} to go")
    return list(paths.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", help="address of the cluster; auto: the one this machine is in [default: a new local one]")
    parser.add_argument("--shards", type=int, help="number of parts [default: the cluster's processors divided by --cpus]")
    parser.add_argument("--cpus", type=int, default=1, help="processors per shard [default: 1]")
    parser.add_argument("--retries", type=int, default=3, help="further tries per shard [default: 3]")
    parser.add_argument("--dir", type=Path, default=Path("attn-run"), help="where run files are kept [default: attn-run]")
    parser.add_argument("--attn", default="attn", help="the program, on every machine [default: attn]")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="-- ARGUMENTS", help="arguments of attn compare")
    args = parser.parse_args()
    arguments = args.arguments[1:] if args.arguments[:1] == ["--"] else args.arguments
    if forbidden := [a for a in arguments if a.split("=", 1)[0] in ("--shard", "--run")]:
        parser.error(f"{forbidden[0]} is set here, for every shard")
    if args.cpus < 1 or args.retries < 0 or (args.shards is not None and args.shards < 1):
        parser.error("--shards and --cpus are at least 1, --retries at least 0")
    shard_arguments, merge_arguments = split(arguments)
    # Ray writes about lost nodes to stdout, where only the result should be.
    stdout = os.dup(1)
    os.dup2(2, 1)
    ray.init(address=args.address or "local", log_to_driver=False, logging_level="error")
    if args.shards is None:
        args.shards = max(int(ray.cluster_resources().get("CPU", 1)) // args.cpus, 1)
    args.dir.mkdir(parents=True, exist_ok=True)
    try:
        paths = fan_out(args, shard_arguments)
    finally:
        ray.shutdown()
    merged = subprocess.run([args.attn, "merge", *map(str, paths), *merge_arguments], stdout=stdout)
    sys.exit(merged.returncode)


if __name__ == "__main__":
    main()
