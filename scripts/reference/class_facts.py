#!/usr/bin/env python3
"""Writes crates/attn-models/src/families/classes.json: what transformers' configuration classes say about keys.

    python scripts/reference/class_facts.py TRANSFORMERS > crates/attn-models/src/families/classes.json

TRANSFORMERS is the unpacked package (the folder with configuration_utils.py); neither it nor torch has to be importable,
since its files are only parsed. The result holds, for every model type in MODEL_TYPES,

* `defaults`: the values that the class gives to keys which a config.json leaves out, and
* `reads`: the names of further keys that the class or the model's code looks at.

If one model type reads a key and another does not, transformers ignores that key in the other's configs.
"""

import ast
import json
import re
import sys
from pathlib import Path

MODEL_TYPES = """
    apertus arcee bart bert bloom codegen cohere cohere2 deepseek_v2 deepseek_v3 distilbert dots1 electra ernie4_5
    ernie4_5_moe exaone4 falcon gemma gemma2 gemma3_text gemma4_text glm glm4 glm4_moe gpt2 gpt_bigcode gpt_neo gpt_neox
    gpt_oss gptj granite granitemoe helium hunyuan_v1_dense jais2 llama llama4_text minimax_m2 ministral ministral3
    mistral mixtral modernbert mpt nemotron olmo olmo2 olmo3 olmoe opt pegasus persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3
    qwen3_moe roberta roformer seed_oss smollm3 stablelm starcoder2 t5 vaultgemma xglm
""".split()

# Keys that every model's masks and caches read, and attributes of the base class that change results.
ALWAYS_READ = ["attention_chunk_size", "is_causal", "layer_types", "per_layer_config", "sliding_window"]

# Attributes of the class that are not keys of a config.
NO_KEYS = re.compile(r"^(model_type|base_model_.*|attribute_map|sub_configs.*|keys_to_ignore.*|default_theta|_.*|.*_token_id|"
                     r".*dropout.*|.*_pdrop|initializer.*|use_cache|base_config_key|ignore_keys.*)$")


def value(node):
    """A literal, or arithmetic on literals; None for anything else."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        pass
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        left, right = value(node.left), value(node.right)
        return None if left is None or right is None else left * right
    return None


def literals(node):
    """The entries of a dictionary that are literals."""
    pairs = [(value(key), value(entry)) for key, entry in zip(node.keys, node.values)]
    return {key: entry for key, entry in pairs if entry is not None}


def fields(cls):
    for item in cls.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            yield item.target.id, value(item.value) if item.value else None
        elif isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Name):
            yield item.targets[0].id, value(item.value)


def classes(path):
    return [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]


def of_class(cls):
    defaults, reads = {}, set()
    for name, default in fields(cls):
        if name == "default_theta" and isinstance(default, float):
            defaults["rope_theta"] = default
        if name == "attribute_map" and default:
            reads |= set(default) | set(default.values())
        if NO_KEYS.match(name):
            continue
        reads.add(name)
        if isinstance(default, (bool, int, float, str)):
            defaults[name] = default
    # Older spellings and defaults that the constructor handles by hand.
    for node in ast.walk(cls):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
            if node.func.value.id == "kwargs" and node.args:
                name = value(node.args[0])
                reads.add(name)
                if node.func.attr == "setdefault" and len(node.args) > 1 and value(node.args[1]) is not None:
                    defaults[name] = value(node.args[1])
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            if ast.unparse(node.targets[0]) == "self.rope_parameters" and node.value.keys:
                defaults["rope_parameters"] = literals(node.value)
    return defaults, reads


def read_by(path):
    """Keys that the model's code reads."""
    text = path.read_text() if path.exists() else ""
    found = set(re.findall(r"config\.([a-z][a-z0-9_]*)", text)) | set(re.findall(r'getattr\((?:self\.)?config, "(\w+)"', text))
    return {name for name in found if not NO_KEYS.match(name)}


def main():
    models = Path(sys.argv[1]) / "models"
    types = {}
    for path in sorted(models.glob("*/configuration_*.py")):
        for cls in classes(path):
            facts = dict(fields(cls))
            defaults, reads = of_class(cls)
            model_type = facts.get("model_type")
            if model_type in MODEL_TYPES:
                code = path.with_name(path.name.replace("configuration_", "modeling_"))
                reads = {name for name in reads if isinstance(name, str)} | read_by(code) | set(ALWAYS_READ)
                types[model_type] = {"defaults": defaults, "reads": sorted(reads - set(defaults))}
    missing = sorted(set(MODEL_TYPES) - set(types))
    if missing:
        sys.exit(f"no class has the model type {', '.join(missing)}")
    lines = [f" {json.dumps(name)}: {json.dumps(types[name])}" for name in sorted(types)]
    print("{\n" + ",\n".join(lines) + "\n}")


if __name__ == "__main__":
    main()
