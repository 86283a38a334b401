//! What every attention kernel has to satisfy: the same result as the reference, whatever the call.
//!
//! One runner for all kernels: [`Case`] describes a call small enough to shrink and print, [`Case::check`] compares.

use super::{
    AttendArgs, Curve, KernelOptions, KernelPath, KeyNorms, Scores, attend_stored, attend_stored_lse, attend_with,
    backends, reference,
};
use crate::{CacheType, Mask, ScoreBias, Stored};
use candle_core::{DType, Device, Result, Tensor};
use proptest::prelude::*;
use std::{ops::Range, sync::Arc};

/// A form of bias.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum BiasKind {
    None,
    Linear,
    Relative,
    Keys,
    /// One bank for all heads if true.
    Bank(bool),
    Curve,
    /// Of shape (b, h, tq, tk) with the dimensions in these bits broadcast.
    Dense(u8),
}

/// A mask of far keys.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Far {
    No,
    Beyond(usize),
    First(usize, usize),
    PreviousChunk(usize),
    EarlierChunks(usize),
    Documents(usize),
}

/// One call.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) dtype: DType,
    pub(crate) b: usize,
    pub(crate) h_kv: usize,
    pub(crate) group: usize,
    pub(crate) tq: usize,
    pub(crate) tk: usize,
    pub(crate) d: usize,
    pub(crate) dv: usize,
    pub(crate) q_start: usize,
    pub(crate) k_start: usize,
    pub(crate) causal: bool,
    pub(crate) window: Option<usize>,
    pub(crate) chunk: Option<usize>,
    pub(crate) far: Far,
    pub(crate) sinks: bool,
    pub(crate) padding: Option<(usize, usize)>,
    pub(crate) bias: BiasKind,
    pub(crate) softcap: Option<f64>,
    pub(crate) transposed: bool,
    pub(crate) seed: u64,
}

/// Numbers in -1..1 times `size` that depend on the seed alone.
pub(crate) fn noise(seed: u64, size: f32, shape: &[usize]) -> Result<Tensor> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let numbers = (0..shape.iter().product::<usize>()).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * size
    });
    Tensor::from_iter(numbers, &Device::Cpu)?.reshape(shape)
}

impl Case {
    /// A causal call in f32 and nothing special about it.
    pub(crate) fn plain(h_kv: usize, group: usize, t: usize, d: usize) -> Self {
        Self {
            dtype: DType::F32,
            b: 1,
            h_kv,
            group,
            tq: t,
            tk: t,
            d,
            dv: d,
            q_start: 0,
            k_start: 0,
            causal: true,
            window: None,
            chunk: None,
            far: Far::No,
            sinks: false,
            padding: None,
            bias: BiasKind::None,
            softcap: None,
            transposed: false,
            seed: 1,
        }
    }

    fn tensor(&self, salt: u64, h: usize, t: usize, d: usize) -> Result<Tensor> {
        let seed = self.seed.wrapping_mul(7) + salt;
        let x = if self.transposed {
            // As a projection leaves it, and as a narrowed cache does.
            noise(seed, 2.0, &[self.b, t + 3, h, d])?.transpose(1, 2)?.narrow(2, 1, t)?
        } else {
            noise(seed, 2.0, &[self.b, h, t, d])?
        };
        if self.dtype == DType::F32 { Ok(x) } else { x.to_dtype(self.dtype) }
    }

    /// q, k and v.
    pub(crate) fn tensors(&self) -> Result<[Tensor; 3]> {
        Ok([
            self.tensor(1, self.h_kv * self.group, self.tq, self.d)?,
            self.tensor(2, self.h_kv, self.tk, self.d)?,
            self.tensor(3, self.h_kv, self.tk, self.dv)?,
        ])
    }

