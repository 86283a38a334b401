//! Kernels of other devices, and the calls that they get right.
//!
//! Which calls Candle's own kernels compute as [`attend`](super::attend) promises was read off their sources; theirs have
//! no gradients. The rest is for the reference kernel:
//!
//! | device | kernel | right for |
//! |---|---|---|
//! | CUDA, feature `flash-attn` | `candle-flash-attn` | long prompts; f16 and bf16; head dims up to 256 in steps of 8; causal and sliding-window masks whose queries end with the keys, or none; ALiBi where causal; softcap |
//! | CUDA | `fused_cuda` | f32, and f16 and bf16 from compute capability 8.0; head dims up to 256; everything else, with gradients of q, k, v and, without softcap, a relative bias |
//! | Metal | `candle_nn::ops::sdpa` | no bias, softcap or window; one query that sees every key; more queries as far as the kernel's blocks of 32 end with the keys |
//!
//! The choice is a function of the call alone, [`Kernel::choose`], so that it is tested on machines that have neither.

#[cfg(feature = "cuda")]
use super::fused_cuda;
use super::gradients::{tracked, tracked_table};
use super::scores::AttendArgs;
#[cfg(feature = "flash-attn")]
use super::with_contiguous_rows;
use crate::{Mask, ScoreBias};
use candle_core::{DType, Device, Result, Tensor};

/// A device with a kernel of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Accelerator {
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

/// What the choice looks at beside the arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Call {
    accelerator: Accelerator,
    dtype: DType,
    b: usize,
    tq: usize,
    tk: usize,
    d: usize,
    dv: usize,
    /// The farthest any of q, k and v reaches into its storage, in elements.
    extent: usize,
    /// Whether a gradient has to flow into q, k, v or the bias.
    tracked: bool,
    /// Whether candle-flash-attn is there, and likely the faster one.
    flash: bool,
}

impl Call {
    fn new(q: &Tensor, k: &Tensor, v: &Tensor, args: &AttendArgs) -> Option<Self> {
        let accelerator = Accelerator::of(q.device())?;
        let (&[b, h, tq, d], &[_, _, tk, dv]) = (q.dims(), v.dims()) else { return None };
        let reach = |x: &Tensor| -> usize {
            x.layout().start_offset()
                + x.dims().iter().zip(x.stride()).map(|(n, s)| n.saturating_sub(1) * s).sum::<usize>()
        };
        let extent = [q, k, v].map(reach).into_iter().max().unwrap_or(0);
        let tracked = tracked([q, k, v], &args.scores.bias);
        let flash = cfg!(feature = "flash-attn") && pays_for_flash(b * h, tq, tk);
        Some(Self { accelerator, dtype: q.dtype(), b, tq, tk, d, dv, extent, tracked, flash })
    }
}

/// True for calls that candle-flash-attn takes less time for than our kernel. It gives every block all keys, so it needs
/// many queries; on an H100 it took 1.14 and 0.62 to 0.88 of our time for 512 and from 4096 tokens, and 3 to 15 times as
/// long for a single query.
fn pays_for_flash(heads: usize, tq: usize, tk: usize) -> bool {
    tq >= 512 && (heads * tq).saturating_mul(tk) >= 1 << 26
}

/// A kernel, and how it is told of the mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kernel {
    /// `candle-flash-attn`: keys visible before and after a query's own, `None` for all.
    Flash { left: Option<usize>, right: Option<usize> },
    /// Ours for CUDA.
    Fused,
    /// Metal's `sdpa`.
    Sdpa { causal: bool },
}

impl Kernel {
    /// The kernel that computes the call right, if there is one.
    fn choose(call: &Call, args: &AttendArgs) -> Option<Self> {
        let Call { tq, tk, d, dv, .. } = *call;
        if call.b == 0 || tq == 0 || tk == 0 || d == 0 || dv == 0 || !is_known(args) {
            return None;
        }
        if call.tracked {
            return if call.accelerator == Accelerator::Cuda { Self::fused(call, args) } else { None };
        }
        let plain = d == dv && all_keys_are_real(&args.mask, args.k_start, tk);
        match call.accelerator {
            Accelerator::Cuda if plain && call.flash => Self::flash(call, args).or_else(|| Self::fused(call, args)),
            Accelerator::Cuda => Self::fused(call, args),
            Accelerator::Metal => plain.then(|| Self::sdpa(call, args)).flatten(),
        }
    }

