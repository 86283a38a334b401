//! `candle-flash-attn`, where it is built in: the faster kernel for long prompts in f16 and bf16.

use super::facts::{Accelerator, Facts, all_keys_are_real, ends_with_the_keys, is_known};
#[cfg(feature = "flash-attn")]
use super::{Answer, Plan, Request};
#[cfg(feature = "flash-attn")]
use crate::attention::view::with_contiguous_rows;
use crate::attention::{bias::ScoreBias, scores::AttendArgs};
use candle_core::DType;
#[cfg(feature = "flash-attn")]
use candle_core::Result;

/// The plan of a call that candle-flash-attn computes correctly and probably in less time than this project's kernel.
#[cfg(feature = "flash-attn")]
pub(super) fn plan<'a>(request: &Request<'a>) -> Result<Option<Plan<'a>>> {
    let request = *request;
    let Some(facts) = Facts::new(&request).filter(pays) else { return Ok(None) };
    let Some(window) = rule(&facts, request.args) else { return Ok(None) };
    Ok(Some(Box::new(move || attend(request, window))))
}

/// True for calls on which candle-flash-attn is faster than this project's kernel. Each of its blocks reads all keys, so it
/// needs many queries: on an H100 it took 1.14 times as long for 512 tokens, 0.62 to 0.88 times from 4096 tokens on, and 3
/// to 15 times for a single query.
#[cfg_attr(not(feature = "flash-attn"), allow(dead_code))]
fn pays(facts: &Facts) -> bool {
    facts.tq >= 512 && (facts.b * facts.h * facts.tq).saturating_mul(facts.tk) >= 1 << 26
}

#[cfg_attr(not(any(test, feature = "flash-attn")), allow(dead_code))]
/// Keys that the kernel may show before and after a query's own, `None` for all; or `None` if it doesn't compute the
/// call correctly.
pub(super) fn rule(facts: &Facts, args: &AttendArgs) -> Option<(Option<usize>, Option<usize>)> {
    let Facts { tq, tk, d, .. } = *facts;
    let plain = d == facts.dv && all_keys_are_real(&args.mask, args.k_start, tk);
    if facts.accelerator != Accelerator::Cuda || facts.tracked || facts.lse || !plain || !is_known(args) {
        return None;
    }
    let dtype = matches!(facts.dtype, DType::F16 | DType::BF16);
    // Places are counted in 32 bits there.
    let fits = d.is_multiple_of(8) && d <= 256 && facts.extent < 1 << 31 && tk < 1 << 24;
    let bias = match args.scores.bias {
        ScoreBias::None => true,
        // Its ALiBi uses the absolute distance, `Linear` the signed one; both are the same for keys before the query.
        ScoreBias::Linear { .. } => args.mask.causal,
        _ => false,
    };
    let softcap = args.scores.softcap.is_none_or(|cap| cap > 0.0);
    let (left, right) = match (args.mask.causal, args.mask.window) {
        (true, window) => (window.map(|w| w - 1), Some(0)),
        (false, window) => (window.map(|w| w - 1), window.map(|w| w - 1)),
    };
    // It places the last query at the last key, and ignores windows wider than the keys.
    let placed = (left.is_none() && right.is_none()) || ends_with_the_keys(args, tq, tk);
    (dtype && fits && bias && softcap && placed).then_some((left, right))
}

#[cfg(feature = "flash-attn")]
fn attend(Request { q, k, v, args, .. }: Request, (left, right): (Option<usize>, Option<usize>)) -> Result<Answer> {
    // It wants (b, t, h, d), in any strides but of the last dimension.
    let [q, k, v] = [q, k, v].map(|x| with_contiguous_rows(x)?.transpose(1, 2));
    let q = q?;
    let slopes = match &args.scores.bias {
        ScoreBias::Linear { slopes } => Some(slopes.to_device(q.device())?.to_dtype(DType::F32)?.contiguous()?),
        _ => None,
    };
    let softcap = args.scores.softcap.unwrap_or(0.0) as f32;
    let scale = args.scores.scale as f32;
    let (k, v) = (k?, v?);
    let out =
        candle_flash_attn::flash_attn_alibi_windowed_softcap(&q, &k, &v, slopes.as_ref(), scale, left, right, softcap)?;
    Ok((out.transpose(1, 2)?, None))
}
