//! Random numbers for tests that are the same in every run, so that a failure can be repeated.

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::VarMap;
use std::cell::Cell;

thread_local! {
    /// Every test has a thread of its own, and so its own sequence.
    static STATE: Cell<u64> = const { Cell::new(0x9e37_79b9_7f4a_7c15) };
}

/// A number in 0..1, never 0.
fn uniform() -> f64 {
    STATE.with(|state| {
        let mut x = state.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        state.set(x);
        ((x >> 12) as f64 + 0.5) / (1u64 << 52) as f64
    })
}

/// Normally distributed f32 numbers on the CPU (Box and Muller), the next ones of this test.
pub(crate) fn randn(mean: f64, std: f64, shape: impl Into<Shape>) -> Result<Tensor> {
    let shape = shape.into();
    let numbers = (0..shape.elem_count()).map(|_| {
        let (length, angle) = ((-2.0 * uniform().ln()).sqrt(), std::f64::consts::TAU * uniform());
        (mean + std * length * angle.cos()) as f32
    });
    Tensor::from_iter(numbers, &Device::Cpu)?.reshape(shape)
}

/// Puts such numbers in place of a fresh layer's random ones, of about their size: matrices and biases, and not norms, which
/// begin as ones.
pub(crate) fn settle(vars: &VarMap) -> Result<()> {
    let data = vars.data().lock().expect("no test holds it");
    let mut named: Vec<_> = data.iter().collect();
    named.sort_by_key(|(name, _)| name.as_str());
    for (_, var) in named {
        let flat = var.as_tensor().flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        let std = match var.dims() {
            [_, inputs] => (*inputs as f64).powf(-0.5),
            _ => 0.1,
        };
        if flat.iter().any(|x| *x != flat[0]) {
            var.set(&randn(0.0, std, var.shape())?.to_dtype(var.dtype())?)?;
        }
    }
    Ok(())
}
