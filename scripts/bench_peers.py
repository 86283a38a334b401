#!/usr/bin/env python3
"""Attention on the CPU: ours and torch's scaled_dot_product_attention in turn, and a table of ratios.

    cargo build --release -p attn-core --example bench_attention
    python scripts/bench_peers.py target/release/examples/bench_attention [--threads 2] [--rounds 3] [--only TEXT]

Each case runs `rounds` times, ours and torch's alternating, so that whatever else the machine does hits both; the
best time of each counts. Ratios are torch's time over ours: above 1, ours is faster.
"""
import argparse, json, os, subprocess, sys, time

# name, options of ours, and torch's side of the same call
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
    ("decode f32 S=4096", dict(seq=4096, decode=True)),
    ("decode f32 S=32768", dict(seq=32768, decode=True)),
    ("decode bf16 S=32768", dict(seq=32768, decode=True, dtype="bf16")),
    ("forward+backward f32 T=2048", dict(seq=2048, kv_heads=9, backward=True)),
]


def ours(binary, case, threads, runs):
    words = [binary, "--json", "--runs", str(runs)]
    for name, value in case.items():
        words += ["--" + name.replace("_", "-")] + ([] if value is True else [str(value)])
    env = dict(os.environ, RAYON_NUM_THREADS=str(threads))
    done = subprocess.run(words, env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(words)}: {done.stderr}")
    return json.loads(done.stdout)["min_ms"]


def torchs(case, threads, runs):
    import torch
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    torch.set_num_threads(threads)
    seq, heads, kv = case["seq"], case.get("heads", 9), case.get("kv_heads", 3)
    d, backward, decode = case.get("head_dim", 64), "backward" in case, "decode" in case
    dtype = torch.bfloat16 if case.get("dtype") == "bf16" else torch.float32
    q = torch.randn(1, heads, 1 if decode else seq, d, dtype=dtype, requires_grad=backward)
    k, v = (torch.randn(1, kv, seq, d, dtype=dtype, requires_grad=backward) for _ in range(2))
    options = dict(is_causal=not decode, enable_gqa=heads != kv)
    if "bias" in case:
        mask = torch.randn(1, heads, seq, seq).masked_fill_(torch.ones(seq, seq).triu(1).bool(), float("-inf"))
        options.update(is_causal=False, attn_mask=mask)

    def run():
        if backward:
            sdpa(q, k, v, **options).sum().backward()
        else:
            with torch.inference_mode():
                sdpa(q, k, v, **options)

    best = float("inf")
    for i in range(runs + 1):
        start = time.perf_counter()
        run()
        if i:
            best = min(best, time.perf_counter() - start)
    return best * 1e3


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    print(f"{'case':36} {'ours ms':>10} {'torch ms':>10} {'ratio':>7}")
    for name, case in CASES:
        if args.only not in name:
            continue
        a = b = float("inf")
        for _ in range(args.rounds):
            a = min(a, ours(args.binary, case, args.threads, args.runs))
            b = min(b, torchs(case, args.threads, args.runs))
        print(f"{name:36} {a:10.3f} {b:10.3f} {b / a:7.2f}", flush=True)


if __name__ == "__main__":
    main()
