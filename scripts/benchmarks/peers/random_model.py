#!/usr/bin/env python3
"""Writes a GGUF file in F16 of a published model's shape with random weights, so that speeds of larger models can be compared where
the weights can't be had. Speed does not depend on the values of the weights.

    python scripts/benchmarks/peers/random_model.py llama-3.2-1b|qwen3-0.6b FILE.gguf

llama-quantize makes the other formats of it. The file has no tokenizer: llama-bench and `attn bench model` need none.
"""
import argparse

import gguf
import numpy as np

# Sizes from the config.json files of meta-llama/Llama-3.2-1B and Qwen/Qwen3-0.6B. Both tie the output to the embedding.
SHAPES = {
    "llama-3.2-1b": dict(arch="llama", layers=16, hidden=2048, inner=8192, heads=32, kv_heads=8, head_dim=64, vocab=128256,
                         context=131072, theta=5e5, eps=1e-5, head_norms=False),
    "qwen3-0.6b": dict(arch="qwen3", layers=28, hidden=1024, inner=3072, heads=16, kv_heads=8, head_dim=128, vocab=151936,
                       context=40960, theta=1e6, eps=1e-6, head_norms=True),
}


def metadata(writer, s):
    writer.add_vocab_size(s["vocab"])
    writer.add_block_count(s["layers"])
    writer.add_context_length(s["context"])
    writer.add_embedding_length(s["hidden"])
    writer.add_feed_forward_length(s["inner"])
    writer.add_head_count(s["heads"])
    writer.add_head_count_kv(s["kv_heads"])
    writer.add_key_length(s["head_dim"])
    writer.add_value_length(s["head_dim"])
    writer.add_rope_dimension_count(s["head_dim"])
    writer.add_rope_freq_base(s["theta"])
    writer.add_layer_norm_rms_eps(s["eps"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("no_vocab")


def tensors(s):
    """Name and shape of every tensor."""
    q, kv, hidden, inner = s["heads"] * s["head_dim"], s["kv_heads"] * s["head_dim"], s["hidden"], s["inner"]
    yield "token_embd.weight", (s["vocab"], hidden)
    yield "output_norm.weight", (hidden,)
    for i in range(s["layers"]):
        layer = {
            "attn_norm": (hidden,), "attn_q": (q, hidden), "attn_k": (kv, hidden), "attn_v": (kv, hidden),
            "attn_output": (hidden, q), "ffn_norm": (hidden,), "ffn_gate": (inner, hidden), "ffn_up": (inner, hidden),
            "ffn_down": (hidden, inner),
        }
        if s["head_norms"]:
            layer |= {"attn_q_norm": (s["head_dim"],), "attn_k_norm": (s["head_dim"],)}
        yield from ((f"blk.{i}.{name}.weight", shape) for name, shape in layer.items())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("file")
    args = parser.parse_args()
    shape, random = SHAPES[args.shape], np.random.default_rng(0)
    writer = gguf.GGUFWriter(args.file, shape["arch"])
    metadata(writer, shape)
    for name, dims in tensors(shape):
        if len(dims) == 1:
            writer.add_tensor(name, np.ones(dims, np.float32))
        else:
            writer.add_tensor(name, (random.standard_normal(dims, np.float32) * 0.02).astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
