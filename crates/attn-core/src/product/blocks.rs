//! Products with weights that stay in the blocks of GGUF files.
//!
//! Up to [`FEW_ROWS`] rows, the blocks are unpacked in the caches and the numbers multiplied with f32 activations
//! (`exact`), or with activations in 8 bits where `ATTN_ACTIVATIONS` asks for them (`rounded`): the weights cross the
//! memory bus as they are stored. More rows take the bf16 kernel, with the weights widened a few outputs at a time, or
//! Candle's f32 product where the machine has no such kernel.

mod exact;
mod formats;
mod rounded;
#[cfg(test)]
mod tests;

use super::FEW_ROWS;
use super::few_rows;
use crate::parallel::Disjoint;
use crate::quantized::{BlockFormat, Blocks};
use crate::simd::dots::dispatch_dots;
use crate::simd::{KernelPath, dispatch, is_amd};
use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Result, Tensor, bail};
use formats::Block;
use std::{ops::Range, sync::OnceLock};

/// `xs W^T` for `xs` of shape `(rows, in)` and blocks `(out, in)`, in the dtype of `xs`; `None` where Candle's own product
/// is to be taken: off the CPU, and for few rows of a format without a kernel here.
///
/// # Errors
/// Shapes that don't fit each other.
pub(crate) fn matmul_t(xs: &Tensor, w: &Blocks) -> Result<Option<Tensor>> {
    let ((rows, depth), (out, width)) = (xs.dims2()?, w.dims2()?);
    if depth != width {
        bail!("linear: inputs of {depth} numbers, quantised weights for {width}")
    }
    if !xs.device().is_cpu() || !w.device().is_cpu() || rows == 0 || xs.track_op() {
        return Ok(None);
    }
    let ys = if rows <= FEW_ROWS {
        let Some(format) = Format::of(w.format()) else { return Ok(None) };
        let flat = xs.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let (path, kind) = (KernelPath::choose(None)?, ActivationKind::asked()?);
        let ys = few(path, kind, &flat, format, &w.data()?, (rows, depth, out));
        Tensor::from_vec(ys, (rows, out), &Device::Cpu)?
    } else {
        many(xs, w)?
    };
    Ok(Some(ys.to_dtype(xs.dtype())?))
}

/// Many rows, as f32.
fn many(xs: &Tensor, w: &Blocks) -> Result<Tensor> {
    #[cfg(target_arch = "x86_64")]
    if let Some(ys) = super::bf16::of_blocks(xs, w)? {
        return Ok(ys);
    }
    xs.to_dtype(DType::F32)?.matmul(&w.dequantize()?.t()?)
}

/// What activations become before they meet quantised weights in a product of a few rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ActivationKind {
    /// They stay f32.
    Exact,
    /// 8 bits, every 32 under a scale.
    Rounded,
}

impl ActivationKind {
    /// The one that `ATTN_ACTIVATIONS` names, else the exact one.
    ///
    /// # Errors
    /// `ATTN_ACTIVATIONS` names neither kind.
    fn asked() -> Result<Self> {
        static ASKED: OnceLock<std::result::Result<ActivationKind, String>> = OnceLock::new();
        let asked = ASKED.get_or_init(|| match std::env::var("ATTN_ACTIVATIONS").as_deref() {
            Ok("int8") => Ok(Self::Rounded),
            Ok("f32" | "") | Err(_) => Ok(Self::Exact),
            Ok(name) => Err(format!("unknown kind of activations '{name}': one of f32, int8")),
        });
        match asked {
            Ok(kind) => Ok(*kind),
            Err(message) => bail!("ATTN_ACTIVATIONS: {message}"),
        }
    }
}

/// A format that has a kernel; [`formats`] says what each holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(non_camel_case_types)] // ggml's names
enum Format {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq4Nl,
    Iq4Xs,
    Mxfp4,
}

