//! What every encoding has to obey, checked for all of them by the same code. A new encoding adds a line to [`cases`].

use super::rope::scaling::{FreqFactors, SCHEMES};
use super::*;
use crate::attention::reference;
use crate::{AttendArgs, Mask, Scores};
use candle_core::{DType, Var};

const HEADS: usize = 2;
const DIM: usize = 8;
const HIDDEN: usize = HEADS * DIM;
/// The length that frequencies are resolved for: past the original context of all scalings below.
const LENGTH: usize = 40;

struct Case {
    name: String,
    encoding: Arc<dyn PositionEncoding>,
    /// Attention stays the same if all positions are shifted.
    shifts: bool,
    /// The table a gradient has to reach.
    table: Option<Var>,
}

fn normal(shape: &[usize]) -> Result<Tensor> {
    Tensor::randn(0f64, 1., shape, &Device::Cpu)
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

fn cases() -> Result<Vec<Case>> {
    let case = |name: &str, config: PositionConfig, shifts| -> Result<Case> {
        Ok(Case { name: name.to_string(), encoding: build(&config, None)?, shifts, table: None })
    };
    let temperature = Some(Temperature::llama4(4.0, 0.5));
    let mut cases = vec![
        case("nope", PositionConfig::Nope(NopeConfig::default()), true)?,
        case("tempered nope", PositionConfig::Nope(NopeConfig { temperature }), false)?,
        case("sinusoidal", PositionConfig::Sinusoidal(SinusoidalConfig::new(HIDDEN)), false)?,
        case("alibi", PositionConfig::Alibi(AlibiConfig::new(HEADS)), true)?,
    ];
    for config in ropes() {
        let name = format!("rope {} {:?} {}", config.scaling.name(), config.layout, config.rotary_dim);
        cases.push(case(&name, PositionConfig::Rope(config), true)?);
    }
    for bidirectional in [false, true] {
        let config = T5Config { heads: HEADS, buckets: 8, max_distance: 12, bidirectional };
        let table = Var::from_tensor(&normal(&[8, HEADS])?)?;
        let encoding = Arc::new(T5Bias::from_table(config, table.as_tensor().clone())?);
        cases.push(Case { name: format!("t5 {bidirectional}"), encoding, shifts: true, table: Some(table) });
    }
    let config = LearnedConfig { rows: 64, hidden: HIDDEN, offset: 2 };
    let table = Var::from_tensor(&normal(&[64, HIDDEN])?)?;
    let encoding = Arc::new(Learned::from_table(config, table.as_tensor().clone())?);
    cases.push(Case { name: "learned".to_string(), encoding, shifts: false, table: Some(table) });
    Ok(cases)
}

/// One attention layer with fixed weights, reading nothing of the encoding but its hooks.
struct Layer {
    weights: [Tensor; 3],
    causal: bool,
}

impl Layer {
    fn new(causal: bool) -> Result<Self> {
        let weight = || normal(&[HIDDEN, HIDDEN])? * 0.4;
        Ok(Self { weights: [weight()?, weight()?, weight()?], causal })
    }

    fn qkv(&self, encoding: &dyn PositionEncoding, xs: &Tensor, positions: &Positions) -> Result<[Tensor; 3]> {
        let xs = encoding.embed(xs, positions)?;
        let (b, t, _) = xs.dims3()?;
        let head = |w: &Tensor| xs.broadcast_matmul(w)?.reshape((b, t, HEADS, DIM))?.transpose(1, 2);
        let [q, k, v] = &self.weights;
        let q = encoding.temper(&encoding.rotate(&head(q)?, positions)?, positions)?;
        Ok([q, encoding.rotate(&head(k)?, positions)?, head(v)?.contiguous()?])
    }

    fn attend(
        &self,
        encoding: &dyn PositionEncoding,
        [q, k, v]: &[Tensor; 3],
        slots: [Range<usize>; 2],
        keys: Option<Arc<[Range<usize>]>>,
    ) -> Result<Tensor> {
        let [slots_q, slots_k] = slots;
        let mask = Mask { causal: self.causal, ..Mask::default() }.with_keys(keys);
        let scores = Scores::new((DIM as f64).powf(-0.5)).with_bias(encoding.bias(slots_q.clone(), slots_k.clone())?);
        let args = AttendArgs::new(scores).with_mask(mask).with_slots(slots_q.start, slots_k.start);
        reference::attend(q, k, v, &args)
    }

    fn run(&self, encoding: &dyn PositionEncoding, xs: &Tensor, start: usize) -> Result<Tensor> {
        let slots = start..start + xs.dim(1)?;
        let positions = Positions::new(slots.clone()).with_length(LENGTH);
        self.attend(encoding, &self.qkv(encoding, xs, &positions)?, [slots.clone(), slots], None)
    }
}

fn distance(a: &Tensor, b: &Tensor) -> Result<f64> {
    (a.to_dtype(DType::F64)? - b.to_dtype(DType::F64)?)?.abs()?.flatten_all()?.max(0)?.to_scalar()
}

#[test]
fn attention_sees_distances_alone_where_that_is_claimed() -> Result<()> {
    let layer = Layer::new(true)?;
    let xs = normal(&[2, 9, HIDDEN])?;
    for case in cases()? {
        let (here, there) = (layer.run(&*case.encoding, &xs, 0)?, layer.run(&*case.encoding, &xs, 23)?);
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
    let xs = normal(&[2, 11, HIDDEN])?;
    for case in cases()? {
        let whole = layer.run(&*case.encoding, &xs, 0)?;
        let mut cache: Option<[Tensor; 2]> = None;
        let mut chunks = vec![];
        for slots in [0..4, 4..5, 5..6, 6..11] {
            let positions = Positions::new(slots.clone()).with_length(LENGTH);
            let [q, k, v] = layer.qkv(&*case.encoding, &xs.narrow(1, slots.start, slots.len())?, &positions)?;
            let [k, v] = match cache {
                Some([old_k, old_v]) => [Tensor::cat(&[&old_k, &k], 2)?, Tensor::cat(&[&old_v, &v], 2)?],
                None => [k, v],
            };
            chunks.push(layer.attend(
                &*case.encoding,
                &[q, k.clone(), v.clone()],
                [slots.clone(), 0..slots.end],
                None,
            )?);
            cache = Some([k, v]);
        }
        let off = distance(&whole, &Tensor::cat(&chunks, 2)?)?;
        assert!(off < 1e-9, "{}: chunks differ by {off:e}", case.name);
    }
    Ok(())
}

#[test]
fn a_padded_row_is_the_row_alone() -> Result<()> {
    let layer = Layer::new(true)?;
    let (t, pads) = (9, [3usize, 0, 5]);
    let xs = normal(&[3, t, HIDDEN])?;
    for case in cases()? {
        let positions = Positions::new(0..t).with_length(LENGTH).with_pads(Some(pads.into()));
        let keys = pads.iter().map(|&pad| pad..t).collect::<Vec<_>>();
        let qkv = layer.qkv(&*case.encoding, &xs, &positions)?;
        let batch = layer.attend(&*case.encoding, &qkv, [0..t, 0..t], Some(keys.into()))?;
        for (row, pad) in pads.into_iter().enumerate() {
            let alone = layer.run(&*case.encoding, &xs.narrow(0, row, 1)?.narrow(1, pad, t - pad)?, 0)?;
            let off = distance(&alone, &batch.narrow(0, row, 1)?.narrow(2, pad, t - pad)?)?;
            assert!(off < 1e-9, "{}: row {row} differs by {off:e}", case.name);
        }
    }
    Ok(())
}

#[test]
fn gradients_are_finite_differences_and_reach_every_table() -> Result<()> {
    let layer = Layer::new(true)?;
    let weights = normal(&[1, HEADS, 6, DIM])?;
    for case in cases()? {
        let xs = Var::from_tensor(&normal(&[1, 6, HIDDEN])?)?;
        let loss = || (layer.run(&*case.encoding, xs.as_tensor(), 3)? * &weights)?.sum_all();
        let grads = loss()?.backward()?;
        for (what, var) in [("input", Some(&xs)), ("table", case.table.as_ref())] {
            let Some(var) = var else { continue };
            let Some(grad) = grads.get(var) else { bail!("{}: no gradient reaches the {what}", case.name) };
            let (grad, values) = (grad.flatten_all()?.to_vec1::<f64>()?, var.flatten_all()?.to_vec1::<f64>()?);
            assert!(grad.iter().any(|g| g.abs() > 1e-6), "{}: the {what} has a gradient of zero", case.name);
            for i in (0..values.len()).step_by(7) {
                let at = |step: f64| -> Result<f64> {
                    let mut moved = values.clone();
                    moved[i] += step;
                    var.set(&Tensor::from_vec(moved, var.shape(), &Device::Cpu)?)?;
                    loss()?.to_scalar::<f64>()
                };
                let slope = (at(1e-5)? - at(-1e-5)?) / 2e-5;
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
        let mixed_before = layer.run(&*case.encoding, &xs.index_select(&order, 1)?, 0)?;
        let mixed_after = layer.run(&*case.encoding, &xs, 0)?.index_select(&order, 2)?;
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
            let embedded = case.encoding.embed(&xs, &positions)?;
            let q = xs.reshape((2, 5, HEADS, DIM))?.transpose(1, 2)?;
            let rotated = case.encoding.temper(&case.encoding.rotate(&q, &positions)?, &positions)?;
            assert_eq!((embedded.dims(), embedded.dtype()), (xs.dims(), dtype), "{}", case.name);
            assert_eq!((rotated.dims(), rotated.dtype()), (q.dims(), dtype), "{}", case.name);
        }
    }
    Ok(())
}

#[test]
fn learned_configurations_need_their_table() -> Result<()> {
    let learned = PositionConfig::Learned(LearnedConfig { rows: 4, hidden: 2, offset: 0 });
    assert!(build(&learned, None).expect_err("no weights").to_string().contains("weights"));
    let weights = [("weight".to_string(), Tensor::zeros((4, 2), DType::F32, &Device::Cpu)?)].into();
    let built = build(&learned, Some(VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu)))?;
    assert_eq!(built.max_positions(), Some(4));
    let xs = Tensor::zeros((1, 5, 2), DType::F32, &Device::Cpu)?;
    let message = built.embed(&xs, &Positions::new(0..5)).expect_err("too long").to_string();
    assert!(message.contains("end at 4") && message.contains("5 tokens"), "{message}");
    Ok(())
}
