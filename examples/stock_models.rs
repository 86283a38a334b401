//! Puts this project's attention layer into two more stock Candle models, Qwen 3 and Mistral, and compares logits and speed.
//!
//! ```text
//! cargo run --release -p integration --example stock_models
//! ```
//!
//! The models have random weights, so no checkpoint is needed. What is around the layer is written out here as it stands in
//! candle-transformers, whose blocks are private: norms, feed-forward and embeddings from `candle_nn`.

use anyhow::{Context, Result, ensure};
use attn_core::position::Rope;
use attn_core::{AttentionConfig, LayerCache, MultiHeadAttention, Positions, RopeConfig};
use candle_core::{DType, Device, Module, Tensor};
use candle_nn::{
    Activation, Embedding, Linear, RmsNorm, VarBuilder, VarMap, embedding, linear_no_bias, ops::silu, rms_norm,
};
use candle_transformers::models::{mistral, qwen3};
use std::{collections::HashMap, sync::Arc, time::Instant};

const VOCAB: usize = 512;
const HIDDEN: usize = 256;
const INTERMEDIATE: usize = 512;
const LAYERS: usize = 4;
const HEADS: usize = 8;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 64;
const EPS: f64 = 1e-6;
const THETA: f64 = 10_000.0;
const PROMPT: usize = 384;
const NEW: usize = 32;

struct Block {
    attention_norm: RmsNorm,
    attention: MultiHeadAttention,
    mlp_norm: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// What both models are around their attention.
struct Decoder {
    embed: Embedding,
    blocks: Vec<Block>,
    norm: RmsNorm,
    head: Linear,
    caches: Vec<LayerCache>,
}

impl Decoder {
    fn load(vb: VarBuilder, config: &AttentionConfig) -> Result<Self> {
        let rope = Arc::new(Rope::new(RopeConfig::new(HEAD_DIM, THETA))?);
        let block = |i: usize| -> Result<Block> {
            let vb = vb.pp("model.layers").pp(i);
            Ok(Block {
                attention_norm: rms_norm(HIDDEN, EPS, vb.pp("input_layernorm"))?,
                attention: MultiHeadAttention::new(config, rope.clone(), vb.pp("self_attn"))?,
                mlp_norm: rms_norm(HIDDEN, EPS, vb.pp("post_attention_layernorm"))?,
                gate: linear_no_bias(HIDDEN, INTERMEDIATE, vb.pp("mlp.gate_proj"))?,
                up: linear_no_bias(HIDDEN, INTERMEDIATE, vb.pp("mlp.up_proj"))?,
                down: linear_no_bias(INTERMEDIATE, HIDDEN, vb.pp("mlp.down_proj"))?,
            })
        };
        let blocks = (0..LAYERS).map(block).collect::<Result<Vec<_>>>()?;
        let caches = blocks.iter().map(|block| block.attention.new_cache(PROMPT + NEW)).collect();
        Ok(Self {
            embed: embedding(VOCAB, HIDDEN, vb.pp("model.embed_tokens"))?,
            blocks,
            norm: rms_norm(HIDDEN, EPS, vb.pp("model.norm"))?,
            head: linear_no_bias(HIDDEN, VOCAB, vb.pp("lm_head"))?,
            caches,
        })
    }

