#!/usr/bin/env python3
"""Writes tests/golden/encodings: one attention call under each encoding, dense and in f64, from the papers' definitions.

    pip install torch safetensors
    python3 scripts/reference/make_encodings.py [FOLDER]      # a new entry of CASES goes last: the values before it stay the same

Each file has q, k and v of shape (b, h, t, d) = (2, 4, 37, 16), what the encoding learns, the output `out`, the `w` that the output is
multiplied by before it is summed, and the gradient of that sum by every input X as `grad_X`. Attention is causal; scores are q k^T / sqrt(d)
until an encoding changes them. i is the query, j the key and D = i - j.

Where an encoding has published code, its function here follows that code rather than the formulas of crates/attn-core.
"""

import math
import pathlib
import sys

import torch
from safetensors.torch import save_file

ROOT = next(folder for folder in pathlib.Path(__file__).resolve().parents if (folder / "Cargo.lock").exists())
B, H, T, D = 2, 4, 37, 16
torch.set_default_dtype(torch.float64)
I, J = torch.arange(T)[:, None], torch.arange(T)[None, :]
DISTANCE = (I - J).clamp(min=0).double()


def scores(q, k):
    return q @ k.transpose(-1, -2) / math.sqrt(D)


def per_head(x):
    return x[None, :, None, None]


def weights(s):
    return torch.softmax(s.masked_fill(J > I, -math.inf), -1)


def kerple_log(q, k, v, r1, r2):
    """- r1 ln(1 + r2 D); r1, r2 (h)"""
    return weights(scores(q, k) - per_head(r1) * torch.log(1 + per_head(r2) * DISTANCE)) @ v


def kerple_power(q, k, v, r1, r2):
    """- r1 D^r2, 0 at D = 0; r1, r2 (h)"""
    power = torch.where(DISTANCE > 0, DISTANCE.clamp(min=1) ** per_head(r2), 0.0)
    return weights(scores(q, k) - per_head(r1) * power) @ v


def fire(q, k, v, c, m, w1, b1, w2, b2):
    """mlp(ln(|c| D + 1) / (ln(|c| max(|m|, i) + 1) + 1e-6)); the mlp is 1 -> 32, ReLU, -> h"""
    x = torch.log(c.abs() * DISTANCE + 1) / (torch.log(c.abs() * torch.maximum(m.abs(), I.double()) + 1) + 1e-6)
    return weights(scores(q, k) + (torch.relu(x[..., None] * w1 + b1) @ w2.T + b2).permute(2, 0, 1)) @ v


def fox(q, k, v, f):
    """F_i - F_j, where F is the running sum of ln sigmoid(f); f (b, h, t)"""
    total = torch.nn.functional.logsigmoid(f).cumsum(-1)
    return weights(scores(q, k) + total[..., :, None] - total[..., None, :]) @ v


def sinks(q, k, v, s):
    """a softmax over the scores and s, whose share is dropped; s (h)"""
    x = scores(q, k).masked_fill(J > I, -math.inf)
    return torch.softmax(torch.cat([x, per_head(s).expand(B, H, T, 1)], -1), -1)[..., :-1] @ v


def ssmax(q, k, v, s):
    """scores times s ln(i + 1); s (h)"""
    return weights(scores(q, k) * per_head(s) * torch.log(I + 1.0)) @ v


