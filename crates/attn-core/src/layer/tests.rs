use super::*;
use crate::testing::{randn, settle};
use crate::{CacheType, CacheTypes, Linear, NormKind, position::Nope};
use candle_core::{DType, Device, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW, VarMap};

fn fresh(config: &AttentionConfig) -> Result<(VarMap, MultiHeadAttention)> {
    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
    let layer = MultiHeadAttention::new(config, Arc::new(Nope::default()), vb)?;
    Ok((vars, layer))
}

/// The same with numbers that are those of every run.
fn settled(config: &AttentionConfig) -> Result<(VarMap, MultiHeadAttention)> {
    let (vars, layer) = fresh(config)?;
    settle(&vars)?;
    Ok((vars, layer))
}

fn normal(shape: &[usize]) -> Result<Tensor> {
    randn(0.0, 1.0, shape)
}

#[test]
fn a_fresh_layer_starts_as_candle_s_do_and_learns() -> Result<()> {
    let config = AttentionConfig::new(32, 4, 2)
        .with_biases(true, true)
        .with_qk_norm(Some(1e-6))
        .with_v_norm(Some(1e-6))
        .with_sinks(true)
        .with_output_gate(Some(GateWidth::Heads));
    let (vars, layer) = fresh(&config)?;
    let std = |t: &Tensor| -> Result<f32> { t.flatten_all()?.var(0)?.sqrt()?.to_scalar() };
    let Projections::Separate { q, .. } = &layer.parts().projections else { bail!("separate") };
    let (weight, expected) = (q.weight().expect("dense"), (2f32 / 32.0).sqrt());
    assert!((std(weight)? / expected - 1.0).abs() < 0.2, "{}", std(weight)?);
    assert!(q.bias().expect("a bias").abs()?.max_all()?.to_scalar::<f32>()? <= 32f32.powf(-0.5));
    let q_norm = layer.parts().q_norm.as_ref().and_then(Norm::weight).expect("a weight");
    assert_eq!(q_norm.min_all()?.to_scalar::<f32>()?, 1.0);

    let (xs, target) = (normal(&[2, 6, 32])?, normal(&[2, 6, 32])?);
    let loss = || (layer.forward(&xs, &Positions::new(0..6), None)? - &target)?.sqr()?.mean_all();
    let mut optimizer = AdamW::new(vars.all_vars(), ParamsAdamW { lr: 0.01, ..Default::default() })?;
    let before: Vec<Tensor> = vars.all_vars().iter().map(|v| v.copy()).collect::<Result<_>>()?;
    let first = loss()?.to_scalar::<f32>()?;
    for _ in 0..60 {
        optimizer.backward_step(&loss()?)?;
    }
    let last = loss()?.to_scalar::<f32>()?;
    assert!(last < 0.7 * first, "from {first} to {last}");
    for (old, new) in before.iter().zip(vars.all_vars()) {
        let moved = (old - new.as_tensor())?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(moved > 0.0, "{:?} was never changed", old.shape());
    }
    Ok(())
}

