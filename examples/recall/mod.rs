//! A small task that needs positions, to train encodings on: the token that stood two places back.

use anyhow::{Result, ensure};
use attn_core::candle_core::{self, DType, Device, Module, Tensor};
use attn_core::candle_nn::{
    AdamW, Optimizer, ParamsAdamW, VarBuilder, VarMap, embedding, linear_no_bias, loss::cross_entropy,
};
use attn_core::{AttentionConfig, MultiHeadAttention, PositionEncoding, Positions};
use std::sync::Arc;

const VOCAB: usize = 8;
const HIDDEN: usize = 32;
const HEADS: usize = 4;
const BACK: usize = 2;

/// Trains one attention layer under the encoding that `encoding` makes for a width and a number of heads, decodes with a
/// cache, and prints how far the loss fell and how far decoding is from one pass. Fails if either is not as it should be.
pub(crate) fn train(
    name: &str,
    encoding: impl FnOnce(usize, usize, VarBuilder) -> candle_core::Result<Arc<dyn PositionEncoding>>,
) -> Result<()> {
    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
    let embed = embedding(VOCAB, HIDDEN, vb.pp("embed"))?;
    let encoding = encoding(HIDDEN, HEADS, vb.pp("position"))?;
    let layer = MultiHeadAttention::new(&AttentionConfig::new(HIDDEN, HEADS, HEADS), encoding, vb.pp("attention"))?;
    let head = linear_no_bias(HIDDEN, VOCAB, vb.pp("head"))?;
    let logits = |ids: &Tensor| -> candle_core::Result<Tensor> {
        let xs = embed.forward(ids)?;
        head.forward(&(&xs + layer.forward(&xs, &Positions::new(0..ids.dim(1)?), None)?)?)
    };

    let mut optimizer = AdamW::new(vars.all_vars(), ParamsAdamW { lr: 0.01, ..Default::default() })?;
    let (mut first, mut last) = (0f32, 0f32);
    for step in 0..200 {
        let ids = Tensor::rand(0f32, VOCAB as f32, (16, 24), &Device::Cpu)?.to_dtype(DType::U32)?;
        let scored = logits(&ids)?.narrow(1, BACK, 24 - BACK)?.flatten_to(1)?;
        let loss = cross_entropy(&scored, &ids.narrow(1, 0, 24 - BACK)?.flatten_all()?)?;
        optimizer.backward_step(&loss)?;
        last = loss.to_scalar()?;
        if step == 0 {
            first = last;
        }
    }
    println!("{name}: the loss fell from {first:.3} to {last:.3}");
    ensure!(last < 0.8 * first, "{name}: nothing was learned");

    // Decoding token by token with a cache has to give the same logits.
    let ids = Tensor::rand(0f32, VOCAB as f32, (1, 40), &Device::Cpu)?.to_dtype(DType::U32)?;
    let (xs, mut cache) = (embed.forward(&ids)?, layer.new_cache(40));
    let steps = (0..40).map(|i| {
        let x = xs.narrow(1, i, 1)?;
        head.forward(&(&x + layer.forward(&x, &Positions::new(i..i + 1), Some(&mut cache))?)?)
    });
    let steps = steps.collect::<candle_core::Result<Vec<_>>>()?;
    let off = (Tensor::cat(&steps, 1)? - logits(&ids)?)?.abs()?.max_all()?.to_scalar::<f32>()?;
    println!("{name}: token by token with a cache, the logits differ by {off:.1e}");
    ensure!(off < 1e-4, "{name}: decoding differs");
    Ok(())
}
