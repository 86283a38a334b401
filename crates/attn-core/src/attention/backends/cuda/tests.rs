//! Against the reference on the CPU, wherever there is a CUDA device.

use super::{Facts, Request, cuda_rule, plan};
use crate::ScoreBias;
use crate::attention::{AttendArgs, attend, laws, reference};
use candle_core::{DType, Device, Result, Tensor};
use laws::{BiasKind, Case, any_case};
use proptest::prelude::*;

/// The device, or `None` with a word about it on a machine without one.
fn device() -> Option<Device> {
    let device = candle_core::utils::cuda_is_available().then(|| Device::new_cuda(0).ok()).flatten();
    if device.is_none() {
        eprintln!("no CUDA device: nothing was checked");
    }
    device
}

/// The call on our kernels, or `None` if they don't take it.
fn fused(q: &Tensor, k: &Tensor, v: &Tensor, args: &AttendArgs) -> Result<Option<Tensor>> {
    let tracked = crate::attention::gradients::tracked([q, k, v], &args.scores);
    let request = Request { q, k, v, args, lse: false, tracked };
    let known = Facts::new(&request).is_some_and(|facts| cuda_rule::rule(&facts, args));
    let out = plan(&request)?.map(|compute| compute()).transpose()?;
    assert_eq!(out.is_some(), known, "{args:?}");
    Ok(out.map(|(out, _)| out))
}

/// The device's result against the CPU's reference.
fn check(case: &Case, device: &Device) -> Result<()> {
    let ([q, k, v], args) = (case.tensors()?, case.args()?);
    let there = [&q, &k, &v].map(|x| x.to_device(device));
    let [there_q, there_k, there_v] = there;
    let Some(ours) = fused(&there_q?, &there_k?, &there_v?, &args)? else { return Ok(()) };
    assert_eq!((ours.dtype(), ours.dims()), (case.dtype, &[case.b, case.h_kv * case.group, case.tq, case.dv][..]));
    let theirs = reference::attend(&q, &k, &v, &args)?;
    let off = laws::difference(&ours.to_device(&Device::Cpu)?, &theirs)?;
    assert!(off <= case.tolerance(), "off by {off:e} in {case:?}");
    Ok(())
}

/// The device's gradients against those of the CPU's reference.
fn check_gradients(case: &Case, device: &Device) -> Result<()> {
    let kernel = |q: &Tensor, k: &Tensor, v: &Tensor, args: &AttendArgs| {
        fused(q, k, v, args)?.map_or_else(|| attend(q, k, v, args), Ok)
    };
    case.check_gradients("CUDA", &case.gradients(device, &kernel)?)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_call_agrees_with_the_reference(case in any_case()) {
        if let Some(device) = device() {
            check(&case, &device).unwrap();
        }
    }

    #[test]
    fn gradients_of_any_call_agree_with_the_reference(case in any_case()) {
        if let Some(device) = device() {
            let tk = case.tk.min(600).max(case.tq);
            let q_start = case.q_start.min(case.k_start + tk - case.tq);
            check_gradients(&Case { tk, q_start, ..case }, &device).unwrap();
        }
    }
}

/// Lengths around the blocks of rows and keys, and caches long enough to be split.
#[test]
fn sizes_around_the_blocks_agree() {
    let Some(device) = device() else { return };
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for d in [8, 64, 80, 128, 192, 256] {
            for t in [1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 200] {
                check(&Case { dtype, b: 2, ..Case::plain(2, 3, t, d) }, &device).unwrap();
            }
            for (tq, tk) in [(1, 4000), (5, 4001), (6, 2047), (16, 2048), (70, 3000)] {
                for bias in [BiasKind::None, BiasKind::Linear, BiasKind::Relative, BiasKind::Dense(1)] {
                    let case = Case { dtype, tq, tk, q_start: tk - tq, bias, ..Case::plain(2, 3, tk, d) };
                    check(&Case { transposed: true, ..case.clone() }, &device).unwrap();
                    check(&Case { window: Some(1000), softcap: Some(20.0), ..case }, &device).unwrap();
                }
            }
        }
    }
}