#[test]
fn sizes_that_do_not_fit_are_refused_by_name() -> Result<()> {
    let refused = |config: AttentionConfig| fresh(&config).map(|_| ()).expect_err("must be refused").to_string();
    assert!(refused(AttentionConfig::new(100, 3, 3)).contains("is not divisible by 3 heads"));
    assert!(refused(AttentionConfig::new(96, 4, 3)).contains("4 heads are not divisible by 3 kv heads"));
    assert!(refused(AttentionConfig::new(96, 4, 2).with_softcap(Some(0.0))).contains("softcap"));
    assert!(refused(AttentionConfig::new(96, 4, 2).with_scale(f64::NAN)).contains("NaN"));
    assert!(fresh(&AttentionConfig::new(100, 3, 3).with_head_dim(32)).is_ok());

    let config = AttentionConfig::new(16, 4, 2).with_head_dim(8);
    let linear = |rows: usize, columns: usize| Linear::new(normal(&[rows, columns])?, None);
    let assemble = |parts: AttentionParts| {
        let layer = MultiHeadAttention::from_parts(config.clone(), parts, Arc::new(Nope::default()));
        layer.err().map(|e| e.to_string()).unwrap_or_default()
    };
    let separate = |q, k, v| -> Result<Projections> {
        Ok(Projections::Separate { q: linear(q, 16)?, k: linear(k, 16)?, v: linear(v, 16)? })
    };
    let good = AttentionParts::new(separate(32, 16, 16)?, linear(16, 32)?);
    assert_eq!(assemble(good.clone()), "");
    assert!(assemble(AttentionParts::new(separate(32, 24, 16)?, linear(16, 32)?)).contains("the key projection"));
    assert!(assemble(AttentionParts::new(separate(16, 16, 16)?, linear(16, 32)?)).contains("the query projection"));
    assert!(assemble(AttentionParts::new(separate(32, 16, 16)?, linear(16, 16)?)).contains("the output projection"));
    let fused = |rows| -> Result<_> { Ok(AttentionParts::new(Projections::Fused(linear(rows, 16)?), linear(16, 32)?)) };
    assert_eq!(assemble(fused(64)?), "");
    assert!(assemble(fused(96)?).contains("the fused projection is (96, 16)"));
    assert!(assemble(good.clone().with_sinks(Some(normal(&[2])?))).contains("sinks"));
    assert!(assemble(good.clone().with_output_gate(Some(linear(8, 16)?))).contains("the output gate"));
    let norm = |n| Ok::<_, candle_core::Error>(Some(Norm::new(NormKind::Rms, Some(normal(&[n])?), None, 1e-6)));
    assert!(assemble(good.clone().with_qk_norm(norm(8)?, norm(16)?, QkNormPlace::Heads)).contains("key norm"));
    assert_eq!(assemble(good.with_qk_norm(norm(32)?, norm(16)?, QkNormPlace::Whole)), "");
    Ok(())
}

#[test]
fn the_scale_follows_the_width_of_heads() {
    let config = AttentionConfig::new(576, 8, 4);
    assert_eq!(config.scale(), 72f64.powf(-0.5));
    let wide = config.with_head_dim(128);
    assert_eq!((wide.scale(), wide.v_head_dim()), (128f64.powf(-0.5), 128));
    assert_eq!(wide.with_scale(0.5).with_head_dim(64).scale(), 0.5);
}

fn close(a: &Tensor, b: &Tensor) -> Result<()> {
    let off = (a - b)?.abs()?.max_all()?.to_scalar::<f32>()?;
    assert!(off < 1e-5, "off by {off:e}");
    Ok(())
}

/// Narrower value heads, a norm on values, sinks and both gates, written out in plain ops.
#[test]
fn every_part_does_what_it_says() -> Result<()> {
    let (b, t, hidden, heads, d, dv) = (2, 5, 24, 4, 8, 6);
    for gate in [GateWidth::Lanes, GateWidth::Heads] {
        let config = AttentionConfig::new(hidden, heads, heads)
            .with_head_dim(d)
            .with_v_head_dim(dv)
            .with_v_norm(Some(1e-6))
            .with_sinks(true)
            .with_output_gate(Some(gate));
        let (_, layer) = settled(&config)?;
        let sinks = normal(&[heads])?;
        let parts = layer.parts().clone().with_sinks(Some(sinks.clone()));
        let layer = MultiHeadAttention::from_parts(config, parts.clone(), Arc::new(Nope::default()))?;
        let xs = normal(&[b, t, hidden])?;
        let Projections::Separate { q, k, v } = &parts.projections else { bail!("separate") };
        let split = |l: &Linear, d| l.forward(&xs)?.reshape((b, t, heads, d))?.transpose(1, 2)?.contiguous();
        let (q, k, v) = (split(q, d)?, split(k, d)?, split(v, dv)?);
        let v = v.broadcast_div(&(v.sqr()?.mean_keepdim(3)? + 1e-6)?.sqrt()?)?;
        let hidden_keys = Tensor::tril2(t, DType::F32, &Device::Cpu)?.affine(1e9, -1e9)?;
        let scores = (q.matmul(&k.t()?)? * (d as f64).powf(-0.5))?.broadcast_add(&hidden_keys)?;
        let sink = sinks.reshape((1, heads, 1, 1))?.expand((b, heads, t, 1))?;
        let weights = candle_nn::ops::softmax(&Tensor::cat(&[&scores, &sink], 3)?, 3)?.narrow(3, 0, t)?;
        let out = weights.contiguous()?.matmul(&v)?.transpose(1, 2)?;
        let gates = candle_nn::ops::sigmoid(&parts.output_gate.as_ref().expect("a gate").forward(&xs)?)?;
        let out = out.broadcast_mul(&gates.reshape((b, t, heads, ()))?)?.flatten_from(2)?;
        close(&layer.forward(&xs, &Positions::new(0..t), None)?, &parts.out.forward(&out)?)?;

        let Projections::Separate { q, k, v } = parts.projections.clone() else { bail!("separate") };
        let weights = [&q, &k, &v].map(|l| l.weight().cloned().expect("dense"));
        let fused = Projections::Fused(Linear::new(Tensor::cat(&weights, 0)?, None)?);
        let fused = AttentionParts { projections: fused, ..parts };
        let fused = MultiHeadAttention::from_parts(layer.config().clone(), fused, Arc::new(Nope::default()))?;
        close(&layer.forward(&xs, &Positions::new(0..t), None)?, &fused.forward(&xs, &Positions::new(0..t), None)?)?;
    }
    Ok(())
}

