//! DeepSeek V2 and V3: latent attention, YaRN with its temperature in the score scale, and experts: of V2 by a softmax, of
//! V3 by sigmoid scores within groups.

use super::dense::{Defaults, Dense};
use super::experts::{DeepSeek, DeepSeekDefaults};
use super::parts::LLAMA_NORMS;
use super::rotary::rope;
use crate::config::Config;
use crate::spec::{LatentSpec, LayerSpec, ModelSpec, Wiring};
use attn_core::position::{Layout, RopeDefaults};
use candle_core::Result;
use serde_json::{Value, json};

const V2: Defaults =
    Defaults { vocab_size: 102_400, head_dim: Some(64), layout: Layout::Interleaved, ..Defaults::LLAMA };

const V3: Defaults = Defaults {
    vocab_size: 129_280,
    hidden_size: 7168,
    intermediate_size: 18_432,
    num_hidden_layers: 61,
    num_attention_heads: 128,
    num_key_value_heads: Some(128),
    max_position_embeddings: 4096,
    ..V2
};

pub(super) fn v2(c: &Config) -> Result<ModelSpec> {
    let experts = DeepSeekDefaults {
        n_routed_experts: Some(64),
        num_experts_per_tok: None,
        n_shared_experts: Some(2),
        first_k_dense_replace: 0,
        moe_intermediate_size: 1407,
        routed_scaling_factor: 1.0,
        groups: None,
    };
    c.only("scoring_func", &json!("softmax"))?;
    c.only("mlp_bias", &Value::Bool(false))?;
    c.mark(&["norm_topk_prob"]); // transformers does not look at it here
    let dense = read(c, &V2)?;
    let mlps = DeepSeek::softmax(c, &dense, &experts)?;
    decoder(c, "deepseek_v2", &dense, Layout::Interleaved, &mlps)
}

pub(super) fn v3(c: &Config) -> Result<ModelSpec> {
    let experts = DeepSeekDefaults {
        n_routed_experts: Some(256),
        num_experts_per_tok: Some(8),
        n_shared_experts: Some(1),
        first_k_dense_replace: 3,
        moe_intermediate_size: 2048,
        routed_scaling_factor: 2.5,
        groups: Some([8, 4]),
    };
    c.only("scoring_func", &json!("sigmoid"))?;
    c.only("topk_method", &json!("noaux_tc"))?;
    let dense = read(c, &V3)?;
    let layout = if c.flag("rope_interleave", true)? { Layout::Interleaved } else { Layout::Half };
    let mlps = DeepSeek::sigmoid(c, &dense, &experts, true)?;
    let mut spec = decoder(c, "deepseek_v3", &dense, layout, &mlps)?;
    // Layers past the last predict further tokens in training.
    spec.unused.push(format!("layers.{}.", dense.common.layers));
    Ok(spec)
}

/// The sizes, with the rotating lanes as the width of a head, whatever `head_dim` says.
fn read(c: &Config, defaults: &Defaults) -> Result<Dense> {
    c.only("moe_layer_freq", &json!(1))?;
    c.mark(&["qk_head_dim", "num_mtp_layers", "num_nextn_predict_layers"]);
    let mut dense = Dense::read(c, defaults)?;
    dense.common.head_dim = c.size_opt("qk_rope_head_dim")?.map_or(Ok(64), |_| c.listed(&["qk_rope_head_dim"]))?;
    Ok(dense)
}

fn decoder(c: &Config, family: &str, dense: &Dense, layout: Layout, mlps: &DeepSeek) -> Result<ModelSpec> {
    let size = |key, default| Ok::<_, candle_core::Error>(c.size_opt(key)?.unwrap_or(default));
    let attention = LatentSpec {
        heads: dense.common.heads,
        q_lora_rank: c.size_or_null("q_lora_rank", Some(1536))?,
        kv_lora_rank: size("kv_lora_rank", 512)?,
        qk_nope_head_dim: size("qk_nope_head_dim", 128)?,
        qk_rope_head_dim: dense.common.head_dim,
        v_head_dim: size("v_head_dim", 128)?,
        bias: c.flag("attention_bias", false)?,
        position: rope(c, None, &RopeDefaults { layout, ..dense.rope_defaults() })?,
    };
    let layers = dense.layers(|i| {
        let wiring = Wiring::pre_norm(LLAMA_NORMS.map(|name| dense.rms(name)));
        Ok(LayerSpec::new(format!("layers.{i}."), attention.clone(), mlps.layer(i), wiring))
    })?;
    Ok(dense.decoder(family, layers))
}
