//! Two ways to apply the same rotation: plain Candle ops, and one pass over the data on the CPU.

use super::config::{Layout, RopeConfig};
use super::table::Angles;
use crate::parallel::filled;
use crate::simd::KernelPath;
use crate::simd::{Element, Job, Simd, dispatch};
use candle_core::{CpuStorage, CustomOp1, D, Layout as Strides, Result, Shape, Tensor, bail};

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

/// The fast path: reads each lane once, writes it once, no tensor in between. Its gradient is the same rotation
/// backwards.
#[derive(Clone)]
pub(super) struct FastRope {
    pub(super) angles: Angles,
    pub(super) rotary_dim: usize,
    pub(super) layout: Layout,
    /// By minus the angle.
    pub(super) backwards: bool,
}

/// Elements below which one thread is faster than several.
const PARALLEL_FROM: usize = 1 << 16;

impl FastRope {
    fn run<T: Element>(&self, data: &[T], strides: &Strides) -> Result<Vec<T>> {
        let (b, h, t, d) = strides.shape().dims4()?;
        let path = KernelPath::choose(None)?;
        let len = b * h * t * d;
        // One (row, head) at a time.
        let [out] = filled(len, t * d, len < PARALLEL_FROM, |i, [out]: [&mut [T]; 1]| {
            dispatch(path, Head { op: self, data, strides, row: i / h, head: i % h, out });
        });
        Ok(out)
    }
}

/// The tokens of one head.
struct Head<'a, T> {
    op: &'a FastRope,
    data: &'a [T],
    strides: &'a Strides,
    row: usize,
    head: usize,
    out: &'a mut [T],
}

impl<T: Element> Job for Head<'_, T> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (op, stride) = (self.op, self.strides.stride());
        let d = self.strides.dims()[3];
        let from = self.strides.start_offset() + self.row * stride[0] + self.head * stride[1];
        let mut turned = vec![0f32; d];
        for (token, out) in self.out.chunks_exact_mut(d).enumerate() {
            let lanes = &self.data[from + token * stride[2]..][..d];
            let (cos, sin) = op.angles.of(self.row, token);
            // SAFETY: the machine has the instruction set by this function's contract.
            unsafe { rotate::<S, T>(op, lanes, (cos, sin), &mut turned) };
            T::narrow_all(&turned, out);
        }
    }
}

/// One token of one head, in f32.
///
/// # Safety
/// The machine has the instruction set of `S`.
#[inline(always)]
unsafe fn rotate<S: Simd, T: Element>(op: &FastRope, lanes: &[T], (cos, sin): (&[f32], &[f32]), out: &mut [f32]) {
    let pairs = op.rotary_dim / 2;
    let sign = if op.backwards { -1.0 } else { 1.0 };
    let (turned, rest) = lanes.split_at(op.rotary_dim);
    let (out, out_rest) = out.split_at_mut(op.rotary_dim);
    for (out, x) in out_rest.iter_mut().zip(rest) {
        *out = x.widen();
    }
    match op.layout {
        Layout::Half => {
            let (a, b) = turned.split_at(pairs);
            let (out_a, out_b) = out.split_at_mut(pairs);
            let (cos, sin) = (&cos[..pairs], &sin[..pairs]);
            let whole = pairs / S::LANES * S::LANES;
            for i in (0..whole).step_by(S::LANES) {
                // SAFETY: all six have `pairs` numbers, at least LANES of them from `i` on.
                unsafe {
                    let (x, y) = (T::load::<S>(a.as_ptr().add(i)), T::load::<S>(b.as_ptr().add(i)));
                    let (cos, sin) = (S::load(cos.as_ptr().add(i)), S::load(sin.as_ptr().add(i)));
                    let sin = S::mul(sin, S::splat(sign));
                    S::store(out_a.as_mut_ptr().add(i), S::sub(S::mul(x, cos), S::mul(y, sin)));
                    S::store(out_b.as_mut_ptr().add(i), S::add(S::mul(y, cos), S::mul(x, sin)));
                }
            }
            for i in whole..pairs {
                let (x, y, sin) = (a[i].widen(), b[i].widen(), sin[i] * sign);
                out_a[i] = x * cos[i] - y * sin;
                out_b[i] = y * cos[i] + x * sin;
            }
        }
        Layout::Interleaved => {
            let pairs = turned.chunks_exact(2).zip(out.chunks_exact_mut(2));
            for ((pair, out), (cos, sin)) in pairs.zip(cos.iter().zip(sin)) {
                let (x, y, sin) = (pair[0].widen(), pair[1].widen(), sin * sign);
                out[0] = x * cos - y * sin;
                out[1] = y * cos + x * sin;
            }
        }
    }
}

impl CustomOp1 for FastRope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, strides: &Strides) -> Result<(CpuStorage, Shape)> {
        let out = match storage {
            CpuStorage::F32(data) => CpuStorage::F32(self.run(data, strides)?),
            CpuStorage::F16(data) => CpuStorage::F16(self.run(data, strides)?),
            CpuStorage::BF16(data) => CpuStorage::BF16(self.run(data, strides)?),
            _ => bail!("rope: the fast path supports f32, f16 and bf16 only"),
        };
        Ok((out, strides.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let back = Self { backwards: !self.backwards, ..self.clone() };
        let contiguous_lanes = grad.stride().last() == Some(&1);
        let grad = if contiguous_lanes { grad.clone() } else { grad.contiguous()? };
        grad.apply_op1_no_bwd(&back).map(Some)
    }
}