#[test]
fn a_linear_is_open() -> Result<()> {
    struct Lora(Linear, Var, Var);
    impl Module for Lora {
        fn forward(&self, xs: &Tensor) -> Result<Tensor> {
            let change = xs.broadcast_matmul(&self.1.t()?)?.broadcast_matmul(&self.2.t()?)?;
            self.0.forward(xs)? + change
        }
    }
    let (_, layer) = settled(&AttentionConfig::new(16, 2, 2))?;
    let mut parts = layer.parts().clone();
    let Projections::Separate { q, .. } = &mut parts.projections else { bail!("separate") };
    let (a, b) = (Var::from_tensor(&normal(&[2, 16])?)?, Var::zeros((16, 2), DType::F32, &Device::Cpu)?);
    *q = Linear::from_module(Arc::new(Lora(q.clone(), a.clone(), b.clone())), q.in_dim(), q.out_dim());
    assert!(q.weight().is_none() && q.module().is_some());
    let lora = MultiHeadAttention::from_parts(layer.config().clone(), parts, layer.position().clone())?;
    let xs = normal(&[1, 4, 16])?;
    let run = |layer: &MultiHeadAttention| layer.forward(&xs, &Positions::new(0..4), None);
    close(&run(&layer)?, &run(&lora)?)?;
    let grads = run(&lora)?.sqr()?.sum_all()?.backward()?;
    assert!(grads.get(&b).expect("a gradient").abs()?.max_all()?.to_scalar::<f32>()? > 0.0);

    let candle = candle_nn::Linear::new(normal(&[3, 4])?, Some(normal(&[3])?));
    let ours = Linear::from(candle.clone());
    assert_eq!((ours.in_dim(), ours.out_dim()), (4, 3));
    close(
        &ours.forward(&normal(&[2, 4])?.zeros_like()?)?,
        &candle.forward(&Tensor::zeros((2, 4), DType::F32, &Device::Cpu)?)?,
    )?;
    let lying = Linear::from_module(Arc::new(candle), 4, 5);
    assert!(lying.forward(&normal(&[2, 4])?).expect_err("5 numbers").to_string().contains("5 numbers"));
    Ok(())
}

#[test]
fn a_layer_reads_the_keys_of_another() -> Result<()> {
    let (_, first) = settled(&AttentionConfig::new(16, 4, 2))?;
    let (_, second) = settled(&AttentionConfig::new(16, 4, 2))?;
    let Projections::Separate { q, .. } = &second.parts().projections else { bail!("separate") };
    let parts = AttentionParts::new(Projections::Queries(q.clone()), second.parts().out.clone());
    let reader = MultiHeadAttention::from_parts(second.config().clone(), parts, Arc::new(Nope::default()))?;
    let xs = normal(&[1, 6, 16])?;
    assert!(reader.forward(&xs, &Positions::new(0..6), None).is_err());
    let (_, keys) = first.forward_sharing(&xs, &Positions::new(0..6), None)?;
    let whole = reader.forward_shared(&xs, &Positions::new(0..6), &keys)?;
    let mut cache = first.new_cache(6);
    let mut steps = vec![];
    for i in 0..6 {
        let (x, at) = (xs.narrow(1, i, 1)?, Positions::new(i..i + 1));
        let (_, keys) = first.forward_sharing(&x, &at, Some(&mut cache))?;
        steps.push(reader.forward_shared(&x, &at, &keys)?);
        assert!(reader.forward_shared(&x, &Positions::new(i + 1..i + 2), &keys).is_err());
    }
    close(&whole, &Tensor::cat(&steps, 1)?)
}

