//! What every encoding has to obey, checked for all of them by the same code. A new encoding adds a line to [`cases`].

use super::rope::scaling::{FreqFactors, SCHEMES};
use super::*;
use crate::testing::randn;
use crate::{AttentionConfig, AttentionParts, LayerCache, Linear, Mask, MultiHeadAttention, Projections};
use candle_core::{DType, Var};
use std::ops::Range;

const HEADS: usize = 2;
const DIM: usize = 8;
const HIDDEN: usize = HEADS * DIM;
/// The length that frequencies are resolved for: past the original context of all scalings below.
const LENGTH: usize = 40;

struct Case {
    name: String,
    embedding: Option<Arc<dyn EmbeddingEncoding>>,
    attention: Arc<dyn PositionEncoding>,
    /// Attention stays the same if all positions are shifted.
    shifts: bool,
    /// The table a gradient has to reach.
    table: Option<Var>,
}

fn normal(shape: &[usize]) -> Result<Tensor> {
    randn(0.0, 1.0, shape)?.to_dtype(DType::F64)
}

/// A trained context of 16 tokens under every scheme of the table.
pub(super) fn ropes() -> Vec<RopeConfig> {
    let plain = RopeConfig { max_position_embeddings: 16, ..RopeConfig::new(DIM, 1e4) };
    let mut configs = vec![RopeConfig { rotary_dim: 4, ..plain.clone() }];
    let list = |key: &str, values: &str| (key.to_string(), values.to_string());
    for scheme in SCHEMES.iter().filter(|scheme| scheme.named) {
        let change = RopeOverride {
            scaling: Some(scheme.name.to_string()),
            factor: scheme.takes_factor.then_some(4.0),
            params: match scheme.any_checkpoint {
                true => vec![],
                // What can't be had without further keys has them here.
                false => [
                    list("short_factor", "1,1.1,1.2,1.3"),
                    list("long_factor", "1.5,2,3,4"),
                    list("partial_rotary_factor", "0.5"),
                ]
                .into_iter()
                .filter(|(key, _)| scheme.keys.contains(&key.as_str()))
                .collect(),
            },
            ..Default::default()
        };
        configs.push(plain.with_override(&change).expect(scheme.name));
    }
    configs.push(RopeConfig { scaling: FreqFactors { factors: vec![1.0, 1.1, 1.2, 1.3] }.into(), ..plain });
    let interleaved: Vec<_> =
        configs.iter().map(|config| RopeConfig { layout: Layout::Interleaved, ..config.clone() }).collect();
    configs.extend(interleaved);
    configs
}

fn case(name: &str, attention: Arc<dyn PositionEncoding>, shifts: bool) -> Case {
    Case { name: name.to_string(), embedding: None, attention, shifts, table: None }
}

