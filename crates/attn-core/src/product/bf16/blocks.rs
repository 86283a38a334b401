//! Weights in the blocks of GGUF files, which become bf16 a few outputs at a time.

use super::{Kernel, Weights, product};
use crate::product::with_slices;
use crate::quantized::{BlockFormat, Blocks};
use crate::simd::KernelPath;
use crate::simd::{Element, Job, Simd, dispatch};
use candle_core::{DType, Device, Result, Tensor};
use half::bf16;
use std::ops::Range;

/// `xs W^T` as f32, `None` if the machine has no bf16 kernel.
///
/// # Errors
/// Blocks that don't become f32.
pub(in crate::product) fn of_blocks(xs: &Tensor, w: &Blocks) -> Result<Option<Tensor>> {
    let Some(kernel) = Kernel::fastest() else { return Ok(None) };
    let ((rows, depth), (out, _)) = (xs.dims2()?, w.dims2()?);
    let narrow = xs.to_dtype(DType::BF16)?.contiguous()?;
    let weights = Widened { format: w.format(), data: &w.data()?, depth };
    let ys = with_slices(&narrow, &narrow, |xs: &[bf16], _| product::<f32>(kernel, xs, &weights, (rows, depth, out)))??;
    Tensor::from_vec(ys, (rows, out), &Device::Cpu).map(Some)
}

/// Blocks that become bf16 when they are needed.
struct Widened<'a> {
    format: BlockFormat,
    data: &'a [u8],
    depth: usize,
}

impl Weights for Widened<'_> {
    fn with(&self, outs: Range<usize>, pack: &mut dyn FnMut(&[bf16])) -> Result<()> {
        let row = self.depth / self.format.block_size() * self.format.type_size();
        let mut wide = vec![0f32; outs.len() * self.depth];
        self.format.widen_into(&self.data[outs.start * row..outs.end * row], &mut wide)?;
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