/// A mask as a tensor, of either kind and any shape, is that mask; a query that sees nothing gives what no values give.
#[test]
fn masks_may_be_tensors() -> Result<()> {
    let (_, causal) = settled(&AttentionConfig::new(16, 4, 2))?;
    let open = causal.config().clone().with_mask(Mask::bidirectional());
    let open = MultiHeadAttention::from_parts(open, causal.parts().clone(), causal.position().clone())?;
    let (xs, at) = (normal(&[2, 6, 16])?, Positions::new(0..6));
    let expected = causal.forward(&xs, &at, None)?;
    let bools = Tensor::tril2(6, DType::U8, &Device::Cpu)?;
    let additive = ((bools.to_dtype(DType::F32)? - 1.0)? * 1e30)?;
    for mask in [bools.clone(), bools.reshape((1, 1, 6, 6))?.expand((2, 4, 6, 6))?, additive] {
        let options = ForwardOptions::default().with_mask(Some(&mask));
        close(&open.forward_with(&xs, &at, None, &options)?.out, &expected)?;
    }
    let blind = Tensor::cat(&[Tensor::zeros((1, 6), DType::U8, &Device::Cpu)?, bools.narrow(0, 1, 5)?], 0)?;
    let options = ForwardOptions::default().with_mask(Some(&blind)).with_weights(true);
    let attended = open.forward_with(&xs, &at, None, &options)?;
    assert_eq!(attended.out.narrow(1, 0, 1)?.abs()?.max_all()?.to_scalar::<f32>()?, 0.0);
    close(&attended.out.narrow(1, 1, 5)?, &expected.narrow(1, 1, 5)?)?;
    let weights = attended.weights.expect("asked for");
    assert_eq!(weights.dims(), [2, 4, 6, 6]);
    let sums = weights.sum(3)?;
    close(&sums.narrow(2, 1, 5)?, &sums.narrow(2, 1, 5)?.ones_like()?)?;
    let wrong = Tensor::zeros((6, 5), DType::U8, &Device::Cpu)?;
    assert!(open.forward_with(&xs, &at, None, &ForwardOptions::default().with_mask(Some(&wrong))).is_err());
    Ok(())
}

/// The same gradients with a cache as without, in blocks and over two calls.
#[test]
fn gradients_flow_through_a_cache() -> Result<()> {
    let (vars, layer) = settled(&AttentionConfig::new(16, 4, 2).with_mask(Mask::causal().with_window(Some(3))))?;
    let xs = Var::from_tensor(&normal(&[1, 9, 16])?)?;
    let weights = normal(&[1, 9, 16])?;
    let whole = (layer.forward(&xs, &Positions::new(0..9), None)? * &weights)?.sum_all()?.backward()?;
    let mut cache = layer.new_cache(9);
    let mut outs = vec![];
    for slots in [0..4, 4..5, 5..6, 6..9] {
        let block = xs.narrow(1, slots.start, slots.len())?;
        outs.push(layer.forward(&block, &Positions::new(slots), Some(&mut cache))?);
    }
    let blocks = (Tensor::cat(&outs, 1)? * &weights)?.sum_all()?.backward()?;
    for var in vars.all_vars().iter().chain([&xs]) {
        let (a, b) = (whole.get(var).expect("a gradient"), blocks.get(var).expect("a gradient"));
        close(a, b)?;
    }
    Ok(())
}

