//! The same results on the device that this machine has: CUDA or Metal if the build and the machine have one, otherwise
//! the CPU. `ATTN_TEST_DEVICE` (`cpu`, `cuda`, `cuda:N` or `metal`) asks for one; if the machine does not
//! have it, the tests fail.
//!
//! ```text
//! cargo test --release -p integration --test devices --features cuda
//! ```

mod common;

use attn_core::{AttendArgs, Mask, ScoreBias, attend, attention::reference};
use attn_models::{Model, Options, RopeLength, Session};
use candle_core::{DType, Device, Tensor};
use common::{difference, ids_of, load};
use loader::{Checkpoint, LoadOptions};
use std::ops::Range;

fn device() -> Device {
    match std::env::var("ATTN_TEST_DEVICE").as_deref() {
        Ok("cpu") => Device::Cpu,
        Ok("cuda") => Device::new_cuda(0).expect("a CUDA device"),
        Ok("metal") => Device::new_metal(0).expect("a Metal device"),
        Ok(name) => match name.strip_prefix("cuda:").map(str::parse) {
            Some(Ok(index)) => Device::new_cuda(index).expect("this CUDA device"),
            _ => panic!("ATTN_TEST_DEVICE is {name:?}, not cpu, cuda, cuda:N or metal"),
        },
        Err(_) if candle_core::utils::cuda_is_available() => Device::new_cuda(0).expect("a CUDA device"),
        Err(_) if candle_core::utils::metal_is_available() => Device::new_metal(0).expect("a Metal device"),
        Err(_) => Device::Cpu,
    }
}

/// A call of attention: the sizes of q `(b, h, tq, d)` and of k and v `(b, h_kv, tk, d)`, and its further arguments.
#[derive(Debug, Clone)]
struct Call {
    b: usize,
    h: usize,
    h_kv: usize,
    tq: usize,
    tk: usize,
    d: usize,
    args: AttendArgs,
}

impl Call {
    fn causal(h: usize, h_kv: usize, tq: usize, tk: usize, d: usize) -> Self {
        Self { b: 2, h, h_kv, tq, tk, d, args: AttendArgs::causal(d, tq, tk).unwrap() }
    }

    fn with(mut self, change: impl FnOnce(&mut AttendArgs)) -> Self {
        change(&mut self.args);
        self
    }

    /// A tensor `(b, h, t, d)` that depends only on the arguments. If `transposed`, it has the strides that a
    /// projection to `(b, t, h, d)` leaves.
    fn tensor(&self, seed: u32, h: usize, t: usize, transposed: bool) -> Tensor {
        let n = (self.b * h * t * self.d) as u32;
        let numbers = (0..n).map(|i| ((i.wrapping_mul(2_654_435_761) ^ seed.wrapping_mul(40_503)) >> 8) as f32);
        let numbers = numbers.map(|x| x / (1 << 22) as f32 - 2.0);
        let flat = Tensor::from_iter(numbers, &Device::Cpu).unwrap();
        match transposed {
            true => flat.reshape((self.b, t, h, self.d)).and_then(|x| x.transpose(1, 2)),
            false => flat.reshape((self.b, h, t, self.d)),
        }
        .unwrap()
    }

    fn args_on(&self, device: &Device) -> AttendArgs {
        let bias = self.args.scores.bias.to_device(device).unwrap();
        self.args.clone().with_bias(bias)
    }

    /// The device's result in the dtype against the CPU's reference in f32 on the same rounded numbers.
    fn check(&self, device: &Device, dtype: DType, transposed: bool) {
        let [q, k, v] = [(1, self.h, self.tq), (2, self.h_kv, self.tk), (3, self.h_kv, self.tk)]
            .map(|(seed, h, t)| self.tensor(seed, h, t, transposed).to_dtype(dtype).unwrap());
        let there = [&q, &k, &v].map(|x| x.to_device(device).unwrap());
        let out = attend(&there[0], &there[1], &there[2], &self.args_on(device)).unwrap();
        assert_eq!((out.dtype(), out.dims()), (dtype, &[self.b, self.h, self.tq, self.d][..]));
        let out = out.to_device(&Device::Cpu).and_then(|x| x.to_dtype(DType::F32)).unwrap();
        let [q, k, v] = [q, k, v].map(|x| x.to_dtype(DType::F32).unwrap());
        let expected = reference::attend(&q, &k, &v, &self.args).unwrap();
        let largest = expected.abs().and_then(|x| x.max_all()?.to_scalar::<f32>()).unwrap();
        let error = difference(&out, &expected) / largest;
        let limit = if dtype == DType::F32 { 1e-4 } else { 2e-2 };
        assert!(error <= limit, "{device:?} {dtype:?} transposed {transposed}: off by {error:e} in {self:?}");
    }
}

