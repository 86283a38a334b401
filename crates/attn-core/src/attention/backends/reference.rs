//! Attention in plain Candle ops: any device, any dtype, with gradients. The oracle that every kernel is compared with.
//!
//! Works through the queries in blocks so that a long call needs `block * tk` scores per head rather than `tq * tk`.

use super::{Plan, Request};
use crate::attention::{bias::ScoreBias, scores::AttendArgs};
use candle_core::{D, DType, Result, Tensor};
use std::ops::Range;

/// Scores computed at a time, over all heads and rows: 256 MiB in f32.
const MAX_SCORES: usize = 1 << 26;

/// Added to the scores of hidden keys: finite, so that a query with nothing to see does not turn into NaN.
const HIDDEN: f32 = f32::MIN / 2.0;

/// Takes every call.
pub(super) fn plan<'a>(request: &Request<'a>) -> Result<Option<Plan<'a>>> {
    let Request { q, k, v, args, lse, .. } = *request;
    Ok(Some(Box::new(move || match lse {
        true => attend_lse(q, k, v, args).map(|(out, lse)| (out, Some(lse))),
        false => attend(q, k, v, args).map(|out| (out, None)),
    })))
}

/// What one block of queries gives.
struct Block {
    /// `(b, h, tq, dv)`
    out: Tensor,
    /// `(b, h, tq, tk)`
    weights: Tensor,
    /// `(b, h, tq)`
    lse: Tensor,
}

/// See [`attend`](crate::attend), which checks the arguments first.
pub fn attend(q: &Tensor, k: &Tensor, v: &Tensor, args: &AttendArgs) -> Result<Tensor> {
    let blocks = in_blocks(q, k, v, args, |block| Ok([block.out]))?;
    joined(blocks.into_iter().map(|[out]| out), q.dtype())
}

/// See [`attend_lse`](crate::attend_lse), which checks the arguments first.
pub fn attend_lse(q: &Tensor, k: &Tensor, v: &Tensor, args: &AttendArgs) -> Result<(Tensor, Tensor)> {
    let blocks = in_blocks(q, k, v, args, |block| Ok([block.out, block.lse]))?;
    let out = joined(blocks.iter().map(|[out, _]| out.clone()), q.dtype())?;
    let dtype = if q.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    Ok((out, joined(blocks.into_iter().map(|[_, lse]| lse), dtype)?))
}

/// See [`attend_weights`](crate::attend_weights), which checks the arguments first.
pub fn attend_weights(q: &Tensor, k: &Tensor, v: &Tensor, args: &AttendArgs) -> Result<(Tensor, Tensor)> {
    let blocks = in_blocks(q, k, v, args, |block| Ok([block.out, block.weights]))?;
    let out = joined(blocks.iter().map(|[out, _]| out.clone()), q.dtype())?;
    Ok((out, joined(blocks.into_iter().map(|[_, weights]| weights), q.dtype())?))
}

fn joined(blocks: impl Iterator<Item = Tensor>, dtype: DType) -> Result<Tensor> {
    Tensor::cat(&blocks.collect::<Vec<_>>(), 2)?.to_dtype(dtype)
}

fn in_blocks<T>(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    args: &AttendArgs,
    keep: impl Fn(Block) -> Result<T>,
) -> Result<Vec<T>> {
    let (b, h, tq, _) = q.dims4()?;
    let dtype = if q.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let (kf, vf) = (k.to_dtype(dtype)?.contiguous()?, v.to_dtype(dtype)?.contiguous()?);
    let block = (MAX_SCORES / (b * h * k.dim(2)?).max(1)).clamp(1, tq.max(1));
    let blocks = (0..tq.max(1)).step_by(block).map(|start| {
        let rows = block.min(tq - start);
        let mut args = args.clone().with_slots(args.q_start + start, args.k_start);
        args.scores.bias = args.scores.bias.of_queries(start, rows, tq)?;
        keep(attend_block(&q.narrow(2, start, rows)?.to_dtype(dtype)?, &kf, &vf, &args)?)
    });
    blocks.collect()
}

