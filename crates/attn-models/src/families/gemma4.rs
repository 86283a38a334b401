//! Gemma 4: heads wider on layers with full attention, values normed, the last layers reading keys and values of earlier
//! ones, and in the small models an embedding of its own for every layer.

use super::dense::{Defaults, Dense};
use super::experts::Experts;
use super::parts::{layer_types, window};
use super::rotary::{rope, rope_of};
use crate::config::{Config, MAX_LISTED};
use crate::spec::{
    BesideSpec, ExpertWeights, GateSpec, LayerSpec, LinearSpec, ModelSpec, MoeSpec, MultiHeadSpec, NormSpec,
    PerLayerInputsSpec, PerLayerSpec, QkvSpec, RouterNorm, Routing, Wiring,
};
use attn_core::QkNormPlace;
use attn_core::position::{PositionConfig, RopeDefaults};
use candle_core::{Result, bail};
use serde_json::json;

const DEFAULTS: Defaults = Defaults {
    vocab_size: 262_144,
    hidden_size: 2304,
    intermediate_size: 9216,
    num_hidden_layers: 30,
    num_attention_heads: 8,
    num_key_value_heads: Some(4),
    head_dim: Some(256),
    max_position_embeddings: 131_072,
    tie_word_embeddings: true,
    ..Defaults::LLAMA
};

/// What differs from layer to layer.
struct Shape {
    kind: String,
    head_dim: usize,
    kv_heads: usize,
    /// The layer whose keys and values this one reads.
    source: Option<usize>,
}

pub(super) fn spec(c: &Config) -> Result<ModelSpec> {
    let act = super::parts::activation(c, "hidden_activation", "gelu_pytorch_tanh")?;
    let mut dense = Dense::read_with(c, &DEFAULTS, act)?;
    match c.text_opt("use_bidirectional_attention")? {
        None | Some("vision") => {} // text is read in order
        Some(other) => bail!("config.json: use_bidirectional_attention = {other} is not supported"),
    }
    let beside = if c.flag("enable_moe_block", false)? { Some(beside(c, &dense)?) } else { None };
    c.mark(&["num_experts", "top_k_experts", "moe_intermediate_size"]);
    let bias = c.flag("attention_bias", false)?;
    let keys_are_values = c.flag("attention_k_eq_v", false)?;
    let sliding = c.size_opt("sliding_window")?.unwrap_or(512);
    let wide = c.flag("use_double_wide_mlp", false)?;
    let width = c.count_or("hidden_size_per_layer_input", 256)?;
    let rows = c.size_opt("vocab_size_per_layer_input")?.unwrap_or(262_144);
    let softcap = c.positive_opt("final_logit_softcapping")?;
    let shapes = shapes(c, &dense, keys_are_values)?;
    let narrow = dense.intermediate_size;
    let mut layers = Vec::with_capacity(shapes.len());
    for (i, shape) in shapes.iter().enumerate() {
        let full = shape.kind == "full_attention";
        let mut attention = attention(&dense, shape, bias, keys_are_values && full, gemma4_rope(c, shape)?);
        attention.mask = attention.mask.with_window(window(&shape.kind, Some(sliding))?);
        attention.overridable = full;
        dense.intermediate_size = if wide && shape.source.is_some() { 2 * narrow } else { narrow };
        layers.push(LayerSpec { beside: beside.clone(), ..layer(&dense, i, attention, width) });
    }
    let mut spec = dense.decoder("gemma4_text", layers);
    spec.stack.embedding.scale = (dense.common.hidden_size as f64).sqrt();
    if width > 0 {
        spec.stack.per_layer = Some(PerLayerInputsSpec {
            tokens: "embed_tokens_per_layer.weight".into(),
            rows,
            width,
            projection: LinearSpec::new("per_layer_model_projection", dense.common.hidden_size, shapes.len() * width),
            norm: NormSpec::rms("per_layer_projection_norm", width, dense.eps),
        });
    }
    for (i, _) in shapes.iter().enumerate().filter(|(_, shape)| shape.source.is_some()) {
        let unread = ["k_proj", "v_proj", "k_norm", "v_norm"];
        spec.unused.extend(unread.map(|name| format!("layers.{i}.self_attn.{name}.")));
    }
    if let Some(head) = &mut spec.head {
        head.softcap = softcap;
    }
    Ok(spec)
}

/// The experts beside each feed-forward network.
fn beside(c: &Config, dense: &Dense) -> Result<BesideSpec> {
    let hidden_size = dense.common.hidden_size;
    let experts = Experts { count: c.listed(&["num_experts"])?, top_k: c.size(&["top_k_experts"])? };
    if experts.top_k > experts.count {
        bail!("config.json: top_k_experts {} is more than num_experts {}", experts.top_k, experts.count)
    }
    let weights = ExpertWeights::Stacked {
        gate_up: "experts.gate_up_proj".into(),
        down: "experts.down_proj".into(),
        transposed: false,
        interleaved: false,
        biases: None,
    };
    let routing = Routing { expert_scales: Some("router.per_expert_scale".into()), ..Routing::softmax(true) };
    let moe = MoeSpec {
        router: LinearSpec::new("router.proj", hidden_size, experts.count),
        router_norm: Some(RouterNorm {
            weight: "router.scale".into(),
            factor: (hidden_size as f64).powf(-0.5),
            eps: dense.eps,
        }),
        routing,
        experts: experts.count,
        top_k: experts.top_k,
        hidden_size,
        intermediate_size: c.size(&["moe_intermediate_size"])?,
        weights,
        gate: GateSpec::Activation(dense.act),
        shared: None,
    };
    Ok(BesideSpec {
        norm: dense.rms("pre_feedforward_layernorm_2"),
        moe,
        post_norm: dense.rms("post_feedforward_layernorm_2"),
        mlp_post_norm: dense.rms("post_feedforward_layernorm_1"),
    })
}

