//! Encodings written outside the crate with its public items only: each gives the same as one dense softmax written out
//! number by number, in one prefill, in blocks and token by token.

use attn_core::position::{BiasContext, Context, Nope, Part, Rope};
use attn_core::{
    AttentionConfig, AttentionParts, Linear, Mask, MultiHeadAttention, PositionEncoding, Positions, Projections,
    RopeConfig, ScoreBias,
};
use candle_core::{D, DType, Device, IndexOp, Module, Result, Tensor};
use std::sync::Arc;

const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const DIM: usize = 8;
const HIDDEN: usize = HEADS * DIM;
const T: usize = 33;
const BASE: f64 = 10_000.0;

fn normal(shape: &[usize]) -> Result<Tensor> {
    Tensor::randn(0f32, 1., shape, &Device::Cpu)
}

fn layer(encoding: Arc<dyn PositionEncoding>) -> Result<MultiHeadAttention> {
    let linear = |rows: usize| Linear::new((normal(&[rows, HIDDEN])? * 0.3)?, None);
    let projections =
        Projections::Separate { q: linear(HIDDEN)?, k: linear(KV_HEADS * DIM)?, v: linear(KV_HEADS * DIM)? };
    let config = AttentionConfig::new(HIDDEN, HEADS, KV_HEADS);
    MultiHeadAttention::from_parts(config, AttentionParts::new(projections, linear(HIDDEN)?), encoding)
}

/// What the dense softmax does for head `h`, query `i` and key `j`.
struct Dense<'a> {
    /// The positions to which query and key are rotated, or `None` for a key that is not seen. Arguments: query, key.
    place: &'a dyn Fn(usize, usize) -> Option<(f64, f64)>,
    /// The factor on the product of a pair of lanes. Arguments: query, key, pair.
    lanes: &'a dyn Fn(usize, usize, usize) -> f64,
    bias: &'a dyn Fn(usize, usize, usize) -> f64,
    sink: Option<&'a [f64]>,
}

const DENSE: Dense = Dense { place: &|_, _| Some((0.0, 0.0)), lanes: &|_, _, _| 1.0, bias: &|_, _, _| 0.0, sink: None };

fn rows(xs: &Tensor) -> Result<Vec<Vec<f64>>> {
    xs.to_dtype(DType::F64)?.to_vec2()
}

impl Dense<'_> {
    /// The layer's output for `xs`, `(t, hidden)`.
    fn run(&self, layer: &MultiHeadAttention, xs: &Tensor) -> Result<Tensor> {
        let Projections::Separate { q, k, v } = &layer.parts().projections else { panic!("separate projections") };
        let (q, k, v) = (rows(&q.forward(xs)?)?, rows(&k.forward(xs)?)?, rows(&v.forward(xs)?)?);
        let mut out = vec![0f64; q.len() * HIDDEN];
        for i in 0..q.len() {
            for h in 0..HEADS {
                let kv = h / (HEADS / KV_HEADS) * DIM;
                let seen = (0..=i).filter_map(|j| {
                    let (at_q, at_k) = (self.place)(i, j)?;
                    let (q, k) = (&q[i][h * DIM..][..DIM], &k[j][kv..][..DIM]);
                    let score = self.product(q, k, at_q - at_k, (i, j)) / (DIM as f64).sqrt();
                    Some((j, (score + (self.bias)(h, i, j)).exp()))
                });
                let seen: Vec<(usize, f64)> = seen.collect();
                let sum: f64 = seen.iter().map(|x| x.1).sum::<f64>() + self.sink.map_or(0.0, |s| s[h].exp());
                for (j, weight) in seen {
                    for lane in 0..DIM {
                        out[i * HIDDEN + h * DIM + lane] += weight / sum * v[j][kv + lane];
                    }
                }
            }
        }
        layer.parts().out.forward(&Tensor::from_vec(out, (q.len(), HIDDEN), &Device::Cpu)?.to_dtype(DType::F32)?)
    }

    /// The product of two vectors whose rotations differ by `distance` positions, in the half-split layout.
    fn product(&self, q: &[f64], k: &[f64], distance: f64, (i, j): (usize, usize)) -> f64 {
        let pair = |m: usize| {
            let (sin, cos) = (distance * BASE.powf(-2.0 * m as f64 / DIM as f64)).sin_cos();
            let (a, b, x, y) = (q[m], q[m + DIM / 2], k[m], k[m + DIM / 2]);
            (self.lanes)(i, j, m) * ((a * x + b * y) * cos + (a * y - b * x) * sin)
        };
        (0..DIM / 2).map(pair).sum()
    }

    /// Compares the layer with this in one prefill, in blocks and token by token.
    fn check(&self, layer: &MultiHeadAttention, xs: &Tensor) -> Result<()> {
        let expected = self.run(layer, &xs.i(0)?)?;
        for block in [T, 5, 1] {
            let mut cache = layer.new_cache(0);
            let mut outs = vec![];
            for at in (0..T).step_by(block) {
                let n = block.min(T - at);
                outs.push(layer.forward(&xs.narrow(1, at, n)?, &Positions::new(at..at + n), Some(&mut cache))?);
            }
            let off = (Tensor::cat(&outs, 1)?.i(0)? - &expected)?.abs()?.max_all()?.to_scalar::<f32>()?;
            assert!(off < 1e-4, "{:?} in blocks of {block}: off by {off:e}", layer.position());
        }
        let alone = layer.forward(xs, &Positions::new(0..T), None)?;
        let off = (alone.i(0)? - &expected)?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(off < 1e-4, "{:?} without a cache: off by {off:e}", layer.position());
        Ok(())
    }
}