    /// The rest of the call.
    pub(crate) fn args(&self) -> Result<AttendArgs> {
        let h = self.h_kv * self.group;
        let slots = self.k_start + self.tk;
        let ranges: Option<Arc<[Range<usize>]>> = self.padding.map(|(first, last)| {
            (0..self.b).map(|b| (first * (b + 1) % slots)..slots.saturating_sub(last * b % slots)).collect()
        });
        let base = if self.causal { Mask::causal() } else { Mask::bidirectional() };
        let mask = base.with_window(self.window).with_chunk(self.chunk).with_keys(ranges);
        let starts = |n: usize| (0..self.b).map(|b| (b % n..slots).step_by(n + b).collect()).collect();
        let mask = match self.far {
            Far::No => mask,
            Far::Beyond(n) => mask.with_beyond(Some(n)),
            Far::First(n, beyond) => mask.with_first(Some(n)).with_beyond(Some(beyond)),
            Far::PreviousChunk(n) => mask.with_previous_chunk(n),
            Far::EarlierChunks(n) => mask.with_earlier_chunks(n),
            Far::Documents(n) => mask.with_documents(Some(starts(n))),
        };
        let (seed, b, tq, tk) = (self.seed, self.b, self.tq, self.tk);
        let bias = match self.bias {
            BiasKind::None => ScoreBias::None,
            BiasKind::Linear => {
                let slopes: Vec<_> = (0..h).map(|i| (-8.0 * (i + 1) as f32 / h as f32).exp2()).collect();
                ScoreBias::Linear { slopes: Tensor::new(slopes, &Device::Cpu)? }
            }
            BiasKind::Relative => {
                let first = self.k_start as i64 - (self.q_start + self.tq) as i64 - 1;
                ScoreBias::Relative { table: noise(self.seed + 9, 3.0, &[h, self.tq + self.tk + 5])?, first }
            }
            BiasKind::Keys => ScoreBias::Keys {
                queries: noise(seed + 3, 20.0, &[b, h, tq])?,
                keys: noise(seed + 4, 20.0, &[b, h, tk])?,
            },
            BiasKind::Bank(shared) => {
                // Sometimes shorter than the distances, so that both ends are taken.
                let (r, n) = (1 + seed as usize % 4, 1 + (seed as usize * 7) % (tq + tk + 40));
                let first = -(self.q_start as i64 + tq as i64 - self.k_start as i64) + seed as i64 % 11 - 5;
                let rows = noise(seed + 5, 1.0, &[b, h, tq, r])?;
                ScoreBias::RowBank { rows, bank: noise(seed + 6, 1.0, &[if shared { 1 } else { h }, r, n])?, first }
            }
            BiasKind::Curve => ScoreBias::Curve(self.curve(h)?),
            BiasKind::Dense(bits) => {
                let dims = [self.b, h, self.tq, self.tk];
                let dims: Vec<_> = (0..4).map(|i| if bits >> i & 1 == 1 { 1 } else { dims[i] }).collect();
                ScoreBias::Dense(noise(self.seed + 9, 3.0, &dims)?)
            }
        };
        let scale = (self.d as f64).powf(-0.5);
        let sinks = if self.sinks { Some(noise(seed + 10, 4.0, &[h])?) } else { None };
        let scores = Scores::new(scale).with_softcap(self.softcap).with_bias(bias).with_sinks(sinks);
        Ok(AttendArgs::new(scores).with_mask(mask).with_slots(self.q_start, self.k_start))
    }

    /// A curve without a bend on a place that occurs: f32 could not tell on which side of the bend it lies, and the derivative
    /// there is that of either side.
    fn curve(&self, h: usize) -> Result<Curve> {
        let (seed, tq) = (self.seed, self.tq);
        let n = (self.q_start + tq).saturating_sub(self.k_start) + 3;
        let distances: Vec<f32> = (0..n).map(|i| (0.4 * i as f32 + 1.0).ln()).collect();
        let rows = (noise(seed + 5, 0.3, &[if seed % 2 == 0 { 1 } else { self.b }, tq])? + 0.4)?;
        let places = rows.flatten_all()?.to_vec1::<f32>()?;
        let occurs = |near: &dyn Fn(f32) -> bool| places.iter().any(|row| distances.iter().any(|d| near(row * d)));
        for salt in (0..).map(|i| seed + 1000 * i) {
            let (weight, bias) = (noise(salt + 6, 1.0, &[9])?, noise(salt + 7, 1.0, &[9])?);
            let units = weight.to_vec1::<f32>()?.into_iter().zip(bias.to_vec1::<f32>()?);
            // Some roundings of numbers that are as large as the bias where the two cancel.
            let bends = |(w, b): (f32, f32)| occurs(&|x| (w * x + b).abs() <= 5e-7 * b.abs());
            if !units.into_iter().any(bends) {
                return Ok(Curve {
                    distances: Tensor::new(distances, &Device::Cpu)?,
                    rows,
                    hidden_weight: weight,
                    hidden_bias: bias,
                    out_weight: noise(seed + 8, 1.0, &[h, 9])?,
                    out_bias: noise(seed + 9, 1.0, &[h])?,
                });
            }
        }
        unreachable!("there is always another one")
    }

