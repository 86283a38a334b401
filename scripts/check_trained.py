#!/usr/bin/env python3
"""Perplexities of trained checkpoints, recomputed with transformers.

    python3 scripts/check_trained.py target/release/attn TEXT MODEL...

MODEL is a folder that `attn train` wrote with rope, alibi or learned positions. Rotary checkpoints are plain Llamas and load as they
are. transformers has no Llama with other encodings, so for those its Llama runs with rotation turned off (frequencies of zero), and
ALiBi's bias goes in through the 4D attention mask, the learned table through the embeddings: the block, the norms, attention and
the loss are transformers' own. Needs torch and transformers. Exits with 1 if any perplexity differs by more than 0.5 %.
"""

import json
import math
import pathlib
import subprocess
import sys

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

TOKENS = 16384


def alibi_slopes(heads):
    wide = 2 ** math.ceil(math.log2(heads))
    slopes = [2 ** (-8 * i / wide) for i in range(1, wide + 1)]
    if wide != heads:
        slopes = (slopes[1::2] + slopes[0::2])[:heads]
    return torch.tensor(slopes)


def load(folder):
    config = json.loads((folder / "config.json").read_text())
    encoding = config.pop("position_encoding", "rope")
    if encoding == "rope":
        return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval(), encoding, None
    weights = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
    table = weights.pop("model.embed_positions.weight", None)
    for key in ("model_type", "architectures", "dtype"):
        config.pop(key, None)
    model = LlamaForCausalLM(LlamaConfig(**config, attn_implementation="eager")).eval()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected, (missing, unexpected)
    model.tie_weights()
    model.model.rotary_emb.inv_freq.zero_()
    return model, encoding, table


@torch.no_grad()
def perplexity(folder, ids, context):
    model, encoding, table = load(folder)
    heads = model.config.num_attention_heads
    total, count = 0.0, 0
    for start in range(0, len(ids) - context + 1, context):
        row = torch.tensor(ids[start : start + context])[None]
        inputs = {"input_ids": row}
        if encoding == "alibi":
            distance = torch.arange(context)[None, :] - torch.arange(context)[:, None]
            mask = alibi_slopes(heads)[:, None, None] * distance
            inputs["attention_mask"] = mask.masked_fill(distance > 0, float("-inf"))[None]
        if table is not None:
            inputs = {"inputs_embeds": model.model.embed_tokens(row) + table[:context]}
        logits = model(**inputs).logits[0, :-1].double()
        total += torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="sum").item()
        count += context - 1
    return encoding, math.exp(total / count)


def main():
    attn, text, models = sys.argv[1], sys.argv[2], [pathlib.Path(m) for m in sys.argv[3:]]
    worst = 0.0
    for folder in models:
        context = min(json.loads((folder / "config.json").read_text())["max_position_embeddings"], 1024)
        ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(pathlib.Path(text).read_text(), add_special_tokens=False).ids
        encoding, theirs = perplexity(folder, ids[:TOKENS], context)
        command = [attn, "perplexity", str(folder), "--text", text, "--context", str(context), "--max-tokens", str(TOKENS), "--json"]
        ours = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["perplexity"]
        difference = abs(ours / theirs - 1)
        worst = max(worst, difference)
        print(f"{folder} ({encoding}, context {context}): ours {ours:.5f}, transformers {theirs:.5f}, {difference:.1e} apart")
    sys.exit(worst > 0.005)


main()
