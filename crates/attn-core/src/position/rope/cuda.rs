//! The rotary encoding on CUDA: `kernels/rows.cuh`, in one launch, with angles in f32. It has no
//! gradients; where one is wanted, Candle's ops serve.

use super::config::{Layout, RopeConfig};
use crate::cuda::{Element, Module, place, place_of, place_of_slice};
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, DType, Layout as Strides, Result, Shape, Tensor,
    backend::BackendStorage,
    bail,
    cuda_backend::cudarc::driver::{DeviceRepr, LaunchConfig},
};

/// The same fields in the same order as `Rotation` in `rows.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Rotation {
    xs: u64,
    out: u64,
    cos: u64,
    sin: u64,
    strides: [i64; 4],
    table_stride: i64,
    h: i32,
    t: i32,
    d: i32,
    pairs: i32,
    interleaved: i32,
}

// SAFETY: plain numbers, laid out as the kernel reads them.
unsafe impl DeviceRepr for Rotation {}

struct Rotate<'a> {
    cos: Tensor,
    sin: Tensor,
    config: &'a RopeConfig,
}

/// `xs`, which the kernels [take](crate::cuda::takes), rotated, contiguous. `cos` and `sin` are f32 and `(b or 1, 1, t, pairs)`.
pub(super) fn rotate(xs: &Tensor, cos: &Tensor, sin: &Tensor, config: &RopeConfig) -> Result<Tensor> {
    xs.apply_op1_no_bwd(&Rotate { cos: cos.contiguous()?, sin: sin.contiguous()?, config })
}

impl Rotate<'_> {
    fn launch<T: Element>(&self, xs: &CudaStorage, layout: &Strides) -> Result<(CudaStorage, Shape)> {
        let device = xs.device();
        let (b, h, t, d) = layout.shape().dims4()?;
        let pairs = self.config.rotary_dim / 2;
        // SAFETY: the kernel writes every element.
        let out = unsafe { device.alloc::<T>(b * h * t * d)? };
        let call = Rotation {
            xs: place::<T>(xs, layout)?,
            out: place_of_slice(&out, device),
            cos: place_of(&self.cos)?,
            sin: place_of(&self.sin)?,
            strides: [0, 1, 2, 3].map(|i| layout.stride()[i] as i64),
            table_stride: if self.cos.dim(0)? == 1 { 0 } else { (t * pairs) as i64 },
            h: h as i32,
            t: t as i32,
            d: d as i32,
            pairs: pairs as i32,
            interleaved: i32::from(self.config.layout == Layout::Interleaved),
        };
        let rows = 4;
        let config = LaunchConfig {
            grid_dim: ((h * t).div_ceil(rows as usize) as u32, b as u32, 1),
            block_dim: (32, rows, 1),
            shared_mem_bytes: 0,
        };
        // SAFETY: a `Rotation` of `xs` in its strides, contiguous tables that reach as far, and `out`.
        unsafe { Module::rows(T::DTYPE)?.launch(device, "attn_rotate", &call, config)? };
        Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), layout.shape().clone()))
    }
}

impl CustomOp1 for Rotate<'_> {
    fn name(&self) -> &'static str {
        "rotate"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Strides) -> Result<(CpuStorage, Shape)> {
        bail!("the CUDA rotation got a tensor on the CPU")
    }

    fn cuda_fwd(&self, xs: &CudaStorage, layout: &Strides) -> Result<(CudaStorage, Shape)> {
        match xs.dtype() {
            DType::F32 => self.launch::<f32>(xs, layout),
            DType::BF16 => self.launch::<half::bf16>(xs, layout),
            DType::F16 => self.launch::<half::f16>(xs, layout),
            dtype => bail!("the CUDA rotation does not support {dtype:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::position::{Layout, Positions, Rope, RopeConfig};
    use candle_core::{DType, Device, Result, Tensor};

    /// Both layouts, part of the lanes, padded rows, views: as the CPU in f32, one rounding apart in the others.
    #[test]
    fn rotation_is_that_of_the_cpu() -> Result<()> {
        let Some(device) = candle_core::utils::cuda_is_available().then(|| Device::new_cuda(0).ok()).flatten() else {
            return Ok(());
        };
        for layout in [Layout::Half, Layout::Interleaved] {
            for (d, rotary_dim) in [(64, 64), (80, 32), (6, 4)] {
                let rope = Rope::new(RopeConfig { rotary_dim, layout, ..RopeConfig::new(d, 10_000.0) })?;
                for dtype in [DType::F32, DType::BF16, DType::F16] {
                    let xs = Tensor::randn(0f32, 1., (2, 9, 3, d), &Device::Cpu)?.to_dtype(dtype)?.transpose(1, 2)?;
                    for positions in [Positions::new(100..109), Positions::new(0..9).with_pads(Some(vec![0, 4].into()))]
                    {
                        let here = rope.rotate(&xs, &positions)?.to_dtype(DType::F32)?;
                        let there = rope.rotate(&xs.to_device(&device)?, &positions)?;
                        assert_eq!((there.dtype(), there.is_contiguous()), (dtype, true));
                        let there = there.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
                        let off = (here - there)?.abs()?.max_all()?.to_scalar::<f32>()?;
                        assert!(off <= if dtype == DType::F32 { 1e-5 } else { 4e-2 }, "{layout:?} {dtype:?}: {off:e}");
                    }
                }
            }
        }
        Ok(())
    }
}
