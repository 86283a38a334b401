//! LoRA on an attention layer: two small matrices per projection are trained, the layer's own weights stay as they are.
//!
//! ```text
//! cargo run --release -p integration --example lora
//! ```

use anyhow::{Result, ensure};
use attn_core::position::Rope;
use attn_core::{AttentionConfig, Linear, MultiHeadAttention, Positions, Projections, RopeConfig};
use candle_core::{DType, Device, Module, Tensor};
use candle_nn::{AdamW, Init, Optimizer, ParamsAdamW, VarBuilder, VarMap, init::DEFAULT_KAIMING_NORMAL};
use std::{collections::HashMap, sync::Arc};

/// `base(x) + x a^T b^T * scale`, with `b` at zero before training.
struct Lora {
    base: Linear,
    a: Tensor,
    b: Tensor,
    scale: f64,
}

impl Module for Lora {
    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        let change = xs.broadcast_matmul(&self.a.t()?)?.broadcast_matmul(&self.b.t()?)?;
        self.base.forward(xs)? + (change * self.scale)?
    }
}

fn lora(base: &Linear, rank: usize, vb: VarBuilder) -> Result<Linear> {
    let (i, o) = (base.in_dim(), base.out_dim());
    let a = vb.get_with_hints((rank, i), "lora_a", DEFAULT_KAIMING_NORMAL)?;
    let b = vb.get_with_hints((o, rank), "lora_b", Init::Const(0.0))?;
    Ok(Linear::from_module(Arc::new(Lora { base: base.clone(), a, b, scale: 2.0 }), i, o))
}

fn main() -> Result<()> {
    let (hidden, device) = (64, Device::Cpu);
    let config = AttentionConfig::new(hidden, 4, 2);
    let rope = Arc::new(Rope::new(RopeConfig::new(config.head_dim(), 10_000.0))?);

    // A layer as it comes from a checkpoint: plain tensors, no gradients.
    let random = |rows: usize| Tensor::randn(0f32, 0.1, (rows, hidden), &device);
    let rows = [("q_proj", 64), ("k_proj", 32), ("v_proj", 32), ("o_proj", 64)];
    let named = rows.map(|(name, rows)| Ok((format!("{name}.weight"), random(rows)?)));
    let weights = named.into_iter().collect::<candle_core::Result<HashMap<_, _>>>()?;
    let base = MultiHeadAttention::new(&config, rope.clone(), VarBuilder::from_tensors(weights, DType::F32, &device))?;

    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F32, &device);
    let mut parts = base.parts().clone();
    if let Projections::Separate { q, v, .. } = &mut parts.projections {
        *q = lora(q, 4, vb.pp("q_proj"))?;
        *v = lora(v, 4, vb.pp("v_proj"))?;
    }
    let layer = MultiHeadAttention::from_parts(config, parts, rope)?;

    let xs = Tensor::randn(0f32, 1., (4, 16, hidden), &device)?;
    let at = Positions::new(0..16);
    let before =
        (layer.forward(&xs, &at, None)? - base.forward(&xs, &at, None)?)?.abs()?.max_all()?.to_scalar::<f32>()?;
    ensure!(before == 0.0, "an untrained LoRA changes the layer by {before}");

    let target = base.forward(&xs, &at, None)?.roll(1, 2)?;
    let loss = || (layer.forward(&xs, &at, None)? - &target)?.sqr()?.mean_all();
    let mut optimizer = AdamW::new(vars.all_vars(), ParamsAdamW { lr: 0.01, ..Default::default() })?;
    let first = loss()?.to_scalar::<f32>()?;
    for _ in 0..100 {
        optimizer.backward_step(&loss()?)?;
    }
    let last = loss()?.to_scalar::<f32>()?;
    let trained: usize = vars.all_vars().iter().map(|v| v.elem_count()).sum();
    println!("lora: {trained} numbers trained, the loss fell from {first:.4} to {last:.4}");
    ensure!(last < 0.8 * first, "nothing was learned");
    Ok(())
}
