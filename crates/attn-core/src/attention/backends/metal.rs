//! Candle's own kernel for Metal, for the calls that it computes correctly.

use super::{
    Answer, Plan, Request,
    facts::{Accelerator, Facts, all_keys_are_real, ends_with_the_keys, is_known},
};
use crate::attention::{bias::ScoreBias, scores::AttendArgs};
use candle_core::{DType, Result, Tensor};

/// Calls that the kernel computes correctly.
pub(super) fn plan<'a>(request: &Request<'a>) -> Result<Option<Plan<'a>>> {
    let request = *request;
    let Some(facts) = Facts::new(&request) else { return Ok(None) };
    let Some(causal) = rule(&facts, request.args) else { return Ok(None) };
    Ok(Some(Box::new(move || attend(request, causal))))
}

/// Whether to call the kernel with a causal mask, or `None` if it doesn't compute the call correctly.
pub(super) fn rule(facts: &Facts, args: &AttendArgs) -> Option<bool> {
    let Facts { b, tq, tk, d, dtype, .. } = *facts;
    let real = d == facts.dv && all_keys_are_real(&args.mask, args.k_start, tk);
    if facts.accelerator != Accelerator::Metal || facts.tracked || facts.lse || !real || !is_known(args) {
        return None;
    }
    let plain = matches!(args.scores.bias, ScoreBias::None) && args.scores.softcap.is_none();
    let dtype_fits = matches!(dtype, DType::F16 | DType::BF16) || (dtype == DType::F32 && d <= 128);
    if !plain || !dtype_fits || facts.extent >= 1 << 31 {
        return None;
    }
    if tq == 1 {
        // The one-query kernel knows no mask.
        let queries = args.q_start..args.q_start + 1;
        let all = args.mask.hides_nothing(b, queries, args.k_start..args.k_start + tk);
        return (all && matches!(d, 32 | 64 | 96 | 128 | 256)).then_some(false);
    }
    if args.mask.window.is_some() || !matches!(d, 32 | 64 | 72 | 80 | 96 | 128 | 256) {
        return None;
    }
    if !args.mask.causal {
        return Some(false);
    }
    // Queries are taken 32 at a time, keys 32 or 16, and under the causal mask the last block of queries runs to the
    // key of its last place, even if there are neither such a query nor such a key: then it reads past the keys, and
    // blocks that needed masking go without.
    let blocks_of_keys = if d < 128 { tk.div_ceil(32) } else { tk.div_ceil(16) };
    let from_the_start = tq == tk && (d < 128 || blocks_of_keys.is_multiple_of(2));
    let whole = tq.is_multiple_of(32) || from_the_start;
    (whole && ends_with_the_keys(args, tq, tk)).then_some(true)
}

fn attend(Request { q, k, v, args, .. }: Request, causal: bool) -> Result<Answer> {
    // The one-query kernel takes the tokens of a head, and the heads of a batch, to lie side by side.
    let dense = |x: &Tensor| -> Result<Tensor> {
        let (&[_, h, _, d], &[batch, head, token, lane]) = (x.dims(), x.stride()) else { return x.contiguous() };
        if lane == 1 && token == d && batch == h * head { Ok(x.clone()) } else { x.contiguous() }
    };
    let scale = args.scores.scale as f32;
    Ok((candle_nn::ops::sdpa(&q.contiguous()?, &dense(k)?, &dense(v)?, None, causal, scale, 1.0)?, None))
}
