"""One attention call: attn's beside torch's scaled_dot_product_attention, and beside attn's own without the bias or window."""
import time

from .common import ratio, run, table, wanted

# name, the call as `attn bench attention` takes it
CASES = [
    ("f32 T=512", dict(seq=512)),
    ("f32 T=2048", dict(seq=2048)),
    ("f32 T=4096", dict(seq=4096)),
    ("f32 T=8192", dict(seq=8192)),
    ("f32 32/8 heads d=128 T=4096", dict(seq=4096, heads=32, kv_heads=8, head_dim=128)),
    ("bf16 T=512", dict(seq=512, dtype="bf16")),
    ("bf16 T=4096", dict(seq=4096, dtype="bf16")),
    ("f32 T=4096 ALiBi (torch: dense)", dict(seq=4096, bias="alibi")),
    ("f32 T=4096 relative (torch: dense)", dict(seq=4096, bias="relative")),
    ("f32 T=4096 dense", dict(seq=4096, bias="dense")),
    ("decode f32 S=4096", dict(seq=4096, decode=True)),
    ("decode f32 S=32768", dict(seq=32768, decode=True)),
    ("decode bf16 S=32768", dict(seq=32768, decode=True, dtype="bf16")),
    ("forward+backward f32 T=2048", dict(seq=2048, kv_heads=9, backward=True)),
    ("forward+backward bf16 T=2048", dict(seq=2048, kv_heads=9, backward=True, dtype="bf16")),
]

# name, a call, and the plainer call that it is compared with; both are attn's
OWN = [
    ("f32 T=4096 ALiBi / no bias", dict(seq=4096, bias="alibi"), dict(seq=4096)),
    ("f32 T=4096 relative / no bias", dict(seq=4096, bias="relative"), dict(seq=4096)),
    ("f32 T=4096 AVX2 / fastest", dict(seq=4096, path="avx2"), dict(seq=4096)),
    ("f32 T=8192 window 512 / full", dict(seq=8192, window=512), dict(seq=8192)),
    (
        "f32 32 heads decode S=32768 ALiBi / no bias",
        dict(seq=32768, heads=32, kv_heads=32, decode=True, bias="alibi"),
        dict(seq=32768, heads=32, kv_heads=32, decode=True),
    ),
    (
        "f32 32 heads T=32768 ALiBi / no bias",
        dict(seq=32768, heads=32, kv_heads=32, bias="alibi", runs=1),
        dict(seq=32768, heads=32, kv_heads=32, runs=1),
    ),
]

# The lines of the plot: name, the call, who runs it, and up to which length (a dense bias grows with its square).
LINES = [
    ("attn", dict(), "ours", 32768),
    ("torch SDPA", dict(), "torch", 32768),
    ("attn, ALiBi", dict(bias="alibi"), "ours", 32768),
    ("torch SDPA, ALiBi as a dense bias", dict(bias="alibi"), "torch", 8192),
]
LENGTHS = [256, 512, 1024, 2048, 4096, 8192, 16384, 32768]


def ours(case, args):
    """What `attn bench attention` reports on a call."""
    words = [args.attn, "bench", "attention", "--json", "--device", args.device]
    for name, value in dict(dict(runs=args.runs), **case).items():
        words += ["--" + name.replace("_", "-")] + ([] if value is True else [str(value)])
    return run(words, args.threads)[0]