/// What is the same for a model: rows that lag behind by padding, and rows whose positions are given.
#[test]
fn position_ids_place_tokens() -> Result<()> {
    use crate::position::{Rope, RopeConfig};
    let (_, layer) = settled(&AttentionConfig::new(16, 2, 2))?;
    let layer = layer.with_position(Arc::new(Rope::new(RopeConfig::new(8, 1e4))?));
    let xs = normal(&[2, 5, 16])?;
    let pads: Arc<[usize]> = [2, 0].into();
    let padded = Positions::new(0..5).with_pads(Some(pads));
    let ids = Tensor::new(&[[0i64, 0, 0, 1, 2], [0, 1, 2, 3, 4]], &Device::Cpu)?;
    let given = padded.clone().with_ids(&ids)?;
    close(&layer.forward(&xs, &padded, None)?, &layer.forward(&xs, &given, None)?)?;
    // Two documents in one row: each is what it is alone.
    let both = Positions::new(0..5).with_ids(&Tensor::new(&[[0i64, 1, 2, 0, 1]], &Device::Cpu)?)?;
    let documents = layer.config().clone().with_mask(Mask::causal().with_documents(Some(vec![vec![0, 3]; 2].into())));
    let packed = MultiHeadAttention::from_parts(documents, layer.parts().clone(), layer.position().clone())?;
    let second = layer.forward(&xs.narrow(1, 3, 2)?, &Positions::new(0..2), None)?;
    close(&packed.forward(&xs, &both, None)?.narrow(1, 3, 2)?, &second)?;
    let alibi = crate::position::Alibi::new(crate::position::AlibiConfig::new(2), &Device::Cpu)?;
    let refused = layer.with_position(Arc::new(alibi)).forward(&xs, &given, None).expect_err("by slots");
    assert!(refused.to_string().contains("distance of slots"), "{refused}");
    Ok(())
}

#[test]
fn a_cache_is_forked_selected_and_stored_in_half_precision() -> Result<()> {
    let (_, layer) = settled(&AttentionConfig::new(16, 4, 2))?;
    let xs = normal(&[3, 8, 16])?;
    let detached = |layer: &MultiHeadAttention| -> Result<MultiHeadAttention> {
        let Projections::Separate { q, k, v } = &layer.parts().projections else { bail!("separate") };
        let plain = |l: &Linear| Linear::new(l.weight().expect("dense").detach(), None);
        let projections = Projections::Separate { q: plain(q)?, k: plain(k)?, v: plain(v)? };
        let parts = AttentionParts::new(projections, plain(&layer.parts().out)?);
        MultiHeadAttention::from_parts(layer.config().clone(), parts, layer.position().clone())
    };
    let plain = detached(&layer)?;
    for layer in [&layer, &plain] {
        let whole = layer.forward(&xs, &Positions::new(0..8), None)?;
        let mut cache = layer.new_cache(4);
        layer.forward(&xs.narrow(1, 0, 5)?, &Positions::new(0..5), Some(&mut cache))?;
        // A fork goes another way and leaves the first as it was.
        let mut fork = cache.clone();
        layer.forward(&(xs.narrow(1, 0, 3)? * 2.0)?, &Positions::new(5..8), Some(&mut fork))?;
        let mut beams = cache.clone();
        beams.select_rows(&[2, 0, 2])?;
        let rest = layer.forward(&xs.narrow(1, 5, 3)?, &Positions::new(5..8), Some(&mut cache))?;
        close(&rest, &whole.narrow(1, 5, 3)?)?;
        let order = Tensor::new(&[2u32, 0, 2], &Device::Cpu)?;
        let rest = layer.forward(
            &xs.narrow(1, 5, 3)?.contiguous()?.index_select(&order, 0)?,
            &Positions::new(5..8),
            Some(&mut beams),
        )?;
        close(&rest, &whole.narrow(1, 5, 3)?.contiguous()?.index_select(&order, 0)?)?;
        assert!(beams.select_rows(&[3]).is_err());
        // Another batch size and dtype after a reset; not before.
        assert!(layer.forward(&xs.narrow(0, 0, 1)?.narrow(1, 0, 1)?, &Positions::new(8..9), Some(&mut cache)).is_err());
        cache.reset();
        let one = layer.forward(&xs.narrow(0, 0, 1)?, &Positions::new(0..8), Some(&mut cache))?;
        close(&one, &whole.narrow(0, 0, 1)?)?;
    }
    let mut half = plain.new_cache(8).with_types(CacheTypes::both(CacheType::F16));
    let out = plain.forward(&xs, &Positions::new(0..8), Some(&mut half))?;
    let off = (out - plain.forward(&xs, &Positions::new(0..8), None)?)?.abs()?.max_all()?.to_scalar::<f32>()?;
    assert!(off > 0.0 && off < 5e-3, "{off}");
    assert_eq!(half.size_in_bytes(), 2 * 2 * 3 * 2 * 8 * 4);
    Ok(())
}
