//! Weights in the blocks of GGUF files, which become bf16 a few outputs at a time.

use super::{Kernel, Weights, product};
use crate::product::with_slices;
use crate::simd::KernelPath;
use crate::simd::{Element, Job, Simd, dispatch};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{CpuStorage, DType, Device, Result, Tensor, bail};
use half::bf16;
use std::{borrow::Cow, ops::Range};

/// `xs W^T` as f32, `None` if the machine has no bf16 kernel.
///
/// # Errors
/// Blocks that don't become f32.
pub(in crate::product) fn of_blocks(xs: &Tensor, w: &QTensor) -> Result<Option<Tensor>> {
    let Some(kernel) = Kernel::fastest() else { return Ok(None) };
    let ((rows, depth), (out, _)) = (xs.dims2()?, w.shape().dims2()?);
    let narrow = xs.to_dtype(DType::BF16)?.contiguous()?;
    let weights = Widened { dtype: w.dtype(), data: &w.data()?, depth };
    let ys = with_slices(&narrow, &narrow, |xs: &[bf16], _| product::<f32>(kernel, xs, &weights, (rows, depth, out)))??;
    Tensor::from_vec(ys, (rows, out), &Device::Cpu).map(Some)
}

/// Blocks that become bf16 when they are needed.
struct Widened<'a> {
    dtype: GgmlDType,
    data: &'a [u8],
    depth: usize,
}

impl Weights for Widened<'_> {
    fn with(&self, outs: Range<usize>, pack: &mut dyn FnMut(&[bf16])) -> Result<()> {
        let row = self.depth / self.dtype.block_size() * self.dtype.type_size();
        let blocks = self.dtype.from_data(Cow::Borrowed(&self.data[outs.start * row..outs.end * row]));
        let CpuStorage::F32(wide) = blocks.dequantize(outs.len() * self.depth)? else {
            bail!("{:?} blocks did not become f32", self.dtype)
        };
        let mut rows = vec![bf16::ZERO; wide.len()];
        dispatch(KernelPath::choose(None)?, Narrow { wide: &wide, rows: &mut rows });
        pack(&rows);
        Ok(())
    }
}

/// Rounds, compiled for the machine's instruction set.
struct Narrow<'a> {
    wide: &'a [f32],
    rows: &'a mut [bf16],
}

impl Job for Narrow<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        Element::narrow_all(self.wide, self.rows);
    }
}
