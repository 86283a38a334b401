#!/usr/bin/env python3
"""Writes golden values of the methods that place near and far keys differently: logits of the golden `llama`, perplexities of tiny-austen.

    pip install torch transformers==5.24.0 safetensors tokenizers
    python3 scripts/reference/make_extensions.py [--perplexity] [FOLDER]      # default: tests/golden

Writes FOLDER/extensions/<method>.safetensors with input_ids and logits, and with --perplexity, which takes minutes,
FOLDER/extensions_perplexity.json. A new method is a case of `parts` and an entry of SMALL.

Every method is one rule: a pair of tokens belongs to the first part whose region holds it; the part says at which position the
query and the key are rotated. Scores are taken part by part over dense matrices in f32 and joined before one softmax, so this is
the definition, with no attempt at speed. i is the query's position, j the key's, d = i - j >= 0, L the trained context.

part                      region                 query at            key at
self-extend (G, W)        d < W                  i                   j
                          else                   i // G + W - W//G   j // G         (G divides W)
rerope (W)                d < W                  i                   j
                          else                   W                   0
leaky-rerope (W, s)       d < W                  i                   j
                          else                   (i + W(s-1)) / s    j / s
dual-chunk (c, w)         i//n == j//n           i mod n             j mod n        n = c - w; c = 3L/4, w = L/16 unless given
                          i//n == j//n + 1       min(i mod n + n, c) j mod n
                          else                   min(2n - 1, c)      j mod n
string (S, W)             d < S                  i                   j              S = L/3 and W = L/8 unless given
                          else                   i - S + W           j
lm-infinite (n, W)        d < W                  i                   j
                          j < n                  W                   0              other keys are not seen
streaming (n, W)          d < W                  i                   j
                          j < n                  min(i, n + W - 1)   j              other keys are not seen
log-n                     all                    i                   j              query times max(1, ln(i + 1) / ln L)
"""

import argparse
import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "Cargo.lock").exists())
GOLDEN = ROOT / "tests/golden"