/// Scores that rise by dozens along the keys.
#[test]
fn rising_scores_agree() {
    let Some(device) = device() else { return };
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for tq in [1, 700] {
            let case = Case { dtype, tq, q_start: 700 - tq, ..Case::plain(1, 3, 700, 64) };
            let ([q, k, v], args) = (case.tensors().unwrap(), case.args().unwrap());
            let ramp = Tensor::from_iter((0..700).map(|t| 1.0 + t as f32 / 70.0), &Device::Cpu).unwrap();
            let k = k.broadcast_mul(&ramp.reshape((1, 1, 700, 1)).unwrap().to_dtype(dtype).unwrap()).unwrap();
            let theirs = reference::attend(&q, &k, &v, &args).unwrap();
            let [q, k, v] = [q, k, v].map(|x| x.to_device(&device).unwrap());
            let ours = attend(&q, &k, &v, &args).unwrap().to_device(&Device::Cpu).unwrap();
            let off = laws::difference(&ours, &theirs).unwrap();
            assert!(off <= case.tolerance(), "{dtype:?}: off by {off:e}");
        }
    }
}

#[test]
fn the_result_is_laid_out_for_the_layer() {
    let Some(device) = device() else { return };
    let x = Tensor::zeros((2, 3, 40, 16), DType::F32, &device).unwrap();
    let out = attend(&x, &x, &x, &AttendArgs::causal(16, 40, 40).unwrap()).unwrap();
    assert!(out.transpose(1, 2).unwrap().is_contiguous());
}

/// Lengths around the blocks, keys few enough to have their rows split, and head dims that are computed in two passes.
#[test]
fn gradients_of_sizes_around_the_blocks_agree() {
    let Some(device) = device() else { return };
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for d in [8, 64, 80, 128, 192, 256] {
            for t in [1, 31, 32, 33, 63, 64, 65, 129, 200] {
                check_gradients(&Case { dtype, b: 2, ..Case::plain(2, 3, t, d) }, &device).unwrap();
            }
            for bias in [BiasKind::None, BiasKind::Linear, BiasKind::Relative, BiasKind::Dense(1)] {
                let case = Case { dtype, bias, transposed: true, ..Case::plain(1, 3, 700, d) };
                check_gradients(&case, &device).unwrap();
                check_gradients(&Case { window: Some(100), ..case }, &device).unwrap();
            }
        }
    }
}

/// The same numbers every time, bit for bit.
#[test]
fn gradients_do_not_change_from_run_to_run() {
    let Some(device) = device() else { return };
    let case = Case { dtype: DType::BF16, bias: BiasKind::Relative, ..Case::plain(1, 3, 900, 64) };
    let run = || {
        let bits = |x: Tensor| x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        case.gradients(&device, &attend).unwrap().into_iter().map(bits).collect::<Vec<_>>()
    };
    assert_eq!(run(), run());
}

/// A bias whose gradient the kernels don't know goes where there is one.
#[test]
fn the_gradient_of_slopes_is_the_references() {
    let Some(device) = device() else { return };
    let x = Tensor::ones((1, 2, 8, 16), DType::F32, &device).unwrap();
    let slopes = candle_core::Var::from_tensor(&Tensor::new(&[0.5f32, 0.25], &device).unwrap()).unwrap();
    let bias = ScoreBias::Linear { slopes: slopes.as_tensor().clone() };
    let args = AttendArgs::causal(16, 8, 8).unwrap().with_bias(bias);
    let weights = Tensor::arange(0f32, 256.0, &device).unwrap().reshape((1, 2, 8, 16)).unwrap();
    let out = attend(&x, &x, &weights, &args).unwrap();
    let grads = out.sum_all().unwrap().backward().unwrap();
    let largest = grads.get(slopes.as_tensor()).expect("a gradient").abs().unwrap().max_all().unwrap();
    assert!(largest.to_scalar::<f32>().unwrap() > 0.0);
}
