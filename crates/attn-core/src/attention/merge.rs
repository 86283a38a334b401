//! Joins the results of attention over disjoint keys into what one call over all of them gives.

use crate::{parallel::filled, profile, simd::Element};
use candle_core::{D, DType, Device, Result, Storage, Tensor, bail};
use half::{bf16, f16};
use rayon::prelude::*;

/// The result of attention over the keys of all `parts`, each what [`attend_lse`](super::attend_lse) returned for keys that
/// no other part has: output `(b, h, t, dv)` and log-sum-exp `(b, h, t)`. Exact up to rounding, and gradients flow through
/// it.
///
/// # Errors
/// No parts, or parts of different shapes.
pub fn merge(parts: &[(Tensor, Tensor)]) -> Result<(Tensor, Tensor)> {
    let _scope = profile::scope(profile::Op::Attention);
    let Some((first, first_lse)) = parts.first() else { bail!("merge: no parts") };
    first.dims4()?;
    if parts.len() == 1 {
        return Ok((first.clone(), first_lse.clone()));
    }
    for (out, lse) in parts {
        if out.dims() != first.dims() || lse.dims() != &out.dims()[..3] || out.dtype() != first.dtype() {
            bail!("merge: a part of {:?} with sums {:?} beside one of {:?}", out.dims(), lse.dims(), first.dims())
        }
    }
    let on_cpu = parts.iter().all(|(out, lse)| out.device().is_cpu() && !out.track_op() && !lse.track_op());
    if on_cpu && first_lse.dtype() == DType::F32 {
        match first.dtype() {
            DType::F32 => return fused::<f32>(parts),
            DType::BF16 => return fused::<bf16>(parts),
            DType::F16 => return fused::<f16>(parts),
            _ => {}
        }
    }
    plain(parts)
}

/// In one pass over the outputs, which lie token by token as the fused kernel leaves them.
fn fused<T: Element>(parts: &[(Tensor, Tensor)]) -> Result<(Tensor, Tensor)> {
    let (b, h, t, dv) = parts[0].0.dims4()?;
    let sums = parts.iter().map(|(_, lse)| lse.flatten_all()?.to_vec1()).collect::<Result<Vec<Vec<f32>>>>()?;
    let (shares, lse) = shares(&sums, b * h * t);
    let outs = parts.iter().map(|(out, _)| out.transpose(1, 2)?.contiguous()).collect::<Result<Vec<_>>>()?;
    let guards: Vec<_> = outs.iter().map(|out| out.storage_and_layout()).collect();
    let data = guards.iter().map(|(storage, layout)| match &**storage {
        Storage::Cpu(storage) => Ok(&storage.as_slice::<T>()?[layout.start_offset()..][..b * t * h * dv]),
        _ => bail!("merge: a part that is not on the CPU"),
    });
    let data = data.collect::<Result<Vec<_>>>()?;
    // Sixteen tokens at a time.
    let tokens = 16 * h * dv;
    let [joined] = filled(b * t * h * dv, tokens, b * t < 64, |i, [out]: [&mut [T]; 1]| {
        let mut row = vec![0f32; dv];
        for (j, out) in out.chunks_exact_mut(dv.max(1)).enumerate() {
            let at = i * 16 * h + j;
            let (token, head) = (at / h, at % h);
            let place = (token / t * h + head) * t + token % t;
            row.fill(0.0);
            for (data, shares) in data.iter().zip(&shares) {
                let share = shares[place];
                if share != 0.0 {
                    for (sum, x) in row.iter_mut().zip(&data[at * dv..(at + 1) * dv]) {
                        *sum += share * x.widen();
                    }
                }
            }
            T::narrow_all(&row, out);
        }
    });
    drop(guards);
    let out = Tensor::from_vec(joined, (b, t, h, dv), &Device::Cpu)?.transpose(1, 2)?;
    Ok((out, Tensor::from_vec(lse, (b, h, t), &Device::Cpu)?))
}

