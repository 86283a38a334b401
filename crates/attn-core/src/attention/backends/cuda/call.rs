//! The description of a call that the kernels get, and what the device can do.

use crate::{
    attention::{
        bias::ScoreBias,
        scores::{AttendArgs, Scores},
    },
    cuda::{Module, place_of, ptx},
};
use candle_core::{
    CudaDevice, DType, Layout, Result, Tensor, bail,
    cuda_backend::{
        WrapErr,
        cudarc::driver::{
            DeviceRepr,
            sys::CUdevice_attribute::{
                CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
                CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN as MAX_SHARED,
                CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT as MULTIPROCESSORS,
            },
        },
    },
};
use std::mem::offset_of;

/// The same fields in the same order as `Call` in `call.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    q: u64,
    k: u64,
    v: u64,
    pub(super) out: u64,
    rows: u64,
    bias: u64,
    pub(super) partial_out: u64,
    pub(super) partial_stats: u64,
    pub(super) log_sums: u64,
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
    pub(super) aligned: i32,
    pub(super) splits: i32,
    scale: f32,
    softcap: f32,
}

// SAFETY: plain numbers, laid out as the kernels read them.
unsafe impl DeviceRepr for Call {}

// `call.cuh` asserts the same of its `Call`.
const _: () = {
    assert!(size_of::<Call>() == 272);
    assert!(offset_of!(Call, log_sums) == 64 && offset_of!(Call, q_strides) == 72);
    assert!(offset_of!(Call, bias_strides) == 144 && offset_of!(Call, bias_first) == 176);
    assert!(offset_of!(Call, chunk) == 208 && offset_of!(Call, b) == 216);
    assert!(offset_of!(Call, bias_kind) == 244 && offset_of!(Call, softcap) == 264);
};

/// A tensor as the kernels see it: where it starts, and how it is laid out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placed<'a> {
    pub(super) place: u64,
    pub(super) layout: &'a Layout,
    pub(super) dtype: DType,
}

impl<'a> Placed<'a> {
    pub(super) fn of(x: &'a Tensor) -> Result<Self> {
        Ok(Self { place: place_of(x)?, layout: x.layout(), dtype: x.dtype() })
    }

    /// True if every row starts at a multiple of 16 bytes and is one long.
    pub(super) fn aligned(&self) -> bool {
        let in_16 = |n: usize| (n * self.dtype.size_in_bytes()).is_multiple_of(16);
        let mut strides = self.layout.stride()[..3].iter().zip(self.layout.dims());
        self.place.is_multiple_of(16)
            && in_16(self.layout.dims()[3])
            && strides.all(|(&stride, &n)| n == 1 || in_16(stride))
    }

    pub(super) fn strides(&self) -> [i64; 3] {
        [0, 1, 2].map(|i| self.layout.stride()[i] as i64)
    }
}

/// A call but for its tensors, with what of it has to be on the device there.
#[derive(Debug, Clone)]
pub(super) struct Arguments {
    args: AttendArgs,
    /// The slots of the real tokens, as `(b, 2)`.
    rows: Option<Tensor>,
    /// The numbers of the bias in f32; a dense one stretched to the whole call by its strides.
    bias: Option<Tensor>,
}

/// A slot or a number of slots; no sequence is as long as the limit, and sums of two stay in range.
fn slot(n: usize) -> i64 {
    n.min(1 << 60) as i64
}

impl Arguments {
    /// For queries `q` and `tk` keys.
    pub(super) fn new(q: &Tensor, tk: usize, args: &AttendArgs) -> Result<Self> {
        let ends = |rows: &std::sync::Arc<[std::ops::Range<usize>]>| {
            let ends = rows.iter().flat_map(|row| [slot(row.start), slot(row.end)]);
            Tensor::from_iter(ends, q.device())
        };
        let here = |x: &Tensor| x.detach().to_device(q.device())?.to_dtype(DType::F32);
        let bias = match &args.scores.bias {
            ScoreBias::None => None,
            ScoreBias::Linear { slopes } => Some(here(slopes)?.contiguous()?),
            ScoreBias::Relative { table, .. } => Some(here(table)?.contiguous()?),
            ScoreBias::Dense(bias) => Some(here(bias)?.broadcast_as((q.dim(0)?, q.dim(1)?, q.dim(2)?, tk))?),
            _ => bail!("the CUDA attention kernels don't know this form of bias"),
        };
        Ok(Self { args: args.clone(), rows: args.mask.keys.as_ref().map(ends).transpose()?, bias })
    }