fn slopes(h: usize) -> ScoreBias {
    let slopes: Vec<f32> = (1..=h).map(|i| (-8.0 * i as f32 / h as f32).exp2()).collect();
    ScoreBias::Linear { slopes: Tensor::new(slopes, &Device::Cpu).unwrap() }
}

fn rows(ranges: &[Range<usize>]) -> Mask {
    Mask::causal().with_keys(Some(ranges.to_vec().into()))
}

#[test]
fn attention_is_the_reference_on_the_cpu() {
    let device = device();
    println!("on {device:?}");
    let noise = |dims: (usize, usize)| Tensor::randn(0f32, 1., dims, &Device::Cpu).unwrap();
    let mut calls = vec![
        Call::causal(4, 2, 64, 64, 64).with(|a| a.scores.bias = slopes(4)),
        Call::causal(4, 2, 1, 90, 64).with(|a| a.scores.bias = slopes(4)),
        Call::causal(4, 2, 70, 70, 64).with(|a| a.scores.softcap = Some(5.0)),
        Call::causal(4, 2, 1, 1100, 64).with(|a| a.scores.softcap = Some(5.0)),
        Call::causal(4, 2, 70, 70, 64).with(|a| (a.scores.bias, a.scores.softcap) = (slopes(4), Some(5.0))),
        Call::causal(4, 4, 100, 100, 64).with(|a| a.mask.window = Some(17)),
        Call::causal(4, 4, 40, 100, 64).with(|a| (a.mask.window, a.scores.bias) = (Some(17), slopes(4))),
        Call::causal(4, 4, 1, 100, 64).with(|a| a.mask.window = Some(17)),
        Call::causal(4, 4, 40, 40, 64).with(|a| a.mask = Mask::bidirectional()),
        Call::causal(4, 4, 40, 90, 64).with(|a| (a.mask, a.q_start) = (Mask::bidirectional(), 0)),
        Call::causal(4, 4, 40, 40, 64).with(|a| a.mask = Mask::bidirectional().with_window(Some(9))),
        Call::causal(4, 4, 40, 40, 64).with(|a| (a.mask, a.scores.bias) = (Mask::bidirectional(), slopes(4))),
        Call::causal(4, 4, 50, 50, 64).with(|a| a.mask = rows(&[7..50, 0..41])),
        Call::causal(4, 4, 1, 50, 64).with(|a| a.mask = rows(&[7..50, 0..50])),
        Call::causal(4, 4, 50, 50, 64).with(|a| a.mask = a.mask.clone().with_chunk(Some(16))),
        Call::causal(4, 4, 32, 64, 64).with(|a| a.q_start = 10),
        Call::causal(4, 4, 32, 64, 64).with(|a| (a.q_start, a.k_start) = (132, 100)),
        Call::causal(4, 4, 30, 40, 64)
            .with(|a| a.scores.bias = ScoreBias::Relative { table: noise((4, 100)), first: -50 }),
        Call::causal(4, 4, 30, 40, 64).with(|a| a.scores.bias = ScoreBias::Dense(noise((30, 40)))),
    ];
    for d in [8, 20, 32, 64, 72, 80, 96, 128, 160, 256] {
        for (tq, tk) in
            [(1, 5), (1, 77), (1, 1030), (5, 5), (16, 32), (31, 31), (33, 77), (64, 100), (100, 100), (130, 130)]
        {
            calls.push(Call::causal(4, 2, tq, tk, d));
        }
    }
    for call in &calls {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for transposed in [false, true] {
                call.check(&device, dtype, transposed);
            }
        }
    }
}

