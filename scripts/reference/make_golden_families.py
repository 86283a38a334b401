#!/usr/bin/env python3
"""Writes golden checkpoints of further families, with the same files and by the same rules as make_golden.py.

    pip install torch transformers==5.24.0 safetensors
    python3 scripts/reference/make_golden_families.py [--out FOLDER] [NAME ...]      # default: tests/golden, and every name

A new family is an entry of CAUSAL: the folder, the model type, how many tokens the prompt has, and what the config has beside BASE.
Weights and ids follow from the name, so an entry changes no other.

Every expected.safetensors comes from a model that has seen nothing else: transformers' dynamic NTK keeps the frequencies of
the longest call so far, so each step of the greedy continuation runs on a fresh model.
"""
import argparse
import os
import sys

import torch
from make_golden import BASE, randomise, rope, saved
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

MOE = dict(moe_intermediate_size=16, num_experts=5, num_experts_per_tok=2, norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[])
MLA = dict(kv_lora_rank=12, q_lora_rank=None, qk_rope_head_dim=4, qk_nope_head_dim=12, v_head_dim=10, num_key_value_heads=4)

CAUSAL = {
    # mixtures of experts
    "mixtral": ("mixtral", 40, dict(num_local_experts=4, num_experts_per_tok=2, sliding_window=None, rope_parameters=rope("default", 1e6))),
    "qwen2-moe": ("qwen2_moe", 40, dict(**{**MOE, "norm_topk_prob": False}, shared_expert_intermediate_size=24, rope_parameters=rope("default", 1e6))),
    "qwen3-moe-yarn": ("qwen3_moe", 50, dict(**MOE, head_dim=12, max_position_embeddings=64, rope_parameters=rope("yarn", 1e6, factor=4.0, original_max_position_embeddings=16))),
    "olmoe": ("olmoe", 40, dict(num_experts=4, num_experts_per_tok=2, norm_topk_prob=False, clip_qkv=2.5, rope_parameters=rope("default"))),
    "phimoe-longrope": ("phimoe", 40, dict(num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64, original_max_position_embeddings=16, attention_bias=True, lm_head_bias=True, sliding_window=None,
        rope_parameters=rope("longrope", original_max_position_embeddings=16, short_factor=[1.0, 1.1, 1.2, 1.3], long_factor=[1.5, 2.0, 3.0, 4.0], short_mscale=1.1, long_mscale=1.25))),
    "granitemoe": ("granitemoe", 40, dict(num_local_experts=4, num_experts_per_tok=2, attention_multiplier=0.2, embedding_multiplier=3.0, residual_multiplier=0.4, logits_scaling=2.0, rope_parameters=rope("default"))),
    "deepseek-v2": ("deepseek_v2", 40, dict(**{**MLA, "q_lora_rank": 14}, moe_intermediate_size=16, n_routed_experts=6, num_experts_per_tok=2, n_shared_experts=2, first_k_dense_replace=1, topk_method="group_limited_greedy", n_group=3, topk_group=2, routed_scaling_factor=1.5, norm_topk_prob=False,
        max_position_embeddings=64, rope_parameters=rope("yarn", factor=8.0, original_max_position_embeddings=8, mscale=0.7, mscale_all_dim=0.7))),
    "glm4-moe": ("glm4_moe", 40, dict(moe_intermediate_size=16, n_routed_experts=6, num_experts_per_tok=2, n_shared_experts=1, first_k_dense_replace=1, n_group=1, topk_group=1, head_dim=12, use_qk_norm=True, attention_bias=True, partial_rotary_factor=0.5, rope_parameters=rope("default", partial_rotary_factor=0.5))),
    "ernie4-5-moe": ("ernie4_5_moe", 40, dict(moe_intermediate_size=16, moe_num_experts=5, moe_k=2, moe_num_shared_experts=1, moe_layer_start_index=1, moe_layer_end_index=1, moe_layer_interval=1, rope_parameters=rope("default"))),
    "minimax-m2": ("minimax_m2", 40, dict(num_local_experts=4, num_experts_per_tok=2, head_dim=12, rotary_dim=8, rope_parameters=rope("default", partial_rotary_factor=8 / 12))),
    "dots1": ("dots1", 40, dict(moe_intermediate_size=16, n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1, first_k_dense_replace=1, n_group=1, topk_group=1, head_dim=8, rope_parameters=rope("default"))),
    # attention sinks
    "gpt-oss": ("gpt_oss", 48, dict(num_local_experts=4, num_experts_per_tok=2, head_dim=8, num_hidden_layers=3, sliding_window=7, max_position_embeddings=64, layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters=rope("yarn", 150000.0, factor=4.0, original_max_position_embeddings=16, beta_fast=32.0, beta_slow=1.0, truncate=False))),
    # dense, rotary
    "olmo-clip": ("olmo", 40, dict(clip_qkv=1.5, rope_parameters=rope("default"))),
    "olmo3-yarn": ("olmo3", 48, dict(num_hidden_layers=4, sliding_window=6, max_position_embeddings=64, layer_types=["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"], rope_parameters=rope("yarn", 5e5, factor=4.0, original_max_position_embeddings=16, attention_factor=1.2))),
    "cohere2": ("cohere2", 48, dict(num_hidden_layers=4, sliding_window=9, head_dim=8, logit_scale=0.3, layer_types=["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"], rope_parameters=rope("default", 50000.0))),
    "glm": ("glm", 40, dict(head_dim=12, attention_bias=True, rope_parameters=rope("default", partial_rotary_factor=0.5))),
    "glm4": ("glm4", 40, dict(head_dim=12, attention_bias=True, rope_parameters=rope("default", partial_rotary_factor=0.5))),
    "exaone4": ("exaone4", 48, dict(num_hidden_layers=4, sliding_window=8, head_dim=8, layer_types=["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"], rope_parameters=rope("llama3", 1e6, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16))),
    "nemotron": ("nemotron", 40, dict(hidden_act="relu2", head_dim=8, rope_parameters=rope("default", partial_rotary_factor=0.5))),
    "ernie4-5": ("ernie4_5", 40, dict(use_bias=True, head_dim=8, rope_parameters=rope("default", 5e5))),
    "hunyuan-dense": ("hunyuan_v1_dense", 48, dict(head_dim=8, rope_parameters=rope("dynamic", factor=1.0, alpha=50.0))),
    "jais2": ("jais2", 40, dict(hidden_act="relu2", rope_parameters=rope("default"))),
    "seed-oss": ("seed_oss", 40, dict(head_dim=8, attention_bias=True, attention_out_bias=True, rope_parameters=rope("default", 1e7))),
    "apertus": ("apertus", 48, dict(hidden_act="xielu", max_position_embeddings=64, rope_parameters=rope("llama3", 1e6, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8))),
    "starcoder2": ("starcoder2", 40, dict(use_bias=True, sliding_window=9, rope_parameters=rope("default", 1e5))),
    "persimmon": ("persimmon", 40, dict(qk_layernorm=True, rope_parameters=rope("default", 25000.0, partial_rotary_factor=0.5))),
    "codegen": ("codegen", 40, dict(n_embd=32, n_layer=2, n_head=4, n_positions=64, rotary_dim=4, n_inner=None)),
    "helium": ("helium", 40, dict(head_dim=8, rope_parameters=rope("default", 1e5))),
    "arcee-yarn": ("arcee", 48, dict(hidden_act="relu2", max_position_embeddings=64, rope_parameters=rope("yarn", factor=4.0, original_max_position_embeddings=16, mscale=1.0))),
    "ministral3": ("ministral3", 48, dict(head_dim=8, max_position_embeddings=64, sliding_window=None, rope_parameters=rope("yarn", 1e6, factor=4.0, original_max_position_embeddings=16, beta_fast=32.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.1))),
    "vaultgemma": ("vaultgemma", 40, dict(head_dim=8, query_pre_attn_scalar=10, sliding_window=9, attn_logit_softcapping=3.0, final_logit_softcapping=4.0, layer_types=["sliding_attention", "full_attention"], rope_parameters=rope("default"))),
    "gemma4": ("gemma4_text", 48, dict(num_hidden_layers=4, head_dim=8, global_head_dim=16, sliding_window=9, vocab_size_per_layer_input=96, hidden_size_per_layer_input=8, num_kv_shared_layers=1, layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"])),
    # absolute positions
    "opt": ("opt", 32, dict(ffn_dim=56, word_embed_proj_dim=32, do_layer_norm_before=True, max_position_embeddings=64)),
    "gpt-neo": ("gpt_neo", 40, dict(num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=7, max_position_embeddings=64, intermediate_size=56)),
    "gpt-bigcode": ("gpt_bigcode", 32, dict(n_embd=32, n_layer=2, n_head=4, n_positions=64, n_inner=56, multi_query=True)),
    "xglm": ("xglm", 32, dict(d_model=32, ffn_dim=56, num_layers=2, attention_heads=4, max_position_embeddings=64, scale_embedding=True)),
}

ENCODERS = {
    "roberta": ("roberta", dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=56, max_position_embeddings=40, pad_token_id=1)),
    "roformer": ("roformer", dict(vocab_size=96, hidden_size=32, embedding_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=56, max_position_embeddings=40)),
    "modernbert": ("modernbert", dict(vocab_size=96, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=56, max_position_embeddings=64, local_attention=8, global_attn_every_n_layers=3, global_rope_theta=160000.0, local_rope_theta=10000.0, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2)),
    "electra": ("electra", dict(vocab_size=96, embedding_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=56, max_position_embeddings=40)),
    "distilbert": ("distilbert", dict(vocab_size=96, dim=32, n_layers=2, n_heads=4, hidden_dim=56, max_position_embeddings=40)),
}

SEQ2SEQ = {
    "bart": ("bart", dict(vocab_size=96, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=56, decoder_ffn_dim=56, max_position_embeddings=64, pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2)),
    "pegasus": ("pegasus", dict(vocab_size=96, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=56, decoder_ffn_dim=56, max_position_embeddings=64, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0)),
}


def seed_of(name):
    return sum(ord(c) * (i + 1) for i, c in enumerate(name)) % 100000


def causal(out, name, model_type, t, over, batch=2):
    cfg = {**BASE, "max_position_embeddings": 64, **over}
    config = AutoConfig.for_model(model_type, **cfg)
    if model_type == "gpt_oss":
        config.sliding_window = over["sliding_window"]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    s = seed_of(name)
    randomise(model, s)
    model.tie_weights()
    d = saved(out, name, model)
    fresh = lambda: AutoModelForCausalLM.from_pretrained(d, attn_implementation="eager", dtype=torch.float32).eval()
    ids = torch.randint(3, 96, (batch, t), generator=torch.Generator().manual_seed(s + 2))
    with torch.no_grad():
        again = fresh()(ids, use_cache=False).logits
        logits = model(ids, use_cache=False).logits
        assert (again - logits).abs().max() < 1e-5, f"reloaded model differs by {(again - logits).abs().max()}"
        shuffled = ids.clone()
        shuffled[:, : t - 1] = ids[:, : t - 1].flip(1)
        moved = (model(shuffled, use_cache=False).logits[:, -1] - logits[:, -1]).abs().max()
        seq = ids[:, : t // 2]
        stateful = "dynamic" in str(getattr(config, "rope_parameters", ""))
        one = fresh()
        for _ in range(16):
            m = fresh() if stateful else one
            seq = torch.cat([seq, m(seq, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.isfinite(logits).all()
    save_file(dict(input_ids=ids, logits=logits.contiguous(), greedy=seq.contiguous()), f"{d}/expected.safetensors")
    print(f"{name:20s} {sum(p.numel() for p in model.parameters()):8d} params, logit std {logits.std():.3f}, moved by order {moved:.2f}", flush=True)


def encoder(out, name, model_type, over, t=24):
    config = AutoConfig.for_model(model_type, **over)
    model = AutoModel.from_config(config, attn_implementation="eager").float().eval()
    s = seed_of(name)
    randomise(model, s)
    d = saved(out, name, model)
    ids = torch.randint(3, 96, (2, t), generator=torch.Generator().manual_seed(s + 2))
    with torch.no_grad():
        h = model(ids).last_hidden_state
    save_file(dict(input_ids=ids, hidden=h.contiguous()), f"{d}/expected.safetensors")
    print(f"{name:20s} encoder, hidden std {h.std():.3f}", flush=True)


def seq2seq(out, name, model_type, over, t=24, n=18):
    config = AutoConfig.for_model(model_type, **over)
    model = AutoModelForSeq2SeqLM.from_config(config, attn_implementation="eager").float().eval()
    s = seed_of(name)
    randomise(model, s)
    model.tie_weights()
    d = saved(out, name, model)
    g = torch.Generator().manual_seed(s + 2)
    ids, dec = torch.randint(3, 96, (2, t), generator=g), torch.randint(3, 96, (2, n), generator=g)
    with torch.no_grad():
        logits = model(input_ids=ids, decoder_input_ids=dec).logits
    save_file(dict(input_ids=ids, decoder_input_ids=dec, logits=logits.contiguous()), f"{d}/expected.safetensors")
    print(f"{name:20s} seq2seq, logit std {logits.std():.3f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tests", "golden")
    parser.add_argument("--out", default=default)
    parser.add_argument("names", nargs="*", metavar="NAME")
    args = parser.parse_args()
    tables = [(CAUSAL, causal), (ENCODERS, encoder), (SEQ2SEQ, seq2seq)]
    unknown = set(args.names) - {name for table, _ in tables for name in table}
    if unknown:
        sys.exit(f"no entry: {', '.join(sorted(unknown))}")
    for table, make in tables:
        for name, settings in table.items():
            if not args.names or name in args.names:
                make(args.out, name, *settings)


if __name__ == "__main__":
    main()
