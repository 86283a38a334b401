//! The gradients of every attention kernel have to be those of the reference in f64, for any call and any set of inputs that
//! need gradients.

use super::laws::{BiasKind, Case, any_case, difference, noise, paths};
use super::{AttendArgs, KernelOptions, attend_lse, attend_with, merge, reference};
use crate::{Mask, ScoreBias};
use candle_core::{DType, Device, Result, Tensor};
use proptest::prelude::*;
use std::cell::RefCell;

/// A way to compute attention.
pub(crate) type Kernel<'a> = &'a dyn Fn(&Tensor, &Tensor, &Tensor, &AttendArgs) -> Result<Tensor>;

impl Case {
    /// The gradients of q, k, v, what the bias is made of and the sinks, with a weight on each output.
    pub(crate) fn gradients(&self, device: &Device, kernel: Kernel) -> Result<Vec<Tensor>> {
        self.gradients_in(device, kernel, |x| Ok(x.clone()))
    }

    /// The same with every tensor converted first.
    fn gradients_in(
        &self,
        device: &Device,
        kernel: Kernel,
        convert: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Vec<Tensor>> {
        let (tensors, mut args) = (self.tensors()?, self.args()?);
        let weight = noise(77, 1.0, &[self.b, self.h_kv * self.group, self.tq, self.dv])?.to_dtype(self.dtype)?;
        let weight = convert(&weight)?;
        let vars = RefCell::new(vec![]);
        let var = |x: &Tensor| {
            let var = candle_core::Var::from_tensor(&convert(x)?.to_device(device)?)?;
            vars.borrow_mut().push(var.clone());
            Ok::<_, candle_core::Error>(var.as_tensor().clone())
        };
        let [q, k, v] = tensors.each_ref().map(var);
        if !matches!(args.scores.bias, ScoreBias::Dense(_)) {
            args.scores.bias = args.scores.bias.map(var)?;
        }
        args.scores.sinks = args.scores.sinks.as_ref().map(var).transpose()?;
        let mut grads = (kernel(&q?, &k?, &v?, &args)? * weight.to_device(device)?)?.sum_all()?.backward()?;
        let vars = vars.into_inner();
        let of = |x: &candle_core::Var| grads.remove(x.as_tensor()).expect("a gradient").to_device(&Device::Cpu);
        vars.iter().map(of).collect()
    }

    /// Checks the gradients of every kernel of this machine.
    fn check_every_path(&self) -> Result<()> {
        for path in paths(self.dtype) {
            let options = KernelOptions { path: Some(path), key_norms: None };
            let ours = self.gradients(&Device::Cpu, &|q, k, v, args| attend_with(q, k, v, args, &options))?;
            self.check_gradients(&path.to_string(), &ours)?;
        }
        Ok(())
    }

    /// Checks gradients against those of the reference, which computes them in f64: sums over many scores cancel.
    pub(crate) fn check_gradients(&self, name: &str, ours: &[Tensor]) -> Result<()> {
        let theirs = self.gradients_in(&Device::Cpu, &reference::attend, |x| x.to_dtype(DType::F64))?;
        let theirs = theirs.iter().zip(ours).map(|(x, ours)| x.to_dtype(ours.dtype()));
        let theirs = theirs.collect::<Result<Vec<_>>>()?;
        assert_eq!(ours.len(), theirs.len());
        let largest = |x: &Tensor| x.abs()?.max_all()?.to_dtype(DType::F32)?.to_scalar::<f32>();
        let most = theirs.iter().map(largest).collect::<Result<Vec<_>>>()?.into_iter().fold(0.0, f32::max);
        // What is computed is exact up to the rounding of the products it sums, and the sums may cancel. Where a query sees one
        // key, the gradient of its score is the difference of two sums of dv products that are equal.
        let rounding = if self.dtype == DType::F32 { 1e-6 * (self.dv as f32).sqrt() } else { 4e-3 };
        for (of, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
            assert_eq!((ours.dtype(), ours.dims()), (theirs.dtype(), theirs.dims()));
            let (difference, limit) = (difference(ours, theirs)?, 2.0 * self.tolerance());
            let noise = if of < 3 { rounding * most } else { self.noise_of_scores(of) };
            let noise = largest(&(ours - theirs)?)? <= noise;
            assert!(difference <= limit || noise, "{name}: gradient {of} off by {difference:e} in {self:?}");
        }
        Ok(())
    }
}

impl Case {
    /// The absolute rounding error of the gradient of tensor `of` among those that the scores are made of. It sums the
    /// gradients of scores, `p (dp - delta)`, times how much a score changes with the number. In a row the weights `p`
    /// sum to one; `dp` is a sum of dv products of up to 2, exact to some `sqrt(dv)` roundings. And the sum may cancel:
    /// the gradients of a row's scores sum to zero where there is no sink, which is all that a curve's start is about.
    fn noise_of_scores(&self, of: usize) -> f32 {
        let change = match (self.bias, of) {
            (BiasKind::Linear, 3) => (self.q_start + self.tq).abs_diff(self.k_start).max(self.tk) as f32,
            // Of a row's factor: distances of up to 6 times the slopes of up to nine units.
            (BiasKind::Curve, 4) => 50.0,
            (BiasKind::Curve, 3..) => 6.0,
            _ => 1.0,
        };
        let roundings = f32::EPSILON / 2.0 * (self.dv as f32).sqrt();
        4.0 * roundings * 3.0 * (self.dv as f32).sqrt() * change * ((self.b * self.tq) as f32).sqrt()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn gradients_agree_with_the_reference(case in any_case()) {
        let case = Case { tk: case.tk.min(600).max(case.tq), ..case };
        let case = Case { dtype: DType::F32, q_start: (case.k_start + case.tk - case.tq).min(case.q_start), ..case };
        case.check_every_path().unwrap();
    }
}

/// One query sees one key, and the others none: every gradient of a score is zero.
#[test]
fn gradients_that_are_zero_agree() {
    for d in [96, 256] {
        let case = Case { bias: BiasKind::Relative, tq: 4, q_start: 12, seed: 461_339, ..Case::plain(2, 1, 16, d) };
        let case = Case { padding: Some((15, 27)), ..case };
        case.check_every_path().unwrap();
    }
}

/// With the first numbers of this seed a unit bends within 1e-8 of a distance that occurs, where either derivative is right.
#[test]
fn gradients_beside_the_bend_of_a_curve_agree() {
    let case = Case {
        bias: BiasKind::Curve,
        tq: 68,
        tk: 96,
        q_start: 28,
        causal: false,
        seed: 377_166,
        ..Case::plain(1, 2, 4, 4)
    };
    case.check_every_path().unwrap();
}

/// A table that is trained while the rest is frozen, or the rest without it.
#[test]
fn the_gradient_of_a_table_does_not_depend_on_what_else_has_one() {
    let case = Case { bias: BiasKind::Relative, b: 2, ..Case::plain(2, 2, 300, 24) };
    let (tensors, args) = (case.tensors().unwrap(), case.args().unwrap());
    let ScoreBias::Relative { table, first } = &args.scores.bias else { unreachable!() };
    let run = |all: bool, fused: bool| {
        let [q, k, v] = tensors.each_ref().map(|x| candle_core::Var::from_tensor(x).unwrap());
        let table = candle_core::Var::from_tensor(table).unwrap();
        let args = args.clone().with_bias(ScoreBias::Relative { table: table.as_tensor().clone(), first: *first });
        let [q, k, v] = [&q, &k, &v].map(|x| if all { x.as_tensor().clone() } else { x.as_tensor().detach() });
        let out = if fused { super::attend(&q, &k, &v, &args) } else { reference::attend(&q, &k, &v, &args) };
        let mut grads = out.unwrap().sqr().unwrap().sum_all().unwrap().backward().unwrap();
        grads.remove(table.as_tensor()).unwrap()
    };
    let theirs = run(false, false);
    for all in [false, true] {
        let off = difference(&run(all, true), &theirs).unwrap();
        assert!(off < 4e-5, "off by {off:e}");
    }
}

/// The kernel has no gradient for a dense bias: such calls have to go where there is one.
#[test]
fn the_gradient_of_a_dense_bias_never_vanishes() {
    let case = Case { bias: BiasKind::Dense(1), ..Case::plain(2, 2, 20, 8) };
    let ([q, k, v], mut args) = (case.tensors().unwrap(), case.args().unwrap());
    let ScoreBias::Dense(bias) = &args.scores.bias else { unreachable!() };
    let bias = candle_core::Var::from_tensor(bias).unwrap();
    args.scores.bias = ScoreBias::Dense(bias.as_tensor().clone());
    let out = super::attend(&q, &k, &v, &args).unwrap();
    let grads = out.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    let largest = grads.get(bias.as_tensor()).unwrap().abs().unwrap().max_all().unwrap();
    assert!(largest.to_scalar::<f32>().unwrap() > 0.0);
}

/// Near and far keys, joined by their sums, are all keys; in the gradients too, those of the sums included.
#[test]
fn parts_join_into_the_whole() {
    let masks = |kind: usize| match kind {
        0 => vec![Mask::causal().with_window(Some(9)), Mask::causal().with_beyond(Some(9))],
        _ => vec![
            Mask::causal().with_chunk(Some(13)),
            Mask::causal().with_previous_chunk(13),
            Mask::causal().with_earlier_chunks(13),
        ],
    };
    for (kind, bias, softcap) in
        [(0, BiasKind::Keys, None), (1, BiasKind::Linear, Some(8.0)), (1, BiasKind::None, None)]
    {
        let case = Case { b: 2, bias, softcap, padding: Some((3, 5)), ..Case::plain(2, 2, 60, 24) };
        let joined: Kernel = &|q, k, v, args| {
            let parts = masks(kind)
                .into_iter()
                .map(|mask| attend_lse(q, k, v, &args.clone().with_mask(mask.with_keys(args.mask.keys.clone()))));
            merge(&parts.collect::<Result<Vec<_>>>()?).map(|(out, _)| out)
        };
        let ([q, k, v], args) = (case.tensors().unwrap(), case.args().unwrap());
        let (ours, theirs) = (joined(&q, &k, &v, &args).unwrap(), reference::attend(&q, &k, &v, &args).unwrap());
        let off = difference(&ours, &theirs).unwrap();
        assert!(off < 2e-5, "off by {off:e} in {case:?}");
        case.check_gradients("parts", &case.gradients(&Device::Cpu, joined).unwrap()).unwrap();
    }
}

/// A way to compute attention and its log-sum-exp.
type WithSums = fn(&Tensor, &Tensor, &Tensor, &AttendArgs) -> Result<(Tensor, Tensor)>;

/// A log-sum-exp that is used for something else than joining has its own gradient.
#[test]
fn the_gradient_of_the_sums_agrees_with_the_reference() {
    for (bias, sinks) in [(BiasKind::None, false), (BiasKind::Keys, true), (BiasKind::Relative, true)] {
        let case = Case { bias, sinks, ..Case::plain(2, 2, 40, 16) };
        let weight = &noise(5, 1.0, &[1, 4, 40]).unwrap();
        let with = |call: WithSums, with_out: bool| {
            let kernel = move |q: &Tensor, k: &Tensor, v: &Tensor, args: &AttendArgs| {
                let (out, lse) = call(q, k, v, args)?;
                let sums = (lse * weight)?.unsqueeze(3)?;
                if with_out { out.broadcast_add(&sums) } else { (out * 1e-3)?.broadcast_add(&sums) }
            };
            case.gradients(&Device::Cpu, &kernel)
        };
        for with_out in [true, false] {
            let (ours, theirs) = (with(attend_lse, with_out), with(reference::attend_lse, with_out));
            for (i, (ours, theirs)) in ours.unwrap().iter().zip(&theirs.unwrap()).enumerate() {
                let off = difference(ours, theirs).unwrap();
                let both_nothing = [ours, theirs]
                    .iter()
                    .all(|x| x.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap() < 1e-5);
                assert!(off < 1e-4 || both_nothing, "gradient {i} off by {off:e} in {case:?}, {with_out}");
            }
        }
    }
}

/// Slopes, sinks and other inputs of a bias may be trained while nothing else is.
#[test]
fn what_a_bias_is_made_of_has_a_gradient_of_its_own() {
    for bias in [BiasKind::Linear, BiasKind::Keys, BiasKind::Bank(true), BiasKind::Curve] {
        let case = Case { bias, sinks: true, ..Case::plain(2, 2, 30, 8) };
        let ([q, k, v], args) = (case.tensors().unwrap(), case.args().unwrap());
        for which in 0..args.scores.tensors().len() {
            let run = |fused: bool| {
                let (mut args, at) = (args.clone(), std::cell::Cell::new(0));
                let vars = RefCell::new(None);
                let pick = |x: &Tensor| {
                    if at.replace(at.get() + 1) != which {
                        return Ok(x.clone());
                    }
                    let var = candle_core::Var::from_tensor(x)?;
                    *vars.borrow_mut() = Some(var.clone());
                    Ok(var.as_tensor().clone())
                };
                args.scores.bias = args.scores.bias.map(pick).unwrap();
                args.scores.sinks = args.scores.sinks.as_ref().map(pick).transpose().unwrap();
                let out = if fused { super::attend(&q, &k, &v, &args) } else { reference::attend(&q, &k, &v, &args) };
                let grads = out.unwrap().sqr().unwrap().sum_all().unwrap().backward().unwrap();
                let var = vars.into_inner().expect("one of them");
                grads.get(var.as_tensor()).expect("a gradient").clone()
            };
            let off = difference(&run(true), &run(false)).unwrap();
            assert!(off < 1e-4, "tensor {which} of {bias:?} off by {off:e}");
        }
    }
}
