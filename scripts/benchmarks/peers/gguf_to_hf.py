#!/usr/bin/env python3
"""Expands a GGUF checkpoint into a Hugging Face folder, so that every program runs on the same weights.

    python scripts/benchmarks/peers/gguf_to_hf.py FILE.gguf FOLDER --dtype f32|bf16
"""
import argparse
import json
import os

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("folder")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    args = parser.parse_args()
    dtype = dict(f32=torch.float32, bf16=torch.bfloat16)[args.dtype]
    folder, name = os.path.split(os.path.abspath(args.file))
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=dtype)
    config = model.config.to_dict()
    for key in ("quantization_config", "_name_or_path"):
        config.pop(key, None)
    config["architectures"] = [type(model).__name__]
    tied = config.get("tie_word_embeddings")
    tensors = {k: v.to(dtype).contiguous() for k, v in model.state_dict().items() if not (tied and k == "lm_head.weight")}
    os.makedirs(args.folder, exist_ok=True)
    with open(os.path.join(args.folder, "config.json"), "w") as file:
        json.dump(config, file, indent=1)
    AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(args.folder)
    save_file(tensors, os.path.join(args.folder, "model.safetensors"), metadata={"format": "pt"})


if __name__ == "__main__":
    main()
