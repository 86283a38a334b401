use super::*;
use crate::{Linear, NormKind, position::Nope};
use candle_core::{DType, Device, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW, VarMap};

fn fresh(config: &AttentionConfig) -> Result<(VarMap, MultiHeadAttention)> {
    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
    let layer = MultiHeadAttention::new(config, Arc::new(Nope::default()), vb)?;
    Ok((vars, layer))
}

fn normal(shape: &[usize]) -> Result<Tensor> {
    Tensor::randn(0f32, 1., shape, &Device::Cpu)
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
    assert!(refused(AttentionConfig::new(100, 3, 3)).contains("does not divide among 3 heads"));
    assert!(refused(AttentionConfig::new(96, 4, 3)).contains("4 heads do not divide among 3 kv heads"));
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
        let (_, layer) = fresh(&config)?;
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
    let (_, layer) = fresh(&AttentionConfig::new(16, 2, 2))?;
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
    let (_, first) = fresh(&AttentionConfig::new(16, 4, 2))?;
    let (_, second) = fresh(&AttentionConfig::new(16, 4, 2))?;
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
