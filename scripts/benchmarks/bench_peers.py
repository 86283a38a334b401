#!/usr/bin/env python3
"""Compares the speed of attn with that of other programs on one machine and prints tables of ratios.

scripts/benchmarks/setup_peers.sh installs the other programs.

    bench_peers.py                          attention: torch's SDPA, and attn's with and without bias or window
    bench_peers.py --plot docs/src/speed.svg    attention: time against length, as a chart
    bench_peers.py --model FOLDER           a model: llama.cpp, transformers, candle-transformers on the same weights
    bench_peers.py --model FOLDER --perplexity TEXT --llama-perplexity PROGRAM
                                            five scalings on a text: attn compare, and llama-perplexity five times
    bench_peers.py --model FOLDER --formats TEXT --llama-perplexity PROGRAM
                                            perplexity of every .gguf file in FOLDER

Every case runs `--rounds` times with all programs in turn, so that other load on the machine affects them alike; the best run of
each counts. A ratio above 1 means that attn is faster. --device cuda measures on a GPU, with attn built for it (--features cuda).
--json FILE writes everything that was measured.
"""
import argparse
import json
import os
import sys

from peers import attention, formats, models, perplexity
from peers.common import Failed


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    target = os.environ.get("CARGO_TARGET_DIR", "target")
    parser.add_argument("--attn", default=os.path.join(target, "release", "attn"), help="the program attn [%(default)s]")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="for every program [%(default)s]")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="where to compute [%(default)s]")
    parser.add_argument("--rounds", type=int, default=3, help="how often each case is repeated, all programs in turn [%(default)s]")
    parser.add_argument("--runs", type=int, default=5, help="timed runs in each round [%(default)s]")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name contains it, or one of several A|B")
    parser.add_argument("--json", metavar="FILE", help="write the results")
    parser.add_argument("--plot", metavar="FILE.svg", help="measure time against length, and draw it")
    parser.add_argument("--longest", type=int, default=32768, help="where the plot ends [%(default)s]")
    parser.add_argument("--model", metavar="FOLDER", help="weights, as scripts/benchmarks/setup_peers.sh lays them out")
    parser.add_argument("--llama-bench", metavar="PROGRAM", help="llama.cpp's; without it llama.cpp is left out")
    parser.add_argument("--perplexity", metavar="TEXT", help="compare scalings on this text instead of speeds")
    parser.add_argument("--formats", metavar="TEXT", help="compare perplexities of the formats on this text instead")
    parser.add_argument("--windows", type=int, default=4, help="windows of --formats, of 512 tokens each [%(default)s]")
    parser.add_argument("--llama-perplexity", metavar="PROGRAM", help="llama.cpp's, for --perplexity and --formats")
    parser.add_argument("--candle", metavar="PROGRAM", help="the example bench_candle; without it candle is left out")
    parser.add_argument("--python", default=sys.executable, help="a Python that has transformers [%(default)s]")
    parser.add_argument("--skip", action="append", default=[], choices=models.PEERS, help="leave one out")
    return parser.parse_args()


def main():
    args = arguments()
    if args.plot:
        from plot_speed import svg

        results = dict(lengths=attention.lengths(args))
        os.makedirs(os.path.dirname(args.plot) or ".", exist_ok=True)
        with open(args.plot, "w") as file:
            file.write(svg(results["lengths"]))
    elif args.perplexity:
        if not args.model or not args.llama_perplexity:
            sys.exit("--perplexity needs --model and --llama-perplexity")
        results = dict(perplexity=perplexity.compare(args))
    elif args.formats:
        if not args.model or not args.llama_perplexity:
            sys.exit("--formats needs --model and --llama-perplexity")
        results = dict(formats=formats.compare(args))
    elif args.model:
        results = dict(models=models.compare(args))
    else:
        results = dict(attention=attention.compare(args), own=attention.own(args))
    if args.json:
        with open(args.json, "w") as file:
            json.dump(dict(threads=args.threads, rounds=args.rounds, runs=args.runs, **results), file, indent=1)


if __name__ == "__main__":
    try:
        main()
    except Failed as failure:
        sys.exit(str(failure))
