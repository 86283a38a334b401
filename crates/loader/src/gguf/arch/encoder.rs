//! BERT and its successors. A file does not say whether it holds a BERT or a RoBERTa, and need not: the converter cuts
//! the rows off RoBERTa's position table that its offset skips.

use super::{
    entry::{Arch, Key, Reader},
    llama::{LLAMA, nothing},
};
use crate::{
    error::Result,
    gguf::names::{Name, layer, top},
};
use serde_json::json;

const ENCODER: Arch = Arch { theta: None, flags: &[], more: nothing, ..LLAMA };

const EMBEDDINGS: [Name; 3] = [
    top("token_embd", "embeddings.word_embeddings"),
    top("position_embd", "embeddings.position_embeddings"),
    top("token_embd_norm", "embeddings.LayerNorm"),
];

pub(super) const ARCHS: [Arch; 3] = [
    Arch {
        name: "bert",
        marked_by: Some("token_types.weight"),
        model_type: "bert",
        layers: "encoder.layer.*.",
        keys: &[&[
            Key::size("embedding_length", "hidden_size"),
            Key::size("context_length", "max_position_embeddings"),
            Key::layers("num_hidden_layers"),
            Key::heads("num_attention_heads"),
            Key::inner("intermediate_size"),
            Key::number("attention.layer_norm_epsilon", "layer_norm_eps"),
        ]],
        more: bert,
        names: &[
            &EMBEDDINGS,
            &[
                top("token_types", "embeddings.token_type_embeddings"),
                layer("attn_q", "attention.self.query"),
                layer("attn_k", "attention.self.key"),
                layer("attn_v", "attention.self.value"),
                layer("attn_output", "attention.output.dense"),
                layer("attn_output_norm", "attention.output.LayerNorm"),
                layer("ffn_up", "intermediate.dense"),
                layer("ffn_down", "output.dense"),
                layer("layer_output_norm", "output.LayerNorm"),
            ],
        ],
        ..ENCODER
    },
    // Without segments it is a DistilBERT.
    Arch {
        name: "bert",
        model_type: "distilbert",
        layers: "transformer.layer.*.",
        keys: &[&[
            Key::size("embedding_length", "dim"),
            Key::size("context_length", "max_position_embeddings"),
            Key::layers("n_layers"),
            Key::heads("n_heads"),
            Key::inner("hidden_dim"),
        ]],
        more: distilbert,
        names: &[
            &EMBEDDINGS,
            &[
                layer("attn_q", "attention.q_lin"),
                layer("attn_k", "attention.k_lin"),
                layer("attn_v", "attention.v_lin"),
                layer("attn_output", "attention.out_lin"),
                layer("attn_output_norm", "sa_layer_norm"),
                layer("ffn_up", "ffn.lin1"),
                layer("ffn_down", "ffn.lin2"),
                layer("layer_output_norm", "output_layer_norm"),
            ],
        ],
        ..ENCODER
    },
    Arch {
        name: "modern-bert",
        model_type: "modernbert",
        layers: "layers.*.",
        keys: &[&[
            Key::size("embedding_length", "hidden_size"),
            Key::size("context_length", "max_position_embeddings"),
            Key::layers("num_hidden_layers"),
            Key::heads("num_attention_heads"),
            Key::inner("intermediate_size"),
        ]],
        theta: Some(16e4),
        more: modernbert,
        names: &[&[
            top("token_embd", "embeddings.tok_embeddings"),
            top("token_embd_norm", "embeddings.norm"),
            top("output_norm", "final_norm"),
            layer("attn_norm", "attn_norm"),
            layer("attn_qkv", "attn.Wqkv"),
            layer("attn_output", "attn.Wo"),
            layer("ffn_norm", "mlp_norm"),
            layer("ffn_up", "mlp.Wi"),
            layer("ffn_down", "mlp.Wo"),
        ]],
        ..ENCODER
    },
];

/// Refuses a model whose attention is causal.
fn bidirectional(r: &Reader) -> Result<()> {
    match r.meta.bool("attention.causal")? {
        Some(true) => Err(r.meta.error("attention.causal", "an encoder that attends causally is not supported")),
        _ => Ok(()),
    }
}

fn bert(r: &mut Reader) -> Result<()> {
    let types = r.rows("token_types.weight");
    r.set("type_vocab_size", types);
    bidirectional(r)
}

/// Its epsilon is in no config.
fn distilbert(r: &mut Reader) -> Result<()> {
    const KEY: &str = "attention.layer_norm_epsilon";
    match r.meta.f64(KEY)? {
        Some(eps) if eps != 1e-12 => Err(r.meta.error(KEY, format!("{eps}, but DistilBERT's is 1e-12"))),
        _ => bidirectional(r),
    }
}

/// Windows on all layers but every n-th from the first, with a base of their own.
fn modernbert(r: &mut Reader) -> Result<()> {
    bidirectional(r)?;
    let keys = ["attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon"];
    let eps = r.meta.f64(keys[0])?.or(r.meta.f64(keys[1])?);
    let eps = eps.ok_or_else(|| r.meta.error(keys[0], "is missing"))?;
    r.set("norm_eps", eps);
    let activation = r.meta.str("hidden_activation")?.unwrap_or("gelu").to_string();
    r.set("hidden_activation", activation);
    let Some(window) = r.window()? else {
        return Err(r.meta.error("attention.sliding_window", "is missing"));
    };
    let every = r.meta.u64("attention.sliding_window_pattern")?.unwrap_or(3).max(1);
    r.set("local_attention", window);
    r.set("global_attn_every_n_layers", every);
    let kind = |i: u64| if i.is_multiple_of(every) { "full_attention" } else { "sliding_attention" };
    let kinds: Vec<&str> = (0..r.dims.layers).map(kind).collect();
    r.set("layer_types", kinds);
    let local = r.meta.f64("rope.freq_base_swa")?.unwrap_or(1e4);
    let global = r.config["rope_parameters"].clone();
    let local = json!({"rope_type": "default", "rope_theta": local});
    r.set("rope_parameters", json!({"full_attention": global, "sliding_attention": local}));
    Ok(())
}
