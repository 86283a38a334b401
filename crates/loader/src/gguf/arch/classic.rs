//! Families from before Llama: GPT-2, BLOOM, GPT-NeoX, MPT, Falcon, StarCoder.

use super::{
    entry::{Arch, Key, Reader},
    llama::{LLAMA, nothing},
};
use crate::{
    error::Result,
    gguf::names::{How, Name, layer, top},
};
use serde_json::json;

const GPT2_ENDS: [Name; 4] = [
    top("token_embd", "transformer.wte"),
    top("position_embd", "transformer.wpe"),
    top("output_norm", "transformer.ln_f"),
    top("output", "lm_head"),
];

const GPT2_KEYS: [Key; 6] = [
    Key::size("embedding_length", "n_embd"),
    Key::size("context_length", "n_positions"),
    Key::layers("n_layer"),
    Key::heads("n_head"),
    Key::inner("n_inner"),
    Key::number("attention.layer_norm_epsilon", "layer_norm_epsilon"),
];

const BLOOM_ENDS: [Name; 4] = [
    top("token_embd", "transformer.word_embeddings"),
    top("token_embd_norm", "transformer.word_embeddings_layernorm"),
    top("output_norm", "transformer.ln_f"),
    top("output", "lm_head"),
];

/// BLOOM's, GPT-NeoX's and Falcon's feed-forward network.
const MLP: [Name; 2] = [layer("ffn_up", "mlp.dense_h_to_4h"), layer("ffn_down", "mlp.dense_4h_to_h")];

const CLASSIC: Arch = Arch { layers: "transformer.h.*.", theta: None, more: nothing, flags: &[], ..LLAMA };

const SELF_ATTENTION: [Name; 2] =
    [layer("attn_qkv", "self_attention.query_key_value").how(How::Parts), layer("attn_output", "self_attention.dense")];

const FALCON: Arch = Arch {
    name: "falcon",
    model_type: "falcon",
    keys: &[&[
        Key::size("embedding_length", "hidden_size"),
        Key::layers("num_hidden_layers"),
        Key::heads("num_attention_heads"),
        Key::kv_heads("num_kv_heads"),
        Key::inner("ffn_hidden_size"),
        Key::number("attention.layer_norm_epsilon", "layer_norm_epsilon"),
    ]],
    flags: &[("attn_qkv.bias", "bias")],
    theta: Some(1e4),
    more: falcon,
    names: &[&FALCON_NAMES, &[layer("attn_norm", "input_layernorm")], &SELF_ATTENTION, &MLP],
    ..CLASSIC
};

const FALCON_NAMES: [Name; 3] = [
    top("token_embd", "transformer.word_embeddings"),
    top("output_norm", "transformer.ln_f"),
    top("output", "lm_head"),
];

/// With two norms the second is attention's and the first the feed-forward network's.
const TWO_NORMS: [Name; 2] = [layer("attn_norm_2", "ln_attn"), layer("attn_norm", "ln_mlp")];

