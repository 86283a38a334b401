//! Architectures, and their metadata as the config.json that Hugging Face would have.

use super::{
    meta::Meta,
    parse::{Header, Value},
};
use crate::error::{LoadError, Result};
use serde_json::{Map, Value as Json, json};

/// The architectures that can be translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arch {
    Llama,
    Qwen2,
    Qwen3,
    Gemma3,
    Phi3,
    Gpt2,
    Bloom,
}

impl Arch {
    const ALL: [(Arch, &'static str); 7] = [
        (Arch::Llama, "llama"),
        (Arch::Qwen2, "qwen2"),
        (Arch::Qwen3, "qwen3"),
        (Arch::Gemma3, "gemma3"),
        (Arch::Phi3, "phi3"),
        (Arch::Gpt2, "gpt2"),
        (Arch::Bloom, "bloom"),
    ];

    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, n)| *n == name).map(|(a, _)| *a)
    }

    /// The name in GGUF metadata.
    pub(crate) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(a, _)| *a == self).map_or("", |(_, n)| *n)
    }

    /// All names, for messages.
    pub(crate) fn supported() -> String {
        Self::ALL.map(|(_, n)| n).join(", ")
    }

    /// What Hugging Face names begin with, and what a layer is called.
    pub(crate) fn prefixes(self) -> (&'static str, &'static str) {
        match self {
            Self::Gpt2 | Self::Bloom => ("transformer.", "h"),
            _ => ("model.", "layers"),
        }
    }

    fn hf_names(self) -> (&'static str, &'static str) {
        match self {
            Self::Llama => ("llama", "LlamaForCausalLM"),
            Self::Qwen2 => ("qwen2", "Qwen2ForCausalLM"),
            Self::Qwen3 => ("qwen3", "Qwen3ForCausalLM"),
            Self::Gemma3 => ("gemma3_text", "Gemma3ForCausalLM"),
            Self::Phi3 => ("phi3", "Phi3ForCausalLM"),
            Self::Gpt2 => ("gpt2", "GPT2LMHeadModel"),
            Self::Bloom => ("bloom", "BloomForCausalLM"),
        }
    }
}

/// The numbers that both the config and the tensors' translation need.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dims {
    pub(crate) layers: u64,
    pub(crate) hidden: u64,
    pub(crate) heads: u64,
    pub(crate) kv_heads: u64,
    /// The width of a head, and how much of it rotates.
    pub(crate) head_dim: u64,
    pub(crate) rotary: u64,
}

/// More layers than any model has.
const MAX_LAYERS: u64 = 4096;

pub(crate) fn dims(meta: &Meta) -> Result<Dims> {
    let layers = meta.required_u64("block_count")?;
    let hidden = meta.required_u64("embedding_length")?;
    let heads = meta.uniform_u64("attention.head_count")?;
    let heads = heads.ok_or_else(|| meta.error("attention.head_count", "is missing"))?;
    let kv_heads = meta.uniform_u64("attention.head_count_kv")?.unwrap_or(heads);
    if layers == 0 || layers > MAX_LAYERS {
        return Err(meta.error("block_count", format!("{layers} layers")));
    }
    let head_dim = meta.u64("attention.key_length")?;
    if hidden == 0 || heads == 0 || (head_dim.is_none() && !hidden.is_multiple_of(heads)) {
        return Err(meta.error("attention.head_count", format!("{heads} heads do not divide width {hidden}")));
    }
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(meta.error("attention.head_count_kv", format!("{heads} heads do not divide among {kv_heads}")));
    }
    let head_dim = head_dim.unwrap_or(hidden / heads);
    if meta.u64("attention.value_length")?.is_some_and(|v| v != head_dim) {
        return Err(meta.error("attention.value_length", format!("differs from the key length {head_dim}")));
    }
    let rotary = meta.u64("rope.dimension_count")?.unwrap_or(head_dim);
    if rotary == 0 || rotary > head_dim {
        return Err(meta.error("rope.dimension_count", format!("{rotary} of a head's {head_dim} dimensions")));
    }
    Ok(Dims { layers, hidden, heads, kv_heads, head_dim, rotary })
}

/// Rotary factors that are stored as tensors.
#[derive(Debug, Default)]
pub(crate) struct RopeTensors {
    pub(crate) freqs: Option<Vec<f32>>,
    pub(crate) long: Option<Vec<f32>>,
    pub(crate) short: Option<Vec<f32>>,
}