/// Gradients reach queries, keys, values and a relative bias on every device, in f32 and in bf16.
#[test]
fn gradients_are_not_lost() {
    let device = device();
    let table = Call::causal(4, 4, 50, 50, 8).tensor(9, 4, 50, false).flatten_all().unwrap().narrow(0, 0, 400).unwrap();
    let relative = ScoreBias::Relative { table: table.reshape((4, 100)).unwrap(), first: -50 };
    for (bias, dtype) in [
        (ScoreBias::None, DType::F32),
        (slopes(4), DType::F32),
        (relative.clone(), DType::F32),
        (ScoreBias::None, DType::BF16),
        (relative, DType::BF16),
    ] {
        let call = Call::causal(4, 2, 40, 40, 64).with(|a| a.scores.bias = bias.clone());
        let gradients = |device: &Device, dtype: DType| {
            let var = |x: &Tensor| candle_core::Var::from_tensor(&x.to_device(device).unwrap()).unwrap();
            let mut vars = [(1, 4), (2, 2), (3, 2)]
                .map(|(seed, h)| {
                    // The same rounded numbers for both.
                    let x = call.tensor(seed, h, 40, false).to_dtype(DType::BF16).and_then(|x| x.to_dtype(dtype));
                    var(&x.unwrap())
                })
                .to_vec();
            let mut args = call.args_on(device);
            if let ScoreBias::Relative { table, first } = &args.scores.bias {
                vars.push(var(table));
                args.scores.bias = ScoreBias::Relative { table: vars[3].as_tensor().clone(), first: *first };
            }
            let [q, k, v] = [&vars[0], &vars[1], &vars[2]].map(|x| x.as_tensor());
            let out = attend(q, k, v, &args).unwrap();
            let mut grads = out.sqr().and_then(|x| x.sum_all()?.backward()).unwrap();
            let gradient = |x: &candle_core::Var| grads.remove(x.as_tensor()).expect("a gradient");
            let here = |x: Tensor| x.to_device(&Device::Cpu).and_then(|x| x.to_dtype(DType::F32)).unwrap();
            vars.iter().map(gradient).map(here).collect::<Vec<_>>()
        };
        for (there, here) in gradients(&device, dtype).iter().zip(gradients(&Device::Cpu, DType::F32)) {
            let largest = here.abs().and_then(|x| x.max_all()?.to_scalar::<f32>()).unwrap();
            let limit = if dtype == DType::F32 { 1e-3 } else { 4e-2 };
            assert!(difference(there, &here) <= limit * largest, "{device:?} {dtype:?} {bias:?}");
        }
    }
}

fn model_on(name: &str, device: &Device, dtype: DType) -> Model {
    let options = LoadOptions { quiet: true, ..LoadOptions::default() };
    let checkpoint = Checkpoint::open(&common::root().join(name).to_string_lossy(), &options).unwrap();
    let options = Options { dtype, device: device.clone(), ..Options::default() };
    Model::load(&checkpoint.config, checkpoint.weights, &options).unwrap()
}

/// Golden models in one prefill and token by token: f32 as transformers, bf16 close to it.
#[test]
fn models_give_their_golden_logits() {
    let device = device();
    for name in ["llama", "llama-yarn", "mistral-window", "gemma2", "bloom", "gpt2", "deepseek-v3", "smollm3-nope"] {
        let golden = load(name).unwrap();
        let ids = ids_of(&golden, "input_ids").narrow(0, 0, 1).unwrap();
        let (there, t) = (ids.to_device(&device).unwrap(), ids.dim(1).unwrap());
        let expected = golden.model.logits(&ids, t).unwrap();
        let largest = expected.abs().and_then(|x| x.max_all()?.to_scalar::<f32>()).unwrap();
        for (dtype, limit) in [(DType::F32, 1e-3), (DType::BF16, 0.1 * largest)] {
            let model = model_on(name, &device, dtype);
            let whole = model.logits(&there, t).unwrap().to_device(&Device::Cpu).unwrap();
            let error = difference(&whole, &expected);
            assert!(error <= limit, "{name} {dtype:?} in one pass: off by {error}");
            let mut session = Session::new(&model, RopeLength::Declared(t), None).unwrap();
            session.feed(&there.narrow(1, 0, t - 3).unwrap()).unwrap();
            for i in t - 3..t {
                let logits = session.feed(&there.narrow(1, i, 1).unwrap()).unwrap().to_device(&Device::Cpu).unwrap();
                let error = difference(&logits, &expected.narrow(1, i, 1).unwrap().squeeze(1).unwrap());
                assert!(error <= limit, "{name} {dtype:?} at token {i}: off by {error}");
            }
        }
    }
}
