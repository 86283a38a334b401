//! Puts this project's attention layer into a stock Candle Llama and shows that the logits stay the same.
//!
//! ```text
//! cargo run --release -p integration --example stock_llama
//! ```
//!
//! candle-transformers keeps its blocks private, so the model around the layer is written out here as it stands there:
//! the same embedding, norms and feed-forward from `candle_nn`, the same checkpoint, and
//! [`attn_core::MultiHeadAttention`] where its `CausalSelfAttention` was. One line then swaps the position encoding.

use anyhow::{Context, Result};
use attn_core::position::{PositionConfig, RopeConfig, build};
use attn_core::{AttentionConfig, LayerCache, MultiHeadAttention, PositionEncoding, Positions};
use candle_core::{DType, Device, IndexOp, Module, Tensor};
use candle_nn::{Embedding, Linear, RmsNorm, VarBuilder, embedding, linear_no_bias, ops::silu, rms_norm};
use candle_transformers::models::llama as stock;
use std::{path::Path, sync::Arc};

struct Block {
    input_norm: RmsNorm,
    attention: MultiHeadAttention,
    mlp_norm: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
}

struct Llama {
    embed: Embedding,
    blocks: Vec<Block>,
    norm: RmsNorm,
}

impl Llama {
    fn load(vb: VarBuilder, cfg: &stock::Config, position: Arc<dyn PositionEncoding>) -> Result<Self> {
        let (hidden, inter, eps) = (cfg.hidden_size, cfg.intermediate_size, cfg.rms_norm_eps);
        let attention = AttentionConfig::new(hidden, cfg.num_attention_heads, cfg.num_key_value_heads);
        let block = |i: usize| -> Result<Block> {
            let vb = vb.pp("model.layers").pp(i);
            Ok(Block {
                input_norm: rms_norm(hidden, eps, vb.pp("input_layernorm"))?,
                attention: MultiHeadAttention::new(&attention, position.clone(), vb.pp("self_attn"))?,
                mlp_norm: rms_norm(hidden, eps, vb.pp("post_attention_layernorm"))?,
                gate: linear_no_bias(hidden, inter, vb.pp("mlp.gate_proj"))?,
                up: linear_no_bias(hidden, inter, vb.pp("mlp.up_proj"))?,
                down: linear_no_bias(inter, hidden, vb.pp("mlp.down_proj"))?,
            })
        };
        Ok(Self {
            embed: embedding(cfg.vocab_size, hidden, vb.pp("model.embed_tokens"))?,
            blocks: (0..cfg.num_hidden_layers).map(block).collect::<Result<_>>()?,
            norm: rms_norm(hidden, eps, vb.pp("model.norm"))?,
        })
    }

    /// Logits after the last token; the embedding is tied.
    fn forward(&self, ids: &Tensor, positions: &Positions, caches: &mut [LayerCache]) -> Result<Tensor> {
        let mut xs = self.embed.forward(ids)?;
        for (block, cache) in self.blocks.iter().zip(caches) {
            xs = (&xs + block.attention.forward(&block.input_norm.forward(&xs)?, positions, Some(cache))?)?;
            let ys = block.mlp_norm.forward(&xs)?;
            let ys = (silu(&block.gate.forward(&ys)?)? * block.up.forward(&ys)?)?;
            xs = (&xs + block.down.forward(&ys)?)?;
        }
        let last = self.norm.forward(&xs.i((.., xs.dim(1)? - 1, ..))?.contiguous()?)?;
        Ok(last.matmul(&self.embed.embeddings().t()?)?)
    }
}

fn main() -> Result<()> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/attn-cli/models/tiny-austen");
    let json: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(dir.join("config.json"))?)?;
    let size = |key: &str| json[key].as_u64().map(|n| n as usize).with_context(|| format!("config.json: {key}"));
    let cfg = stock::Config {
        hidden_size: size("hidden_size")?,
        intermediate_size: size("intermediate_size")?,
        vocab_size: size("vocab_size")?,
        num_hidden_layers: size("num_hidden_layers")?,
        num_attention_heads: size("num_attention_heads")?,
        num_key_value_heads: size("num_key_value_heads")?,
        use_flash_attn: false,
        rms_norm_eps: json["rms_norm_eps"].as_f64().context("config.json: rms_norm_eps")?,
        rope_theta: 10_000.0,
        bos_token_id: None,
        eos_token_id: None,
        rope_scaling: None,
        max_position_embeddings: size("max_position_embeddings")?,
        tie_word_embeddings: true,
    };
    let device = Device::Cpu;
    let weights = candle_core::safetensors::load(dir.join("model.safetensors"), &device)?;
    let vb = || VarBuilder::from_tensors(weights.clone(), DType::F32, &device);
    let ids = Tensor::from_iter((0..48u32).map(|i| (i * 37 + 11) % 1024), &device)?.unsqueeze(0)?;

    let model = stock::Llama::load(vb(), &cfg)?;
    let mut cache = stock::Cache::new(true, DType::F32, &cfg, &device)?;
    let theirs = model.forward(&ids, 0, &mut cache)?;

    let rope = RopeConfig {
        max_position_embeddings: cfg.max_position_embeddings,
        ..RopeConfig::new(cfg.hidden_size / cfg.num_attention_heads, 10_000.0)
    };
    let ours = Llama::load(vb(), &cfg, build(&PositionConfig::Rope(rope.clone()), None)?)?;
    let run = |model: &Llama| {
        let mut caches: Vec<_> = model.blocks.iter().map(|b| b.attention.new_cache(64)).collect();
        model.forward(&ids, &Positions::new(0..48), &mut caches)
    };
    let difference = (&run(&ours)? - &theirs)?.abs()?.max_all()?.to_scalar::<f32>()?;
    println!("largest difference from the stock model's logits: {difference:.2e}");
    anyhow::ensure!(difference < 1e-4, "the logits differ");

    let yarn = Llama::load(vb(), &cfg, build(&PositionConfig::Rope(rope.for_mode("yarn", 4.0)?), None)?)?;
    let change = (&run(&yarn)? - &theirs)?.abs()?.max_all()?.to_scalar::<f32>()?;
    println!("the same model with YaRN, factor 4: the logits move by up to {change:.2}");
    Ok(())
}
