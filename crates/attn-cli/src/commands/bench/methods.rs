//! Methods that place near and far keys differently, as `attn bench attention` times them: parts of one softmax.
//!
//! What the parts differ in is which keys they see and how queries and keys were rotated for them. How long they take doesn't
//! depend on the rotation, so here the numbers are random.

use super::args::MethodName;
use anyhow::Result;
use attn_core::{AttendArgs, Mask, merge};
use candle_core::Tensor;

/// Some of the keys, with queries and keys as the method places them.
pub(super) struct Part {
    q: Tensor,
    k: Tensor,
    args: AttendArgs,
}

/// The parts of a method whose trained length is a quarter of `seq`, with the parameters that it has by default.
pub(super) fn parts(
    method: MethodName,
    seq: usize,
    (q, k): (&Tensor, &Tensor),
    args: &AttendArgs,
) -> Result<Vec<Part>> {
    let trained = (seq / 4).max(16);
    let causal = Mask::causal;
    let (masks, copies) = match method {
        MethodName::Rerope | MethodName::SelfExtend => {
            let near = trained / 2;
            (vec![causal().with_window(Some(near)), causal().with_beyond(Some(near))], 2)
        }
        MethodName::DualChunk => {
            let chunk = trained * 3 / 4 - trained / 16;
            let masks = vec![
                causal().with_chunk(Some(chunk)),
                causal().with_previous_chunk(chunk),
                causal().with_earlier_chunks(chunk),
            ];
            (masks, 1)
        }
        MethodName::Streaming => {
            let near = trained - 4;
            let first = causal().with_beyond(Some(near)).with_first(Some(4));
            (vec![causal().with_window(Some(near)), first], 1)
        }
    };
    let part = |(i, mask): (usize, Mask)| {
        let q = if i == 0 { q.clone() } else { q.rand_like(-1.0, 1.0)? };
        let k = if i == 0 || copies == 1 { k.clone() } else { k.rand_like(-1.0, 1.0)? };
        Ok(Part { q, k, args: args.clone().with_mask(mask) })
    };
    masks.into_iter().enumerate().map(part).collect()
}

/// The parts computed by `attend_lse` and joined.
pub(super) fn joined(
    parts: &[Part],
    v: &Tensor,
    attend_lse: impl Fn(&Tensor, &Tensor, &Tensor, &AttendArgs) -> candle_core::Result<(Tensor, Tensor)>,
) -> Result<Tensor> {
    let each = parts.iter().map(|part| attend_lse(&part.q, &part.k, v, &part.args));
    Ok(merge(&each.collect::<candle_core::Result<Vec<_>>>()?)?.0)
}
