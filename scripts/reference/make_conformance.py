#!/usr/bin/env python3
"""Writes docs/conformance.json: what transformers computes for the position encodings of configs, so that any engine can be tested.

    python scripts/reference/make_conformance.py [--out docs/conformance.json]

needs torch and transformers 5.24. Every case is a config.json, or two with the same meaning (`rope_parameters`, and
`rope_scaling` beside `rope_theta`), and the values of the model that transformers builds from it: the inverse frequencies and the
factor on cos and sin for sequences of some lengths, the factor on a query at some positions, and the scale of the scores.
Nothing is computed here. Frequencies are read from the model's own rotary embedding after a call at the length, queries and
scales as they arrive at the attention function. Every length gets a fresh model, because transformers' dynamic scaling depends on
what a model saw before. The numbers are f32, so they are off by up to a few units in the seventh digit.
"""

import argparse
import json
import logging
from pathlib import Path

import torch
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM
from transformers import __version__ as version

# How far an engine that computes in f64 may differ, relative: transformers' own rounding.
TOLERANCE = 4e-6

captured = []


def capture(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """An attention function that keeps what it is given and returns values of the right shape."""
    captured.append((module.layer_idx, query.detach(), scaling))
    width = value.shape[-1] if value.shape[-1] == query.shape[-1] else query.shape[-1]
    out = torch.zeros(query.shape[0], query.shape[2], query.shape[1], min(width, value.shape[-1]))
    return out, None


AttentionInterface.register("capture", capture)


def build(config):
    given = AutoConfig.for_model(**json.loads(json.dumps(config)))
    given._attn_implementation = "capture"
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(given).eval()


def rotary(model):
    return next(module for name, module in model.named_modules() if name.endswith("rotary_emb"))


def frequencies(config, length, layer_type):
    """Inverse frequencies and the factor on cos and sin in a sequence of `length` tokens."""
    embedding = rotary(build(config))
    positions = torch.tensor([[length - 1]])
    x = torch.zeros(1, 1, 8)
    typed = layer_type is not None and hasattr(embedding, f"{layer_type}_inv_freq")
    with torch.no_grad():
        embedding(x, positions, layer_type) if typed else embedding(x, positions)
    prefix = f"{layer_type}_" if typed else ""
    inv_freq = getattr(embedding, f"{prefix}inv_freq").float().tolist()
    return inv_freq, float(getattr(embedding, f"{prefix}attention_scaling"))


def number(x):
    return float(f"{x:.9g}")


def rope_values(config, lengths, layer_type):
    values = []
    for length in lengths:
        inv_freq, factor = frequencies(config, length, layer_type)
        values.append({"length": length, "inv_freq": [number(f) for f in inv_freq], "attention_factor": factor})
    return values


def attention(config, positions, plain):
    """By layer: the factors on queries at `positions`, relative to the config `plain`, which has none, and the scale of the scores."""

    def run(config):
        captured.clear()
        model = build(config)
        # All positions up to the last, because some models count tokens and ignore position ids.
        with torch.no_grad():
            model(torch.ones(1, max(positions) + 1, dtype=torch.long), use_cache=False)
        return {layer: (query[:, :, positions], scale) for layer, query, scale in captured}

    found, without = run(config), run(plain)
    layers = []
    for layer in sorted(found):
        query, scale = found[layer]
        ratio = (query / without[layer][0]).nanmedian(dim=-1).values.nanmedian(dim=1).values[0]
        layers.append({"layer": layer, "factors": [number(f) for f in ratio.tolist()], "scale": scale})
    return layers


# The config of a small model, to which a rope dictionary is added.
def llama(head_dim=32, context=4096, **more):
    return dict(
        model_type="llama", hidden_size=2 * head_dim, num_attention_heads=2, num_key_value_heads=1, head_dim=head_dim,
        intermediate_size=32, num_hidden_layers=1, vocab_size=32, max_position_embeddings=context, **more,
    )


cases = []


def add(name, configs, lengths=(1,), layer_type=None):
    """A case of one config, or of several that transformers has to read alike."""
    configs = configs if isinstance(configs, list) else [configs]
    values = rope_values(configs[0], lengths, layer_type)
    for other in configs[1:]:
        assert rope_values(other, lengths, layer_type) == values, f"{name}: the spellings differ"
    case = {"name": name, "configs": configs}
    if layer_type:
        case["layer_type"] = layer_type
    cases.append({**case, "rope": values})


def both(name, rope, theta=10000.0, lengths=(1,), base=llama, **more):
    """A rope dictionary in both spellings."""
    new = base(rope_parameters={**rope, "rope_theta": theta}, **more)
    old = base(rope_scaling=rope, rope_theta=theta, **more)
    short = base(rope_scaling={("type" if k == "rope_type" else k): v for k, v in rope.items()}, rope_theta=theta, **more)
    add(name, [new, old, short], lengths)


def default():
    for head_dim in (8, 32, 128):
        for theta in (10000.0, 500000.0, 1e6, 1e7):
            new = llama(head_dim, rope_parameters={"rope_type": "default", "rope_theta": theta})
            add(f"default, width {head_dim}, theta {theta:g}", [new, llama(head_dim, rope_theta=theta)])
    add("default, nothing said", llama())
    add("default, rope_scaling null", llama(rope_scaling=None, rope_theta=2e4))
    for partial in (0.25, 0.4, 0.5, 0.75):
        new = llama(40, rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": partial})
        old = llama(40, rope_theta=1e4, partial_rotary_factor=partial)
        add(f"Llama, default, share {partial}", [new, old])
        add(f"Phi-3, default, share {partial}", dict(old, model_type="phi3", pad_token_id=0, num_key_value_heads=2))


def linear_and_dynamic():
    for factor in (1, 1.5, 2.0, 4.0, 8, 32.0):
        both(f"linear, factor {factor}", {"rope_type": "linear", "factor": factor})
    both("linear, theta 1e6", {"rope_type": "linear", "factor": 4.0}, 1e6)
    both("linear, half of the head", {"rope_type": "linear", "factor": 4.0, "partial_rotary_factor": 0.5})
    lengths = (1, 4095, 4096, 4097, 8192, 16384, 65536)
    for factor in (1.0, 2.0, 4.0, 8.0):
        both(f"dynamic, factor {factor}", {"rope_type": "dynamic", "factor": factor}, lengths=lengths)
    both("dynamic, theta 5e5", {"rope_type": "dynamic", "factor": 2.0}, 5e5, lengths)
    both("dynamic, half of the head", {"rope_type": "dynamic", "factor": 2.0, "partial_rotary_factor": 0.5}, lengths=lengths)
    # transformers ignores the trained context here.
    both("dynamic beside a trained context", {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 1024},
         lengths=lengths)
    both("dynamic, width 128", {"rope_type": "dynamic", "factor": 2.0}, lengths=lengths, head_dim=128)


def yarn():
    def case(name, theta=10000.0, context=16384, lengths=(1,), **keys):
        keys.setdefault("factor", 4.0)
        keys.setdefault("original_max_position_embeddings", 4096)
        more = {k: keys.pop(k) for k in ("head_dim",) if k in keys}
        both(f"yarn, {name}", {"rope_type": "yarn", **keys}, theta, lengths, context=context, **more)

    for factor in (1.0, 1.5, 2.0, 4.0, 8.0, 16.0, 32.0, 40.0):
        case(f"factor {factor}", factor=factor, context=int(4096 * factor))
    for theta in (500000.0, 1e6, 1e7):
        case(f"theta {theta:g}", theta)
    case("width 128", head_dim=128)
    case("half of the head", partial_rotary_factor=0.5)
    case("the same at every length", lengths=(1, 4096, 4097, 16384, 40000))
    for fast, slow in ((16, 1), (64, 2), (32.0, 4.0), (8, 8), (1, 1), (200, 0.5), (None, None), (0, 0), (None, 2)):
        case(f"beta_fast {fast}, beta_slow {slow}", beta_fast=fast, beta_slow=slow)
    for truncate in (True, False, None):
        case(f"truncate {truncate}", truncate=truncate)
        case(f"truncate {truncate}, betas 30 and 3", truncate=truncate, beta_fast=30, beta_slow=3)
    case("truncate False, betas equal", truncate=False, beta_fast=8, beta_slow=8)
    for attention in (1.0, 1.2, 0.9, None):
        case(f"attention_factor {attention}", attention_factor=attention)
    for mscale, all_dim in ((1.0, 1.0), (0.707, 0.707), (1.0, 0.5), (0.707, 1.0), (0, 1.0), (1.0, 0), (1.0, None), (None, 1.0)):
        case(f"mscale {mscale}, mscale_all_dim {all_dim}", mscale=mscale, mscale_all_dim=all_dim)
    case("attention_factor beside mscale", attention_factor=1.5, mscale=0.7, mscale_all_dim=0.5)
    case("a factor of 1 beside mscale", factor=1.0, mscale=0.7, mscale_all_dim=0.5)
    # The ramp begins at the first pair or ends at the last one.
    case("a trained context of 16", original_max_position_embeddings=16, context=64)
    case("a trained context of 2**20", original_max_position_embeddings=2**20, context=2**22)
    case("a factor that is not the ratio", factor=4.0, context=8192)
    case("a factor of null is the ratio", factor=None, context=10240)
    for key, value in (("attn_factor", 0.5), ("finetuned", True)):
        case(f"{key} does nothing", **{key: value})
    rope = {"rope_type": "yarn", "factor": 4.0}
    both("yarn, trained context from max_position_embeddings", rope, context=4096)
    # A trained context beside the dictionary is used before any other.
    beside = llama(context=16384, rope_scaling=rope, rope_theta=1e4, original_max_position_embeddings=2048)
    add("yarn, trained context beside the dictionary", beside)
    inside = llama(context=16384, rope_scaling={**rope, "original_max_position_embeddings": 4096}, rope_theta=1e4,
                   original_max_position_embeddings=2048)
    add("yarn, two trained contexts", inside)
    add("yarn, theta inside and beside", llama(context=16384, rope_theta=1e6, rope_parameters={
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096, "rope_theta": 1e4}))
    add("both dictionaries", llama(context=16384, rope_theta=1e4, rope_scaling={"rope_type": "linear", "factor": 2.0},
                                   rope_parameters={"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}))


def longrope():
    short, long = [1.0 + 0.05 * i for i in range(16)], [1.5 + 2.0 * i for i in range(16)]
    lengths = (1, 4096, 4097, 32768)

    def case(name, context=32768, **keys):
        rope = {"rope_type": "longrope", "short_factor": short, "long_factor": long,
                "original_max_position_embeddings": 4096, **keys}
        both(f"longrope, {name}", {k: v for k, v in rope.items() if v != "absent"}, lengths=lengths, context=context)

    case("a factor", factor=8.0)
    case("the ratio as factor")
    case("a factor of null", factor=None)
    case("a factor beside another ratio", factor=4.0)
    case("a factor of 1", factor=1.0)
    case("a factor below 1", factor=0.5)
    case("attention_factor", factor=8.0, attention_factor=1.1)
    case("attention_factor of null", factor=8.0, attention_factor=None)
    case("no longer than trained", context=4096)
    case("trained context absent", context=4096, original_max_position_embeddings="absent")
    half = {"rope_type": "longrope", "short_factor": short[:8], "long_factor": long[:8], "partial_rotary_factor": 0.5,
            "original_max_position_embeddings": 4096}
    both("longrope, half of the head", half, lengths=lengths, context=32768)
    phi = dict(llama(context=32768), model_type="phi3", rope_theta=1e4, original_max_position_embeddings=4096, pad_token_id=0,
               num_key_value_heads=2)
    factors = {"short_factor": short, "long_factor": long}
    add("Phi-3", dict(phi, rope_scaling={"type": "longrope", **factors}), lengths)
    half = {"short_factor": short[:8], "long_factor": long[:8]}
    add("Phi-3, half of the head",
        dict(phi, partial_rotary_factor=0.5, rope_scaling={"type": "longrope", **half}), lengths)


def llama3():
    def case(name, theta=500000.0, **keys):
        rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192, **keys}
        more = {k: rope.pop(k) for k in ("head_dim",) if k in rope}
        both(f"llama3, {name}", rope, theta, context=131072, **more)

    case("Llama 3.1", head_dim=128)
    case("Llama 3.2", factor=32.0, head_dim=64)
    case("factor 1", factor=1.0)
    case("whole numbers", factor=8, low_freq_factor=1, high_freq_factor=4)
    case("other boundaries", low_freq_factor=2.0, high_freq_factor=8.0)
    case("boundaries that touch", low_freq_factor=1.0, high_freq_factor=1.0)
    case("boundaries of 1 and 32", high_freq_factor=32.0)
    case("theta 1e4", 10000.0)
    case("a short trained context", original_max_position_embeddings=64)
    case("half of the head", partial_rotary_factor=0.5)


def families():
    def like(kind, **more):
        return dict(llama(), model_type=kind, **more)

    add("GPT-NeoX, share and base under their own names",
        dict(like("gpt_neox", rotary_pct=0.25, rotary_emb_base=20000), hidden_size=64))
    add("GPT-NeoX, linear", dict(like("gpt_neox", rotary_pct=0.5, rope_scaling={"type": "linear", "factor": 2.0})))
    add("Phi, share beside the dictionary", like("phi", partial_rotary_factor=0.5, rope_theta=1e4, num_key_value_heads=2))
    add("StableLM, class's share", like("stablelm", rope_theta=1e4))
    add("GLM, class's share", like("glm", pad_token_id=0))
    for kind in ("mistral", "qwen2", "qwen3", "olmo2", "starcoder2", "granite", "cohere", "smollm3"):
        more = dict(pad_token_id=0) if kind in ("smollm3", "cohere") else {}
        add(f"{kind}, the class's base", like(kind, **more))
    for kind in ("mistral", "olmo2", "granite", "smollm3"):
        more = dict(pad_token_id=0) if kind == "smollm3" else {}
        add(f"{kind}, dynamic", like(kind, rope_scaling={"type": "dynamic", "factor": 2.0}, **more), (1, 4096, 9000))
    for kind in ("qwen2", "qwen3"):
        rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
        add(f"{kind}, YaRN as its card has it", like(kind, rope_theta=1e6, rope_scaling=rope, max_position_embeddings=131072))
    rope = dict(rope_type="yarn", factor=32.0, beta_fast=32.0, beta_slow=1.0, truncate=False,
                original_max_position_embeddings=4096)
    oss = dict(like("gpt_oss", rope_theta=150000.0, rope_scaling=rope, num_local_experts=2, num_experts_per_tok=1,
                    max_position_embeddings=131072, pad_token_id=0, layer_types=["full_attention"]))
    add("gpt-oss", oss)
    types = ["sliding_attention", "full_attention"]
    gemma = dict(like("gemma3_text"), num_hidden_layers=2, layer_types=types)
    old = dict(gemma, rope_theta=1e6, rope_local_base_freq=1e4, rope_scaling={"rope_type": "linear", "factor": 8.0})
    new = dict(gemma, rope_parameters={"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                                       "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}})
    for kind in types:
        add(f"Gemma 3, {kind}", [old, new], layer_type=kind)
        add(f"Gemma 3, nothing said, {kind}", gemma, layer_type=kind)
    share = {"full_attention": {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
             "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    gemma4 = dict(like("gemma4_text", rope_parameters=share, num_global_key_value_heads=1, global_head_dim=64,
                       hidden_size_per_layer_input=0, vocab_size_per_layer_input=32), num_hidden_layers=2, layer_types=types)
    for kind in types:
        add(f"Gemma 4, {kind}", gemma4, layer_type=kind)


def temperatures():
    """Factors that apply to queries and scores instead of cos and sin."""
    positions = [0, 1, 62, 63, 64, 127, 128, 1000]
    small = dict(llama(16), num_hidden_layers=2)
    ministral = dict(small, model_type="ministral3", sliding_window=None)

    def rope(beta):
        return {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e6, "beta_fast": 32.0,
                "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": beta}

    for beta in (0.1, 0.25):
        query("Ministral 3, beta %g" % beta, dict(ministral, rope_parameters=rope(beta)), positions,
              dict(ministral, rope_parameters=rope(0.0)))
    llama4 = dict(small, model_type="llama4_text", num_local_experts=1, num_experts_per_tok=1, interleave_moe_layer_step=1,
                  intermediate_size_mlp=32, no_rope_layers=[1, 0], attention_chunk_size=2048, use_qk_norm=False, pad_token_id=0,
                  rope_theta=500000.0, layer_types=["chunked_attention", "full_attention"])
    for floor, scale in ((64, 0.1), (32, 0.3)):
        query(f"Llama 4, floor_scale {floor}, attn_scale {scale}",
              dict(llama4, attn_temperature_tuning=True, floor_scale=floor, attn_scale=scale), positions,
              dict(llama4, attn_temperature_tuning=False))
    query("Llama 4 without it", dict(llama4, attn_temperature_tuning=False), positions,
          dict(llama4, attn_temperature_tuning=False))
    deepseek = dict(
        model_type="deepseek_v3", hidden_size=32, num_attention_heads=2, num_key_value_heads=2, intermediate_size=32,
        moe_intermediate_size=16, num_hidden_layers=1, first_k_dense_replace=1, vocab_size=32, max_position_embeddings=16384,
        q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16, n_routed_experts=2,
        num_experts_per_tok=1, n_group=1, topk_group=1, rope_theta=10000.0,
    )
    for mscale, all_dim in ((1.0, 1.0), (0.707, 0.707), (1.0, 0.5), (None, None), (1.0, 0), (0, 1.0)):
        keys = {"mscale": mscale, "mscale_all_dim": all_dim}
        scaling = {"rope_type": "yarn", "factor": 40.0, "beta_fast": 32, "beta_slow": 1,
                   "original_max_position_embeddings": 4096, **{k: v for k, v in keys.items() if v is not None}}
        config = dict(deepseek, rope_scaling=scaling)
        query(f"DeepSeek V3, mscale {mscale}, mscale_all_dim {all_dim}", config, [0, 1], config)
        cases[-1]["rope"] = rope_values(config, [1], None)
    query("DeepSeek V3 without scaling", deepseek, [0, 1], deepseek)
    cases[-1]["rope"] = rope_values(deepseek, [1], None)
    query("the plain scale of scores", llama(16), [0, 1], llama(16))


def query(name, config, positions, plain):
    cases.append({"name": name, "configs": [config], "positions": positions, "layers": attention(config, positions, plain)})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here = Path(__file__).resolve().parents[2]
    parser.add_argument("--out", type=Path, default=here / "docs" / "conformance.json")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    for part in (default, linear_and_dynamic, yarn, longrope, llama3, families, temperatures):
        part()
    names = [case["name"] for case in cases]
    assert len(set(names)) == len(names), "two cases of one name"
    about = {
        "format": "attn-conformance/1",
        "made_by": f"transformers {version}, scripts/reference/make_conformance.py",
        "tolerance": TOLERANCE,
        "description": "Each case: configs, one or several that mean the same; rope: for sequences of a length, the inverse "
        "frequencies of the rotated pairs and the factor on cos and sin (of layers of layer_type, where it is there); layers: what "
        "a query at each of positions is multiplied by, and the scale of the scores. Numbers may be off by tolerance, relative.",
    }
    lines = ",\n".join(json.dumps(case) for case in cases)
    args.out.write_text(json.dumps(about, indent=1)[:-2] + ',\n "cases": [\n' + lines + "\n]}\n")
    print(f"{args.out}: {len(cases)} cases of transformers {version}")


if __name__ == "__main__":
    main()
