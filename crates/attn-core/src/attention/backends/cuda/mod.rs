//! Online-softmax attention for CUDA: the kernels in `kernels/*.cu` and how they are called.
//!
//! Every call is computed in one walk over the keys, without a tensor of size `(tq, tk)`: with any mask, bias, softcap,
//! grouping and strides that [`attend`](super::attend) knows, in f32, bf16 and f16. Query heads that share a key head are
//! stacked, so decoding reads keys and values once per group; where a call has too few rows to fill the device, its keys
//! are split and the parts summed. Gradients are computed from the same tiles again, see `backward`.

mod backward;
mod call;
#[cfg(test)]
mod tests;

use super::{Answer, Plan, Request, cuda_rule, facts::Facts};
use crate::attention::{
    bias::ScoreBias,
    gradients::{Backward, Kept, apply},
    view::with_contiguous_rows,
};
use crate::cuda::{Element, Module, place, place_of, place_of_slice};
use call::{Arguments, HEAD_DIMS, Limits, Placed, modules};
use candle_core::{
    CpuStorage, CudaStorage, CustomOp3, DType, Device, Layout, Result, Shape, Tensor, backend::BackendStorage, bail,
    cuda_backend::cudarc::driver::LaunchConfig,
};
use std::sync::{Arc, OnceLock};

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
            DType::F32 => {
                (if few || d > 128 { rows * 4 } else { rows * 2 }, 4 * ((rows + keys) * (d + 4) + rows * (keys + 4)))
            }
            _ => (rows * 2, 2 * (rows + 2 * keys) * (d + 8)),
        };
        Self { name, threads: threads as u32, rows, keys, shared }
    }
}

/// The calls of [`cuda_rule::rule`], but on a device without bf16 tensor cores or with too little shared memory.
pub(super) fn plan<'a>(request: &Request<'a>) -> Result<Option<Plan<'a>>> {
    let request = *request;
    let Some(facts) = Facts::new(&request).filter(|facts| cuda_rule::rule(facts, request.args)) else {
        return Ok(None);
    };
    let Facts { b, h, tq, tk, d, dv, dtype, tracked, .. } = facts;
    let h_kv = request.k.dim(1)?;
    let Some(head_dim) = HEAD_DIMS.into_iter().find(|&most| d.max(dv) <= most) else { return Ok(None) };
    let Some((forward, backward)) = modules(dtype, head_dim) else { return Ok(None) };
    let fits = h * tq < 1 << 31 && tk < 1 << 24 && b * h < 1 << 16;
    let limits = Limits::of(request.q.device().as_cuda_device()?)?;
    let variant = Variant::new(dtype, head_dim, h / h_kv * tq <= Variant::FEW);
    let table = match &request.args.scores.bias {
        ScoreBias::Relative { table, .. } if table.track_op() => Some(table),
        _ => None,
    };
    let tiles = backward::Tiles::new(dtype, head_dim);
    let here = table.is_none_or(|table| table.device().same_device(request.q.device()));
    let shared = variant.shared.max(if tracked { tiles.shared(table.is_some()) } else { 0 });
    if !fits || !here || shared > limits.shared || (dtype != DType::F32 && !limits.tensor_cores) {
        return Ok(None);
    }
    Ok(Some(Box::new(move || attend(request, variant, limits, (forward, backward), tiles))))
}

fn attend(
    Request { q, k, v, args, tracked, .. }: Request,
    variant: Variant,
    limits: Limits,
    (forward, backward): (Module, Module),
    tiles: backward::Tiles,
) -> Result<Answer> {
    let [q, k, v] = [q, k, v].map(with_contiguous_rows);
    let (q, k, v) = (q?, k?, v?);
    let arguments = Arguments::new(&q, k.dim(2)?, args)?;
    // Token by token, as the layer wants it.
    let untracked = Attend { arguments, variant, limits, module: forward, saved: None };
    if !tracked {
        return Ok((q.apply_op3_no_bwd(&k, &v, &untracked)?.transpose(1, 2)?, None));
    }
    let (log_sums, kept) = (Arc::default(), Kept::default());
    let attend = Attend { saved: Some(Saved { tiles, module: backward, log_sums, kept: kept.clone() }), ..untracked };
    let (out, _) = apply(attend, kept, [&q, &k, &v], &args.scores, false)?;
    Ok((out.transpose(1, 2)?, None))
}