fn attend_block(q: &Tensor, k: &Tensor, v: &Tensor, args: &AttendArgs) -> Result<Block> {
    let (b, h, tq, d) = q.dims4()?;
    let (_, h_kv, tk, dv) = v.dims4()?;
    let (slots_q, slots_k) = (args.q_start..args.q_start + tq, args.k_start..args.k_start + tk);
    // One product per kv head, with the query heads that share it stacked: no copy of k or v.
    let grouped = q.contiguous()?.reshape((b, h_kv, h / h_kv * tq, d))?;
    let mut scores = (grouped.matmul(&k.t()?)? * args.scores.scale)?.reshape((b, h, tq, tk))?;
    if let Some(cap) = args.scores.softcap {
        scores = ((scores / cap)?.tanh()? * cap)?;
    }
    if let Some(bias) = args.scores.bias.to_dense(slots_q.clone(), slots_k.clone(), q.device())? {
        scores = scores.broadcast_add(&bias.to_dtype(scores.dtype())?)?;
    }
    let mut seen = Visibility::new(b, slots_q, slots_k, args, &scores)?;
    scores = match &args.scores.bias {
        // It may hide keys with minus infinity, and all keys of a query.
        ScoreBias::Dense(_) => {
            let hidden = seen.hide(&scores.maximum(f64::from(HIDDEN))?)?;
            let sees_any = hidden.max_keepdim(D::Minus1)?.detach().gt(f64::from(HIDDEN / 2.0))?;
            seen.sees_any = Some(sees_any.to_dtype(hidden.dtype())?);
            hidden
        }
        _ => seen.hide(&scores)?,
    };
    let sinks = args.scores.sinks.as_ref().map(|x| x.to_dtype(scores.dtype())?.reshape((1, h, 1, 1))).transpose()?;
    let (weights, lse) = softmax(&scores, sinks.as_ref())?;
    let weights = seen.zero_blind(&weights)?;
    let out = weights.reshape((b, h_kv, h / h_kv * tq, tk))?.matmul(v)?.reshape((b, h, tq, dv))?;
    let lse = if sinks.is_none() { seen.without_blind(&lse)? } else { lse };
    Ok(Block { out, weights, lse: lse.squeeze(D::Minus1)? })
}

/// Softmax over the last dimension and the log of its denominator `(b, h, tq, 1)`, from ops that keep the autograd graph.
fn softmax(scores: &Tensor, sinks: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
    let mut max = scores.max_keepdim(D::Minus1)?.detach();
    if let Some(sinks) = sinks {
        max = max.broadcast_maximum(&sinks.detach())?;
    }
    let exp = scores.broadcast_sub(&max)?.exp()?;
    let mut sum = exp.sum_keepdim(D::Minus1)?;
    if let Some(sinks) = sinks {
        sum = (sum + sinks.broadcast_sub(&max)?.exp()?)?;
    }
    Ok((exp.broadcast_div(&sum)?, (max + sum.log()?)?))
}

/// The mask written out: an additive tensor for the hidden keys, a factor for the queries that see no key at all.
struct Visibility {
    additive: Option<Tensor>,
    sees_any: Option<Tensor>,
}

impl Visibility {
    fn new(b: usize, q: Range<usize>, k: Range<usize>, args: &AttendArgs, like: &Tensor) -> Result<Self> {
        let rows = if args.mask.differs_by_row() { b } else { 1 };
        let mut additive = vec![HIDDEN; rows * q.len() * k.len()];
        let mut sees_any = vec![1f32; rows * q.len()];
        let (mut hides, mut blind) = (false, false);
        for row in 0..rows {
            for (i, slot) in q.clone().enumerate() {
                let seen = args.mask.visible(row, slot, k.clone());
                let line = row * q.len() + i;
                hides |= seen != k;
                if seen.is_empty() {
                    sees_any[line] = 0.0;
                    blind = true;
                } else {
                    additive[line * k.len()..][seen.start - k.start..seen.end - k.start].fill(0.0);
                }
            }
        }
        let tensor = |data: Vec<f32>, last: usize| {
            Tensor::from_vec(data, (rows, 1, q.len(), last), like.device())?.to_dtype(like.dtype())
        };
        Ok(Self {
            additive: if hides { Some(tensor(additive, k.len())?) } else { None },
            sees_any: if blind { Some(tensor(sees_any, 1)?) } else { None },
        })
    }

    fn hide(&self, scores: &Tensor) -> Result<Tensor> {
        match &self.additive {
            Some(additive) => scores.broadcast_add(additive),
            None => Ok(scores.clone()),
        }
    }

    fn zero_blind(&self, weights: &Tensor) -> Result<Tensor> {
        match &self.sees_any {
            Some(factor) => weights.broadcast_mul(factor),
            None => Ok(weights.clone()),
        }
    }

    /// The log-sum-exp `(b, h, tq, 1)` of queries that see nothing is minus infinity.
    fn without_blind(&self, lse: &Tensor) -> Result<Tensor> {
        let Some(sees_any) = &self.sees_any else { return Ok(lse.clone()) };
        let nothing = Tensor::full(f64::NEG_INFINITY, lse.shape(), lse.device())?.to_dtype(lse.dtype())?;
        sees_any.ne(0f64)?.broadcast_as(lse.shape())?.where_cond(lse, &nothing)
    }
}