fn cases() -> Result<Vec<Case>> {
    let built =
        |name: &str, config: PositionConfig, shifts| -> Result<Case> { Ok(case(name, build(&config, None)?, shifts)) };
    let temperature = Some(Temperature::llama4(4.0, 0.5));
    let mut cases = vec![
        built("nope", PositionConfig::Nope(NopeConfig::default()), true)?,
        built("tempered nope", PositionConfig::Nope(NopeConfig { temperature }), false)?,
        built("alibi", PositionConfig::Alibi(AlibiConfig::new(HEADS)), true)?,
        built("sandwich", PositionConfig::Sandwich(SandwichConfig::new(HEADS)), true)?,
    ];
    for config in ropes() {
        let name = format!("rope {} {:?} {}", config.scaling.name(), config.layout, config.rotary_dim);
        cases.push(built(&name, PositionConfig::Rope(config), true)?);
    }
    for name in ExtendConfig::NAMES {
        // Chunks are counted from the start of a text, and so are the first keys; groups of tokens begin there too.
        let shifts = ["rerope", "leaky-rerope", "string", "window"].contains(name);
        let encoding = ExtendConfig::new(name, 16, 48)?.build(RopeConfig::new(DIM, 1e4))?;
        cases.push(case(name, encoding, shifts));
    }
    for bidirectional in [false, true] {
        let config = T5Config { heads: HEADS, buckets: 8, max_distance: 12, bidirectional };
        let table = Var::from_tensor(&normal(&[8, HEADS])?)?;
        let encoding = Arc::new(T5Bias::from_table(config, table.as_tensor().clone())?);
        cases.push(Case { table: Some(table), ..case(&format!("t5 {bidirectional}"), encoding, true) });
    }
    let param =
        |shape: &[usize]| -> Result<Var> { Var::from_tensor(&(normal(shape)?.abs()? * 0.3)?.affine(1.0, 0.1)?) };
    let mut learned = |name: &str, table: Var, encoding: Arc<dyn PositionEncoding>, shifts| {
        cases.push(Case { table: Some(table), ..case(name, encoding, shifts) });
    };
    for kernel in [KerpleKernel::Logarithmic, KerpleKernel::Power] {
        let (r1, r2) = (param(&[HEADS])?, param(&[HEADS])?);
        let kerple = Kerple::from_tensors(kernel, r1.as_tensor().clone(), r2.as_tensor().clone())?;
        learned(&format!("kerple {kernel:?}"), r2, Arc::new(kerple), true);
    }
    let (c, weight) = (param(&[])?, param(&[5])?);
    let fire = Fire::from_parts(FireParts {
        c: c.as_tensor().clone(),
        threshold: Tensor::new(6f64, &Device::Cpu)?,
        hidden_weight: weight.as_tensor().clone(),
        // Some units are off for near keys, and some always on: a network of dead units would say nothing.
        hidden_bias: Tensor::new(&[0.4, -0.2, 0.1, 0.3, -0.1], &Device::Cpu)?,
        out_weight: normal(&[HEADS, 5])?,
        out_bias: normal(&[HEADS])?,
    })?;
    learned("fire", c, Arc::new(fire), false);
    let gate = param(&[HEADS, HIDDEN])?;
    let fox = Fox::from_gate(Linear::new(gate.as_tensor().clone(), Some(normal(&[HEADS])?))?);
    learned("fox", gate, Arc::new(fox), true);
    let table = param(&[7, DIM])?;
    learned("shaw", table.clone(), Arc::new(Shaw::from_table(table.as_tensor().clone(), -5)?), true);
    let table = param(&[DIM, 6])?;
    learned("cope", table.clone(), Arc::new(Cope::from_table(table.as_tensor().clone())?), true);
    let scale = param(&[HEADS])?;
    let rope: Arc<dyn PositionEncoding> = Arc::new(Rope::new(RopeConfig::new(DIM, 1e4))?);
    learned("ssmax", scale.clone(), Arc::new(Ssmax::from_scale(rope, scale.as_tensor().clone())?), false);
    let shift = param(&[DIM / 2])?;
    let learned_frequencies = LearnedFrequencies::from_shift(RopeConfig::new(DIM, 1e4), shift.as_tensor().clone())?;
    learned("learned frequencies", shift, Arc::new(learned_frequencies), true);
    cases.push(case("xpos", Arc::new(Xpos::new(XposConfig::new(RopeConfig::new(DIM, 1e4)))?), true));
    let sinusoidal = build_embedding(&PositionConfig::Sinusoidal(SinusoidalConfig::new(HIDDEN)), None)?;
    cases.push(Case { embedding: sinusoidal, ..case("sinusoidal", Arc::new(Nope::default()), false) });
    let config = RotaryTableConfig { rows: 64, head_dim: DIM };
    let rotary_table = RotaryTable::from_table(&config, &normal(&[64, DIM])?)?;
    cases.push(case("rotary table", Arc::new(rotary_table), false));
    let config = LearnedConfig { rows: 64, hidden: HIDDEN, offset: 2 };
    let table = Var::from_tensor(&normal(&[64, HIDDEN])?)?;
    let learned = Arc::new(Learned::from_table(config, table.as_tensor().clone())?);
    let nope = case("learned", Arc::new(Nope::default()), false);
    cases.push(Case { embedding: Some(learned), table: Some(table), ..nope });
    Ok(cases)
}

/// One attention layer with fixed weights.
struct Layer(MultiHeadAttention);

impl Layer {
    fn new(causal: bool) -> Result<Self> {
        let weight = || Linear::new((normal(&[HIDDEN, HIDDEN])? * 0.4)?, None);
        let projections = Projections::Separate { q: weight()?, k: weight()?, v: weight()? };
        let config = AttentionConfig::new(HIDDEN, HEADS, HEADS);
        let config = config.with_mask(if causal { Mask::causal() } else { Mask::bidirectional() });
        let parts = AttentionParts::new(projections, weight()?);
        Ok(Self(MultiHeadAttention::from_parts(config, parts, Arc::new(Nope::default()))?))
    }