/// The share of each part in each row, and the log-sum-exp of all parts, computed from those of the parts.
fn shares(sums: &[Vec<f32>], rows: usize) -> (Vec<Vec<f32>>, Vec<f32>) {
    let lse = (0..rows).into_par_iter().with_min_len(1024).map(|i| {
        let max = sums.iter().map(|sums| sums[i]).fold(f32::NEG_INFINITY, f32::max);
        if max == f32::NEG_INFINITY {
            return max;
        }
        max + sums.iter().map(|sums| (sums[i] - max).exp()).sum::<f32>().ln()
    });
    let lse: Vec<f32> = lse.collect();
    let share = |sums: &Vec<f32>| {
        let each = sums.par_iter().zip(&lse).with_min_len(1024);
        // Where nothing is seen every share is zero.
        each.map(|(sum, all)| if *all == f32::NEG_INFINITY { 0.0 } else { (sum - all).exp() }).collect()
    };
    (sums.iter().map(share).collect(), lse)
}

/// In Candle's ops, on any device.
fn plain(parts: &[(Tensor, Tensor)]) -> Result<(Tensor, Tensor)> {
    let (dtype, sums) = (parts[0].0.dtype(), parts[0].1.dtype());
    let lowest = if sums == DType::F64 { f64::MIN / 4.0 } else { f64::from(f32::MIN) / 4.0 };
    let mut max = parts[0].1.detach().maximum(lowest)?;
    for (_, lse) in &parts[1..] {
        max = max.maximum(&lse.detach())?;
    }
    let weights = parts.iter().map(|(_, lse)| (lse - &max)?.exp()).collect::<Result<Vec<_>>>()?;
    let (first, rest) = (weights[0].clone(), &weights[1..]);
    let sum = rest.iter().try_fold(first, |sum, weight| sum + weight)?;
    // Where nothing was seen, one instead of the sum: neither it nor its gradient divides by zero.
    let seen = sum.gt(0f64)?;
    let sum = seen.where_cond(&sum, &sum.ones_like()?)?;
    let share = |(part, weight): (&Tensor, &Tensor)| {
        part.to_dtype(sums)?.broadcast_mul(&(weight / &sum)?.unsqueeze(D::Minus1)?)
    };
    let mut shares = parts.iter().map(|(out, _)| out).zip(&weights).map(share);
    let Some(first) = shares.next() else { bail!("merge: no parts") };
    let out = shares.try_fold(first?, |out, share| out + share?)?;
    let nothing = Tensor::full(f64::NEG_INFINITY, sum.shape(), sum.device())?.to_dtype(sums)?;
    let lse = seen.where_cond(&(max + sum.log()?)?, &nothing)?;
    Ok((out.to_dtype(dtype)?, lse))
}

#[cfg(test)]
mod tests {
    use super::super::laws::{difference, noise};
    use super::*;

    /// Rows that one part or no part sees, whatever the dtype.
    #[test]
    fn one_pass_agrees_with_candles_ops() -> Result<()> {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let part = |seed: u64| -> Result<(Tensor, Tensor)> {
                let out = noise(seed, 2.0, &[2, 70, 3, 20])?.to_dtype(dtype)?.transpose(1, 2)?;
                let mut lse = noise(seed + 9, 30.0, &[2 * 3 * 70])?.to_vec1::<f32>()?;
                for (i, x) in lse.iter_mut().enumerate() {
                    if i % 7 == seed as usize % 7 || i % 11 == 0 {
                        *x = f32::NEG_INFINITY;
                    }
                }
                Ok((out, Tensor::from_vec(lse, (2, 3, 70), &Device::Cpu)?))
            };
            let parts = [part(1)?, part(2)?, part(3)?];
            let ((ours, our_lse), (theirs, their_lse)) = (merge(&parts)?, plain(&parts)?);
            assert!(difference(&ours, &theirs)? < if dtype == DType::F32 { 1e-6 } else { 1e-2 });
            let (ours, theirs) = (our_lse.flatten_all()?.to_vec1::<f32>()?, their_lse.flatten_all()?.to_vec1::<f32>()?);
            for (ours, theirs) in ours.into_iter().zip(theirs) {
                assert!(ours == theirs || (ours - theirs).abs() < 1e-5, "{ours} {theirs}");
            }
        }
        Ok(())
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() -> Result<()> {
        let part = |t: usize| Ok::<_, candle_core::Error>((noise(1, 1.0, &[1, 2, t, 4])?, noise(2, 1.0, &[1, 2, t])?));
        assert!(merge(&[]).is_err());
        assert!(merge(&[part(3)?, part(4)?]).is_err());
        Ok(())
    }
}
