//! Tensor names: from the ones llama.cpp gives to the ones Hugging Face checkpoints have, and what was done to the
//! values on the way, to be undone.

use super::arch::Arch;

/// What llama.cpp's converter did to a tensor, as the way back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Undo {
    /// Nothing.
    None,
    /// Rows of every head interleaved for rotary pairs (Llama): row `2i + h` of a head goes to row `h * d/2 + i`.
    Interleaved {
        /// The number of heads the rows belong to.
        heads: usize,
    },
    /// Fused q, k, v split by part rather than by head (BLOOM).
    SplitQkv {
        /// The number of heads.
        heads: usize,
    },
    /// One was added to a norm's weights (Gemma).
    PlusOne,
    /// Stored as `(out, in)` where the original has `(in, out)` (GPT-2).
    Transposed,
}

/// The Hugging Face name of the tensor that `name` holds, and how to undo what was done to it; `None` for a tensor
/// that no Hugging Face checkpoint has, such as precomputed frequencies.
pub(crate) fn translate(arch: Arch, name: &str, heads: usize, kv_heads: usize) -> Option<(String, Undo)> {
    let (prefix, layers) = arch.prefixes();
    let Some(rest) = name.strip_prefix("blk.") else {
        let (hf, undo) = top_level(arch, name)?;
        return Some((if hf.starts_with("lm_head") { hf.to_string() } else { format!("{prefix}{hf}") }, undo));
    };
    let (layer, rest) = rest.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let (stem, suffix) = rest.rsplit_once('.')?;
    let (hf, undo) = in_layer(arch, stem, suffix, heads, kv_heads)?;
    Some((format!("{prefix}{layers}.{layer}.{hf}.{suffix}"), undo))
}

fn top_level(arch: Arch, name: &str) -> Option<(&'static str, Undo)> {
    let plus = if arch == Arch::Gemma3 { Undo::PlusOne } else { Undo::None };
    Some(match (arch, name) {
        (Arch::Gpt2, "token_embd.weight") => ("wte.weight", Undo::None),
        (Arch::Gpt2, "position_embd.weight") => ("wpe.weight", Undo::None),
        (Arch::Bloom, "token_embd.weight") => ("word_embeddings.weight", Undo::None),
        (Arch::Bloom, "token_embd_norm.weight") => ("word_embeddings_layernorm.weight", Undo::None),
        (Arch::Bloom, "token_embd_norm.bias") => ("word_embeddings_layernorm.bias", Undo::None),
        (Arch::Gpt2 | Arch::Bloom, "output_norm.weight") => ("ln_f.weight", Undo::None),
        (Arch::Gpt2 | Arch::Bloom, "output_norm.bias") => ("ln_f.bias", Undo::None),
        (_, "token_embd.weight") => ("embed_tokens.weight", Undo::None),
        (_, "output_norm.weight") => ("norm.weight", plus),
        (_, "output.weight") => ("lm_head.weight", Undo::None),
        _ => return None,
    })
}

fn in_layer(arch: Arch, stem: &str, suffix: &str, heads: usize, kv_heads: usize) -> Option<(&'static str, Undo)> {
    match arch {
        Arch::Gpt2 => gpt2(stem, suffix),
        Arch::Bloom => bloom(stem, heads),
        Arch::Gemma3 => gemma3(stem),
        Arch::Llama | Arch::Qwen2 | Arch::Qwen3 | Arch::Phi3 => {
            let (q, k) = match arch {
                Arch::Llama => (Undo::Interleaved { heads }, Undo::Interleaved { heads: kv_heads }),
                _ => (Undo::None, Undo::None),
            };
            Some(match stem {
                "attn_q" => ("self_attn.q_proj", q),
                "attn_k" => ("self_attn.k_proj", k),
                "ffn_norm" => ("post_attention_layernorm", Undo::None),
                "ffn_up" if arch == Arch::Phi3 => ("mlp.gate_up_proj", Undo::None),
                _ => (common(stem)?, Undo::None),
            })
        }
    }
}

/// Names that all relatives of Llama share.
fn common(stem: &str) -> Option<&'static str> {
    Some(match stem {
        "attn_norm" => "input_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_qkv" => "self_attn.qkv_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return None,
    })
}

fn gemma3(stem: &str) -> Option<(&'static str, Undo)> {
    Some(match stem {
        "attn_norm" => ("input_layernorm", Undo::PlusOne),
        "post_attention_norm" => ("post_attention_layernorm", Undo::PlusOne),
        "ffn_norm" => ("pre_feedforward_layernorm", Undo::PlusOne),
        "post_ffw_norm" => ("post_feedforward_layernorm", Undo::PlusOne),
        "attn_q_norm" => ("self_attn.q_norm", Undo::PlusOne),
        "attn_k_norm" => ("self_attn.k_norm", Undo::PlusOne),
        _ => (common(stem)?, Undo::None),
    })
}

fn gpt2(stem: &str, suffix: &str) -> Option<(&'static str, Undo)> {
    let turned = if suffix == "weight" { Undo::Transposed } else { Undo::None };
    Some(match stem {
        "attn_norm" => ("ln_1", Undo::None),
        "ffn_norm" => ("ln_2", Undo::None),
        "attn_qkv" => ("attn.c_attn", turned),
        "attn_output" => ("attn.c_proj", turned),
        "ffn_up" => ("mlp.c_fc", turned),
        "ffn_down" => ("mlp.c_proj", turned),
        _ => return None,
    })
}

fn bloom(stem: &str, heads: usize) -> Option<(&'static str, Undo)> {
    Some(match stem {
        "attn_norm" => ("input_layernorm", Undo::None),
        "ffn_norm" => ("post_attention_layernorm", Undo::None),
        "attn_qkv" => ("self_attention.query_key_value", Undo::SplitQkv { heads }),
        "attn_output" => ("self_attention.dense", Undo::None),
        "ffn_up" => ("mlp.dense_h_to_4h", Undo::None),
        "ffn_down" => ("mlp.dense_4h_to_h", Undo::None),
        _ => return None,
    })
}

impl Undo {
    /// For every row of the Hugging Face tensor, the row of the file it is; `None` if rows keep their places.
    ///
    /// # Errors
    /// The rows do not divide among the heads.
    pub(crate) fn rows(self, n: usize) -> Result<Option<Vec<usize>>, String> {
        let divide = |parts: usize| -> Result<usize, String> {
            if parts == 0 || !n.is_multiple_of(parts) {
                return Err(format!("{n} rows do not divide among heads ({parts} parts)"));
            }
            Ok(n / parts)
        };
        match self {
            Self::Interleaved { heads } => {
                let half = divide(heads.saturating_mul(2))?;
                let row = |r: usize| {
                    let (head, r) = (r / (2 * half), r % (2 * half));
                    head * 2 * half + 2 * (r % half) + r / half
                };
                Ok(Some((0..n).map(row).collect()))
            }
            Self::SplitQkv { heads } => {
                let d = divide(heads.saturating_mul(3))?;
                let row = |r: usize| {
                    let (head, part, i) = (r / (3 * d), r / d % 3, r % d);
                    (part * heads + head) * d + i
                };
                Ok(Some((0..n).map(row).collect()))
            }
            Self::None | Self::PlusOne | Self::Transposed => Ok(None),
        }
    }
}
