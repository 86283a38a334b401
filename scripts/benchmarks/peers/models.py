"""A whole model: attn, llama.cpp, transformers and candle-transformers on the same weights, in turn."""
import os
import sys

from .common import Failed, ratio, run, table, wanted

HERE = os.path.dirname(os.path.abspath(__file__))
PEERS = ["llama.cpp", "transformers", "candle"]

FORMATS = [
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K"),
    *("IQ4_NL", "IQ4_XS", "MXFP4"),
]

# weights, prompt, generate, depth, batch: one run of each program, with a table row for each speed that it measures
CASES = [
    ("f32", 512, 64, 0, 1),
    ("f32", 4096, 0, 0, 1),
    ("f32", 0, 32, 4096, 1),
    ("bf16", 512, 64, 0, 1),
    ("bf16", 4096, 0, 0, 1),
    ("bf16", 0, 32, 4096, 1),
    *((weights, 512, 64, 0, 1) for weights in FORMATS),
    *((weights, 0, 32, 4096, 1) for weights in FORMATS),
    ("f32", 512, 0, 0, 8),
]


def command(who, case, args):
    """The command that measures a case and the function that reads its answer, or None if it can't be asked."""
    weights, prompt, generate, depth, batch = case
    folder, gguf = os.path.join(args.model, weights), os.path.join(args.model, weights.upper() + ".gguf")
    quantized = weights in FORMATS
    numbers = [str(n) for n in (prompt, generate, depth, args.runs)]
    if who == "ours":
        words = [args.attn, "bench", "model", "--json", "--device", args.device]
        words += ["--runs", str(args.runs), "--batch", str(batch)]
        words += ["--prompt", str(prompt), "--generate", str(generate), "--depth", str(depth)]
        plain = folder if os.path.isdir(folder) else gguf
        words += [gguf, "--keep-quantized"] if quantized else [plain, "--dtype", weights]

        def read(answer):
            best = {kind: answer[kind] and answer[kind]["best_tokens_per_second"] for kind in ("prompt", "generate")}
            return dict(best, load_seconds=answer["load_seconds"], kv_bytes=answer["kv_bytes"])

        return words, read
    if who == "llama.cpp":
        words = [args.llama_bench, "-m", gguf, "-o", "json", "-fa", "1", "-t", str(args.threads), "-r", str(args.runs)]
        words += ["-p", str(prompt), "-n", str(generate), "-d", str(depth)]

        def read(answer):
            best = {("prompt" if test["n_prompt"] else "generate"): max(test["samples_ts"]) for test in answer}
            return dict(dict(prompt=None, generate=None), **best)

        return None if batch > 1 else (words, read)
    if who == "transformers":
        script = os.path.join(HERE, "transformers_model.py")
        words = [args.python, script, folder, weights, *numbers, str(args.threads), str(batch), args.device]
        return (words, dict) if os.path.isdir(folder) else None
    # Candle rebuilds its cache for every run, so a long prompt takes minutes.
    if batch > 1 or (weights == "bf16" and prompt + depth > 1024):
        return None
    return [args.candle, gguf if quantized else folder, "quantized" if quantized else weights, *numbers], dict


def attempt(peer, words, threads):
    """Runs a program. If llama.cpp fails, it runs again without its kernels for repacked weights, which crash on some processors."""
    try:
        return run(words, threads)
    except Failed as failure:
        if peer != "llama.cpp":
            raise
        print(f"{failure}\nonce more with --repack 0", file=sys.stderr, flush=True)
        return run([*words, "--repack", "0"], threads)


def rows_of(case):
    """Names of the speeds that a case measures."""
    weights, prompt, generate, depth, batch = case
    after = f" after {depth}" if depth else ""
    rows = [("prompt", f"{weights} prompt {f'{batch} x ' if batch > 1 else ''}{prompt}{after}")] if prompt else []
    return rows + ([("generate", f"{weights} generate {generate}{after}")] if generate else [])


def compare(args):
    """Runs all programs in turn on every case, `rounds` times; returns a list of results, the best of the rounds."""
    there = dict(zip(PEERS, (args.llama_bench, args.python, args.candle)))
    who = ["ours"] + [peer for peer in PEERS if there[peer] and peer not in args.skip]
    results = []
    for case in CASES:
        names = [(kind, name) for kind, name in rows_of(case) if wanted(name, args)]
        if not names or not any(os.path.exists(os.path.join(args.model, w)) for w in (case[0], case[0].upper() + ".gguf")):
            continue
        best, memory = {}, {}
        for _ in range(args.rounds):
            for peer in who:
                asked = command(peer, case, args)
                if asked is None:
                    continue
                words, read = asked
                try:
                    answer, rss = attempt(peer, words, args.threads)
                except Failed as failure:
                    print(failure, file=sys.stderr, flush=True)
                    if peer == "ours":
                        raise SystemExit(1) from failure
                    continue
                answer = read(answer)
                memory[peer] = max(rss, memory.get(peer, 0))
                for kind, value in answer.items():
                    if value is not None:
                        pick = min if kind == "load_seconds" else max
                        best[peer, kind] = pick(value, best.get((peer, kind), value))
        print(f"{names[0][1]} done", file=sys.stderr, flush=True)
        for kind, name in names:
            speeds = {peer: best.get((peer, kind)) for peer in who}
            extra = {key: best.get(("ours", key)) for key in ("load_seconds", "kv_bytes")}
            results.append(dict(case=name, tokens_per_second=speeds, peak_rss=dict(memory), **extra))
    head = ["tokens/s", *who, *[f"ours / {peer}" for peer in who[1:]], "MiB ours", *[f"MiB {peer}" for peer in who[1:]]]
    rows = []
    for result in results:
        speeds, rss = result["tokens_per_second"], result["peak_rss"]
        row = [result["case"]] + [f"{speeds[peer]:.1f}" if speeds[peer] else "-" for peer in who]
        row += [ratio(speeds["ours"], speeds[peer]) for peer in who[1:]]
        rows.append(row + [f"{rss[peer] >> 20}" if peer in rss else "-" for peer in who])
    table(head, rows)
    return results