def xpos(q, k, v):
    """a rotation (halves, base 10000) times zeta^(i / 512) on q and zeta^(-j / 512) on k, zeta_m = (2 m / d + 0.4) / 1.4"""

    def rotate(x, sign):
        angles = torch.arange(T)[:, None] * 10000.0 ** (-torch.arange(0, D, 2) / D)
        cos, sin = torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)
        zeta = torch.cat([(2 * torch.arange(D // 2) / D + 0.4) / 1.4] * 2)
        half = torch.cat([-x[..., D // 2 :], x[..., : D // 2]], -1)
        return (x * cos + half * sin) * zeta ** (sign * torch.arange(T)[:, None] / 512)

    return weights(scores(rotate(q, 1), rotate(k, -1))) @ v


def row_bank(q, k, v, r, bank):
    """r_i . bank[:, min(D, n - 1)]; r (b, h, t, 3), bank (h, 3, n)"""
    table = bank[:, :, DISTANCE.long().clamp(max=bank.shape[-1] - 1)]
    return weights(scores(q, k) + torch.einsum("bhir,hrij->bhij", r, table)) @ v


def cope(q, k, v, e):
    """q_i . e[p], interpolated, where p is the sum of sigmoid(score) from j to i, at most n - 1; e (d, n)"""
    s = scores(q, k).masked_fill(J > I, -math.inf)
    p = torch.sigmoid(s).flip(-1).cumsum(-1).flip(-1).clamp(max=e.shape[-1] - 1)
    low, high, z = p.floor().long(), p.ceil().long(), q @ e
    share = p - p.floor()
    return weights(s + z.gather(-1, high) * share + z.gather(-1, low) * (1 - share)) @ v


def learned_alibi(q, k, v, m):
    """- m D; m (h)"""
    return weights(scores(q, k) - per_head(m) * DISTANCE) @ v


def sandwich(q, k, v):
    """the product of two positions' sinusoids by the head's compression ratio, in the order of the paper's listing"""
    i = torch.arange(128 // 2)
    angles = torch.arange(T)[:, None] / 10000.0 ** (2 * i / 128)
    vectors = torch.cat([angles.sin(), angles.cos()], -1)
    ratio = torch.arange(1, H + 1) * 8 / H
    return weights(scores(q, k) + (vectors @ vectors.T) / per_head(ratio)) @ v


generator = torch.Generator().manual_seed(20261128)


def normal(*shape):
    return torch.randn(*shape, generator=generator)


def uniform(*shape):
    return torch.rand(*shape, generator=generator)


CASES = {
    "kerple-log": (kerple_log, dict(r1=uniform(H) + 0.3, r2=uniform(H) + 0.2)),
    "kerple-power": (kerple_power, dict(r1=0.1 * uniform(H) + 0.02, r2=1.5 * uniform(H) + 0.3)),
    "fire": (fire, dict(c=torch.tensor(0.3), m=torch.tensor(14.0), w1=normal(32), b1=0.3 * normal(32), w2=0.4 * normal(H, 32),
                        b2=0.1 * normal(H))),
    "fox": (fox, dict(f=normal(B, H, T) + 2)),
    "sinks": (sinks, dict(s=normal(H))),
    "ssmax": (ssmax, dict(s=uniform(H) + 0.2)),
    "xpos": (xpos, {}),
    "row-bank": (row_bank, dict(r=normal(B, H, T, 3), bank=0.7 * normal(H, 3, 20))),
    "cope": (cope, dict(e=0.4 * normal(D, 12))),
    "learned-alibi": (learned_alibi, dict(m=uniform(H))),
    "sandwich": (sandwich, {}),
}


def write(folder, name, attention, learned):
    inputs = {key: normal(B, H, T, D) for key in "qkv"}
    w = normal(B, H, T, D)
    inputs = {key: value.clone().requires_grad_() for key, value in {**inputs, **learned}.items()}
    out = attention(**inputs)
    (out * w).sum().backward()
    plain = weights(scores(inputs["q"], inputs["k"])) @ inputs["v"]
    tensors = {**inputs, "w": w, "out": out, **{f"grad_{key}": value.grad for key, value in inputs.items()}}
    save_file({key: value.detach().contiguous() for key, value in tensors.items()}, folder / f"{name}.safetensors")
    print(f"{name:14} differs from attention without it by {(out - plain).abs().max():.3f}")


def main():
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "tests/golden/encodings"
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name, (attention, learned) in CASES.items():
        write(folder, name, attention, learned)


main()
