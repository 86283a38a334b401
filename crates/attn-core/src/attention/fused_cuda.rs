//! Online-softmax attention for CUDA: `kernels/*.cu`, and what they are told.
//!
//! One walk over the keys for every call: any mask, bias, softcap, grouping and strides that
//! [`attend`](super::attend) knows, f32, bf16 and f16, nothing of size `(tq, tk)`. Query heads that share a key head are
//! stacked, so decoding reads keys and values once per group; where a call has too few rows to fill the device, its keys
//! are split and the parts summed.

use super::AttendArgs;
use crate::ScoreBias;
use crate::cuda::{Element, Module, place, place_of, place_of_slice, ptx};
use candle_core::{
    CpuStorage, CudaDevice, CudaStorage, CustomOp3, DType, Layout, Result, Shape, Tensor,
    backend::BackendStorage,
    bail,
    cuda_backend::{
        WrapErr,
        cudarc::driver::{
            DeviceRepr, LaunchConfig,
            sys::CUdevice_attribute::{
                CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
                CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN as MAX_SHARED,
                CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT as MULTIPROCESSORS,
            },
        },
    },
};

/// The same fields in the same order as `Call` in `call.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Call {
    q: u64,
    k: u64,
    v: u64,
    out: u64,
    rows: u64,
    bias: u64,
    partial_out: u64,
    partial_stats: u64,
    q_strides: [i64; 3],
    k_strides: [i64; 3],
    v_strides: [i64; 3],
    bias_strides: [i64; 4],
    bias_first: i64,
    q_start: i64,
    k_start: i64,
    window: i64,
    chunk: i64,
    b: i32,
    h: i32,
    h_kv: i32,
    tq: i32,
    tk: i32,
    d: i32,
    dv: i32,
    bias_kind: i32,
    causal: i32,
    aligned: i32,
    splits: i32,
    scale: f32,
    softcap: f32,
}

// SAFETY: plain numbers, laid out as the kernels read them.
unsafe impl DeviceRepr for Call {}

/// Warps that sum the splits of a row: the constant of `call.cuh`.
const MOST_WARPS: usize = 8;

/// A kernel and the size of its blocks.
#[derive(Debug, Clone, Copy)]
struct Variant {
    name: &'static str,
    threads: u32,
    /// Rows and keys of a block.
    rows: usize,
    keys: usize,
    shared: usize,
}

impl Variant {
    /// Rows that the kernel for few rows takes.
    const FEW: usize = 16;

    /// The constants of `halves.cuh` and `singles.cuh`, for head dims up to `d`.
    fn new(dtype: DType, d: usize, few: bool) -> Self {
        let (rows, keys) = (if few { Self::FEW } else { 64 }, 64);
        let name = if few { "attend_few" } else { "attend_many" };
        let (threads, shared) = match dtype {
            DType::F32 => (rows * 4, 4 * ((rows + keys) * (d + 4) + rows * (keys + 4))),
            _ => (rows * 2, 2 * (rows + 2 * keys) * (d + 8)),
        };
        Self { name, threads: threads as u32, rows, keys, shared }
    }
}

/// The kernels for a dtype and a head dim, and the head dims they were compiled for.
fn module(dtype: DType, d: usize) -> Option<(usize, Module)> {
    let (head_dim, name, code) = match (dtype, d) {
        (DType::F32, ..=64) => (64, "attn_attention_f32_64", ptx::ATTENTION_F32_64),
        (DType::F32, ..=128) => (128, "attn_attention_f32_128", ptx::ATTENTION_F32_128),
        (DType::F32, ..=256) => (256, "attn_attention_f32_256", ptx::ATTENTION_F32_256),
        (DType::BF16, ..=64) => (64, "attn_attention_bf16_64", ptx::ATTENTION_BF16_64),
        (DType::BF16, ..=128) => (128, "attn_attention_bf16_128", ptx::ATTENTION_BF16_128),
        (DType::BF16, ..=256) => (256, "attn_attention_bf16_256", ptx::ATTENTION_BF16_256),
        (DType::F16, ..=64) => (64, "attn_attention_f16_64", ptx::ATTENTION_F16_64),
        (DType::F16, ..=128) => (128, "attn_attention_f16_128", ptx::ATTENTION_F16_128),
        (DType::F16, ..=256) => (256, "attn_attention_f16_256", ptx::ATTENTION_F16_256),
        _ => return None,
    };
    Some((head_dim, Module { name, code }))
}

