//! Refuses results that are not finite numbers, before anything is chosen from them or written down.
//!
//! Weights that hold a NaN, a scaling that overflows, or a dtype too narrow for the activations give NaN, and what is
//! computed from NaN can look like a result: the largest of several NaNs is token 0, so generated text would merely be
//! wrong.

use candle_core::{CpuStorage, DType, Result, Storage, Tensor, bail};

/// Refuses `values` if one of them is NaN or infinite; `what` says what they are.
///
/// # Errors
/// One of them is NaN or infinite.
pub fn check_finite(values: &Tensor, what: &str) -> Result<()> {
    match first_not_finite(values)? {
        None => Ok(()),
        Some(value) => bail!(
            "{what} contain {value}: the weights are not finite, a scaling overflows, or the dtype is too narrow \
             for the model"
        ),
    }
}

/// Any value that is not finite.
fn first_not_finite(values: &Tensor) -> Result<Option<f32>> {
    let (storage, layout) = values.storage_and_layout();
    if let (Storage::Cpu(CpuStorage::F32(all)), Some((start, end))) = (&*storage, layout.contiguous_offsets()) {
        return Ok(all[start..end].iter().copied().find(|value| !value.is_finite()));
    }
    drop(storage);
    // On a device one number comes back rather than all: zero times what is not finite is NaN.
    let sum = values.to_dtype(DType::F32)?.affine(0.0, 0.0)?.sum_all()?.to_scalar::<f32>()?;
    Ok(sum.is_nan().then_some(sum))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn one_value_among_many_is_enough() -> Result<()> {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut all = vec![1f32; 3000];
            all[2999] = value;
            let values = Tensor::from_vec(all, (3, 1000), &Device::Cpu)?;
            for view in [values.clone(), values.t()?, values.to_dtype(DType::BF16)?, values.narrow(0, 2, 1)?] {
                let error = check_finite(&view, "the logits").unwrap_err().to_string();
                assert!(error.starts_with("the logits contain "), "{error}");
            }
            check_finite(&values.narrow(0, 0, 2)?, "the logits")?;
        }
        check_finite(&Tensor::new(&[f32::MAX, f32::MIN, 0.0], &Device::Cpu)?, "the logits")
    }
}