def torchs(case, args):
    """The best milliseconds of torch on the same call."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    torch.set_num_threads(args.threads)
    seq, heads, kv = case["seq"], case.get("heads", 9), case.get("kv_heads", 3)
    d, backward, decode = case.get("head_dim", 64), "backward" in case, "decode" in case
    dtype = torch.bfloat16 if case.get("dtype") == "bf16" else torch.float32
    kind = dict(dtype=dtype, device=args.device)
    q = torch.randn(1, heads, 1 if decode else seq, d, requires_grad=backward, **kind)
    k, v = (torch.randn(1, kv, seq, d, requires_grad=backward, **kind) for _ in range(2))
    options = dict(is_causal=not decode, enable_gqa=heads != kv)
    if "bias" in case:
        future = torch.ones(seq, seq, dtype=torch.bool, device=args.device).triu(1)
        mask = torch.randn(1, heads, seq, seq, **kind).masked_fill_(future, float("-inf"))
        options.update(is_causal=False, attn_mask=mask)

    def wait():
        if args.device != "cpu":
            torch.cuda.synchronize()

    def once():
        wait()
        start = time.perf_counter()
        if backward:
            sdpa(q, k, v, **options).sum().backward()
        else:
            with torch.inference_mode():
                sdpa(q, k, v, **options)
        wait()
        return time.perf_counter() - start

    once()
    return 1e3 * min(once() for _ in range(case.get("runs", args.runs)))


# The unit of a call's speed: on the CPU it is compared with the measured peak.
SPEED = {True: "of FMA peak", False: "TFLOP/s"}


def speed(report):
    """The speed of the fastest run in the unit of SPEED."""
    gflops = report["gflops"] * report["median_ms"] / report["min_ms"]
    peak = report["peak_gflops"]
    return f"{100 * gflops / peak:.0f} %" if peak else f"{gflops / 1e3:.1f}"


def compare(args):
    """Times attn and torch in turn on every case; returns a list of results."""
    results, rows = [], []
    for name, case in CASES:
        if not wanted(name, args):
            continue
        mine, theirs = [], []
        for _ in range(args.rounds):
            mine.append(ours(case, args))
            theirs.append(torchs(case, args))
        best, torch_ms = min(mine, key=lambda r: r["min_ms"]), min(theirs)
        ms = best["min_ms"]
        results.append(dict(case=name, ours_ms=ms, torch_ms=torch_ms, ratio=torch_ms / ms, ours=best))
        row = [name, f"{ms:.3f}", f"{torch_ms:.3f}", ratio(torch_ms, ms)]
        rows.append(row + [speed(dict(best, peak_gflops=max(r["peak_gflops"] or 0 for r in mine)))])
        print(".", end="", flush=True)
    print()
    table(["attention", "ours ms", "torch ms", "torch / ours", SPEED[args.device == "cpu"]], rows)
    return results


def own(args):
    """Times attn on both calls of each pair in turn; returns a list of results."""
    results, rows = [], []
    for name, case, base in OWN:
        if not wanted(name, args) or ("path" in case and args.device != "cpu"):
            continue
        pairs = [(ours(case, args), ours(base, args)) for _ in range(1 if "runs" in case else args.rounds)]
        a, b = (min((pair[i] for pair in pairs), key=lambda r: r["min_ms"]) for i in (0, 1))
        results.append(dict(case=name, ms=a["min_ms"], base_ms=b["min_ms"], speedup=b["min_ms"] / a["min_ms"], of=[a, b]))
        row = [name, f"{a['min_ms']:.3f}", f"{b['min_ms']:.3f}", ratio(b["min_ms"], a["min_ms"])]
        rows.append(row + [speed(a), speed(b)])
        print(".", end="", flush=True)
    print()
    unit = SPEED[args.device == "cpu"]
    table(["ours / ours", "ms", "ms", "speedup", unit, unit], rows)
    return results


def lengths(args):
    """Measures milliseconds by length for the plot; returns a list of lines."""
    lines = [dict(name=name, points=[]) for name, *_ in LINES]
    for seq in (seq for seq in LENGTHS if seq <= args.longest):
        for line, (_, case, who, longest) in zip(lines, LINES):
            if seq > longest:
                continue
            case = dict(case, seq=seq, runs=args.runs if seq <= 8192 else 1)
            rounds = args.rounds if seq <= 8192 else 1
            best = min(ours(case, args)["min_ms"] if who == "ours" else torchs(case, args) for _ in range(rounds))
            line["points"].append([seq, best])
            print(f"{line['name']:36} {seq:6} {best:10.2f} ms", flush=True)
    return lines