fn check(encoding: impl PositionEncoding + 'static, dense: &Dense) -> Result<()> {
    dense.check(&layer(Arc::new(encoding))?, &normal(&[1, T, HIDDEN])?)
}

/// FoX: forget gates from hidden states, summed up as keys come.
#[derive(Debug)]
struct ForgetGates {
    gate: Tensor,
}

impl ForgetGates {
    fn log_gates(&self, hidden: &Tensor) -> Result<Tensor> {
        candle_nn::ops::sigmoid(&hidden.broadcast_matmul(&self.gate)?)?.log()?.transpose(1, 2)?.contiguous()
    }
}

impl PositionEncoding for ForgetGates {
    fn remember(&self, at: &Context, last: Option<&Tensor>) -> Result<Option<Tensor>> {
        let sums = self.log_gates(at.hidden("forget gates")?)?.cumsum(2)?.unsqueeze(D::Minus1)?;
        last.map_or(Ok(sums.clone()), |last| sums.broadcast_add(last)).map(Some)
    }

    fn bias(&self, at: &BiasContext) -> Result<ScoreBias> {
        let keys = at.remembered("forget gates")?.squeeze(D::Minus1)?.contiguous()?;
        let queries = keys.narrow(2, at.queries().start - at.keys.start, at.queries().len())?.contiguous()?;
        Ok(ScoreBias::Keys { queries, keys })
    }
}

#[test]
fn fox_by_keys_from_hidden_states() -> Result<()> {
    let encoding = Arc::new(ForgetGates { gate: (normal(&[HIDDEN, HEADS])? * 0.3)? });
    let (layer, xs) = (layer(encoding.clone())?, normal(&[1, T, HIDDEN])?);
    let gates = rows(&encoding.log_gates(&xs)?.i(0)?)?;
    let dense = Dense { bias: &|h, i, j| gates[h][j + 1..=i].iter().sum(), ..DENSE };
    dense.check(&layer, &xs)
}

/// Kerple: a learned curve over the distance.
#[derive(Debug)]
struct Curves {
    r1: Tensor,
    r2: Tensor,
}

impl PositionEncoding for Curves {
    fn bias(&self, at: &BiasContext) -> Result<ScoreBias> {
        let Some((first, n)) = at.distances() else { return Ok(ScoreBias::None) };
        let far = Tensor::from_iter((0..n as i64).map(|i| (first + i).abs() as f32), &Device::Cpu)?.unsqueeze(0)?;
        let curve = (self.r2.unsqueeze(1)?.broadcast_mul(&far)? + 1.0)?.log()?;
        Ok(ScoreBias::Relative { table: self.r1.unsqueeze(1)?.broadcast_mul(&curve)?.neg()?, first })
    }
}

#[test]
fn kerple_by_a_learned_table() -> Result<()> {
    let (r1, r2) = ([0.7f32, 1.1, 0.2, 2.0], [0.5f32, 0.1, 3.0, 1.0]);
    let curves = Curves { r1: Tensor::new(&r1, &Device::Cpu)?, r2: Tensor::new(&r2, &Device::Cpu)? };
    let bias = |h: usize, i: usize, j: usize| -f64::from(r1[h]) * (f64::from(r2[h]) * (i - j) as f64).ln_1p();
    check(curves, &Dense { bias: &bias, ..DENSE })
}

/// gpt-oss: rotation, and a logit per head that takes its share of the softmax.
#[derive(Debug)]
struct Sinks {
    rope: Rope,
    sinks: Tensor,
}

impl PositionEncoding for Sinks {
    fn queries(&self, q: &Tensor, at: &Context) -> Result<Tensor> {
        self.rope.rotate(q, at.positions)
    }

    fn keys(&self, k: &Tensor, at: &Context) -> Result<Tensor> {
        self.rope.rotate(k, at.positions)
    }

