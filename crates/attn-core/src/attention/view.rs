//! The tensors of a call as kernels of the CPU read them: sizes, and strided views whose bounds were checked.

use super::tokens::Tokens;
use crate::simd::Element;
use candle_core::{CpuStorage, DType, Layout, Result, Tensor, bail};

/// Sizes of a call: q `(b, h, tq, d)`, k `(b, h_kv, tk, d)`, v `(b, h_kv, tk, dv)`.
#[derive(Debug, Clone, Copy)]
pub(in crate::attention) struct Sizes {
    pub(in crate::attention) b: usize,
    pub(in crate::attention) h: usize,
    pub(in crate::attention) h_kv: usize,
    pub(in crate::attention) tq: usize,
    pub(in crate::attention) tk: usize,
    pub(in crate::attention) d: usize,
    pub(in crate::attention) dv: usize,
}

impl Sizes {
    pub(in crate::attention) fn new(q: &Layout, k: &Layout, v: &Layout) -> Result<Self> {
        let (b, h, tq, d) = q.shape().dims4()?;
        let (_, h_kv, tk, _) = k.shape().dims4()?;
        let (_, _, _, dv) = v.shape().dims4()?;
        Ok(Self { b, h, h_kv, tq, tk, d, dv })
    }

    /// Query heads per kv head.
    pub(in crate::attention) fn group(&self) -> usize {
        self.h / self.h_kv
    }

    /// Every batch row with every kv head.
    pub(in crate::attention) fn key_rows(&self) -> Vec<(usize, usize)> {
        (0..self.b).flat_map(|b| (0..self.h_kv).map(move |head| (b, head))).collect()
    }
}

/// A `(b, h, t, d)` tensor with any strides but a contiguous last dimension.
#[derive(Clone, Copy)]
pub(in crate::attention) struct View<'a, T> {
    data: &'a [T],
    /// `(b, h, t)`
    outer: [usize; 3],
    strides: [usize; 3],
    width: usize,
}

impl<'a, T: Element> View<'a, T> {
    pub(in crate::attention) fn new(storage: &'a CpuStorage, layout: &Layout) -> Result<Self> {
        let data = storage.as_slice::<T>()?;
        let (dims, strides) = (layout.dims(), layout.stride());
        let &[b, h, t, last] = strides else { bail!("attend: expected four dimensions, got {dims:?}") };
        if dims[3] > 1 && last != 1 {
            bail!("attend: the last dimension must be contiguous")
        }
        // The kernels go through pointers, so that every place is in bounds is established here.
        let size: usize = if dims.contains(&0) {
            0
        } else {
            dims.iter().zip([b, h, t, 1]).map(|(n, stride)| (n - 1) * stride).sum::<usize>() + 1
        };
        match data.get(layout.start_offset()..layout.start_offset() + size) {
            Some(data) => Ok(Self { data, outer: [dims[0], dims[1], dims[2]], strides: [b, h, t], width: dims[3] }),
            None => bail!("attend: layout {layout:?} leaves its storage of {}", data.len()),
        }
    }

    /// The numbers of one token.
    pub(in crate::attention) fn row(&self, b: usize, h: usize, t: usize) -> &'a [T] {
        let start = b * self.strides[0] + h * self.strides[1] + t * self.strides[2];
        &self.data[start..start + self.width]
    }

    /// Where token `t` starts, and the distance to the next token.
    pub(in crate::attention) fn tokens(&self, b: usize, h: usize, t: usize) -> (*const T, usize) {
        (self.row(b, h, t).as_ptr(), self.strides[2])
    }
}

/// The inputs of one call.
#[derive(Clone, Copy)]
pub(in crate::attention) struct Inputs<'a, T> {
    pub(in crate::attention) q: View<'a, T>,
    pub(in crate::attention) k: Tokens<'a>,
    pub(in crate::attention) v: Tokens<'a>,
}

impl<T: Element> Inputs<'_, T> {
    pub(in crate::attention) fn sizes(&self) -> Sizes {
        let ([b, h, tq], [_, h_kv, tk, d], [_, _, _, dv]) = (self.q.outer, self.k.dims, self.v.dims);
        Sizes { b, h, h_kv, tq, tk, d, dv }
    }
}

/// `(b, h, t, d)` with the last dimension's numbers side by side, copied only if they aren't.
pub(in crate::attention) fn with_contiguous_rows(x: &Tensor) -> Result<Tensor> {
    if x.stride()[3] == 1 || x.dim(3)? == 1 { Ok(x.clone()) } else { x.contiguous() }
}

/// A tensor's numbers, in order.
pub(in crate::attention) fn numbers(x: &Tensor) -> Result<Vec<f32>> {
    x.detach().to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}