/// The metadata as config.json.
pub(crate) fn config(meta: &Meta, arch: Arch, dims: Dims, header: &Header, rope: RopeTensors) -> Result<Json> {
    if meta.u64("expert_count")?.is_some_and(|n| n > 0) {
        return Err(meta.error("expert_count", "mixtures of experts are not supported from GGUF"));
    }
    let (model_type, class) = arch.hf_names();
    let mut c = Map::new();
    let tied = !header.tensors.contains_key("output.weight");
    c.insert("model_type".into(), model_type.into());
    c.insert("architectures".into(), json!([class]));
    c.insert("vocab_size".into(), vocab_size(meta, header)?.into());
    c.insert("tie_word_embeddings".into(), tied.into());
    for (key, hf) in [("bos", "bos_token_id"), ("eos", "eos_token_id"), ("padding", "pad_token_id")] {
        if let Some(id) = meta.global_u64(&format!("tokenizer.ggml.{key}_token_id"))? {
            c.insert(hf.into(), id.into());
        }
    }
    match arch {
        Arch::Gpt2 | Arch::Bloom => classic(&mut c, meta, arch, dims)?,
        _ => llama_like(&mut c, meta, arch, dims, header, rope)?,
    }
    Ok(Json::Object(c))
}

/// The rows of the embedding table count; the metadata and the token list may be padded differently.
fn vocab_size(meta: &Meta, header: &Header) -> Result<u64> {
    match header.tensors.get("token_embd.weight") {
        Some(info) if info.dims.len() == 2 => Ok(info.dims[0] as u64),
        _ => Err(LoadError::tensor(meta.file(), "token_embd.weight", "missing, or not a matrix")),
    }
}

fn classic(c: &mut Map<String, Json>, meta: &Meta, arch: Arch, d: Dims) -> Result<()> {
    let context = meta.required_u64("context_length")?;
    let inner = meta.uniform_u64("feed_forward_length")?;
    let eps = meta.f64("attention.layer_norm_epsilon")?.unwrap_or(1e-5);
    let pairs: &[(&str, u64)] = match arch {
        Arch::Gpt2 => &[("n_embd", d.hidden), ("n_positions", context), ("n_ctx", context)],
        _ => &[("hidden_size", d.hidden), ("seq_length", context)],
    };
    for &(key, value) in pairs.iter().chain(&[("n_layer", d.layers), ("n_head", d.heads)]) {
        c.insert(key.into(), value.into());
    }
    c.insert("layer_norm_epsilon".into(), eps.into());
    if arch == Arch::Gpt2 {
        c.insert("n_inner".into(), inner.into());
        c.insert("activation_function".into(), "gelu_new".into());
    }
    Ok(())
}

fn llama_like(
    c: &mut Map<String, Json>,
    meta: &Meta,
    arch: Arch,
    d: Dims,
    header: &Header,
    rope: RopeTensors,
) -> Result<()> {
    let inner = meta.uniform_u64("feed_forward_length")?;
    let inner = inner.ok_or_else(|| meta.error("feed_forward_length", "is missing"))?;
    let context = meta.required_u64("context_length")?;
    let eps = meta.f64("attention.layer_norm_rms_epsilon")?;
    let eps = eps.ok_or_else(|| meta.error("attention.layer_norm_rms_epsilon", "is missing"))?;
    let default_theta = if arch == Arch::Gemma3 { 1e6 } else { 1e4 };
    let theta = meta.f64("rope.freq_base")?.unwrap_or(default_theta);
    for (key, value) in [
        ("hidden_size", d.hidden),
        ("intermediate_size", inner),
        ("num_hidden_layers", d.layers),
        ("num_attention_heads", d.heads),
        ("num_key_value_heads", d.kv_heads),
        ("head_dim", d.head_dim),
        ("max_position_embeddings", context),
    ] {
        c.insert(key.into(), value.into());
    }
    c.insert("rms_norm_eps".into(), eps.into());
    c.insert("rope_theta".into(), theta.into());
    c.insert("hidden_act".into(), "silu".into());
    if d.rotary < d.head_dim {
        c.insert("partial_rotary_factor".into(), (d.rotary as f64 / d.head_dim as f64).into());
    }
    if let Some(scaling) = rope_scaling(meta, arch, context, &rope)? {
        c.insert("rope_scaling".into(), scaling);
    }
    if let Some(factors) = &rope.freqs {
        c.insert("rope_freq_factors".into(), json!(factors));
    }
    match arch {
        Arch::Gemma3 => gemma3(c, meta, d)?,
        Arch::Phi3 => phi3(c, meta, context)?,
        _ => {
            let has = |name: &str| header.tensors.contains_key(name);
            c.insert("attention_bias".into(), has("blk.0.attn_q.bias").into());
            c.insert("mlp_bias".into(), has("blk.0.ffn_up.bias").into());
        }
    }
    Ok(())
}