    /// Relative to the largest value.
    pub(crate) fn tolerance(&self) -> f32 {
        if self.dtype == DType::F32 { 2e-5 } else { 2e-2 }
    }

    /// Checks one path against the reference.
    pub(crate) fn check(&self, path: KernelPath) -> Result<()> {
        let ([q, k, v], args) = (self.tensors()?, self.args()?);
        let options = KernelOptions { path: Some(path), key_norms: None };
        let ours = attend_with(&q, &k, &v, &args, &options)?;
        let (with_sums, sums) = backends::run(&q, [&(&k).into(), &(&v).into()], &args, &options, true)?;
        assert_eq!(difference(&with_sums, &ours)?, 0.0, "{path}: another result with sums in {self:?}");
        let (_, wanted) = reference::attend_lse(&q, &k, &v, &args)?;
        let largest_sum = self.check_sums(&sums.expect("asked for"), &wanted, path)?;
        assert_eq!((ours.dtype(), ours.dims()), (self.dtype, &[self.b, self.h_kv * self.group, self.tq, self.dv][..]));
        let theirs = reference::attend(&q, &k, &v, &args)?;
        let difference = difference(&ours, &theirs)?;
        let tolerance = self.tolerance() + rounding(largest_sum);
        assert!(difference <= tolerance, "{path}: off by {difference:e}, not {tolerance:e}, in {self:?}");
        Ok(())
    }
}

/// What f32 leaves open of a weight `exp(score - sum)` whose score and sum are as large as this, on either side: a unit in the
/// last place of each. A bias over thousands of tokens makes scores of a thousand, whose unit is 6e-5.
fn rounding(sum: f32) -> f32 {
    2.0 * f32::EPSILON * sum
}

impl Case {
    /// Returns the largest finite size of a sum.
    fn check_sums(&self, ours: &Tensor, theirs: &Tensor, path: KernelPath) -> Result<f32> {
        assert_eq!((ours.dtype(), ours.dims()), (theirs.dtype(), theirs.dims()));
        let flat = |x: &Tensor| x.flatten_all()?.to_vec1::<f32>();
        let mut largest = 0f32;
        for (ours, theirs) in flat(ours)?.into_iter().zip(flat(theirs)?) {
            largest = largest.max(if theirs.is_finite() { theirs.abs() } else { 0.0 });
            let close = (ours - theirs).abs() <= self.tolerance() * theirs.abs().max(1.0);
            assert!(close || ours == theirs, "{path}: a sum of {ours} instead of {theirs} in {self:?}");
        }
        Ok(largest)
    }
}

/// The largest difference, relative to the largest value of `b`; infinite where anything is NaN.
pub(crate) fn difference(a: &Tensor, b: &Tensor) -> Result<f32> {
    let flat = |x: &Tensor| x.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
    let (a, b) = (flat(a)?, flat(b)?);
    assert_eq!(a.len(), b.len());
    let largest = b.iter().fold(1e-3f32, |max, x| max.max(x.abs()));
    let off = a.iter().zip(&b).map(|(a, b)| if (a - b).is_nan() { f32::INFINITY } else { (a - b).abs() });
    Ok(off.fold(0.0, f32::max) / largest)
}