    fn sinks(&self) -> Option<Tensor> {
        Some(self.sinks.clone())
    }
}

fn rope() -> Result<Rope> {
    Rope::new(RopeConfig::new(DIM, BASE))
}

#[test]
fn sinks_of_an_encoding_and_of_a_layer() -> Result<()> {
    let sinks = [0.3f64, -1.0, 2.0, 0.0];
    let tensor = Tensor::new(&sinks, &Device::Cpu)?.to_dtype(DType::F32)?;
    let dense = Dense { place: &|i, j| Some((i as f64, j as f64)), sink: Some(&sinks), ..DENSE };
    check(Sinks { rope: rope()?, sinks: tensor.clone() }, &dense)?;
    let plain = layer(Arc::new(rope()?))?;
    let parts = plain.parts().clone().with_sinks(Some(tensor));
    let own = MultiHeadAttention::from_parts(plain.config().clone(), parts, plain.position().clone())?;
    let xs = normal(&[1, T, HIDDEN])?;
    dense.check(&own, &xs)?;
    let both = own.with_position(Arc::new(Sinks { rope: rope()?, sinks: normal(&[HEADS])? }));
    assert!(both.forward(&xs, &Positions::new(0..T), None).expect_err("twice").to_string().contains("sinks"));
    Ok(())
}

/// xPos: rotation, and factors that grow on queries and shrink on keys.
#[derive(Debug)]
struct GrowAndShrink(Rope);

fn zeta(pair: usize) -> f64 {
    (pair as f64 / (DIM as f64 / 2.0) + 0.4) / 1.4
}

impl GrowAndShrink {
    fn place(&self, xs: &Tensor, at: &Context, sign: f64) -> Result<Tensor> {
        let factor = |p: usize, lane: usize| zeta(lane % (DIM / 2)).powf(sign * p as f64 / 16.0) as f32;
        let factors = at.positions.row(0).flat_map(|p| (0..DIM).map(move |lane| factor(p, lane)));
        let factors = Tensor::from_iter(factors, &Device::Cpu)?.reshape((1, 1, (), DIM))?;
        self.0.rotate(xs, at.positions)?.broadcast_mul(&factors)
    }
}

impl PositionEncoding for GrowAndShrink {
    fn queries(&self, q: &Tensor, at: &Context) -> Result<Tensor> {
        self.place(q, at, 1.0)
    }

    fn keys(&self, k: &Tensor, at: &Context) -> Result<Tensor> {
        self.place(k, at, -1.0)
    }
}

#[test]
fn xpos_tells_queries_from_keys() -> Result<()> {
    let lanes = |i: usize, j: usize, pair: usize| zeta(pair).powf((i - j) as f64 / 16.0);
    let dense = Dense { place: &|i, j| Some((i as f64, j as f64)), lanes: &lanes, ..DENSE };
    check(GrowAndShrink(rope()?), &dense)
}

/// Any method by parts, from three functions.
struct ByParts {
    rope: Rope,
    parts: Vec<Part>,
    query: fn(usize, usize) -> f64,
    key: fn(usize, usize) -> f64,
}

impl std::fmt::Debug for ByParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.parts)
    }
}

impl PositionEncoding for ByParts {
    fn queries(&self, q: &Tensor, at: &Context) -> Result<Tensor> {
        let to: Vec<f64> = at.positions.row(0).map(|i| (self.query)(at.part, i)).collect();
        self.rope.rotate_at(q, &to, at.positions.length())
    }

    fn keys(&self, k: &Tensor, at: &Context) -> Result<Tensor> {
        let to: Vec<f64> = at.positions.row(0).map(|j| (self.key)(at.copy, j)).collect();
        self.rope.rotate_at(k, &to, at.positions.length())
    }

    fn parts(&self) -> &[Part] {
        &self.parts
    }
}

fn near(width: usize) -> Part {
    Part::new(Mask::causal().with_window(Some(width)))
}

fn far(width: usize) -> Part {
    Part::new(Mask::causal().with_beyond(Some(width)))
}

#[test]
fn rerope_by_parts() -> Result<()> {
    const W: usize = 9;
    let query = |part, i| if part == 0 { i as f64 } else { W as f64 };
    let key = |copy, j| if copy == 0 { j as f64 } else { 0.0 };
    let encoding = ByParts { rope: rope()?, parts: vec![near(W), far(W).with_copy(1)], query, key };
    let place = |i: usize, j: usize| Some(if i - j < W { (i as f64, j as f64) } else { (W as f64, 0.0) });
    check(encoding, &Dense { place: &place, ..DENSE })
}