    /// Logits `(1, 1, vocab)` after the last of the ids `(1, t)`, the first of which is token number `start`.
    fn forward(&mut self, ids: &Tensor, start: usize) -> candle_core::Result<Tensor> {
        let positions = Positions::new(start..start + ids.dim(1)?);
        let mut xs = self.embed.forward(ids)?;
        for (block, cache) in self.blocks.iter().zip(&mut self.caches) {
            xs = (&xs + block.attention.forward(&block.attention_norm.forward(&xs)?, &positions, Some(cache))?)?;
            let ys = block.mlp_norm.forward(&xs)?;
            let ys = (silu(&block.gate.forward(&ys)?)? * block.up.forward(&ys)?)?;
            xs = (&xs + block.down.forward(&ys)?)?;
        }
        self.head.forward(&self.norm.forward(&xs.narrow(1, xs.dim(1)? - 1, 1)?)?)
    }
}

/// A prompt and then token by token: the logits of every step, and the seconds that prompt and steps took.
fn run(
    ids: &Tensor,
    mut forward: impl FnMut(&Tensor, usize) -> candle_core::Result<Tensor>,
) -> Result<(Tensor, f64, f64)> {
    let start = Instant::now();
    let mut logits = vec![forward(&ids.narrow(1, 0, PROMPT)?, 0)?];
    let prefill = start.elapsed().as_secs_f64();
    let start = Instant::now();
    for i in PROMPT..PROMPT + NEW {
        logits.push(forward(&ids.narrow(1, i, 1)?, i)?);
    }
    Ok((Tensor::cat(&logits, 1)?, prefill, start.elapsed().as_secs_f64()))
}

fn compare(name: &str, theirs: (Tensor, f64, f64), ours: (Tensor, f64, f64)) -> Result<()> {
    let difference = (theirs.0 - ours.0)?.abs()?.max_all()?.to_scalar::<f32>()?;
    println!(
        "{name}: largest difference {difference:.1e}; {PROMPT} tokens of prompt {:.2} times as fast, {NEW} new ones {:.2} times",
        theirs.1 / ours.1,
        theirs.2 / ours.2
    );
    ensure!(difference < 1e-3, "{name}: the logits differ");
    Ok(())
}

/// The weights that a model asked a fresh `VarMap` for, as plain tensors.
fn weights(vars: &VarMap) -> Result<HashMap<String, Tensor>> {
    let data = vars.data().lock().ok().context("the weights are locked")?;
    Ok(data.iter().map(|(name, var)| (name.clone(), var.as_tensor().detach())).collect())
}

fn main() -> Result<()> {
    let device = Device::Cpu;
    let ids =
        Tensor::from_iter((0..(PROMPT + NEW) as u32).map(|i| (i * 37 + 11) % VOCAB as u32), &device)?.unsqueeze(0)?;
    let attention = AttentionConfig::new(HIDDEN, HEADS, KV_HEADS).with_head_dim(HEAD_DIM);
    let load = |weights: &HashMap<String, Tensor>| VarBuilder::from_tensors(weights.clone(), DType::F32, &device);

    let config = qwen3::Config {
        vocab_size: VOCAB,
        hidden_size: HIDDEN,
        intermediate_size: INTERMEDIATE,
        num_hidden_layers: LAYERS,
        num_attention_heads: HEADS,
        head_dim: HEAD_DIM,
        attention_bias: false,
        num_key_value_heads: KV_HEADS,
        max_position_embeddings: 1024,
        sliding_window: None,
        max_window_layers: 0,
        tie_word_embeddings: false,
        rope_theta: THETA,
        rms_norm_eps: EPS,
        use_sliding_window: false,
        hidden_act: Activation::Silu,
    };
    let vars = VarMap::new();
    qwen3::ModelForCausalLM::new(&config, VarBuilder::from_varmap(&vars, DType::F32, &device))?;
    let random = weights(&vars)?;
    let mut stock = qwen3::ModelForCausalLM::new(&config, load(&random))?;
    let mut ours = Decoder::load(load(&random), &attention.clone().with_qk_norm(Some(EPS)))?;
    compare("qwen3", run(&ids, |ids, at| stock.forward(ids, at))?, run(&ids, |ids, at| ours.forward(ids, at))?)?;

    let config = mistral::Config {
        vocab_size: VOCAB,
        hidden_size: HIDDEN,
        intermediate_size: INTERMEDIATE,
        num_hidden_layers: LAYERS,
        num_attention_heads: HEADS,
        head_dim: Some(HEAD_DIM),
        num_key_value_heads: KV_HEADS,
        hidden_act: Activation::Silu,
        max_position_embeddings: 1024,
        rms_norm_eps: EPS,
        rope_theta: THETA,
        sliding_window: None,
        use_flash_attn: false,
    };
    let vars = VarMap::new();
    mistral::Model::new(&config, VarBuilder::from_varmap(&vars, DType::F32, &device))?;
    let random = weights(&vars)?;
    let mut stock = mistral::Model::new(&config, load(&random))?;
    let mut ours = Decoder::load(load(&random), &attention)?;
    let ours = run(&ids, |ids, at| ours.forward(ids, at))?;
    compare("mistral", run(&ids, |ids, at| stock.forward(ids, at))?, ours)?;
    Ok(())
}