prop_compose! {
    /// Any call: all options together.
    pub(crate) fn any_case()(
        dtype in prop_oneof![3 => Just(DType::F32), 2 => Just(DType::BF16), 1 => Just(DType::F16)],
        (b, h_kv, group) in (1usize..3, 1usize..4, 1usize..5),
        (tq, more) in prop_oneof![(1usize..9, 0usize..700), (1usize..130, 0usize..300), (1usize..9, 1500usize..2600)],
        d in prop_oneof![
            Just(4usize), Just(8), Just(16), Just(20), Just(64), Just(72), Just(96), Just(128), Just(256), 1usize..40
        ],
        other_dv in proptest::option::weighted(0.3, 1usize..80),
        (gap, k_start) in (0usize..20, prop_oneof![Just(0usize), 1usize..90]),
        causal in proptest::bool::weighted(0.7),
        window in proptest::option::weighted(0.3, 1usize..300),
        chunk in proptest::option::weighted(0.2, 1usize..200),
        padding in proptest::option::weighted(0.3, (0usize..40, 0usize..40)),
        bias in prop_oneof![
            Just(BiasKind::None), Just(BiasKind::Linear), Just(BiasKind::Relative), Just(BiasKind::Keys),
            any::<bool>().prop_map(BiasKind::Bank), Just(BiasKind::Curve), (0u8..16).prop_map(BiasKind::Dense)
        ],
        far in prop_oneof![
            6 => Just(Far::No), 1 => (0usize..200).prop_map(Far::Beyond), 1 => (1usize..200).prop_map(Far::PreviousChunk),
            1 => (1usize..200).prop_map(Far::EarlierChunks), 1 => (1usize..90).prop_map(Far::Documents),
            1 => (1usize..9, 0usize..200).prop_map(|(n, beyond)| Far::First(n, beyond)),
        ],
        sinks in proptest::bool::weighted(0.3),
        softcap in proptest::option::weighted(0.3, 1f64..50.0),
        transposed in any::<bool>(),
        seed in 1u64..1_000_000,
    ) -> Case {
        let tk = tq + more;
        // Mostly at the end of the keys; sometimes before, so that the first queries see nothing.
        let q_start = (k_start + tk - tq).saturating_sub(if gap < 10 { 0 } else { gap * 5 });
        let dv = other_dv.unwrap_or(d);
        Case {
            dtype, b, h_kv, group, tq, tk, d, dv, q_start, k_start, causal, window, chunk, far, sinks, padding, bias,
            softcap, transposed, seed,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_path_agrees_with_the_reference(case in any_case()) {
        for path in paths(case.dtype) {
            case.check(path).unwrap();
        }
    }
}

fn any_type() -> impl Strategy<Value = CacheType> {
    (0..CacheType::ALL.len()).prop_map(|i| CacheType::ALL[i])
}

/// Three more tokens than there are in the call, and the call's own in the middle: a cache is a view of a buffer.
fn in_a_buffer(xs: &Tensor, kind: CacheType) -> Result<Stored> {
    let (b, h, t, d) = xs.dims4()?;
    let wrong = |n: usize| Tensor::full(1e3f32, (b, h, n, d), &Device::Cpu)?.to_dtype(xs.dtype());
    Stored::new(&Tensor::cat(&[&wrong(1)?, &xs.contiguous()?, &wrong(2)?], 2)?, kind)?.tokens(1..1 + t)
}

impl Case {
    /// The same with heads that are whole blocks.
    fn in_blocks(self) -> Self {
        let whole = |width: usize| width.min(200).next_multiple_of(32);
        Self { d: whole(self.d), dv: whole(self.dv), ..self }
    }

    /// Checks one path over keys and values as they are stored against the reference over their numbers.
    fn check_stored(&self, path: KernelPath, k_type: CacheType, v_type: CacheType) -> Result<()> {
        let ([q, k, v], args) = (self.tensors()?, self.args()?);
        let (k, v) = (in_a_buffer(&k, k_type)?, in_a_buffer(&v, v_type)?);
        let numbers = [&k, &v].map(|x| x.to_dtype(DType::F32));
        let [k_numbers, v_numbers] = numbers;
        let (k_numbers, v_numbers) = (k_numbers?, v_numbers?);
        let (theirs, wanted) = reference::attend_lse(&q.to_dtype(DType::F32)?, &k_numbers, &v_numbers, &args)?;
        let norms = self.seed.is_multiple_of(2).then(|| KeyNorms::new(&k_numbers)).transpose()?.map(Arc::new);
        let options = KernelOptions { path: Some(path), key_norms: norms };
        let ours = attend_stored(&q, &k, &v, &args, &options)?;
        assert_eq!((ours.dtype(), ours.dims()), (self.dtype, theirs.dims()));
        let largest_sum = wanted
            .flatten_all()?
            .to_vec1::<f32>()?
            .into_iter()
            .filter(|x| x.is_finite())
            .fold(0f32, |a, x| a.max(x.abs()));
        let (off, most) = (difference(&ours, &theirs)?, self.tolerance() + rounding(largest_sum));
        assert!(off <= most, "{path}, {k_type} and {v_type}: off by {off:e}, not {most:e}, in {self:?}");
        let (again, sums) = attend_stored_lse(&q, &k, &v, &args)?;
        if path == KernelPath::choose(None)? && options.key_norms.is_none() {
            assert_eq!(difference(&again, &ours)?, 0.0, "another result with sums in {self:?}");
        }
        self.check_sums(&sums, &wanted, path)?;
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn stored_keys_are_read_as_the_reference_reads_their_numbers(
        case in any_case().prop_map(Case::in_blocks), k_type in any_type(), v_type in any_type()
    ) {
        for path in paths(case.dtype) {
            case.check_stored(path, k_type, v_type).unwrap();
        }
    }
}

/// What decoding and a prompt do, for every pair of types and every dtype.
#[test]
fn every_pair_of_types_agrees() {
    for (k_type, v_type) in CacheType::ALL.into_iter().flat_map(|k| CacheType::ALL.map(|v| (k, v))) {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            for (tq, tk) in [(1, 700), (6, 131), (70, 300)] {
                let case = Case { dtype, tq, tk, q_start: tk - tq, ..Case::plain(2, 3, tk, 64) };
                for path in paths(dtype) {
                    case.check_stored(path, k_type, v_type).unwrap();
                }
            }
        }
    }
}

/// A gradient flows through numbers that are stored otherwise, in the dtype of what it is of.
#[test]
fn gradients_flow_through_plain_numbers_of_another_type() -> Result<()> {
    let case = Case::plain(1, 2, 20, 16);
    let ([q, k, v], args) = (case.tensors()?, case.args()?);
    let k = candle_core::Var::from_tensor(&k)?;
    let gradient = |kind| -> Result<Tensor> {
        let out = attend_stored(&q, &Stored::new(&k, kind)?, &Stored::from(&v), &args, &KernelOptions::default())?;
        let gradients = out.sqr()?.sum_all()?.backward()?;
        Ok(gradients.get(&k).expect("a gradient").clone())
    };
    let (plain, half) = (gradient(CacheType::F32)?, gradient(CacheType::F16)?);
    assert_eq!(half.dtype(), DType::F32);
    let off = difference(&half, &plain)?;
    assert!(off > 0.0 && off < 5e-3, "{off}");
    Ok(())
}

/// The paths that differ for a dtype.
pub(super) fn paths(dtype: DType) -> impl Iterator<Item = KernelPath> {
    let for_bf16 = |path: &KernelPath| matches!(path, KernelPath::Amx | KernelPath::Avx512Bf16);
    KernelPath::available().filter(move |path| dtype == DType::BF16 || !for_bf16(path))
}

#[test]
fn unusual_head_dims_agree() {
    for (d, dv) in [(4, 4), (576, 512), (192, 128), (256, 256), (33, 17)] {
        for (dtype, path) in [DType::F32, DType::BF16].into_iter().flat_map(|d| paths(d).map(move |path| (d, path))) {
            Case { dtype, dv, ..Case::plain(1, 2, 70, d) }.check(path).unwrap();
            Case { dtype, tq: 2, q_start: 68, dv, ..Case::plain(2, 2, 70, d) }.check(path).unwrap();
        }
    }
}

/// Scores that rise by dozens along the keys: what a kernel took them relative to at first is far too small later.
#[test]
fn rising_scores_agree() {
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let case = Case { dtype, ..Case::plain(1, 3, 700, 64) };
        let ([q, k, v], args) = (case.tensors().unwrap(), case.args().unwrap());
        let ramp = Tensor::from_iter((0..700).map(|t| 1.0 + t as f32 / 70.0), &Device::Cpu).unwrap();
        let ramp = ramp.reshape((1, 1, 700, 1)).unwrap().to_dtype(dtype).unwrap();
        let k = k.broadcast_mul(&ramp).unwrap();
        let theirs = reference::attend(&q, &k, &v, &args).unwrap();
        for path in paths(dtype) {
            let ours = attend_with(&q, &k, &v, &args, &KernelOptions { path: Some(path), key_norms: None }).unwrap();
            let off = difference(&ours, &theirs).unwrap();
            assert!(off <= case.tolerance(), "{path}, {dtype:?}: off by {off:e}");
        }
    }
}

/// Queries that stand before every key: what a bias by distance has for keys after the query has to reach to the last.
#[test]
fn queries_before_all_keys_agree() {
    for bias in [BiasKind::Linear, BiasKind::Relative, BiasKind::Bank(false), BiasKind::Curve] {
        for (k_start, seed) in [(64, 624_069), (90, 12)] {
            let base =
                Case { bias, causal: false, q_start: 3, k_start, seed, tq: 5, tk: 150, ..Case::plain(2, 2, 150, 20) };
            for case in [base.clone(), Case { tq: 60, ..base }] {
                for path in paths(case.dtype) {
                    case.check(path).unwrap();
                }
            }
        }
    }
}

#[test]
fn the_result_is_laid_out_for_the_layer() {
    let case = Case::plain(1, 3, 40, 16);
    let ([q, k, v], args) = (case.tensors().unwrap(), case.args().unwrap());
    let out = attend_with(&q, &k, &v, &args, &KernelOptions::default()).unwrap();
    assert!(out.transpose(1, 2).unwrap().is_contiguous());
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for case in [Case::plain(2, 3, 300, 32), Case { tq: 1, q_start: 2999, ..Case::plain(2, 3, 3000, 32) }] {
        let ([q, k, v], args) = (case.tensors().unwrap(), case.args().unwrap());
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let out = pool.install(|| attend_with(&q, &k, &v, &args, &KernelOptions::default())).unwrap();
            out.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let one = run(1);
        assert!((2..5).all(|threads| run(threads) == one));
    }
}

/// Keys that would be missed if far ones were dropped by distance alone: a far key with a huge norm in the direction
/// of the queries outweighs every near one.
#[test]
fn alibi_never_drops_a_key_that_matters() {
    for (dtype, tq, tk) in [(DType::F32, 400, 1500), (DType::F32, 1, 1500), (DType::BF16, 400, 1500)] {
        for far in [3usize, 200, 700] {
            let case = Case { dtype, tq, tk, q_start: tk - tq, bias: BiasKind::Linear, ..Case::plain(1, 8, tk, 16) };
            let [q, k, v] = case.tensors().unwrap();
            let q = (q.abs().unwrap() + 0.5).unwrap();
            let spike = Tensor::full(12f32, (1, 1, 1, 16), &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
            let parts = [k.narrow(2, 0, far).unwrap(), spike, k.narrow(2, far + 1, tk - far - 1).unwrap()];
            let k = Tensor::cat(&parts, 2).unwrap();
            let args = case.args().unwrap();
            let theirs = reference::attend(&q, &k, &v, &args).unwrap();
            for path in paths(dtype) {
                for key_norms in [None, Some(Arc::new(KeyNorms::new(&k).unwrap()))] {
                    let options = KernelOptions { path: Some(path), key_norms };
                    let ours = attend_with(&q, &k, &v, &args, &options).unwrap();
                    let off = difference(&ours, &theirs).unwrap();
                    assert!(off < case.tolerance(), "{path}, {tq} queries, far key {far}: off by {off:e}");
                }
            }
        }
    }
}

/// The proof that far keys are left out at all: values there may be anything, NaN included.
#[test]
fn alibi_leaves_far_keys_unread() {
    for (dtype, tq) in [(DType::F32, 1usize), (DType::F32, 300), (DType::BF16, 300)] {
        let tk = 4096;
        let case = Case { dtype, tq, tk, q_start: tk - tq, bias: BiasKind::Linear, ..Case::plain(1, 1, tk, 64) };
        let [q, k, v] = case.tensors().unwrap();
        let mut args = case.args().unwrap();
        args.scores.bias = ScoreBias::Linear { slopes: Tensor::new(&[0.25f32], &Device::Cpu).unwrap() };
        let poison = Tensor::full(f32::NAN, (1, 1, 2048, 64), &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        let v = Tensor::cat(&[poison, v.narrow(2, 2048, 2048).unwrap()], 2).unwrap();
        let options = KernelOptions { path: None, key_norms: Some(Arc::new(KeyNorms::new(&k).unwrap())) };
        let out = attend_with(&q, &k, &v, &args, &options).unwrap();
        let out = out.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(out.iter().all(|x| x.is_finite()), "{tq} queries");
    }
}