    /// Columns of a relative table.
    pub(super) fn columns(&self) -> usize {
        match (&self.args.scores.bias, &self.bias) {
            (ScoreBias::Relative { .. }, Some(table)) => table.dims()[1],
            _ => 0,
        }
    }

    /// Without an output.
    pub(super) fn call(&self, [q, k, v]: [Placed; 3]) -> Result<Call> {
        let AttendArgs { scores: Scores { scale, softcap, bias, .. }, mask, q_start, k_start } = &self.args;
        let (b, h, tq, d) = q.layout.shape().dims4()?;
        let (_, h_kv, tk, dv) = v.layout.shape().dims4()?;
        let mut bias_strides = [0; 4];
        let (bias_kind, bias_first) = match (bias, &self.bias) {
            (ScoreBias::None, _) | (_, None) => (0, 0),
            (ScoreBias::Linear { .. }, _) => (1, 0),
            (ScoreBias::Relative { first, .. }, Some(table)) => {
                bias_strides[1] = table.dim(1)? as i64;
                (2, *first)
            }
            (_, Some(bias)) => {
                bias_strides = [0, 1, 2, 3].map(|i| bias.stride()[i] as i64);
                (3, 0)
            }
        };
        Ok(Call {
            q: q.place,
            k: k.place,
            v: v.place,
            out: 0,
            rows: self.rows.as_ref().map_or(Ok(0), place_of)?,
            bias: self.bias.as_ref().map_or(Ok(0), place_of)?,
            partial_out: 0,
            partial_stats: 0,
            log_sums: 0,
            q_strides: q.strides(),
            k_strides: k.strides(),
            v_strides: v.strides(),
            bias_strides,
            bias_first,
            q_start: slot(*q_start),
            k_start: slot(*k_start),
            window: slot(mask.window.unwrap_or(0)),
            chunk: slot(mask.chunk.map_or(0, |chunk| chunk.size)),
            b: b as i32,
            h: h as i32,
            h_kv: h_kv as i32,
            tq: tq as i32,
            tk: tk as i32,
            d: d as i32,
            dv: dv as i32,
            bias_kind,
            causal: i32::from(mask.causal),
            aligned: i32::from([q, k, v].iter().all(Placed::aligned)),
            splits: 1,
            scale: *scale as f32,
            softcap: softcap.unwrap_or(0.0) as f32,
        })
    }
}

/// The head dims that the kernels were compiled for.
pub(super) const HEAD_DIMS: [usize; 3] = [64, 128, 256];

/// The files of kernels for a dtype and one of [`HEAD_DIMS`]: attention, and its gradients.
pub(super) fn modules(dtype: DType, head_dim: usize) -> Option<(Module, Module)> {
    let (name, code, gradients, gradients_code) = match (dtype, head_dim) {
        (DType::F32, 64) => ("attn_f32_64", ptx::ATTENTION_F32_64, "attn_gradients_f32_64", ptx::GRADIENTS_F32_64),
        (DType::F32, 128) => ("attn_f32_128", ptx::ATTENTION_F32_128, "attn_gradients_f32_128", ptx::GRADIENTS_F32_128),
        (DType::F32, 256) => ("attn_f32_256", ptx::ATTENTION_F32_256, "attn_gradients_f32_256", ptx::GRADIENTS_F32_256),
        (DType::BF16, 64) => ("attn_bf16_64", ptx::ATTENTION_BF16_64, "attn_gradients_bf16_64", ptx::GRADIENTS_BF16_64),
        (DType::BF16, 128) => {
            ("attn_bf16_128", ptx::ATTENTION_BF16_128, "attn_gradients_bf16_128", ptx::GRADIENTS_BF16_128)
        }
        (DType::BF16, 256) => {
            ("attn_bf16_256", ptx::ATTENTION_BF16_256, "attn_gradients_bf16_256", ptx::GRADIENTS_BF16_256)
        }
        (DType::F16, 64) => ("attn_f16_64", ptx::ATTENTION_F16_64, "attn_gradients_f16_64", ptx::GRADIENTS_F16_64),
        (DType::F16, 128) => ("attn_f16_128", ptx::ATTENTION_F16_128, "attn_gradients_f16_128", ptx::GRADIENTS_F16_128),
        (DType::F16, 256) => ("attn_f16_256", ptx::ATTENTION_F16_256, "attn_gradients_f16_256", ptx::GRADIENTS_F16_256),
        _ => return None,
    };
    Some((Module { name, code }, Module { name: gradients, code: gradients_code }))
}

/// Numbers of the device that decide how a call is run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) shared: usize,
    pub(super) multiprocessors: usize,
    pub(super) tensor_cores: bool,
}

impl Limits {
    pub(super) fn of(device: &CudaDevice) -> Result<Self> {
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
