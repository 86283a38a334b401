//! T5: an encoder and a decoder in one file.

use super::{
    entry::{Arch, Key, Reader},
    llama::LLAMA,
};
use crate::{
    error::Result,
    gguf::names::{Name, top},
};

const ENCODER: [Name; 10] = [
    top("enc.blk.*.attn_q", "encoder.block.*.layer.0.SelfAttention.q"),
    top("enc.blk.*.attn_k", "encoder.block.*.layer.0.SelfAttention.k"),
    top("enc.blk.*.attn_v", "encoder.block.*.layer.0.SelfAttention.v"),
    top("enc.blk.*.attn_o", "encoder.block.*.layer.0.SelfAttention.o"),
    top("enc.blk.*.attn_rel_b", "encoder.block.*.layer.0.SelfAttention.relative_attention_bias"),
    top("enc.blk.*.attn_norm", "encoder.block.*.layer.0.layer_norm"),
    top("enc.blk.*.ffn_norm", "encoder.block.*.layer.1.layer_norm"),
    top("enc.blk.*.ffn_down", "encoder.block.*.layer.1.DenseReluDense.wo"),
    top("enc.output_norm", "encoder.final_layer_norm"),
    top("token_embd", "shared"),
];

const DECODER: [Name; 15] = [
    top("dec.blk.*.attn_q", "decoder.block.*.layer.0.SelfAttention.q"),
    top("dec.blk.*.attn_k", "decoder.block.*.layer.0.SelfAttention.k"),
    top("dec.blk.*.attn_v", "decoder.block.*.layer.0.SelfAttention.v"),
    top("dec.blk.*.attn_o", "decoder.block.*.layer.0.SelfAttention.o"),
    top("dec.blk.*.attn_rel_b", "decoder.block.*.layer.0.SelfAttention.relative_attention_bias"),
    top("dec.blk.*.attn_norm", "decoder.block.*.layer.0.layer_norm"),
    top("dec.blk.*.cross_attn_q", "decoder.block.*.layer.1.EncDecAttention.q"),
    top("dec.blk.*.cross_attn_k", "decoder.block.*.layer.1.EncDecAttention.k"),
    top("dec.blk.*.cross_attn_v", "decoder.block.*.layer.1.EncDecAttention.v"),
    top("dec.blk.*.cross_attn_o", "decoder.block.*.layer.1.EncDecAttention.o"),
    top("dec.blk.*.cross_attn_norm", "decoder.block.*.layer.1.layer_norm"),
    top("dec.blk.*.ffn_norm", "decoder.block.*.layer.2.layer_norm"),
    top("dec.blk.*.ffn_down", "decoder.block.*.layer.2.DenseReluDense.wo"),
    top("dec.output_norm", "decoder.final_layer_norm"),
    top("output", "lm_head"),
];

const GATED: [Name; 4] = [
    top("enc.blk.*.ffn_gate", "encoder.block.*.layer.1.DenseReluDense.wi_0"),
    top("enc.blk.*.ffn_up", "encoder.block.*.layer.1.DenseReluDense.wi_1"),
    top("dec.blk.*.ffn_gate", "decoder.block.*.layer.2.DenseReluDense.wi_0"),
    top("dec.blk.*.ffn_up", "decoder.block.*.layer.2.DenseReluDense.wi_1"),
];

const PLAIN: [Name; 2] = [
    top("enc.blk.*.ffn_up", "encoder.block.*.layer.1.DenseReluDense.wi"),
    top("dec.blk.*.ffn_up", "decoder.block.*.layer.2.DenseReluDense.wi"),
];

const T5: Arch = Arch {
    name: "t5",
    model_type: "t5",
    keys: &[&[
        Key::size("embedding_length", "d_model"),
        Key::size("feed_forward_length", "d_ff"),
        Key::layers("num_layers"),
        Key::size("decoder_block_count", "num_decoder_layers").optional(),
        Key::heads("num_heads"),
        Key::size("attention.key_length", "d_kv"),
        Key::size("attention.relative_buckets_count", "relative_attention_num_buckets"),
        Key::number("attention.layer_norm_rms_epsilon", "layer_norm_epsilon"),
    ]],
    theta: None,
    more: plain,
    names: &[&ENCODER, &DECODER, &PLAIN],
    ..LLAMA
};

/// Version 1.1 has gates and usually a head of its own; the first has neither, and scales what goes into its head.
pub(super) const ARCHS: [Arch; 2] = [
    Arch { marked_by: Some("enc.blk.0.ffn_gate.weight"), more: gated, names: &[&ENCODER, &DECODER, &GATED], ..T5 },
    T5,
];

fn t5(r: &mut Reader) -> Result<()> {
    r.meta.get("attention.layer_norm_epsilon"); // written beside the other, of the same value
    if let Some(start) = r.meta.u64("decoder_start_token_id")? {
        r.set("decoder_start_token_id", start);
    }
    Ok(())
}

fn gated(r: &mut Reader) -> Result<()> {
    r.set("feed_forward_proj", "gated-gelu");
    r.set("scale_decoder_outputs", false);
    t5(r)
}

fn plain(r: &mut Reader) -> Result<()> {
    r.set("feed_forward_proj", "relu");
    t5(r)
}
