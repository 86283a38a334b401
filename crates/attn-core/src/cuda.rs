//! What this project's CUDA kernels share: their code, the addresses of tensors, launches.

use candle_core::{
    CudaDevice, CudaStorage, DType, Layout, Result, Storage, Tensor, WithDType,
    backend::BackendStorage,
    bail,
    cuda_backend::{
        CudaDType, WrapErr,
        cudarc::driver::{
            DevicePtr, DeviceRepr, LaunchConfig, PushKernelArg, result,
            sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
            sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
        },
    },
};

/// The kernels as PTX, a constant per file of `kernels/`.
#[allow(unreachable_pub)] // as written by the build script
pub(crate) mod ptx {
    include!(concat!(env!("OUT_DIR"), "/ptx.rs"));
}

/// Dtypes that the kernels know.
pub(crate) trait Element: CudaDType + DeviceRepr + WithDType {}

impl Element for f32 {}
impl Element for half::bf16 {}
impl Element for half::f16 {}

/// Memory a block may use without asking for more.
const SHARED_BY_DEFAULT: u32 = 48 << 10;

/// A file of kernels: the name it is loaded under and its code.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Module {
    pub(crate) name: &'static str,
    pub(crate) code: &'static str,
}

impl Module {
    /// The kernels of `rows.cuh`.
    pub(crate) fn rows(dtype: DType) -> Result<Self> {
        Ok(match dtype {
            DType::F32 => Self { name: "attn_rows_f32", code: ptx::ROWS_F32 },
            DType::BF16 => Self { name: "attn_rows_bf16", code: ptx::ROWS_BF16 },
            DType::F16 => Self { name: "attn_rows_f16", code: ptx::ROWS_F16 },
            dtype => bail!("the CUDA kernels don't know {dtype:?}"),
        })
    }

    /// Runs one of its kernels on the device's stream.
    ///
    /// # Safety
    /// `arguments` is what the kernel takes, and the places in it are those of tensors that live until the stream has
    /// passed the launch, with the sizes and strides beside them.
    pub(crate) unsafe fn launch<A: DeviceRepr>(
        self,
        device: &CudaDevice,
        kernel: &str,
        arguments: &A,
        config: LaunchConfig,
    ) -> Result<()> {
        let function = device.get_or_load_custom_func(kernel, self.name, self.code)?;
        if config.shared_mem_bytes > SHARED_BY_DEFAULT {
            let most = CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(most, config.shared_mem_bytes as i32).w()?;
        }
        let mut launch = function.builder();
        launch.arg(arguments);
        // SAFETY: the caller's.
        unsafe { launch.launch(config) }.w()?;
        Ok(())
    }
}

/// The place of a tensor's first element on the device.
pub(crate) fn place<T: CudaDType + DeviceRepr>(storage: &CudaStorage, layout: &Layout) -> Result<u64> {
    let start = place_of_slice(storage.as_cuda_slice::<T>()?, storage.device());
    Ok(start + (layout.start_offset() * size_of::<T>()) as u64)
}

/// The place of an allocation.
pub(crate) fn place_of_slice<T: DeviceRepr>(slice: &impl DevicePtr<T>, device: &CudaDevice) -> u64 {
    let stream = device.cuda_stream();
    // The guard orders streams; every tensor of a device is on its one stream.
    let (place, _guard) = slice.device_ptr(&stream);
    place
}

/// The place of a tensor whose dtype is one of [`Element`]'s or i64, on the device with the others.
pub(crate) fn place_of(x: &Tensor) -> Result<u64> {
    let (storage, layout) = x.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else { bail!("a tensor that isn't on the CUDA device with the others") };
    match x.dtype() {
        DType::F32 => place::<f32>(storage, layout),
        DType::BF16 => place::<half::bf16>(storage, layout),
        DType::F16 => place::<half::f16>(storage, layout),
        DType::I64 => place::<i64>(storage, layout),
        dtype => bail!("the CUDA kernels don't know {dtype:?}"),
    }
}

/// See [`machine::keep_freed_memory`](crate::machine::keep_freed_memory).
pub(crate) fn keep_freed_memory(device: &CudaDevice) -> Result<()> {
    let mut all = u64::MAX;
    let stream = device.cuda_stream();
    // SAFETY: the device exists, and the attribute is a u64 that CUDA copies.
    unsafe {
        let pool = result::device::get_default_mem_pool(stream.context().cu_device()).w()?;
        let which = CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        result::mem_pool::set_attribute(pool, which, (&raw mut all).cast()).w()
    }
}

/// True if the kernels take `x`: on a CUDA device, of a dtype they know, with something in it, and no gradient to keep.
pub(crate) fn takes(x: &Tensor) -> bool {
    let known = matches!(x.dtype(), DType::F32 | DType::BF16 | DType::F16);
    x.device().is_cuda() && known && x.elem_count() > 0 && !x.track_op()
}
