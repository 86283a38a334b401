#!/usr/bin/env python3
"""Tokens per second of a model in transformers, for scripts/benchmarks/bench_peers.py. Prints the best of the runs as JSON.

    python scripts/benchmarks/peers/transformers_model.py FOLDER f32|bf16 PROMPT GENERATE DEPTH RUNS THREADS BATCH cpu|cuda
"""
import copy
import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM


def main():
    folder, dtype = sys.argv[1:3]
    prompt, generate, depth, runs, threads, batch = map(int, sys.argv[3:9])
    device = sys.argv[9]
    torch.set_num_threads(threads)
    dtype = dict(f32=torch.float32, bf16=torch.bfloat16)[dtype]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval().to(device)
    vocab = model.config.vocab_size

    def ids(start, count):
        rows = [[(i * 7919 + row * 104729 + 13) % vocab for i in range(start, start + count)] for row in range(batch)]
        return torch.tensor(rows, device=device)

    def now():
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()

    def feed(tokens, past):
        return model(tokens, past_key_values=past, use_cache=True, logits_to_keep=1).past_key_values

    def best(tokens, run):
        if not tokens:
            return None
        run()
        return tokens * batch / min(run() for _ in range(runs))

    with torch.inference_mode():
        past = feed(ids(0, depth), None) if depth else None

        def time_prompt():
            cache, tokens = copy.deepcopy(past), ids(depth, prompt)
            start = now()
            feed(tokens, cache)
            return now() - start

        def time_generate():
            cache, tokens = copy.deepcopy(past), [ids(depth + i, 1) for i in range(generate)]
            start = now()
            for token in tokens:
                cache = feed(token, cache)
            return now() - start

        result = dict(prompt=best(prompt, time_prompt), generate=best(generate, time_generate))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
