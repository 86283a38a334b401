#!/usr/bin/env python3
"""Writes GGUF files of golden checkpoints with llama.cpp's own converter: its metadata, tensor names and permutations.

    pip install torch transformers==5.24.0 safetensors gguf
    python3 scripts/reference/make_gguf.py LLAMA_CPP NAME ... [--out FOLDER]      # default: tests/golden/gguf

LLAMA_CPP is llama.cpp's source folder (the source package of llama-cpp-python has it in vendor/llama.cpp), NAME a folder of
tests/golden/models. The files are in f32, and what transformers computed is beside the checkpoint. The checkpoints have no tokenizer:
a vocabulary of one token per id, <t0>, <t1>, ..., stands in for it.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "Cargo.lock").exists())


def stand_in_vocabulary(self):
    n = self.hparams.get("vocab_size", 96)
    writer = self.gguf_writer
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"<t{i}>" for i in range(n - 3)] + ["a", "b", "ab"])
    writer.add_token_types([1] * n)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def convert(source, target):
    import gguf
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / source.name
        shutil.copytree(source, copy)
        config = json.loads((copy / "config.json").read_text())
        # Keys that older configs had and the converter reads.
        if "n_positions" in config:
            config.setdefault("n_ctx", config["n_positions"])
        if config["model_type"] == "gpt_neox":
            config["rotary_pct"] = config.get("rope_parameters", {}).get("partial_rotary_factor", config.get("rotary_pct", 1.0))
        (copy / "config.json").write_text(json.dumps(config))
        converter = get_model_class(get_model_architecture(ModelBase.load_hparams(copy, False), ModelType.TEXT))
        converter.set_vocab = stand_in_vocabulary
        with torch.inference_mode():
            converter(copy, gguf.LlamaFileType.ALL_F32, target, eager=True).write()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("llama_cpp", type=Path)
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument("--out", type=Path, default=ROOT / "tests/golden/gguf")
    args = parser.parse_args()
    sys.path[:0] = [str(args.llama_cpp), str(args.llama_cpp / "gguf-py")]
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.names:
        target = args.out / f"{name}.gguf"
        convert(ROOT / "tests/golden/models" / name, target)
        print(target)


if __name__ == "__main__":
    main()
