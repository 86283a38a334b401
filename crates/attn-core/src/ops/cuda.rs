//! Norms and gates on CUDA: `kernels/rows.cuh`, in one launch each. They have no gradients; where one is wanted, Candle's
//! ops serve.

use super::{Activation, NormKind};
use crate::cuda::{Element, Module, place, place_of, place_of_slice, takes};
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, DType, Layout, Result, Shape, Tensor,
    backend::BackendStorage,
    bail,
    cuda_backend::cudarc::driver::{DeviceRepr, LaunchConfig},
};

/// The same fields in the same order as `Norm` in `rows.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct NormCall {
    xs: u64,
    out: u64,
    weight: u64,
    bias: u64,
    weight_period: i64,
    bias_period: i64,
    width: i32,
    weight_is_f32: i32,
    bias_is_f32: i32,
    subtract_mean: i32,
    eps: f32,
}

// SAFETY: plain numbers, laid out as the kernel reads them.
unsafe impl DeviceRepr for NormCall {}

struct Norm<'a> {
    kind: NormKind,
    weight: Option<&'a Tensor>,
    bias: Option<&'a Tensor>,
    eps: f64,
}

/// [`norm`](super::norm()) where the kernel takes it.
pub(super) fn norm(
    kind: NormKind,
    xs: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<Option<Tensor>> {
    let fits = |w: &Tensor| {
        let known = w.dtype() == DType::F32 || w.dtype() == xs.dtype();
        takes(w) && known && w.is_contiguous() && xs.dims().ends_with(w.dims()) && w.rank() > 0
    };
    if !takes(xs) || xs.rank() == 0 || !weight.is_none_or(fits) || !bias.is_none_or(fits) {
        return Ok(None);
    }
    xs.contiguous()?.apply_op1_no_bwd(&Norm { kind, weight, bias, eps }).map(Some)
}

impl Norm<'_> {
    fn launch<T: Element>(&self, xs: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let device = xs.device();
        let count = layout.shape().elem_count();
        let width = layout.dims().last().copied().unwrap_or(1);
        // SAFETY: the kernel writes every element.
        let out = unsafe { device.alloc::<T>(count)? };
        let place_of = |w: Option<&Tensor>| w.map_or(Ok(0), place_of);
        let period = |w: Option<&Tensor>| w.map_or(1, Tensor::elem_count) as i64;
        let is_f32 = |w: Option<&Tensor>| i32::from(w.is_some_and(|w| w.dtype() == DType::F32));
        let call = NormCall {
            xs: place::<T>(xs, layout)?,
            out: place_of_slice(&out, device),
            weight: place_of(self.weight)?,
            bias: place_of(self.bias)?,
            weight_period: period(self.weight),
            bias_period: period(self.bias),
            width: width as i32,
            weight_is_f32: is_f32(self.weight),
            bias_is_f32: is_f32(self.bias),
            subtract_mean: i32::from(self.kind == NormKind::Layer),
            eps: self.eps as f32,
        };
        let threads = (width / 4).next_power_of_two().clamp(32, 512) as u32;
        let grid_dim = ((count / width) as u32, 1, 1);
        let config = LaunchConfig { grid_dim, block_dim: (threads, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: a `NormCall` of contiguous tensors.
        unsafe { Module::rows(T::DTYPE)?.launch(device, "attn_norm", &call, config)? };
        Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), layout.shape().clone()))
    }
}

impl CustomOp1 for Norm<'_> {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("the CUDA norm got a tensor on the CPU")
    }

    fn cuda_fwd(&self, xs: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        match xs.dtype() {
            DType::F32 => self.launch::<f32>(xs, layout),
            DType::BF16 => self.launch::<half::bf16>(xs, layout),
            DType::F16 => self.launch::<half::f16>(xs, layout),
            dtype => bail!("the CUDA norm does not support {dtype:?}"),
        }
    }
}

/// The same fields in the same order as `Gate` in `rows.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct GateCall {
    gate: u64,
    up: u64,
    out: u64,
    count: i64,
    width: i64,
    stride: i64,
    activation: i32,
}

// SAFETY: plain numbers, laid out as the kernel reads them.
unsafe impl DeviceRepr for GateCall {}

struct Gate {
    activation: Activation,
    /// The two side by side in one tensor, given twice.
    joined: bool,
}

/// `act(gate) * up` for both side by side, where the kernel takes it.
pub(super) fn gated(activation: Activation, gate_up: &Tensor) -> Result<Option<Tensor>> {
    if !takes(gate_up) {
        return Ok(None);
    }
    let gate_up = gate_up.contiguous()?;
    gate_up.apply_op2_no_bwd(&gate_up, &Gate { activation, joined: true }).map(Some)
}

