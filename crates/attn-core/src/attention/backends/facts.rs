//! What the choice among the accelerators' kernels looks at beside the arguments.

use super::Request;
use crate::{
    Mask,
    attention::{bias::ScoreBias, scores::AttendArgs},
};
use candle_core::{DType, Device, Tensor};

/// A device with a kernel of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accelerator {
    Cuda,
    Metal,
}

impl Accelerator {
    fn of(device: &Device) -> Option<Self> {
        match device {
            Device::Cpu => None,
            Device::Cuda(_) => Some(Self::Cuda),
            Device::Metal(_) => Some(Self::Metal),
        }
    }
}

/// A call as the rules see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) accelerator: Accelerator,
    pub(super) dtype: DType,
    pub(super) b: usize,
    pub(super) h: usize,
    pub(super) tq: usize,
    pub(super) tk: usize,
    pub(super) d: usize,
    pub(super) dv: usize,
    /// The farthest any of q, k and v reaches into its storage, in elements.
    pub(super) extent: usize,
    /// Whether a gradient has to flow into anything.
    pub(super) tracked: bool,
    /// Whether the log-sum-exp is asked for.
    pub(super) lse: bool,
}

impl Facts {
    /// `None` on the CPU, and for calls without a number to compute.
    pub(super) fn new(request: &Request) -> Option<Self> {
        let Request { q, k, v, tracked, lse, .. } = *request;
        let accelerator = Accelerator::of(q.device())?;
        let (&[b, h, tq, d], &[_, _, tk, dv]) = (q.dims(), v.dims()) else { return None };
        let reach = |x: &Tensor| -> usize {
            x.layout().start_offset()
                + x.dims().iter().zip(x.stride()).map(|(n, s)| n.saturating_sub(1) * s).sum::<usize>()
        };
        let extent = [q, k, v].map(reach).into_iter().max().unwrap_or(0);
        let facts = Self { accelerator, dtype: q.dtype(), b, h, tq, tk, d, dv, extent, tracked, lse };
        (b * h * tq * tk * d * dv > 0).then_some(facts)
    }
}

/// True if some accelerator's kernel knows the call's mask and the form of its bias, and it has no sinks.
pub(super) fn is_known(args: &AttendArgs) -> bool {
    let form = match args.scores.bias {
        ScoreBias::None | ScoreBias::Linear { .. } | ScoreBias::Relative { .. } | ScoreBias::Dense(_) => true,
        ScoreBias::Keys { .. } | ScoreBias::RowBank { .. } | ScoreBias::Curve(_) => false,
    };
    form && args.scores.sinks.is_none() && args.mask.is_simple()
}

/// The last query is the token of the last key, and every query has a key.
pub(super) fn ends_with_the_keys(args: &AttendArgs, tq: usize, tk: usize) -> bool {
    args.q_start + tq == args.k_start + tk && tq <= tk
}

/// Neither padding nor the border of a chunk hides a key.
pub(super) fn all_keys_are_real(mask: &Mask, start: usize, tk: usize) -> bool {
    let end = start + tk;
    let padded = mask.keys.as_ref().is_some_and(|rows| rows.iter().any(|row| row.start > start || row.end < end));
    // Chunks are counted from a row's first real token, so with padding given they are left to the reference.
    let one_chunk = |chunk: usize| mask.keys.is_none() && start / chunk == (end - 1) / chunk;
    !padded && mask.chunk.is_none_or(|chunk| one_chunk(chunk.size))
}