/// Numbers of the device that decide how a call is run.
struct Limits {
    shared: usize,
    multiprocessors: usize,
    tensor_cores: bool,
}

impl Limits {
    fn of(device: &CudaDevice) -> Result<Self> {
        let stream = device.cuda_stream();
        let number = |which| stream.context().attribute(which).w();
        // Both the device and the code have to have them.
        let compiled: usize = env!("ATTN_CUDA_COMPUTE_CAP").parse().unwrap_or(0);
        Ok(Self {
            shared: number(MAX_SHARED)? as usize,
            multiprocessors: number(MULTIPROCESSORS)? as usize,
            tensor_cores: number(MAJOR)? >= 8 && compiled >= 80,
        })
    }
}

/// The call on these kernels, or `None` if they don't know it: other dtypes, head dims over 256, a device without bf16
/// tensor cores or with too little shared memory. Without gradients.
pub(super) fn attend(q: &Tensor, k: &Tensor, v: &Tensor, args: &AttendArgs) -> Result<Option<Tensor>> {
    let (b, h, tq, d) = q.dims4()?;
    let (_, _, tk, dv) = v.dims4()?;
    let Some((head_dim, _)) = module(q.dtype(), d.max(dv)) else { return Ok(None) };
    let fits = b * h * tq * tk > 0 && d > 0 && dv > 0 && h * tq < 1 << 31 && tk < 1 << 24 && b * h < 1 << 16;
    let limits = Limits::of(q.device().as_cuda_device()?)?;
    let few = h / k.dim(1)? * tq <= Variant::FEW;
    if !fits
        || Variant::new(q.dtype(), head_dim, few).shared > limits.shared
        || (q.dtype() != DType::F32 && !limits.tensor_cores)
    {
        return Ok(None);
    }
    let dense = |x: &Tensor| if x.stride()[3] == 1 || x.dim(3)? == 1 { Ok(x.clone()) } else { x.contiguous() };
    let op = Attend { args, limits, rows: key_ranges(q, args)?, bias: bias_on_device(q, tk, args)? };
    // Token by token, as the layer wants it.
    dense(q)?.apply_op3_no_bwd(&dense(k)?, &dense(v)?, &op)?.transpose(1, 2).map(Some)
}

/// A slot or a number of slots; no sequence is as long as the limit, and sums of two stay in range.
fn slot(n: usize) -> i64 {
    n.min(1 << 60) as i64
}

/// The slots of the real tokens, as `(b, 2)`.
fn key_ranges(q: &Tensor, args: &AttendArgs) -> Result<Option<Tensor>> {
    let ends = |rows: &std::sync::Arc<[std::ops::Range<usize>]>| {
        let ends = rows.iter().flat_map(|row| [slot(row.start), slot(row.end)]);
        Tensor::from_iter(ends, q.device())
    };
    args.mask.keys.as_ref().map(ends).transpose()
}

/// The numbers of the bias in f32; a dense one stretched to the whole call by its strides.
fn bias_on_device(q: &Tensor, tk: usize, args: &AttendArgs) -> Result<Option<Tensor>> {
    let here = |x: &Tensor| x.to_device(q.device())?.to_dtype(DType::F32);
    Ok(match &args.bias {
        ScoreBias::None => None,
        ScoreBias::Linear { slopes } => Some(here(slopes)?.contiguous()?),
        ScoreBias::Relative { table, .. } => Some(here(table)?.contiguous()?),
        ScoreBias::Dense(bias) => Some(here(bias)?.broadcast_as((q.dim(0)?, q.dim(1)?, q.dim(2)?, tk))?),
    })
}