#[test]
fn self_extend_by_parts() -> Result<()> {
    const W: usize = 8;
    const G: usize = 4;
    let query = |part, i| if part == 0 { i as f64 } else { (i / G + W - W / G) as f64 };
    let key = |copy, j| if copy == 0 { j as f64 } else { (j / G) as f64 };
    let encoding = ByParts { rope: rope()?, parts: vec![near(W), far(W).with_copy(1)], query, key };
    let place = |i: usize, j: usize| {
        Some(if i - j < W { (i as f64, j as f64) } else { ((i / G + W - W / G) as f64, (j / G) as f64) })
    };
    check(encoding, &Dense { place: &place, ..DENSE })
}

#[test]
fn dual_chunk_by_parts() -> Result<()> {
    const N: usize = 7;
    const C: usize = 10;
    fn placed(chunks_back: usize, i: usize) -> f64 {
        match chunks_back {
            0 => (i % N) as f64,
            1 => (i % N + N).min(C) as f64,
            _ => (2 * N - 1).min(C) as f64,
        }
    }
    let parts = [
        Mask::causal().with_chunk(Some(N)),
        Mask::causal().with_previous_chunk(N),
        Mask::causal().with_earlier_chunks(N),
    ];
    let key = |_, j| (j % N) as f64;
    let encoding = ByParts { rope: rope()?, parts: parts.map(Part::new).to_vec(), query: placed, key };
    let place = |i: usize, j: usize| Some((placed(i / N - j / N, i), (j % N) as f64));
    check(encoding, &Dense { place: &place, ..DENSE })
}

#[test]
fn streaming_by_parts() -> Result<()> {
    const FIRST: usize = 3;
    const W: usize = 10;
    let query = |part, i: usize| if part == 0 { i as f64 } else { i.min(FIRST + W - 1) as f64 };
    let first = Part::new(Mask::causal().with_beyond(Some(W)).with_first(Some(FIRST)));
    let encoding = ByParts { rope: rope()?, parts: vec![near(W), first], query, key: |_, j| j as f64 };
    let place = |i: usize, j: usize| match i - j < W {
        true => Some((i as f64, j as f64)),
        false => (j < FIRST).then(|| (i.min(FIRST + W - 1) as f64, j as f64)),
    };
    check(encoding, &Dense { place: &place, ..DENSE })
}

/// One row has seven tokens of padding before it: a bias by absolute position still uses the row's own positions.
#[test]
fn a_bias_by_absolute_position_sees_padding() -> Result<()> {
    #[derive(Debug)]
    struct Wave;
    impl PositionEncoding for Wave {
        fn bias(&self, at: &BiasContext) -> Result<ScoreBias> {
            let rows = at.at.positions.rows();
            let mut bias = vec![];
            for row in 0..rows {
                bias.extend(at.key_positions(row)?.into_iter().map(|p| (p as f32 * 0.9).sin() * 2.0));
            }
            Ok(ScoreBias::Dense(Tensor::from_vec(bias, (rows, 1, 1, at.keys.len()), &Device::Cpu)?))
        }
    }
    let layer = layer(Arc::new(Wave))?;
    let (xs, pad) = (normal(&[2, 20, HIDDEN])?, 7);
    let pads: Arc<[usize]> = [pad, 0].into();
    for block in [20, 3, 1] {
        let mut cache = layer.new_cache(20);
        let mut outs = vec![];
        for at in (0..20).step_by(block) {
            let n = block.min(20 - at);
            let positions = Positions::new(at..at + n).with_pads(Some(pads.clone()));
            outs.push(layer.forward(&xs.narrow(1, at, n)?, &positions, Some(&mut cache))?);
        }
        let batch = Tensor::cat(&outs, 1)?;
        let alone = layer.forward(&xs.i(0..1)?.narrow(1, pad, 20 - pad)?, &Positions::new(0..20 - pad), None)?;
        let off = (batch.i(0..1)?.narrow(1, pad, 20 - pad)? - alone)?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(off < 1e-5, "blocks of {block}: off by {off:e}");
    }
    Ok(())
}

/// A layer ends where its encoding ends, for encodings of other crates too.
#[test]
fn an_end_is_an_end() -> Result<()> {
    #[derive(Debug)]
    struct Short;
    impl PositionEncoding for Short {
        fn max_positions(&self) -> Option<usize> {
            Some(10)
        }
    }
    let layer = layer(Arc::new(Short))?;
    let xs = normal(&[1, 11, HIDDEN])?;
    assert!(layer.forward(&xs.narrow(1, 0, 10)?, &Positions::new(0..10), None).is_ok());
    let message = layer.forward(&xs, &Positions::new(0..11), None).expect_err("too long").to_string();
    assert!(message.contains("ends at 10") && message.contains("position 10"), "{message}");
    assert!(layer.with_position(Arc::new(Nope::default())).forward(&xs, &Positions::new(0..11), None).is_ok());
    Ok(())
}
