#!/usr/bin/env python3
"""Checks the trained encodings a second time: x-transformers computes the values in tests/golden/encodings.

    pip install torch safetensors x-transformers
    python3 scripts/reference/check_encodings.py [FOLDER]

The golden values were made from the papers' definitions, and the layer's tests compare the layer with them. Here the attention of
x-transformers, its biases and its rotation compute the same outputs and gradients for the encodings that it has: FoX
(`DataDependentAlibi`), CoPE, xPos, sinks (`head_learned_sink`) and ALiBi with learned slopes. It has no Kerple, FIRE, SSMax or
bank of rows. Its ALiBi and T5 biases are compared with tests/golden/alibi.json and t5_buckets.json too.
Exits with 1 if an output or a gradient differs by more than 1e-5 of its largest value.
"""

import json
import pathlib
import sys
import warnings

warnings.filterwarnings("ignore")  # torch.jit.script, which x-transformers' dependencies use, is deprecated

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import nn  # noqa: E402
from x_transformers import attend  # noqa: E402
from x_transformers import x_transformers as peer  # noqa: E402

ROOT = next(folder for folder in pathlib.Path(__file__).resolve().parents if (folder / "Cargo.lock").exists())
BOUND = 1e-5


def attention(heads, **options):
    return attend.Attend(heads=heads, causal=True, flash=False, **options)


def fox(q, k, v, f):
    gates = peer.DataDependentAlibi(q.shape[-1], q.shape[1])
    gates.to_forget_gates[0] = nn.Identity()  # f is what its linear layer would give
    return attention(q.shape[1])(q, k, v, attn_bias=gates(f.transpose(1, 2)))[0]


def cope(q, k, v, e):
    positions = peer.CoPE(q.shape[-1], q.shape[1], e.shape[1])
    del positions.pos_emb  # a parameter; e takes its place with its own gradient
    positions.pos_emb = e.T
    return attention(q.shape[1], cope=positions)(q, k, v)[0]


def sinks(q, k, v, s):
    inner = attention(q.shape[1], head_learned_sink=True)
    del inner.head_attn_sink
    inner.head_attn_sink = s
    return inner(q, k, v)[0]


def learned_alibi(q, k, v, m):
    bias = peer.AlibiPositionalBias(q.shape[1], slopes=m.tolist())
    bias.slopes = m[:, None, None]
    t = q.shape[2]
    return attention(q.shape[1])(q, k, v, attn_bias=bias(t, t))[0]


def xpos(q, k, v):
    """x-transformers rotates neighbouring lanes as a pair; in the golden values a pair has one lane of each half."""
    half = q.shape[-1] // 2
    order = torch.arange(q.shape[-1]).reshape(2, half).T.flatten()
    rotary = peer.RotaryEmbedding(q.shape[-1], use_xpos=True).to(q.dtype)
    # The constructor computes these in f32.
    even = torch.arange(0, q.shape[-1], 2, dtype=q.dtype)
    rotary.inv_freq = 10000.0 ** (-even / q.shape[-1])
    rotary.scale = (even + 0.4 * q.shape[-1]) / (1.4 * q.shape[-1])
    angles, scale = rotary.forward_from_seq_len(q.shape[2])
    q = peer.apply_rotary_pos_emb(q[..., order], angles, scale)
    k = peer.apply_rotary_pos_emb(k[..., order], angles, scale**-1)
    return attention(q.shape[1])(q, k, v)[0]


ENCODINGS = {"fox": fox, "cope": cope, "sinks": sinks, "learned-alibi": learned_alibi, "xpos": xpos}


def check(name, compute, folder):
    """The largest difference, of output and gradients, relative to the largest value there."""
    golden = {key: value.double() for key, value in load_file(folder / f"{name}.safetensors").items()}
    out, w = golden.pop("out"), golden.pop("w")
    grads = {key.removeprefix("grad_"): golden.pop(key) for key in list(golden) if key.startswith("grad_")}
    inputs = {key: value.requires_grad_() for key, value in golden.items()}
    found = compute(**inputs)
    (found * w).sum().backward()
    pairs = [(found.detach(), out), *((inputs[key].grad, wanted) for key, wanted in grads.items())]
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


def check_biases(folder):
    slopes = json.loads((folder / "alibi.json").read_text())
    for heads, wanted in slopes.items():
        found = peer.AlibiPositionalBias._get_slopes(int(heads))
        yield f"ALiBi's slopes, {heads} heads", max(abs(a - b) / b for a, b in zip(found, wanted, strict=True))
    for case in json.loads((folder / "t5_buckets.json").read_text()):
        sizes = {key: case[key] for key in ("num_buckets", "max_distance")}
        relative = torch.tensor(case["relative_position"])
        found = peer.RelativePositionBias._relative_position_bucket(relative, causal=not case["bidirectional"], **sizes)
        name = f"T5's buckets, {'both sides' if case['bidirectional'] else 'causal'}, {case['num_buckets']}, {case['max_distance']}"
        yield name, float((found != torch.tensor(case["bucket"])).sum())


def main():
    golden = ROOT / "tests/golden"
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else golden / "encodings"
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    results = [*((name, check(name, compute, folder)) for name, compute in ENCODINGS.items()), *check_biases(golden)]
    for name, difference in results:
        print(f"{name:34} {difference:.1e}{'' if difference <= BOUND else '  DIFFERS'}")
    sys.exit(any(not difference <= BOUND for _, difference in results))


main()