    fn forward(
        &self,
        case: &Case,
        xs: &Tensor,
        positions: Positions,
        cache: Option<&mut LayerCache>,
    ) -> Result<Tensor> {
        let positions = positions.with_length(LENGTH);
        let xs = match &case.embedding {
            Some(embedding) => &embedding.embed(xs, &positions)?,
            None => xs,
        };
        self.0.with_position(case.attention.clone()).forward(xs, &positions, cache)
    }

    fn run(&self, case: &Case, xs: &Tensor, start: usize) -> Result<Tensor> {
        self.forward(case, xs, Positions::new(start..start + xs.dim(1)?), None)
    }
}

fn distance(a: &Tensor, b: &Tensor) -> Result<f64> {
    (a.to_dtype(DType::F64)? - b.to_dtype(DType::F64)?)?.abs()?.flatten_all()?.max(0)?.to_scalar()
}

#[test]
fn attention_sees_distances_alone_where_that_is_claimed() -> Result<()> {
    let layer = Layer::new(true)?;
    let xs = normal(&[2, 19, HIDDEN])?;
    for case in cases()? {
        let (here, there) = (layer.run(&case, &xs, 0)?, layer.run(&case, &xs, 23)?);
        let moved = distance(&here, &there)?;
        if case.shifts {
            assert!(moved < 1e-9, "{}: a shift changes the output by {moved:e}", case.name);
        } else {
            assert!(moved > 1e-3, "{}: absolute positions should matter, moved {moved:e}", case.name);
        }
    }
    Ok(())
}

#[test]
fn any_chunking_is_one_prefill() -> Result<()> {
    let layer = Layer::new(true)?;
    let xs = normal(&[2, 27, HIDDEN])?;
    let ones: Vec<Range<usize>> = (0..27).map(|i| i..i + 1).collect();
    for case in cases()? {
        let whole = layer.run(&case, &xs, 0)?;
        for blocks in [vec![0..4, 4..5, 5..6, 6..11, 11..27], ones.clone()] {
            let mut cache = layer.0.new_cache(27);
            let mut outs = vec![];
            for slots in blocks {
                let block = xs.narrow(1, slots.start, slots.len())?;
                outs.push(layer.forward(&case, &block, Positions::new(slots), Some(&mut cache))?);
            }
            let off = distance(&whole, &Tensor::cat(&outs, 1)?)?;
            assert!(off < 1e-9, "{}: chunks differ by {off:e}", case.name);
        }
    }
    Ok(())
}

#[test]
fn a_padded_row_is_the_row_alone() -> Result<()> {
    let layer = Layer::new(true)?;
    let (t, pads) = (24, [3usize, 0, 5]);
    let xs = normal(&[3, t, HIDDEN])?;
    for case in cases()? {
        let batch = layer.forward(&case, &xs, Positions::new(0..t).with_pads(Some(pads.into())), None)?;
        for (row, pad) in pads.into_iter().enumerate() {
            let alone = layer.run(&case, &xs.narrow(0, row, 1)?.narrow(1, pad, t - pad)?, 0)?;
            let off = distance(&alone, &batch.narrow(0, row, 1)?.narrow(1, pad, t - pad)?)?;
            assert!(off < 1e-9, "{}: row {row} differs by {off:e}", case.name);
        }
    }
    Ok(())
}

