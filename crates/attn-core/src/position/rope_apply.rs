//! Two ways to apply the same rotation: plain Candle ops, and one pass over the data on the CPU.

use super::rope::Table;
use super::{Layout, Positions, RopeConfig};
use candle_core::{CpuStorage, CustomOp1, D, Layout as Strides, Result, Shape, Tensor, bail};
use half::{bf16, f16};
use rayon::prelude::*;

/// Rotates in the dtype of `cos` and casts back. `cos` and `sin` broadcast to `(b, h, t, rotary_dim / 2)`.
pub(super) fn rotate_plain(xs: &Tensor, cos: &Tensor, sin: &Tensor, config: &RopeConfig) -> Result<Tensor> {
    let (width, pairs) = (config.rotary_dim, config.rotary_dim / 2);
    let turned = xs.narrow(D::Minus1, 0, width)?.to_dtype(cos.dtype())?;
    let turn = |a: &Tensor, b: &Tensor| -> Result<(Tensor, Tensor)> {
        let first = (a.broadcast_mul(cos)? - b.broadcast_mul(sin)?)?;
        let second = (b.broadcast_mul(cos)? + a.broadcast_mul(sin)?)?;
        Ok((first, second))
    };
    let turned = match config.layout {
        Layout::Half => {
            let (a, b) = turn(&turned.narrow(D::Minus1, 0, pairs)?, &turned.narrow(D::Minus1, pairs, pairs)?)?;
            Tensor::cat(&[a, b], D::Minus1)?
        }
        Layout::Interleaved => {
            let (b, h, t, _) = turned.dims4()?;
            let split = turned.reshape((b, h, t, pairs, 2))?;
            let lane = |i| split.narrow(D::Minus1, i, 1)?.squeeze(D::Minus1);
            let (first, second) = turn(&lane(0)?, &lane(1)?)?;
            Tensor::stack(&[first, second], D::Minus1)?.flatten_from(3)?
        }
    };
    let turned = turned.to_dtype(xs.dtype())?;
    if width == config.head_dim {
        return Ok(turned);
    }
    Tensor::cat(&[turned, xs.narrow(D::Minus1, width, config.head_dim - width)?], D::Minus1)
}

/// The fast path: reads each lane once, writes it once, no tensor in between.
pub(super) struct FastRope<'a> {
    pub(super) table: std::sync::Arc<Table>,
    pub(super) positions: &'a Positions,
    pub(super) config: &'a RopeConfig,
}

/// An element that is rotated as f32.
trait Lane: Copy + Send + Sync {
    const ZERO: Self;
    fn load(self) -> f32;
    fn store(x: f32) -> Self;
}

impl Lane for f32 {
    const ZERO: Self = 0.0;
    fn load(self) -> f32 {
        self
    }
    fn store(x: f32) -> Self {
        x
    }
}

impl Lane for bf16 {
    const ZERO: Self = bf16::ZERO;
    fn load(self) -> f32 {
        self.to_f32()
    }
    fn store(x: f32) -> Self {
        bf16::from_f32(x)
    }
}

impl Lane for f16 {
    const ZERO: Self = f16::ZERO;
    fn load(self) -> f32 {
        self.to_f32()
    }
    fn store(x: f32) -> Self {
        f16::from_f32(x)
    }
}

/// Elements below which one thread is faster than several.
const PARALLEL_FROM: usize = 1 << 16;

impl FastRope<'_> {
    fn run<T: Lane>(&self, data: &[T], strides: &Strides) -> Result<Vec<T>> {
        let (b, h, t, d) = strides.shape().dims4()?;
        let &[stride_b, stride_h, stride_t, _] = strides.stride() else { bail!("rope: expected 4 dimensions") };
        let mut out = vec![T::ZERO; b * h * t * d];
        let pads = self.positions.rows();
        let first_slot = self.positions.slots().start;
        // One (row, head) at a time.
        let head = |(i, out): (usize, &mut [T])| {
            let pad = if pads.len() == 1 { pads[0] } else { pads[i / h] };
            let from = strides.start_offset() + i / h * stride_b + i % h * stride_h;
            for (token, out) in out.chunks_exact_mut(d).enumerate() {
                let lanes = &data[from + token * stride_t..][..d];
                self.token(lanes, out, (first_slot + token).saturating_sub(pad));
            }
        };
        if out.len() >= PARALLEL_FROM && b * h > 1 {
            out.par_chunks_exact_mut(t * d).enumerate().for_each(head);
        } else {
            out.chunks_exact_mut(t * d).enumerate().for_each(head);
        }
        Ok(out)
    }

    fn token<T: Lane>(&self, lanes: &[T], out: &mut [T], position: usize) {
        let (cos, sin) = self.table.row(position);
        let (width, pairs) = (self.config.rotary_dim, self.config.rotary_dim / 2);
        let (turned, rest) = lanes.split_at(width);
        let (out, out_rest) = out.split_at_mut(width);
        out_rest.copy_from_slice(rest);
        match self.config.layout {
            Layout::Half => {
                let (a, b) = turned.split_at(pairs);
                let (out_a, out_b) = out.split_at_mut(pairs);
                // Equal lengths, so that the loop needs no bounds checks and vectorises.
                let (b, out_b, cos, sin) = (&b[..a.len()], &mut out_b[..a.len()], &cos[..a.len()], &sin[..a.len()]);
                for (i, out_a) in out_a[..a.len()].iter_mut().enumerate() {
                    let (x, y) = (a[i].load(), b[i].load());
                    *out_a = T::store(x * cos[i] - y * sin[i]);
                    out_b[i] = T::store(y * cos[i] + x * sin[i]);
                }
            }
            Layout::Interleaved => {
                let pairs = turned.chunks_exact(2).zip(out.chunks_exact_mut(2));
                for ((pair, out), (cos, sin)) in pairs.zip(cos.iter().zip(sin)) {
                    let (x, y) = (pair[0].load(), pair[1].load());
                    out[0] = T::store(x * cos - y * sin);
                    out[1] = T::store(y * cos + x * sin);
                }
            }
        }
    }
}

impl CustomOp1 for FastRope<'_> {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, strides: &Strides) -> Result<(CpuStorage, Shape)> {
        let out = match storage {
            CpuStorage::F32(data) => CpuStorage::F32(self.run(data, strides)?),
            CpuStorage::F16(data) => CpuStorage::F16(self.run(data, strides)?),
            CpuStorage::BF16(data) => CpuStorage::BF16(self.run(data, strides)?),
            _ => bail!("rope: the fast path takes f32, f16 and bf16"),
        };
        Ok((out, strides.shape().clone()))
    }
}