    fn fused(call: &Call, args: &AttendArgs) -> Option<Self> {
        let dtype = matches!(call.dtype, DType::F32 | DType::F16 | DType::BF16);
        let softcap = args.scores.softcap.is_none_or(|cap| cap > 0.0);
        (dtype && softcap && knows_bias_gradient(args) && call.d.max(call.dv) <= 256).then_some(Self::Fused)
    }

    fn flash(call: &Call, args: &AttendArgs) -> Option<Self> {
        let Call { tq, tk, d, .. } = *call;
        let dtype = matches!(call.dtype, DType::F16 | DType::BF16);
        // Places are counted in 32 bits there.
        let fits = d.is_multiple_of(8) && d <= 256 && call.extent < 1 << 31 && tk < 1 << 24;
        let bias = match args.scores.bias {
            ScoreBias::None => true,
            // Its ALiBi takes the absolute distance, ours the signed one: the same for keys before the query.
            ScoreBias::Linear { .. } => args.mask.causal,
            _ => false,
        };
        let softcap = args.scores.softcap.is_none_or(|cap| cap > 0.0);
        let (left, right) = match (args.mask.causal, args.mask.window) {
            (true, window) => (window.map(|w| w - 1), Some(0)),
            (false, window) => (window.map(|w| w - 1), window.map(|w| w - 1)),
        };
        // It places the last query at the last key, and leaves windows wider than the keys away.
        let placed = (left.is_none() && right.is_none()) || ends_with_the_keys(args, tq, tk);
        (dtype && fits && bias && softcap && placed).then_some(Self::Flash { left, right })
    }

    fn sdpa(call: &Call, args: &AttendArgs) -> Option<Self> {
        let Call { b, tq, tk, d, dtype, .. } = *call;
        let plain = matches!(args.scores.bias, ScoreBias::None) && args.scores.softcap.is_none();
        let dtype_fits = matches!(dtype, DType::F16 | DType::BF16) || (dtype == DType::F32 && d <= 128);
        if !plain || !dtype_fits || call.extent >= 1 << 31 {
            return None;
        }
        if tq == 1 {
            // The one-query kernel knows no mask.
            let queries = args.q_start..args.q_start + 1;
            let all = args.mask.hides_nothing(b, queries, args.k_start..args.k_start + tk);
            return (all && matches!(d, 32 | 64 | 96 | 128 | 256)).then_some(Self::Sdpa { causal: false });
        }
        if args.mask.window.is_some() || !matches!(d, 32 | 64 | 72 | 80 | 96 | 128 | 256) {
            return None;
        }
        if !args.mask.causal {
            return Some(Self::Sdpa { causal: false });
        }
        // Queries are taken 32 at a time, keys 32 or 16, and under the causal mask the last block of queries runs to the
        // key of its last place, even if there are neither such a query nor such a key: then it reads past the keys, and
        // blocks that needed masking go without.
        let blocks_of_keys = if d < 128 { tk.div_ceil(32) } else { tk.div_ceil(16) };
        let from_the_start = tq == tk && (d < 128 || blocks_of_keys.is_multiple_of(2));
        let whole = tq.is_multiple_of(32) || from_the_start;
        (whole && ends_with_the_keys(args, tq, tk)).then_some(Self::Sdpa { causal: true })
    }
}

/// True if some kernel here knows the call's mask and the form of its bias, and it has no sinks.
fn is_known(args: &AttendArgs) -> bool {
    let bias = &args.scores.bias;
    let form = match bias {
        ScoreBias::None | ScoreBias::Linear { .. } | ScoreBias::Relative { .. } | ScoreBias::Dense(_) => true,
        ScoreBias::Keys { .. } | ScoreBias::RowBank { .. } | ScoreBias::Curve(_) => false,
    };
    form && args.scores.sinks.is_none() && args.mask.is_simple()
}

/// True if the CUDA kernels have the gradient that the call asks of its bias: none, or that of a relative table.
pub(super) fn knows_bias_gradient(args: &AttendArgs) -> bool {
    !args.scores.bias.track_op() || (tracked_table(&args.scores.bias).is_some() && args.scores.softcap.is_none())
}