/// The inverse of what llama.cpp's converter writes for each type of scaling.
fn rope_scaling(meta: &Meta, arch: Arch, context: u64, rope: &RopeTensors) -> Result<Option<Json>> {
    let factor = meta.f64("rope.scaling.factor")?;
    let original = meta.u64("rope.scaling.original_context_length")?;
    let kind = match meta.str("rope.scaling.type")? {
        Some(kind) => kind,
        None if rope.long.is_some() && rope.short.is_some() => "longrope",
        // Older files have a bare factor, which meant linear.
        None if meta.f64("rope.scale_linear")?.is_some() => "linear",
        None => "none",
    };
    let mut s = Map::new();
    s.insert("rope_type".into(), kind.into());
    match kind {
        "none" => return Ok(None),
        "linear" => {
            let factor = factor.or(meta.f64("rope.scale_linear")?);
            let factor = factor.ok_or_else(|| meta.error("rope.scaling.factor", "is missing"))?;
            s.insert("factor".into(), factor.into());
        }
        "yarn" => {
            let factor = factor.ok_or_else(|| meta.error("rope.scaling.factor", "is missing"))?;
            s.insert("factor".into(), factor.into());
            let keys = [
                ("rope.scaling.yarn_attn_factor", "attention_factor"),
                ("rope.scaling.yarn_beta_fast", "beta_fast"),
                ("rope.scaling.yarn_beta_slow", "beta_slow"),
            ];
            for (key, hf) in keys {
                if let Some(v) = meta.f64(key)? {
                    s.insert(hf.into(), v.into());
                }
            }
        }
        "longrope" => {
            let (Some(long), Some(short)) = (&rope.long, &rope.short) else {
                let reason = "is longrope, but the file has no rope_factors_long and rope_factors_short tensors";
                return Err(meta.error("rope.scaling.type", reason));
            };
            s.insert("long_factor".into(), json!(long));
            s.insert("short_factor".into(), json!(short));
            if let Some(v) = meta.f64("rope.scaling.attn_factor")? {
                s.insert("attention_factor".into(), v.into());
            }
            if let Some(factor) = factor.or(original.map(|o| context as f64 / o as f64)) {
                s.insert("factor".into(), factor.into());
            }
        }
        other => return Err(meta.error("rope.scaling.type", format!("{other:?} is not supported"))),
    }
    // Phi-3 keeps it at the top level, where it is inserted too.
    if let Some(original) = original.filter(|_| kind != "linear" || arch == Arch::Phi3) {
        s.insert("original_max_position_embeddings".into(), original.into());
    }
    Ok(Some(Json::Object(s)))
}

/// Gemma 3: five windowed layers to one global, each kind with its own theta; scaling is for the global ones only.
fn gemma3(c: &mut Map<String, Json>, meta: &Meta, d: Dims) -> Result<()> {
    const GLOBAL_EVERY: u64 = 6;
    // Of all sizes only the largest (62 layers) scales by the width per head instead of the head's own.
    let scalar = if d.layers == 62 { d.hidden / d.heads } else { d.head_dim };
    c.insert("query_pre_attn_scalar".into(), scalar.into());
    c.insert("hidden_activation".into(), "gelu_pytorch_tanh".into());
    c.remove("hidden_act");
    let theta = c.remove("rope_theta").unwrap_or_default();
    let mut global = match c.remove("rope_scaling") {
        Some(Json::Object(scaling)) => scaling,
        _ => Map::from_iter([("rope_type".to_string(), "default".into())]),
    };
    global.insert("rope_theta".into(), theta);
    let local = meta.f64("rope.freq_base_swa")?.unwrap_or(1e4);
    let local = json!({"rope_type": "default", "rope_theta": local});
    c.insert("rope_parameters".into(), json!({"full_attention": global, "sliding_attention": local}));
    c.insert("final_logit_softcapping".into(), meta.f64("final_logit_softcapping")?.into());
    c.insert("attn_logit_softcapping".into(), Json::Null);
    let window = meta.u64("attention.sliding_window")?.filter(|&w| w > 0);
    c.insert("sliding_window".into(), window.into());
    let sliding: Vec<bool> = match meta.get("attention.sliding_window_pattern") {
        Some(Value::Bools(pattern)) if pattern.len() as u64 == d.layers => pattern.clone(),
        Some(&Value::Int(n)) if n > 0 => (1..=d.layers).map(|i| i % n as u64 != 0).collect(),
        Some(_) => return Err(meta.error("attention.sliding_window_pattern", "expected a flag for every layer")),
        None => (1..=d.layers).map(|i| i % GLOBAL_EVERY != 0).collect(),
    };
    let kind = |s: &bool| if *s && window.is_some() { "sliding_attention" } else { "full_attention" };
    c.insert("layer_types".into(), sliding.iter().map(kind).collect::<Vec<_>>().into());
    Ok(())
}

fn phi3(c: &mut Map<String, Json>, meta: &Meta, context: u64) -> Result<()> {
    let window = meta.u64("attention.sliding_window")?.filter(|&w| w > 0);
    c.insert("sliding_window".into(), window.into());
    let original = meta.u64("rope.scaling.original_context_length")?.unwrap_or(context);
    c.insert("original_max_position_embeddings".into(), original.into());
    Ok(())
}