pub(super) const ARCHS: [Arch; 7] = [
    Arch {
        name: "gpt2",
        model_type: "gpt2",
        keys: &[&GPT2_KEYS],
        more: gpt2,
        names: &[
            &GPT2_ENDS,
            &[
                layer("attn_norm", "ln_1"),
                layer("ffn_norm", "ln_2"),
                layer("attn_qkv", "attn.c_attn").how(How::Transposed),
                layer("attn_output", "attn.c_proj").how(How::Transposed),
                layer("ffn_up", "mlp.c_fc").how(How::Transposed),
                layer("ffn_down", "mlp.c_proj").how(How::Transposed),
            ],
        ],
        ..CLASSIC
    },
    Arch {
        name: "starcoder",
        model_type: "gpt_bigcode",
        keys: &[&GPT2_KEYS],
        more: starcoder,
        names: &[
            &GPT2_ENDS,
            &[
                layer("attn_norm", "ln_1"),
                layer("ffn_norm", "ln_2"),
                layer("attn_qkv", "attn.c_attn"),
                layer("attn_output", "attn.c_proj"),
                layer("ffn_up", "mlp.c_fc"),
                layer("ffn_down", "mlp.c_proj"),
            ],
        ],
        ..CLASSIC
    },
    Arch {
        name: "bloom",
        model_type: "bloom",
        keys: &[&[
            Key::size("embedding_length", "hidden_size"),
            Key::size("context_length", "seq_length"),
            Key::layers("n_layer"),
            Key::heads("n_head"),
            Key::number("attention.layer_norm_epsilon", "layer_norm_epsilon"),
        ]],
        more: four_times,
        names: &[
            &BLOOM_ENDS,
            &[layer("attn_norm", "input_layernorm"), layer("ffn_norm", "post_attention_layernorm")],
            &SELF_ATTENTION,
            &MLP,
        ],
        ..CLASSIC
    },
    Arch {
        name: "gptneox",
        model_type: "gpt_neox",
        layers: "gpt_neox.layers.*.",
        keys: &[&[
            Key::size("embedding_length", "hidden_size"),
            Key::size("context_length", "max_position_embeddings"),
            Key::layers("num_hidden_layers"),
            Key::heads("num_attention_heads"),
            Key::inner("intermediate_size"),
            Key::flag("use_parallel_residual", "use_parallel_residual"),
            Key::number("attention.layer_norm_epsilon", "layer_norm_eps"),
        ]],
        flags: &[("attn_qkv.bias", "attention_bias")],
        theta: Some(1e4),
        names: &[
            &[
                top("token_embd", "gpt_neox.embed_in"),
                top("output_norm", "gpt_neox.final_layer_norm"),
                top("output", "embed_out"),
                layer("attn_norm", "input_layernorm"),
                layer("ffn_norm", "post_attention_layernorm"),
                layer("attn_qkv", "attention.query_key_value").how(How::Parts),
                layer("attn_output", "attention.dense"),
            ],
            &MLP,
        ],
        ..CLASSIC
    },
    Arch {
        name: "mpt",
        model_type: "mpt",
        layers: "transformer.blocks.*.",
        keys: &[&[
            Key::size("embedding_length", "d_model"),
            Key::size("context_length", "max_seq_len"),
            Key::layers("n_layers"),
            Key::heads("n_heads"),
            Key::number("attention.layer_norm_epsilon", "layer_norm_epsilon"),
        ]],
        more: mpt,
        names: &[&[
            top("token_embd", "transformer.wte"),
            top("output_norm", "transformer.norm_f"),
            top("output", "lm_head"),
            layer("attn_norm", "norm_1"),
            layer("ffn_norm", "norm_2"),
            layer("attn_qkv", "attn.Wqkv"),
            layer("attn_output", "attn.out_proj"),
            layer("ffn_up", "ffn.up_proj"),
            layer("ffn_down", "ffn.down_proj"),
        ]],
        ..CLASSIC
    },
    Arch {
        marked_by: Some("attn_norm_2.weight"),
        names: &[&FALCON_NAMES, &TWO_NORMS, &SELF_ATTENTION, &MLP],
        ..FALCON
    },
    FALCON,
];

fn gpt2(r: &mut Reader) -> Result<()> {
    r.set("activation_function", "gelu_new");
    Ok(())
}

fn starcoder(r: &mut Reader) -> Result<()> {
    r.set("activation_function", "gelu_pytorch_tanh");
    r.set("multi_query", r.dims.kv_heads == 1);
    Ok(())
}

/// The feed-forward network is four times as wide as the model: no config says otherwise.
fn four_times(r: &mut Reader) -> Result<()> {
    r.meta.get("feed_forward_length");
    Ok(())
}

fn mpt(r: &mut Reader) -> Result<()> {
    four_times(r)?;
    let clip = r.meta.f64("attention.clamp_kqv")?.filter(|&clip| clip > 0.0);
    let slope = r.meta.f64("attention.max_alibi_bias")?.unwrap_or(0.0);
    if slope <= 0.0 {
        let reason = format!("{slope}: an MPT without ALiBi is not supported");
        return Err(r.meta.error("attention.max_alibi_bias", reason));
    }
    if r.dims.kv_heads != r.dims.heads {
        return Err(r.meta.error("attention.head_count_kv", "an MPT with grouped heads is not supported"));
    }
    r.set("attn_config", json!({"alibi": true, "alibi_bias_max": slope, "clip_qkv": clip}));
    Ok(())
}

/// Falcon 40B and 180B have two norms before parallel branches, 11B has one under the new architecture, 7B is of the old
/// one; those with ALiBi can't be told apart from others and are not written as GGUF.
fn falcon(r: &mut Reader) -> Result<()> {
    match r.meta.str("tensor_data_layout")? {
        None | Some("jploski") => {}
        Some(other) => return Err(r.meta.error("tensor_data_layout", format!("{other:?} is not supported"))),
    }
    let (heads, kv_heads, context) = (r.dims.heads, r.dims.kv_heads, r.dims.context);
    if heads > 1 && heads == kv_heads {
        return Err(r.meta.error("attention.head_count_kv", "a Falcon without shared key heads is not supported"));
    }
    let two_norms = r.has("attn_norm_2.weight");
    let new = two_norms || kv_heads > 1;
    r.set("max_position_embeddings", context);
    r.set("new_decoder_architecture", new);
    r.set("multi_query", kv_heads == 1);
    r.set("parallel_attn", true);
    r.set("alibi", false);
    if new {
        r.set("num_ln_in_parallel_attn", if two_norms { 2 } else { 1 });
    }
    Ok(())
}