/// The last query is the token of the last key, and every query has a key.
fn ends_with_the_keys(args: &AttendArgs, tq: usize, tk: usize) -> bool {
    args.q_start + tq == args.k_start + tk && tq <= tk
}

/// Neither padding nor the border of a chunk hides a key.
fn all_keys_are_real(mask: &Mask, start: usize, tk: usize) -> bool {
    let end = start + tk;
    let padded = mask.keys.as_ref().is_some_and(|rows| rows.iter().any(|row| row.start > start || row.end < end));
    // Chunks are counted from a row's first real token, so with padding given they are left to the reference.
    let one_chunk = |chunk: usize| mask.keys.is_none() && start / chunk == (end - 1) / chunk;
    !padded && mask.chunk.is_none_or(|chunk| one_chunk(chunk.size))
}

/// The call on the device's own kernel, or `None` where only the reference is right. See [`attend`](super::attend).
pub(super) fn attend(q: &Tensor, k: &Tensor, v: &Tensor, args: &AttendArgs) -> Result<Option<Tensor>> {
    let Some(call) = Call::new(q, k, v, args) else { return Ok(None) };
    match Kernel::choose(&call, args) {
        #[cfg(feature = "flash-attn")]
        Some(Kernel::Flash { left, right }) => flash(q, k, v, args, (left, right)).map(Some),
        #[cfg(feature = "cuda")]
        Some(Kernel::Fused) => fused_cuda::attend(q, k, v, args),
        Some(Kernel::Sdpa { causal }) => sdpa(q, k, v, args.scores.scale as f32, causal).map(Some),
        _ => Ok(None),
    }
}

#[cfg(feature = "flash-attn")]
fn flash(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    args: &AttendArgs,
    (left, right): (Option<usize>, Option<usize>),
) -> Result<Tensor> {
    // It wants (b, t, h, d), in any strides but of the last dimension.
    let [q, k, v] = [q, k, v].map(|x| with_contiguous_rows(x)?.transpose(1, 2));
    let q = q?;
    let slopes = match &args.scores.bias {
        ScoreBias::Linear { slopes } => Some(slopes.to_device(q.device())?.to_dtype(DType::F32)?.contiguous()?),
        _ => None,
    };
    let softcap = args.scores.softcap.unwrap_or(0.0) as f32;
    let scale = args.scores.scale as f32;
    candle_flash_attn::flash_attn_alibi_windowed_softcap(&q, &k?, &v?, slopes.as_ref(), scale, left, right, softcap)?
        .transpose(1, 2)
}