#[test]
fn gradients_are_finite_differences_and_reach_every_table() -> Result<()> {
    let layer = Layer::new(true)?;
    let weights = normal(&[1, 20, HIDDEN])?;
    for case in cases()? {
        let xs = Var::from_tensor(&normal(&[1, 20, HIDDEN])?)?;
        let loss = || (layer.run(&case, xs.as_tensor(), 3)? * &weights)?.sum_all();
        let grads = loss()?.backward()?;
        for (what, var) in [("input", Some(&xs)), ("table", case.table.as_ref())] {
            let Some(var) = var else { continue };
            let Some(grad) = grads.get(var) else { bail!("{}: no gradient reaches the {what}", case.name) };
            let (grad, values) = (grad.flatten_all()?.to_vec1::<f64>()?, var.flatten_all()?.to_vec1::<f64>()?);
            assert!(grad.iter().any(|g| g.abs() > 1e-6), "{}: the {what} has a gradient of zero", case.name);
            for i in (0..values.len()).step_by(23) {
                let at = |step: f64| -> Result<f64> {
                    let mut moved = values.clone();
                    moved[i] += step;
                    var.set(&Tensor::from_vec(moved, var.shape(), &Device::Cpu)?)?;
                    loss()?.to_scalar::<f64>()
                };
                // Of two steps, so that third derivatives, which are large by a rotation's speed, cancel.
                let step = 5e-6;
                let slope = (8.0 * (at(step)? - at(-step)?) - (at(2.0 * step)? - at(-2.0 * step)?)) / (12.0 * step);
                assert!((slope - grad[i]).abs() < 1e-6, "{} {what} [{i}]: {} is not {slope}", case.name, grad[i]);
            }
            var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu)?)?;
        }
    }
    Ok(())
}

#[test]
fn without_positions_and_mask_order_does_not_matter() -> Result<()> {
    let layer = Layer::new(false)?;
    let xs = normal(&[1, 6, HIDDEN])?;
    let order = Tensor::new(&[4u32, 1, 5, 0, 3, 2], &Device::Cpu)?;
    for case in cases()? {
        if !case.attention.parts().is_empty() {
            let message = layer.run(&case, &xs, 0).expect_err(&case.name).to_string();
            assert!(message.contains("needs causal attention"), "{message}");
            continue;
        }
        let mixed_before = layer.run(&case, &xs.index_select(&order, 1)?, 0)?;
        let mixed_after = layer.run(&case, &xs, 0)?.index_select(&order, 1)?;
        let off = distance(&mixed_before, &mixed_after)?;
        assert_eq!(off < 1e-9, case.name == "nope", "{}: {off:e}", case.name);
    }
    Ok(())
}

#[test]
fn dtypes_and_shapes_are_kept() -> Result<()> {
    for case in cases()? {
        for dtype in [DType::F32, DType::F16, DType::BF16, DType::F64] {
            let positions = Positions::new(3..8);
            let xs = normal(&[2, 5, HIDDEN])?.to_dtype(dtype)?;
            if let Some(embedding) = &case.embedding {
                let embedded = embedding.embed(&xs, &positions)?;
                assert_eq!((embedded.dims(), embedded.dtype()), (xs.dims(), dtype), "{}", case.name);
            }
            let heads = xs.reshape((2, 5, HEADS, DIM))?.transpose(1, 2)?;
            for part in 0..case.attention.parts().len().max(1) {
                let at = Context::new(&positions).with_part(part).with_copy(part.min(1));
                for placed in [case.attention.queries(&heads, &at)?, case.attention.keys(&heads, &at)?] {
                    assert_eq!((placed.dims(), placed.dtype()), (heads.dims(), dtype), "{}", case.name);
                }
            }
        }
    }
    Ok(())
}

#[test]
fn an_encoding_is_built_for_the_place_it_acts_in() -> Result<()> {
    let learned = PositionConfig::Learned(LearnedConfig { rows: 4, hidden: 2, offset: 0 });
    assert!(build_embedding(&learned, None).expect_err("no weights").to_string().contains("weights"));
    assert!(build(&learned, None).expect_err("not in attention").to_string().contains("added to embeddings"));
    let rope = PositionConfig::Rope(RopeConfig::new(DIM, 1e4));
    assert!(build_embedding(&rope, None).expect_err("in attention").to_string().contains("acts in attention"));
    assert!(build_embedding(&PositionConfig::Nope(NopeConfig::default()), None)?.is_none());
    let weights = [("weight".to_string(), Tensor::zeros((4, 2), DType::F32, &Device::Cpu)?)].into();
    let vb = VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu);
    let built = build_embedding(&learned, Some(vb))?.expect("an encoding");
    assert_eq!(built.max_positions(), Some(4));
    let xs = Tensor::zeros((1, 5, 2), DType::F32, &Device::Cpu)?;
    let message = built.embed(&xs, &Positions::new(0..5)).expect_err("too long").to_string();
    assert!(message.contains("end at 4") && message.contains("5 tokens"), "{message}");
    Ok(())
}