/// Evaluates an expression with the block type of a format.
macro_rules! with_block {
    ($format:expr, $block:ident => $value:expr) => {
        with_block!($format, $block => $value; Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K, Iq4Nl, Iq4Xs, Mxfp4)
    };
    ($format:expr, $block:ident => $value:expr; $($name:ident),*) => {
        match $format {
            $($crate::product::blocks::Format::$name => {
                type $block = $crate::product::blocks::formats::$name;
                $value
            })*
        }
    };
}
use with_block;

impl Format {
    fn of(format: BlockFormat) -> Option<Self> {
        let dtype = match format {
            BlockFormat::Candle(dtype) => dtype,
            BlockFormat::Iq4Nl => return Some(Self::Iq4Nl),
            BlockFormat::Iq4Xs => return Some(Self::Iq4Xs),
            BlockFormat::Mxfp4 => return Some(Self::Mxfp4),
        };
        Some(match dtype {
            GgmlDType::Q4_0 => Self::Q4_0,
            GgmlDType::Q4_1 => Self::Q4_1,
            GgmlDType::Q5_0 => Self::Q5_0,
            GgmlDType::Q5_1 => Self::Q5_1,
            GgmlDType::Q8_0 => Self::Q8_0,
            GgmlDType::Q2K => Self::Q2K,
            GgmlDType::Q3K => Self::Q3K,
            GgmlDType::Q4K => Self::Q4K,
            GgmlDType::Q5K => Self::Q5K,
            GgmlDType::Q6K => Self::Q6K,
            _ => return None,
        })
    }

    /// Bytes of `weights` weights, which are whole blocks.
    fn bytes(self, weights: usize) -> usize {
        with_block!(self, B => weights / B::WEIGHTS * size_of::<B>())
    }

    /// Weights of a block.
    fn block(self) -> usize {
        with_block!(self, B => B::WEIGHTS)
    }

    /// Weights of a group.
    fn group(self) -> usize {
        with_block!(self, B => B::GROUP)
    }

    fn has_offsets(self) -> bool {
        with_block!(self, B => B::OFFSETS)
    }
}

/// How many bytes ahead memory is prefetched: a page, because the machine's own prefetching stops at the end of a page.
/// On Intel (Sapphire Rapids and later) this reads from memory as fast as four streams side by side. AMD's processors
/// (Zen 4) prefetch a single stream better by themselves.
fn ahead() -> usize {
    if is_amd() { 0 } else { 4096 }
}

/// Products with the blocks of some outputs: `ys[o][r]`.
struct Product<'a> {
    format: Format,
    data: &'a [u8],
    /// Weights of an output.
    depth: usize,
    /// How many bytes ahead memory is prefetched.
    ahead: usize,
    ys: &'a mut [f32],
}

/// `(rows, out)` sums for `(rows, depth, out)`.
fn few(
    path: KernelPath,
    kind: ActivationKind,
    xs: &[f32],
    format: Format,
    data: &[u8],
    (rows, depth, out): (usize, usize, usize),
) -> Vec<f32> {
    let bytes = format.bytes(depth);
    assert!(depth.is_multiple_of(format.block()) && xs.len() == rows * depth && data.len() == out * bytes);
    let ahead = ahead();
    let each = |run: &(dyn Fn(Product<'_>) + Sync)| {
        few_rows::columns((rows, out), |outs: Range<usize>, target: &Disjoint<'_, f32>| {
            // SAFETY: the target is zeroed, and every range of outputs is handed out once.
            let ys = unsafe { target.part(outs.start * rows, outs.len() * rows) };
            run(Product { format, data: &data[outs.start * bytes..outs.end * bytes], depth, ahead, ys });
        })
    };
    match kind {
        ActivationKind::Exact => {
            let activations = &exact::Activations::new(xs, depth, format);
            each(&|product| dispatch(path, exact::Exact { activations, product }))
        }
        ActivationKind::Rounded => {
            let (mut rounded, wide) = rounded::Activations::new(xs, depth, format);
            dispatch(path, rounded::Round { to: &mut rounded, wide: &wide });
            let activations = &rounded;
            each(&|product| dispatch_dots(path, rounded::Rounded { activations, product }))
        }
    }
}