fn sdpa(q: &Tensor, k: &Tensor, v: &Tensor, scale: f32, causal: bool) -> Result<Tensor> {
    // The one-query kernel takes the tokens of a head, and the heads of a batch, to lie side by side.
    let dense = |x: &Tensor| -> Result<Tensor> {
        let (&[_, h, _, d], &[batch, head, token, lane]) = (x.dims(), x.stride()) else { return x.contiguous() };
        if lane == 1 && token == d && batch == h * head { Ok(x.clone()) } else { x.contiguous() }
    };
    candle_nn::ops::sdpa(&q.contiguous()?, &dense(k)?, &dense(v)?, None, causal, scale, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;

    /// A call with 8 lanes for `choose`, and its arguments.
    fn call(accelerator: Accelerator, dtype: DType, (tq, tk, d): (usize, usize, usize)) -> (Call, AttendArgs) {
        let call = Call { accelerator, dtype, b: 2, tq, tk, d, dv: d, extent: 1000, tracked: false, flash: true };
        (call, AttendArgs::causal(d, tq, tk).unwrap())
    }

    fn cuda(sizes: (usize, usize, usize)) -> (Call, AttendArgs) {
        call(Accelerator::Cuda, DType::BF16, sizes)
    }

    fn metal(sizes: (usize, usize, usize)) -> (Call, AttendArgs) {
        call(Accelerator::Metal, DType::F16, sizes)
    }

    fn chosen((call, args): &(Call, AttendArgs)) -> Option<Kernel> {
        Kernel::choose(call, args)
    }

    fn slopes() -> ScoreBias {
        ScoreBias::Linear { slopes: Tensor::new(&[0.5f32, 0.25], &Device::Cpu).unwrap() }
    }

    /// The same call with something about it changed.
    fn with(mut base: (Call, AttendArgs), change: impl FnOnce(&mut Call, &mut AttendArgs)) -> (Call, AttendArgs) {
        change(&mut base.0, &mut base.1);
        base
    }

    #[test]
    fn cuda_takes_what_flash_attention_knows() {
        let causal = Some(Kernel::Flash { left: None, right: Some(0) });
        assert_eq!(chosen(&cuda((16, 16, 64))), causal);
        assert_eq!(chosen(&cuda((1, 900, 256))), causal);
        assert_eq!(chosen(&with(cuda((5, 9, 64)), |_, a| a.scores.bias = slopes())), causal);
        assert_eq!(chosen(&with(cuda((5, 9, 64)), |_, a| a.scores.softcap = Some(30.0))), causal);
        assert_eq!(chosen(&with(cuda((5, 9, 64)), |c, _| c.dtype = DType::F16)), causal);
        let windowed = with(cuda((5, 9, 64)), |_, a| a.mask.window = Some(4));
        assert_eq!(chosen(&windowed), Some(Kernel::Flash { left: Some(3), right: Some(0) }));
        let both = with(cuda((9, 9, 64)), |_, a| a.mask = Mask::bidirectional().with_window(Some(4)));
        assert_eq!(chosen(&both), Some(Kernel::Flash { left: Some(3), right: Some(3) }));
        let cross = with(cuda((3, 9, 64)), |_, a| (a.mask, a.q_start) = (Mask::bidirectional(), 0));
        assert_eq!(chosen(&cross), Some(Kernel::Flash { left: None, right: None }));
        let dropped = with(cuda((1, 9, 64)), |_, a| (a.q_start, a.k_start) = (108, 100));
        assert_eq!(chosen(&dropped), causal);
    }

    #[test]
    fn cuda_leaves_the_rest_to_the_fused_kernel() {
        let dense = ScoreBias::Dense(Tensor::zeros((16, 16), DType::F32, &Device::Cpu).unwrap());
        let table = Tensor::zeros((2, 64), DType::F32, &Device::Cpu).unwrap();
        let base = || cuda((16, 16, 64));
        for refused in [
            with(base(), |c, _| c.flash = false),
            with(base(), |c, _| c.tracked = true),
            with(base(), |c, _| c.dtype = DType::F32),
            with(base(), |c, _| (c.d, c.dv) = (20, 20)),
            with(base(), |c, _| c.dv = 128),
            with(base(), |c, _| c.extent = 1 << 31),
            with(base(), |_, a| a.scores.bias = dense),
            with(base(), |_, a| a.scores.bias = ScoreBias::Relative { table, first: -20 }),
            with(base(), |_, a| (a.scores.bias, a.mask) = (slopes(), Mask::bidirectional())),
            with(base(), |_, a| a.mask.keys = Some(vec![2..16, 0..16].into())),
            with(base(), |_, a| a.mask = a.mask.clone().with_chunk(Some(8))),
            with(cuda((4, 16, 64)), |_, a| a.q_start = 0),
            with(cuda((4, 16, 64)), |_, a| (a.q_start, a.mask) = (0, Mask::bidirectional().with_window(Some(3)))),
            with(cuda((16, 16, 64)), |c, _| c.tq = 20),
        ] {
            assert_eq!(chosen(&refused), Some(Kernel::Fused), "{refused:?}");
        }
    }

    #[test]
    fn cuda_leaves_what_it_does_not_know_to_the_reference() {
        let base = || cuda((16, 16, 64));
        let var = |shape: &[usize]| Var::zeros(shape, DType::F32, &Device::Cpu).unwrap().as_tensor().clone();
        let tracked_slopes = ScoreBias::Linear { slopes: var(&[2]) };
        let tracked_table = ScoreBias::Relative { table: var(&[2, 64]), first: -20 };
        for refused in [
            with(base(), |c, _| c.dtype = DType::F64),
            with(base(), |c, a| (c.tracked, a.scores.bias) = (true, tracked_slopes)),
            with(base(), |c, a| (c.tracked, a.scores.bias, a.scores.softcap) = (true, tracked_table, Some(30.0))),
            with(base(), |c, _| (c.d, c.dv) = (264, 264)),
            with(base(), |c, _| c.dv = 512),
            with(base(), |_, a| a.scores.softcap = Some(0.0)),
            with(base(), |c, _| c.b = 0),
        ] {
            assert_eq!(chosen(&refused), None, "{refused:?}");
        }
    }

    #[test]
    fn padding_and_chunks_that_hide_nothing_do_not_count() {
        let causal = Some(Kernel::Flash { left: None, right: Some(0) });
        assert_eq!(chosen(&with(cuda((4, 16, 64)), |_, a| a.mask.keys = Some(vec![0..16, 0..20].into()))), causal);
        assert_eq!(chosen(&with(cuda((4, 16, 64)), |_, a| a.mask = a.mask.clone().with_chunk(Some(16)))), causal);
        let later = with(cuda((4, 16, 64)), |_, a| {
            (a.q_start, a.k_start, a.mask) = (28, 16, a.mask.clone().with_chunk(Some(16)));
        });
        assert_eq!(chosen(&later), causal);
        let across = with(cuda((4, 16, 64)), |_, a| {
            (a.q_start, a.k_start, a.mask) = (27, 15, a.mask.clone().with_chunk(Some(16)));
        });
        assert_eq!(chosen(&across), Some(Kernel::Fused));
    }

    #[test]
    fn metal_decodes_where_the_query_sees_every_key() {
        let all = Some(Kernel::Sdpa { causal: false });
        assert_eq!(chosen(&metal((1, 900, 64))), all);
        assert_eq!(chosen(&with(metal((1, 900, 64)), |c, _| c.dtype = DType::F32)), all);
        assert_eq!(chosen(&with(metal((1, 9, 64)), |_, a| a.mask.window = Some(9))), all);
        for refused in [
            with(metal((1, 9, 64)), |_, a| a.mask.window = Some(8)),
            with(metal((1, 9, 64)), |_, a| a.q_start = 7),
            with(metal((1, 9, 64)), |_, a| a.scores.bias = slopes()),
            with(metal((1, 9, 64)), |_, a| a.scores.softcap = Some(30.0)),
            with(metal((1, 9, 64)), |_, a| a.mask.keys = Some(vec![0..9, 1..9].into())),
            metal((1, 9, 72)),
            with(metal((1, 9, 256)), |c, _| c.dtype = DType::F32),
            with(metal((1, 9, 64)), |c, _| c.dtype = DType::F64),
        ] {
            assert_eq!(chosen(&refused), None, "{refused:?}");
        }
    }

    #[test]
    fn metal_prefills_where_its_blocks_end_with_the_keys() {
        let causal = Some(Kernel::Sdpa { causal: true });
        for sizes in
            [(64, 64, 64), (100, 100, 64), (32, 77, 64), (64, 100, 128), (100, 100, 80), (48, 48, 64), (64, 64, 128)]
        {
            assert_eq!(chosen(&metal(sizes)), causal, "{sizes:?}");
        }
        // From the start with 16 keys to a block: 7 blocks of keys end within the fourth block of queries, 8 with it.
        assert_eq!(chosen(&metal((100, 100, 128))), None);
        assert_eq!(chosen(&metal((120, 120, 128))), causal);
        // A block of queries that is not full, behind keys that came before.
        assert_eq!(chosen(&metal((16, 32, 64))), None);
        assert_eq!(chosen(&metal((33, 77, 64))), None);
        assert_eq!(chosen(&with(metal((64, 64, 64)), |_, a| a.mask.window = Some(80))), None);
        assert_eq!(chosen(&with(metal((32, 64, 64)), |_, a| a.q_start = 0)), None);
        let cross = with(metal((5, 9, 64)), |_, a| (a.mask, a.q_start) = (Mask::bidirectional(), 0));
        assert_eq!(chosen(&cross), Some(Kernel::Sdpa { causal: false }));
    }

    #[test]
    fn the_cpu_has_no_kernel_here() {
        let x = Tensor::zeros((1, 2, 3, 8), DType::BF16, &Device::Cpu).unwrap();
        assert!(attend(&x, &x, &x, &AttendArgs::causal(8, 3, 3).unwrap()).unwrap().is_none());
    }
}