def parts(mode, trained, t, p):
    """[(region (t, t), query positions (t,), key positions (t,))], and the factor on queries (t,)."""
    i, j = torch.arange(t)[:, None], torch.arange(t)[None, :]
    pos = torch.arange(t, dtype=torch.float64)
    d, ones = i - j, torch.ones(t, dtype=torch.float64)

    def near(w):
        return (d >= 0) & (d < w)

    def all_at(x):
        return torch.full((t,), float(x), dtype=torch.float64)

    if mode == "none":
        return [(d >= 0, pos, pos)], ones
    if mode == "log-n":
        return [(d >= 0, pos, pos)], torch.clamp(torch.log(pos + 1) / math.log(trained), min=1.0)
    if mode == "self-extend":
        group, window = p["group"], p["window"]
        assert window % group == 0
        return [(near(window), pos, pos), (d >= window, pos // group + (window - window // group), pos // group)], ones
    if mode == "rerope":
        return [(near(p["window"]), pos, pos), (d >= p["window"], all_at(p["window"]), all_at(0))], ones
    if mode == "leaky-rerope":
        window, factor = p["window"], p["factor"]
        return [(near(window), pos, pos), (d >= window, (pos + window * (factor - 1)) / factor, pos / factor)], ones
    if mode == "dual-chunk":
        chunk = p.get("chunk", trained * 3 // 4)
        n = chunk - p.get("local", trained // 16)
        a, b, inside = i // n, j // n, pos % n
        return [
            ((a == b) & (d >= 0), inside, inside),
            (a == b + 1, torch.clamp(inside + n, max=chunk), inside),
            (a > b + 1, all_at(min(2 * n - 1, chunk)), inside),
        ], ones
    if mode == "string":
        shift, local = p.get("shift", trained // 3), p.get("local", trained // 8)
        return [(near(shift), pos, pos), (d >= shift, pos - shift + local, pos)], ones
    sinks, window = p["sinks"], p["window"]
    far = (d >= window) & (j < sinks)
    if mode == "lm-infinite":
        return [(near(window), pos, pos), (far, all_at(window), all_at(0))], ones
    if mode == "streaming":
        return [(near(window), pos, pos), (far, torch.clamp(pos, max=sinks + window - 1), pos)], ones
    raise SystemExit(f"no such method: {mode}")


def rotate(x, position, theta, head_dim):
    inv_freq = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = position[:, None] * inv_freq[None, :]
    cos, sin = (torch.cat([f(angle)] * 2, -1).float() for f in (torch.cos, torch.sin))
    half = torch.cat([-x[..., head_dim // 2 :], x[..., : head_dim // 2]], -1)
    return x * cos + half * sin


def patched(folder, plan):
    """The model with its attention replaced; `plan` gives the parts of a text of t tokens."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    theta, head_dim = model.config.rope_parameters["rope_theta"], model.config.head_dim

    def forward(self, hidden_states, **_):
        b, t, _ = hidden_states.shape
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (f(hidden_states).view(b, t, -1, head_dim).transpose(1, 2) for f in projections)
        regions, factor = plan(t)
        q = q * factor.float()[:, None]
        n = q.shape[1] // k.shape[1]
        scores = torch.full((b, q.shape[1], t, t), -torch.inf)
        for region, at_q, at_k in regions:
            keys = rotate(k, at_k, theta, head_dim).repeat_interleave(n, 1)
            part = rotate(q, at_q, theta, head_dim) @ keys.transpose(2, 3) * head_dim**-0.5
            scores = torch.where(region, part, scores)
        out = torch.softmax(scores, -1) @ v.repeat_interleave(n, 1)
        return self.o_proj(out.transpose(1, 2).reshape(b, t, -1)), None

    for layer in model.model.layers:
        layer.self_attn.forward = forward.__get__(layer.self_attn)
    return model


SMALL = [
    ("none", {}),
    ("self-extend", dict(group=2, window=8)),
    ("self-extend", dict(group=5, window=10)),
    ("rerope", dict(window=9)),
    ("leaky-rerope", dict(window=7, factor=3.0)),
    ("dual-chunk", dict(chunk=12, local=3)),
    ("dual-chunk", {}),
    ("string", dict(shift=11, local=4)),
    ("lm-infinite", dict(sinks=3, window=10)),
    ("streaming", dict(sinks=3, window=10)),
    ("log-n", {}),
]
LARGE = [
    ("none", {}),
    ("self-extend", dict(group=4, window=128)),
    ("self-extend", dict(group=16, window=64)),
    ("rerope", dict(window=128)),
    ("leaky-rerope", dict(window=128, factor=16.0)),
    ("dual-chunk", {}),
    ("string", {}),
    ("lm-infinite", dict(sinks=4, window=252)),
    ("streaming", dict(sinks=4, window=252)),
    ("log-n", {}),
]


def logits(out):
    folder = GOLDEN / "models/llama"
    expected = load_file(folder / "expected.safetensors")
    ids, trained = expected["input_ids"], json.loads((folder / "config.json").read_text())["max_position_embeddings"]
    (out / "extensions").mkdir(parents=True, exist_ok=True)
    for mode, p in SMALL:
        found = patched(folder, lambda t: parts(mode, trained, t, p))(ids, use_cache=False).logits
        moved = (found - expected["logits"]).abs().max().item()
        assert (mode == "none") == (moved < 1e-4), f"{mode} is off by {moved} from transformers' own attention"
        name = "-".join([mode, *(f"{key}{value:g}" for key, value in p.items())])
        said = dict(mode=mode, **{key: str(value) for key, value in p.items()}, trained_context=str(trained))
        save_file(dict(input_ids=ids, logits=found.contiguous()), out / f"extensions/{name}.safetensors", metadata=said)
        print(f"{name:32} moves the logits by {moved:.3g}", flush=True)


def perplexities(out):
    folder, text = ROOT / "crates/attn-cli/models/tiny-austen", ROOT / "crates/attn-cli/models/sample.txt"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokens = tokenizer.encode(text.read_text(), add_special_tokens=False).ids[:16384]
    rows = []
    for context in (256, 512, 1024, 2048):
        for mode, p in LARGE:
            model, nll, n = patched(folder, lambda t: parts(mode, 256, t, p)), 0.0, 0
            for start in range(0, len(tokens) - context + 1, context):
                window = torch.tensor([tokens[start : start + context]])
                found = model(window, use_cache=False).logits[0, :-1]
                nll += torch.nn.functional.cross_entropy(found, window[0, 1:], reduction="sum").double().item()
                n += context - 1
            rows.append(dict(context=context, mode=mode, **p, tokens=n, ppl=math.exp(nll / n)))
            print(rows[-1], flush=True)
    document = dict(
        model="crates/attn-cli/models/tiny-austen (bf16 weights, computed in f32)",
        text="crates/attn-cli/models/sample.txt, first 16384 tokens",
        method="disjoint windows of `context` tokens, no BOS, each window's first token unscored, weighted by token; L = 256",
        results=rows,
    )
    (out / "extensions_perplexity.json").write_text(json.dumps(document, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--perplexity", action="store_true")
    parser.add_argument("folder", nargs="?", type=Path, default=GOLDEN)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        logits(args.folder)
        if args.perplexity:
            perplexities(args.folder)


if __name__ == "__main__":
    main()
