//! Attention in plain Candle ops: any device, any dtype, with gradients. The oracle that every kernel is compared with.
//!
//! Works through the queries in blocks so that a long call needs `block * tk` scores per head rather than `tq * tk`.

use super::AttendArgs;
use crate::ScoreBias;
use candle_core::{D, DType, Result, Tensor};

/// Scores computed at a time, over all heads and rows: 256 MiB in f32.
const MAX_SCORES: usize = 1 << 26;

/// See [`attend`](super::attend), which checks the arguments first.
pub fn attend(q: &Tensor, k: &Tensor, v: &Tensor, args: &AttendArgs) -> Result<Tensor> {
    let (b, h, tq, _) = q.dims4()?;
    let dtype = if q.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let (kf, vf) = (k.to_dtype(dtype)?.contiguous()?, v.to_dtype(dtype)?.contiguous()?);
    let block = (MAX_SCORES / (b * h * k.dim(2)?).max(1)).clamp(1, tq.max(1));
    let blocks = (0..tq.max(1)).step_by(block).map(|start| {
        let rows = block.min(tq - start);
        let mut args = AttendArgs { q_start: args.q_start + start, ..args.clone() };
        if let ScoreBias::Dense(bias) = &args.bias
            && bias.rank() >= 2
            && bias.dim(D::Minus2)? == tq
        {
            args.bias = ScoreBias::Dense(bias.narrow(D::Minus2, start, rows)?);
        }
        attend_block(&q.narrow(2, start, rows)?.to_dtype(dtype)?, &kf, &vf, &args)
    });
    let blocks = blocks.collect::<Result<Vec<_>>>()?;
    Tensor::cat(&blocks, 2)?.to_dtype(q.dtype())
}

fn attend_block(q: &Tensor, k: &Tensor, v: &Tensor, args: &AttendArgs) -> Result<Tensor> {
    let (b, h, tq, d) = q.dims4()?;
    let (_, h_kv, tk, dv) = v.dims4()?;
    let (slots_q, slots_k) = (args.q_start..args.q_start + tq, args.k_start..args.k_start + tk);
    // One product per kv head, with the query heads that share it stacked: no copy of k or v.
    let grouped = q.contiguous()?.reshape((b, h_kv, h / h_kv * tq, d))?;
    let mut scores = (grouped.matmul(&k.t()?)? * args.scale)?.reshape((b, h, tq, tk))?;
    if let Some(cap) = args.softcap {
        scores = ((scores / cap)?.tanh()? * cap)?;
    }
    if let Some(bias) = args.bias.to_dense(slots_q.clone(), slots_k.clone(), q.device())? {
        scores = scores.broadcast_add(&bias.to_dtype(scores.dtype())?)?;
    }
    let seen = Visibility::new(b, slots_q, slots_k, args, &scores)?;
    let weights = softmax(&seen.hide(&scores)?)?;
    let out = weights.reshape((b, h_kv, h / h_kv * tq, tk))?.matmul(v)?.reshape((b, h, tq, dv))?;
    seen.zero_blind(&out)
}

/// Softmax over the last dimension from ops that keep the autograd graph.
fn softmax(scores: &Tensor) -> Result<Tensor> {
    let max = scores.max_keepdim(D::Minus1)?.detach();
    let exp = scores.broadcast_sub(&max)?.exp()?;
    exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)
}

/// The mask written out: an additive tensor for the hidden keys, a factor for the queries that see no key at all.
struct Visibility {
    additive: Option<Tensor>,
    sees_any: Option<Tensor>,
}

impl Visibility {
    fn new(
        b: usize,
        q: std::ops::Range<usize>,
        k: std::ops::Range<usize>,
        args: &AttendArgs,
        like: &Tensor,
    ) -> Result<Self> {
        // Finite, so that a query with nothing to see does not turn into NaN.
        const HIDDEN: f32 = f32::MIN / 2.0;
        let rows = if args.mask.keys.is_some() { b } else { 1 };
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

    fn zero_blind(&self, out: &Tensor) -> Result<Tensor> {
        match &self.sees_any {
            Some(factor) => out.broadcast_mul(factor),
            None => Ok(out.clone()),
        }
    }
}