/// `act(gate) * up` for two tensors, where the kernel takes it.
pub(super) fn gated_pair(activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Option<Tensor>> {
    let alike = gate.dims() == up.dims() && gate.dtype() == up.dtype();
    if !alike || !takes(gate) || !takes(up) {
        return Ok(None);
    }
    gate.contiguous()?.apply_op2_no_bwd(&up.contiguous()?, &Gate { activation, joined: false }).map(Some)
}

impl Gate {
    fn launch<T: Element>(
        &self,
        [(gate, layout), (up, up_layout)]: [(&CudaStorage, &Layout); 2],
    ) -> Result<(CudaStorage, Shape)> {
        let device = gate.device();
        let mut dims = layout.dims().to_vec();
        let stride = dims.last().copied().unwrap_or(1);
        let width = if self.joined { stride / 2 } else { stride };
        if let Some(last) = dims.last_mut() {
            *last = width;
        }
        let count: usize = dims.iter().product();
        // SAFETY: the kernel writes every element.
        let out = unsafe { device.alloc::<T>(count)? };
        let offset = if self.joined { width * size_of::<T>() } else { 0 };
        let call = GateCall {
            gate: place::<T>(gate, layout)?,
            up: place::<T>(up, up_layout)? + offset as u64,
            out: place_of_slice(&out, device),
            count: count as i64,
            width: width as i64,
            stride: stride as i64,
            activation: match self.activation {
                Activation::Silu => 0,
                Activation::GeluErf => 1,
                Activation::GeluTanh => 2,
                Activation::QuickGelu => 3,
                Activation::Relu => 4,
                Activation::Relu2 => 5,
            },
        };
        let blocks = count.div_ceil(256).min(1 << 16) as u32;
        let config = LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (256, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: a `GateCall` of contiguous tensors.
        unsafe { Module::rows(T::DTYPE)?.launch(device, "attn_gate", &call, config)? };
        Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), dims.into()))
    }
}

impl CustomOp2 for Gate {
    fn name(&self) -> &'static str {
        "gate"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("the CUDA gate got tensors of the CPU")
    }

    fn cuda_fwd(
        &self,
        gate: &CudaStorage,
        layout: &Layout,
        up: &CudaStorage,
        up_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let of = [(gate, layout), (up, up_layout)];
        match gate.dtype() {
            DType::F32 => self.launch::<f32>(of),
            DType::BF16 => self.launch::<half::bf16>(of),
            DType::F16 => self.launch::<half::f16>(of),
            dtype => bail!("the CUDA gate does not support {dtype:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Activation, NormKind, gated, gated_pair, norm};
    use candle_core::{DType, Device, Result, Tensor};

    fn device() -> Option<Device> {
        candle_core::utils::cuda_is_available().then(|| Device::new_cuda(0).ok()).flatten()
    }

    /// Largest difference of the device's result from the CPU's, over the CPU's largest value.
    fn off(f: impl Fn(&dyn Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor>, device: &Device) -> Result<f32> {
        let flat = |x: Tensor| x.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
        let there = flat(f(&|x| x.to_device(device))?)?;
        let here = flat(f(&|x| Ok(x.clone()))?)?;
        assert_eq!(there.len(), here.len());
        let largest = here.iter().fold(1e-3f32, |a, x| a.max(x.abs()));
        Ok(there.iter().zip(&here).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest)
    }

    #[test]
    fn norms_are_those_of_the_cpu() -> Result<()> {
        let Some(device) = device() else { return Ok(()) };
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            for (dims, weight) in
                [(vec![3, 5, 576], vec![576]), (vec![2, 7, 3, 64], vec![3, 64]), (vec![4, 5000], vec![5000])]
            {
                let random = |dims: &[usize]| Tensor::randn(0.5f32, 1., dims, &Device::Cpu);
                let xs = random(&dims)?.to_dtype(dtype)?;
                for parameter in [DType::F32, dtype] {
                    let (w, b) = (random(&weight)?.to_dtype(parameter)?, random(&weight)?.to_dtype(parameter)?);
                    for kind in [NormKind::Rms, NormKind::Layer] {
                        let limit = if dtype == DType::F32 { 5e-6 } else { 5e-3 };
                        let run = |there: &dyn Fn(&Tensor) -> Result<Tensor>| {
                            norm(kind, &there(&xs)?, Some(&there(&w)?), Some(&there(&b)?), 1e-5)
                        };
                        let off = off(run, &device)?;
                        assert!(off <= limit, "{kind:?} {dtype:?} {dims:?}: off by {off:e}");
                        let run =
                            |there: &dyn Fn(&Tensor) -> Result<Tensor>| norm(kind, &there(&xs)?, None, None, 1e-5);
                        assert!(super::tests::off(run, &device)? <= limit);
                    }
                }
            }
        }
        Ok(())
    }

    #[test]
    fn gates_are_those_of_the_cpu() -> Result<()> {
        let Some(device) = device() else { return Ok(()) };
        let all = [
            Activation::Silu,
            Activation::GeluErf,
            Activation::GeluTanh,
            Activation::QuickGelu,
            Activation::Relu,
            Activation::Relu2,
        ];
        for (activation, dtype) in all.into_iter().flat_map(|a| [DType::F32, DType::BF16, DType::F16].map(|d| (a, d))) {
            let xs = Tensor::randn(0f32, 2., (3, 5, 70), &Device::Cpu)?.to_dtype(dtype)?;
            let other = Tensor::randn(0f32, 2., (3, 5, 70), &Device::Cpu)?.to_dtype(dtype)?;
            let limit = if dtype == DType::F32 { 2e-6 } else { 5e-3 };
            let off_joined = off(|there| gated(activation, &there(&xs)?), &device)?;
            let off_pair = off(|there| gated_pair(activation, &there(&xs)?, &there(&other)?), &device)?;
            assert!(off_joined.max(off_pair) <= limit, "{activation:?} {dtype:?}: {off_joined:e}, {off_pair:e}");
        }
        Ok(())
    }
}
