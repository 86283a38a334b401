//! Joins the results of attention over disjoint keys into what one call over all of them gives.

use candle_core::{D, DType, Result, Tensor, bail};

/// The result of attention over the keys of all `parts`, each what [`attend_lse`](super::attend_lse) returned for keys that
/// no other part has: output `(b, h, t, dv)` and log-sum-exp `(b, h, t)`. Exact up to rounding, and gradients flow through
/// it.
///
/// # Errors
/// No parts, or parts of different shapes.
pub fn merge(parts: &[(Tensor, Tensor)]) -> Result<(Tensor, Tensor)> {
    let Some((first, _)) = parts.first() else { bail!("merge: no parts") };
    if let [(out, lse)] = parts {
        return Ok((out.clone(), lse.clone()));
    }
    if let Some((out, lse)) =
        parts.iter().find(|(out, lse)| out.dims() != first.dims() || lse.dims() != &first.dims()[..3])
    {
        bail!("merge: a part of {:?} with sums {:?} beside one of {:?}", out.dims(), lse.dims(), first.dims())
    }
    plain(parts)
}

/// In Candle's ops, on any device.
fn plain(parts: &[(Tensor, Tensor)]) -> Result<(Tensor, Tensor)> {
    let (dtype, sums) = (parts[0].0.dtype(), parts[0].1.dtype());
    let lowest = if sums == DType::F64 { f64::MIN / 4.0 } else { f64::from(f32::MIN) / 4.0 };
    let mut max = (parts[0].1.detach().maximum(lowest))?;
    for (_, lse) in &parts[1..] {
        max = max.maximum(&lse.detach())?;
    }
    let weights = parts.iter().map(|(_, lse)| (lse - &max)?.exp()).collect::<Result<Vec<_>>>()?;
    let (first, rest) = (weights[0].clone(), &weights[1..]);
    let sum = rest.iter().try_fold(first, |sum, weight| sum + weight)?;
    // Where nothing was seen, one instead of the sum: neither it nor its gradient divides by zero.
    let seen = sum.gt(0f64)?;
    let sum = seen.where_cond(&sum, &sum.ones_like()?)?;
    let mut out: Option<Tensor> = None;
    for ((part, _), weight) in parts.iter().zip(&weights) {
        let share = part.to_dtype(sums)?.broadcast_mul(&(weight / &sum)?.unsqueeze(D::Minus1)?)?;
        out = Some(match out {
            Some(out) => (out + share)?,
            None => share,
        });
    }
    let nothing = Tensor::full(f64::NEG_INFINITY, sum.shape(), sum.device())?.to_dtype(sums)?;
    let lse = seen.where_cond(&(max + sum.log()?)?, &nothing)?;
    match out {
        Some(out) => Ok((out.to_dtype(dtype)?, lse)),
        None => bail!("merge: no parts"),
    }
}