struct Attend<'a> {
    args: &'a AttendArgs,
    limits: Limits,
    rows: Option<Tensor>,
    bias: Option<Tensor>,
}

impl CustomOp3 for Attend<'_> {
    fn name(&self) -> &'static str {
        "attend"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        bail!("the CUDA attention kernels got tensors of the CPU")
    }

    fn cuda_fwd(
        &self,
        q: &CudaStorage,
        q_layout: &Layout,
        k: &CudaStorage,
        k_layout: &Layout,
        v: &CudaStorage,
        v_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let of = [(q, q_layout), (k, k_layout), (v, v_layout)];
        match q.dtype() {
            DType::F32 => self.launch::<f32>(of),
            DType::BF16 => self.launch::<half::bf16>(of),
            DType::F16 => self.launch::<half::f16>(of),
            dtype => bail!("the CUDA attention kernels don't know {dtype:?}"),
        }
    }
}

impl Attend<'_> {
    fn launch<T: Element>(&self, of: [(&CudaStorage, &Layout); 3]) -> Result<(CudaStorage, Shape)> {
        let [(q, q_layout), _, (_, v_layout)] = of;
        let device = q.device();
        let (b, h, tq, d) = q_layout.shape().dims4()?;
        let (_, h_kv, tk, dv) = v_layout.shape().dims4()?;
        let Some((head_dim, module)) = module(T::DTYPE, d.max(dv)) else { bail!("attend: no kernel for {d}") };
        let rows = h / h_kv * tq;
        let few = rows <= Variant::FEW;
        let variant = Variant::new(T::DTYPE, head_dim, few);
        let blocks = rows.div_ceil(variant.rows);
        let splits = self.splits(few, blocks * b * h_kv, tk.div_ceil(variant.keys));

        // SAFETY: the kernels write every element.
        let out = unsafe { device.alloc::<T>(b * h * tq * dv)? };
        let mut call = self.call::<T>(of)?;
        call.out = place_of_slice(&out, device);
        let parts = splits * b * h * tq;
        // SAFETY: every element is written by the splits before they are summed.
        let partial = if splits > 1 { Some(unsafe { device.alloc::<f32>(parts * (dv + 2))? }) } else { None };
        if let Some(partial) = &partial {
            call.splits = splits as i32;
            call.partial_out = place_of_slice(partial, device);
            call.partial_stats = call.partial_out + (parts * dv * size_of::<f32>()) as u64;
        }
        let config = LaunchConfig {
            grid_dim: (blocks as u32, (b * h_kv) as u32, splits as u32),
            block_dim: (variant.threads, 1, 1),
            shared_mem_bytes: variant.shared as u32,
        };
        // SAFETY: a `Call` of q, k, v and what was allocated above, which the stream frees after the launches.
        unsafe { module.launch(device, variant.name, &call, config)? };
        if splits > 1 {
            let (rows, warps) = ((b * h * tq) as u32, splits.min(MOST_WARPS) as u32);
            let config = LaunchConfig { grid_dim: (rows, 1, 1), block_dim: (32, warps, 1), shared_mem_bytes: 0 };
            // SAFETY: as above.
            unsafe { module.launch(device, "combine", &call, config)? };
        }
        Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), (b, tq, h, dv).into()))
    }

    /// Parts of the keys, so that `blocks` blocks over `tiles` tiles each become enough to fill the device. Small blocks
    /// share a multiprocessor with more others, and have less to sum.
    fn splits(&self, few: bool, blocks: usize, tiles: usize) -> usize {
        let (per_multiprocessor, least_tiles) = if few { (4, 2) } else { (2, 8) };
        let wanted = self.limits.multiprocessors * per_multiprocessor / blocks.max(1);
        wanted.min(tiles / least_tiles).clamp(1, 256)
    }

    fn call<T: Element>(&self, of: [(&CudaStorage, &Layout); 3]) -> Result<Call> {
        let AttendArgs { scale, softcap, bias, mask, q_start, k_start } = self.args;
        let [(_, q), (_, k), (_, v)] = of;
        let (b, h, tq, d) = q.shape().dims4()?;
        let (_, h_kv, tk, dv) = v.shape().dims4()?;
        let mut places = [0; 3];
        let mut aligned = true;
        for (place_there, (storage, layout)) in places.iter_mut().zip(of) {
            *place_there = place::<T>(storage, layout)?;
            let row = layout.dims()[3] * size_of::<T>();
            let in_16 = |bytes: usize| bytes.is_multiple_of(16);
            let strides = layout.stride()[..3].iter().zip(layout.dims());
            aligned &= in_16(*place_there as usize) && in_16(row);
            aligned &= strides.into_iter().all(|(&stride, &n)| n == 1 || in_16(stride * size_of::<T>()));
        }
        let strides = |layout: &Layout| [0, 1, 2].map(|i| layout.stride()[i] as i64);
        let mut bias_strides = [0; 4];
        let (bias_kind, bias_first) = match (bias, &self.bias) {
            (ScoreBias::None, _) | (_, None) => (0, 0),
            (ScoreBias::Linear { .. }, _) => (1, 0),
            (ScoreBias::Relative { first, .. }, Some(table)) => {
                bias_strides[1] = table.dim(1)? as i64;
                (2, *first)
            }
            (ScoreBias::Dense(_), Some(bias)) => {
                bias_strides = [0, 1, 2, 3].map(|i| bias.stride()[i] as i64);
                (3, 0)
            }
        };
        Ok(Call {
            q: places[0],
            k: places[1],
            v: places[2],
            out: 0,
            rows: self.rows.as_ref().map_or(Ok(0), place_of)?,
            bias: self.bias.as_ref().map_or(Ok(0), place_of)?,
            partial_out: 0,
            partial_stats: 0,
            q_strides: strides(q),
            k_strides: strides(k),
            v_strides: strides(v),
            bias_strides,
            bias_first,
            q_start: slot(*q_start),
            k_start: slot(*k_start),
            window: slot(mask.window.unwrap_or(0)),
            chunk: slot(mask.chunk.unwrap_or(0)),
            b: b as i32,
            h: h as i32,
            h_kv: h_kv as i32,
            tq: tq as i32,
            tk: tk as i32,
            d: d as i32,
            dv: dv as i32,
            bias_kind,
            causal: i32::from(mask.causal),
            aligned: i32::from(aligned),
            splits: 1,
            scale: *scale as f32,
            softcap: softcap.unwrap_or(0.0) as f32,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{AttendArgs, attend, laws, reference};
    use crate::ScoreBias;
    use candle_core::{DType, Device, Result, Tensor};
    use laws::{BiasKind, Case, any_case};
    use proptest::prelude::*;

    /// The device, or `None` with a word about it on a machine without one.
    fn device() -> Option<Device> {
        let device = candle_core::utils::cuda_is_available().then(|| Device::new_cuda(0).ok()).flatten();
        if device.is_none() {
            eprintln!("no CUDA device: nothing was checked");
        }
        device
    }

    /// The device's result against the CPU's reference.
    fn check(case: &Case, device: &Device) -> Result<()> {
        let ([q, k, v], args) = (case.tensors()?, case.args()?);
        let there = [&q, &k, &v].map(|x| x.to_device(device));
        let [there_q, there_k, there_v] = there;
        let ours = super::attend(&there_q?, &there_k?, &there_v?, &args)?.expect("a kernel");
        assert_eq!((ours.dtype(), ours.dims()), (case.dtype, &[case.b, case.h_kv * case.group, case.tq, case.dv][..]));
        let theirs = reference::attend(&q, &k, &v, &args)?;
        let off = laws::difference(&ours.to_device(&Device::Cpu)?, &theirs)?;
        assert!(off <= case.tolerance(), "off by {off:e} in {case:?}");
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_call_agrees_with_the_reference(case in any_case()) {
            if let Some(device) = device() {
                check(&case, &device).unwrap();
            }
        }
    }

    /// Lengths around the blocks of rows and keys, and caches long enough to be split.
    #[test]
    fn sizes_around_the_blocks_agree() {
        let Some(device) = device() else { return };
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            for d in [8, 64, 80, 128, 192, 256] {
                for t in [1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 200] {
                    check(&Case { dtype, b: 2, ..Case::plain(2, 3, t, d) }, &device).unwrap();
                }
                for (tq, tk) in [(1, 4000), (5, 4001), (6, 2047), (16, 2048), (70, 3000)] {
                    for bias in [BiasKind::None, BiasKind::Linear, BiasKind::Relative, BiasKind::Dense(1)] {
                        let case = Case { dtype, tq, tk, q_start: tk - tq, bias, ..Case::plain(2, 3, tk, d) };
                        check(&Case { transposed: true, ..case.clone() }, &device).unwrap();
                        check(&Case { window: Some(1000), softcap: Some(20.0), ..case }, &device).unwrap();
                    }
                }
            }
        }
    }

    /// Scores that rise by dozens along the keys.
    #[test]
    fn rising_scores_agree() {
        let Some(device) = device() else { return };
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            for tq in [1, 700] {
                let case = Case { dtype, tq, q_start: 700 - tq, ..Case::plain(1, 3, 700, 64) };
                let ([q, k, v], args) = (case.tensors().unwrap(), case.args().unwrap());
                let ramp = Tensor::from_iter((0..700).map(|t| 1.0 + t as f32 / 70.0), &Device::Cpu).unwrap();
                let k = k.broadcast_mul(&ramp.reshape((1, 1, 700, 1)).unwrap().to_dtype(dtype).unwrap()).unwrap();
                let theirs = reference::attend(&q, &k, &v, &args).unwrap();
                let [q, k, v] = [q, k, v].map(|x| x.to_device(&device).unwrap());
                let ours = attend(&q, &k, &v, &args).unwrap().to_device(&Device::Cpu).unwrap();
                let off = laws::difference(&ours, &theirs).unwrap();
                assert!(off <= case.tolerance(), "{dtype:?}: off by {off:e}");
            }
        }
    }

    #[test]
    fn the_result_is_laid_out_for_the_layer() {
        let Some(device) = device() else { return };
        let x = Tensor::zeros((2, 3, 40, 16), DType::F32, &device).unwrap();
        let out = attend(&x, &x, &x, &AttendArgs::causal(16, 40, 40)).unwrap();
        assert!(out.transpose(1, 2).unwrap().is_contiguous());
    }

    /// The kernels have no gradients, and the choice knows it: of a bias, too.
    #[test]
    fn gradients_go_to_the_reference() {
        let Some(device) = device() else { return };
        let x = Tensor::ones((1, 2, 8, 16), DType::F32, &device).unwrap();
        let slopes = candle_core::Var::from_tensor(&Tensor::new(&[0.5f32, 0.25], &device).unwrap()).unwrap();
        let args = AttendArgs {
            bias: ScoreBias::Linear { slopes: slopes.as_tensor().clone() },
            ..AttendArgs::causal(16, 8, 8)
        };
        let weights = Tensor::arange(0f32, 256.0, &device).unwrap().reshape((1, 2, 8, 16)).unwrap();
        let out = attend(&x, &x, &weights, &args).unwrap();
        let grads = out.sum_all().unwrap().backward().unwrap();
        let largest = grads.get(slopes.as_tensor()).expect("a gradient").abs().unwrap().max_all().unwrap();
        assert!(largest.to_scalar::<f32>().unwrap() > 0.0);
    }
}
