//! Which calls this project's CUDA kernels compute.

use super::facts::{Accelerator, Facts, is_known};
use crate::attention::{bias::ScoreBias, scores::AttendArgs};
use candle_core::DType;

/// True for calls that the kernels compute correctly, with the gradients that they ask for.
#[cfg_attr(not(any(test, feature = "cuda")), allow(dead_code))]
pub(super) fn rule(facts: &Facts, args: &AttendArgs) -> bool {
    let dtype = matches!(facts.dtype, DType::F32 | DType::F16 | DType::BF16);
    let softcap = args.scores.softcap.is_none_or(|cap| cap > 0.0);
    let known = is_known(args) && knows_bias_gradient(args) && !facts.lse;
    facts.accelerator == Accelerator::Cuda && dtype && softcap && known && facts.d.max(facts.dv) <= 256
}

/// True if the kernels have the gradient that the call asks of its bias: none, or that of a relative table.
fn knows_bias_gradient(args: &AttendArgs) -> bool {
    let relative = matches!(args.scores.bias, ScoreBias::Relative { .. }) && args.scores.softcap.is_none();
    !args.scores.bias.track_op() || relative
}