fn layer(dense: &Dense, i: usize, attention: MultiHeadSpec, width: usize) -> LayerSpec {
    let (hidden, norm) = (dense.common.hidden_size, |name: &str| Some(dense.rms(name)));
    let wiring = Wiring {
        attention_norm: norm("input_layernorm"),
        attention_post_norm: norm("post_attention_layernorm"),
        mlp_norm: norm("pre_feedforward_layernorm"),
        mlp_post_norm: norm("post_feedforward_layernorm"),
        ..Wiring::default()
    };
    let layer = dense.layer(i, attention, dense.gated_mlp(false));
    LayerSpec {
        wiring,
        per_layer: (width > 0).then(|| PerLayerSpec {
            gate: LinearSpec::new("per_layer_input_gate", hidden, width),
            activation: dense.act,
            projection: LinearSpec::new("per_layer_projection", width, hidden),
            norm: dense.rms("post_per_layer_input_norm"),
        }),
        scalar: Some("layer_scalar".into()),
        ..layer
    }
}

fn attention(
    dense: &Dense,
    shape: &Shape,
    bias: bool,
    keys_are_values: bool,
    position: PositionConfig,
) -> MultiHeadSpec {
    let (hidden, heads, d) = (dense.common.hidden_size, dense.common.heads, shape.head_dim);
    let linear = |name: &str, n: usize| LinearSpec::new(&format!("self_attn.{name}"), hidden, n * d).bias(bias);
    let q = linear("q_proj", heads);
    let qkv = match shape.source {
        Some(_) => QkvSpec::Queries(q),
        None => {
            let v = if keys_are_values { "k_proj" } else { "v_proj" };
            QkvSpec::Separate { q, k: linear("k_proj", shape.kv_heads), v: linear(v, shape.kv_heads) }
        }
    };
    let out = LinearSpec::new("self_attn.o_proj", heads * d, hidden).bias(bias);
    let norm = |name: &str| NormSpec::rms(&format!("self_attn.{name}"), d, dense.eps);
    let spec = MultiHeadSpec::new(heads, shape.kv_heads, d, qkv, out, position);
    MultiHeadSpec {
        scale: 1.0,
        qk_norm: Some((norm("q_norm"), norm("k_norm"), QkNormPlace::Heads)),
        v_norm: Some(NormSpec { name: None, ..norm("") }),
        source: shape.source,
        ..spec
    }
}

fn shapes(c: &Config, dense: &Dense, keys_are_values: bool) -> Result<Vec<Shape>> {
    let layers = dense.common.layers;
    let default = |i: usize| if (i + 1).is_multiple_of(6) { "full_attention" } else { "sliding_attention" };
    let mut kinds = layer_types(c, layers, default)?;
    // transformers forces the last layer to see everything.
    kinds.truncate(layers);
    if let Some(last) = kinds.last_mut() {
        *last = "full_attention".into();
    }
    let (global_head_dim, global_kv_heads) =
        (c.size_opt("global_head_dim")?, c.size_opt("num_global_key_value_heads")?);
    let listed = c.child("per_layer_config")?;
    let shape = |(i, kind): (usize, String)| {
        let (mut head_dim, mut kv_heads) = (dense.common.head_dim, dense.common.kv_heads);
        match &listed {
            // Only the layers that differ are listed.
            Some(listed) => {
                if let Some(layer) = listed.child(&i.to_string())? {
                    head_dim = layer.size_opt("head_dim")?.unwrap_or(head_dim);
                    kv_heads = layer.size_opt("num_key_value_heads")?.unwrap_or(kv_heads);
                    layer.finish()?;
                }
            }
            None if kind == "full_attention" => {
                head_dim = global_head_dim.unwrap_or(512);
                kv_heads = global_kv_heads.filter(|_| keys_are_values).unwrap_or(kv_heads);
            }
            None => {}
        }
        if !dense.common.heads.is_multiple_of(kv_heads) || head_dim > MAX_LISTED {
            bail!(
                "config.json: layer {i} has {kv_heads} kv heads for {} heads, of width {head_dim}",
                dense.common.heads
            )
        }
        Ok(Shape { kind, head_dim, kv_heads, source: None })
    };
    let mut shapes = kinds.into_iter().enumerate().map(shape).collect::<Result<Vec<_>>>()?;
    if let Some(listed) = &listed {
        listed.finish()?;
    }
    let shared = c.count_or("num_kv_shared_layers", 0)?;
    let Some(first) = layers.checked_sub(shared).filter(|first| *first > 0) else {
        bail!("config.json: num_kv_shared_layers {shared} leaves no layer of {layers} with keys of its own")
    };
    for i in first..layers {
        let source = (0..first).rev().find(|&j| shapes[j].kind == shapes[i].kind);
        match source {
            Some(j) if (shapes[j].head_dim, shapes[j].kv_heads) == (shapes[i].head_dim, shapes[i].kv_heads) => {
                shapes[i].source = Some(j);
            }
            _ => bail!("config.json: num_kv_shared_layers {shared}: layer {i} finds no keys of its kind"),
        }
    }
    Ok(shapes)
}

/// The dictionary of the layer's type; without any, the class has its own.
fn gemma4_rope(c: &Config, shape: &Shape) -> Result<PositionConfig> {
    let defaults = RopeDefaults::new(shape.head_dim);
    if c.get("rope_parameters").is_some() {
        return rope(c, Some(&shape.kind), &defaults);
    }
    let own = match shape.kind.as_str() {
        "full_attention" => {
            json!({"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0})
        }
        _ => json!({"rope_type": "default", "rope_theta": 10_000.0}),
    };
    rope_of(c, None, &defaults, own)
}