#[derive(Clone)]
struct Attend {
    arguments: Arguments,
    variant: Variant,
    limits: Limits,
    module: Module,
    /// If a backward pass may follow.
    saved: Option<Saved>,
}

/// What the backward pass needs.
#[derive(Clone)]
struct Saved {
    tiles: backward::Tiles,
    module: Module,
    /// From the forward pass: log2 of each row's sum of weights, `(b, tq, h)`.
    log_sums: Arc<OnceLock<Tensor>>,
    kept: Kept,
}

impl CustomOp3 for Attend {
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

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        self.saved()?.kept.gradients(self, [q, k, v], out, grad)
    }
}

impl Attend {
    fn saved(&self) -> Result<&Saved> {
        match &self.saved {
            Some(saved) => Ok(saved),
            None => bail!("CUDA attention: the forward pass was not told of a backward pass"),
        }
    }

    fn launch<T: Element>(&self, of: [(&CudaStorage, &Layout); 3]) -> Result<(CudaStorage, Shape)> {
        let [(q, q_layout), _, (_, v_layout)] = of;
        let device = q.device();
        let (b, h, tq, _) = q_layout.shape().dims4()?;
        let (_, h_kv, tk, dv) = v_layout.shape().dims4()?;
        let blocks = (h / h_kv * tq).div_ceil(self.variant.rows);
        let splits = self.splits(blocks * b * h_kv, tk.div_ceil(self.variant.keys));

        // SAFETY: the kernels write every element.
        let out = unsafe { device.alloc::<T>(b * h * tq * dv)? };
        let [q, k, v] = of.map(|(x, layout)| {
            Ok::<_, candle_core::Error>(Placed { place: place::<T>(x, layout)?, layout, dtype: T::DTYPE })
        });
        let mut call = self.arguments.call([q?, k?, v?])?;
        call.out = place_of_slice(&out, device);
        if let Some(saved) = &self.saved {
            // SAFETY: as above.
            let sums = unsafe { Tensor::empty((b, tq, h), DType::F32, &Device::Cuda(device.clone()))? };
            call.log_sums = place_of(saved.log_sums.get_or_init(|| sums))?;
        }
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
            block_dim: (self.variant.threads, 1, 1),
            shared_mem_bytes: self.variant.shared as u32,
        };
        // SAFETY: a `Call` of q, k, v and what was allocated above, which the stream frees after the launches.
        unsafe { self.module.launch(device, self.variant.name, &call, config)? };
        if splits > 1 {
            let (rows, warps) = ((b * h * tq) as u32, splits.min(MOST_WARPS) as u32);
            let config = LaunchConfig { grid_dim: (rows, 1, 1), block_dim: (32, warps, 1), shared_mem_bytes: 0 };
            // SAFETY: as above.
            unsafe { self.module.launch(device, "combine", &call, config)? };
        }
        Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), (b, tq, h, dv).into()))
    }

    /// Parts of the keys, so that `blocks` blocks over `tiles` tiles each become enough to fill the device. Small blocks
    /// share a multiprocessor with more others, and have less to sum.
    fn splits(&self, blocks: usize, tiles: usize) -> usize {
        let (per_multiprocessor, least_tiles) = if self.variant.rows == Variant::FEW { (4, 2) } else { (2, 8) };
        let wanted = self.limits.multiprocessors * per_multiprocessor / blocks.max(1);
        wanted.min(tiles / least_tiles).clamp(1, 256)
    }
}
