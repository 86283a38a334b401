#!/usr/bin/env python3
"""Perplexities of trained checkpoints, recomputed with transformers.

    python3 scripts/reference/check_trained.py target/release/attn TEXT MODEL... [--contexts 256,1024] [--tokens 16384]

MODEL is a folder that `attn train` wrote. Rotary checkpoints are plain Llamas and load as they are. transformers has no Llama with
other encodings. For those its Llama runs with rotation turned off (frequencies of zero). ALiBi's and T5's biases enter through the
4D attention mask (T5's buckets are transformers' own); sinusoids and learned tables enter through the embeddings, which with
sinusoids are first multiplied by the root of their width. The block, the norms, attention and the loss are always those of
transformers. Contexts past a learned table are left out. Needs torch and transformers. Exits with 1 if any perplexity differs by more than 0.5 %.
"""

import argparse
import json
import math
import pathlib
import subprocess
import sys

import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.t5.modeling_t5 import T5Attention


def alibi_slopes(heads):
    wide = 2 ** math.ceil(math.log2(heads))
    slopes = [2 ** (-8 * i / wide) for i in range(1, wide + 1)]
    if wide != heads:
        slopes = (slopes[1::2] + slopes[0::2])[:heads]
    return torch.tensor(slopes)


def sinusoids(context, width):
    """The table of Vaswani et al.: sine and cosine in turn."""
    angles = torch.arange(context)[:, None].double() / 10000.0 ** (torch.arange(0, width, 2).double() / width)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).float()


def load(folder):
    config = json.loads((folder / "config.json").read_text())
    encoding = config.pop("position_encoding", "rope")
    if encoding == "rope":
        return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval(), encoding, {}
    weights = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
    own = {name: weights.pop(f"model.{name}.weight") for name in ("embed_positions", "relative_attention_bias")
           if f"model.{name}.weight" in weights}
    own |= {key: config.pop(key) for key in ("relative_attention_num_buckets", "relative_attention_max_distance") if key in config}
    for key in ("model_type", "architectures", "dtype"):
        config.pop(key, None)
    model = LlamaForCausalLM(LlamaConfig(**config, attn_implementation="eager")).eval()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected, (missing, unexpected)
    model.tie_weights()
    model.model.rotary_emb.inv_freq.zero_()
    return model, encoding, own


def bias(encoding, own, heads, distance):
    """What is added to the scores, (heads, t, t), for distances key - query."""
    if encoding == "alibi":
        return alibi_slopes(heads)[:, None, None] * distance
    buckets = T5Attention._relative_position_bucket(distance, False, own["relative_attention_num_buckets"],
                                                    own["relative_attention_max_distance"])
    return own["relative_attention_bias"][buckets].permute(2, 0, 1)


@torch.no_grad()
def perplexity(folder, ids, context):
    model, encoding, own = load(folder)
    table = own.get("embed_positions")
    if encoding == "sinusoidal":
        table = sinusoids(context, model.config.hidden_size)
    total, count = 0.0, 0
    for start in range(0, len(ids) - context + 1, context):
        row = torch.tensor(ids[start : start + context])[None]
        inputs = {"input_ids": row}
        if encoding in ("alibi", "t5"):
            distance = torch.arange(context)[None, :] - torch.arange(context)[:, None]
            mask = bias(encoding, own, model.config.num_attention_heads, distance)
            inputs["attention_mask"] = mask.masked_fill(distance > 0, float("-inf"))[None]
        if table is not None:
            scale = math.sqrt(model.config.hidden_size) if encoding == "sinusoidal" else 1.0
            inputs = {"inputs_embeds": model.model.embed_tokens(row) * scale + table[:context]}
        logits = model(**inputs).logits[0, :-1].double()
        total += torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="sum").item()
        count += context - 1
    return encoding, math.exp(total / count)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("attn")
    p.add_argument("text", type=pathlib.Path)
    p.add_argument("models", type=pathlib.Path, nargs="+")
    p.add_argument("--contexts", type=lambda text: [int(n) for n in text.split(",")], default=[256, 1024])
    p.add_argument("--tokens", type=int, default=16384)
    p.add_argument("--json", type=pathlib.Path, help="write transformers' figures")
    args = p.parse_args()
    worst, figures = 0.0, []
    for folder in args.models:
        config = json.loads((folder / "config.json").read_text())
        ends = config["max_position_embeddings"] if config.get("position_encoding") == "learned" else math.inf
        ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(args.text.read_text(), add_special_tokens=False).ids
        for context in (context for context in args.contexts if context <= ends):
            encoding, theirs = perplexity(folder, ids[: args.tokens], context)
            command = [args.attn, "perplexity", str(folder), "--text", str(args.text), "--context", str(context),
                       "--max-tokens", str(args.tokens), "--json"]
            ours = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["perplexity"]
            difference = abs(ours / theirs - 1)
            worst = max(worst, difference)
            figures.append({"encoding": encoding, "context": context, "perplexity": theirs})
            print(f"{folder} ({encoding}, context {context}): ours {ours:.6f}, transformers {theirs:.6f}, {difference:.1e} apart")
    if args.json:
        about = {"text": args.text.name, "tokens": args.tokens, "transformers": transformers.__version__}
        args.json.write_text(json.dumps(about | {"figures": figures}, indent=1) + "\n")
    sys.exit(worst > 0.005)


main()
