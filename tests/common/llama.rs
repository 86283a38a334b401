//! A Llama of a few lines around [`MultiHeadAttention`], as a user of attn-core alone would write it.

use attn_core::position::Temperature;
use attn_core::{AttentionConfig, LayerCache, MultiHeadAttention, PositionEncoding, Positions};
use candle_core::{DType, Device, Error, Module, Result, Tensor};
use candle_nn::{Embedding, Linear, RmsNorm, VarBuilder, embedding, linear_no_bias, ops::silu, rms_norm};
use std::{path::Path, sync::Arc};

struct Block {
    attention_norm: RmsNorm,
    attention: MultiHeadAttention,
    mlp_norm: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// The model.
pub(crate) struct Llama {
    embed: Embedding,
    blocks: Vec<Block>,
    norm: RmsNorm,
    head: Linear,
}

impl Llama {
    /// From a folder with `config.json` and `model.safetensors`.
    pub(crate) fn load(
        dir: &Path,
        position: Arc<dyn PositionEncoding>,
        temperature: Option<Temperature>,
    ) -> Result<Self> {
        let text = std::fs::read_to_string(dir.join("config.json"))?;
        let json: serde_json::Value = serde_json::from_str(&text).map_err(Error::wrap)?;
        let size = |key: &str| json[key].as_u64().map(|n| n as usize).ok_or_else(|| Error::Msg(key.into()));
        let (hidden, inter, vocab) = (size("hidden_size")?, size("intermediate_size")?, size("vocab_size")?);
        let eps = json["rms_norm_eps"].as_f64().ok_or_else(|| Error::Msg("rms_norm_eps".into()))?;
        let weights = candle_core::safetensors::load(dir.join("model.safetensors"), &Device::Cpu)?;
        let vb = VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu);
        let config = AttentionConfig::new(hidden, size("num_attention_heads")?, size("num_key_value_heads")?)
            .with_head_dim(size("head_dim")?)
            .with_temperature(temperature);
        let block = |i: usize| -> Result<Block> {
            let vb = vb.pp("model.layers").pp(i);
            Ok(Block {
                attention_norm: rms_norm(hidden, eps, vb.pp("input_layernorm"))?,
                attention: MultiHeadAttention::new(&config, position.clone(), vb.pp("self_attn"))?,
                mlp_norm: rms_norm(hidden, eps, vb.pp("post_attention_layernorm"))?,
                gate: linear_no_bias(hidden, inter, vb.pp("mlp.gate_proj"))?,
                up: linear_no_bias(hidden, inter, vb.pp("mlp.up_proj"))?,
                down: linear_no_bias(inter, hidden, vb.pp("mlp.down_proj"))?,
            })
        };
        Ok(Self {
            embed: embedding(vocab, hidden, vb.pp("model.embed_tokens"))?,
            blocks: (0..size("num_hidden_layers")?).map(block).collect::<Result<_>>()?,
            norm: rms_norm(hidden, eps, vb.pp("model.norm"))?,
            head: linear_no_bias(hidden, vocab, vb.pp("lm_head"))?,
        })
    }

    /// An empty cache per layer.
    pub(crate) fn new_caches(&self, expected: usize) -> Vec<LayerCache> {
        self.blocks.iter().map(|block| block.attention.new_cache(expected)).collect()
    }

    /// Ids `(b, t)` to logits `(b, t, vocab)`.
    pub(crate) fn forward(&self, ids: &Tensor, positions: &Positions, caches: &mut [LayerCache]) -> Result<Tensor> {
        let mut xs = self.embed.forward(ids)?;
        for (block, cache) in self.blocks.iter().zip(caches) {
            xs = (&xs + block.attention.forward(&block.attention_norm.forward(&xs)?, positions, Some(cache))?)?;
            let ys = block.mlp_norm.forward(&xs)?;
            let ys = (silu(&block.gate.forward(&ys)?)? * block.up.forward(&ys)?)?;
            xs = (&xs + block.down.forward(&ys)?)?;
        }
        self.head.forward(&self.norm.forward(&xs)?)
    }
}
