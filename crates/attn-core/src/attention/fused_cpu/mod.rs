//! Attention on the CPU at the machine's limit: the scores never leave the cache.
//!
//! Plain Candle ops write out `(tq, tk)` scores per head, read them back for the softmax, and again for the product with
//! the values. Here a tile of scores is computed, turned into weights by a running ("online") softmax and multiplied
//! with the values while it is still in the first-level cache. What makes that fast:
//!
//! * both products are one micro-kernel whose accumulators fill the vector registers;
//! * keys are packed into transposed panels that all query heads of a group and many queries share;
//! * the mask is loop bounds: what no query of a tile sees is never touched;
//! * bias and softcap are applied to the tile, so an encoding costs next to nothing;
//! * under ALiBi, keys too far away to matter are proven so and not read (`skip`).
//!
//! `simd` has the vector operations per instruction set, `tile` the steps on one tile, `block` the loop over the tiles of
//! a block of queries, `pairs` the same for bf16 where the machine multiplies it, `forward` the cut into blocks and
//! threads, `backward` the gradients, `problem` the call's sizes, bounds and bias.

mod backward;
mod block;
mod forward;
#[cfg(target_arch = "x86_64")]
pub(super) mod pairs;
mod problem;
#[cfg_attr(all(test, debug_assertions), path = "strict_scratch.rs")]
mod scratch;
pub(crate) mod simd;
mod skip;
mod tile;
mod unit;

use super::{
    AttendArgs, KernelOptions, KernelPath,
    gradients::{Backward, Kept, apply, tracked, tracked_table},
    with_contiguous_rows,
};
use crate::ScoreBias;
use backward::{Gradients, Saved, parts};
use candle_core::{CpuStorage, CustomOp3, DType, Device, Layout, Result, Shape, Storage, Tensor, bail};
use forward::{Input, Output, Shared};
use half::{bf16, f16};
use problem::{Bias, BiasSource, Inputs, Problem, Sizes, View};
use rayon::prelude::*;
use skip::Skip;
use std::sync::{Arc, OnceLock};

/// True if the kernel can run the call; otherwise it is the reference kernel's.
pub(super) fn supports(q: &Tensor, k: &Tensor, v: &Tensor, args: &AttendArgs) -> bool {
    let all = [q, k, v];
    // Lengths are kept in 32 bits, and distances in f32, which is exact below 2^24.
    let fits = q.elem_count() > 0 && v.elem_count() > 0 && k.elem_count() > 0 && k.dims()[2] < 1 << 24;
    all.iter().all(|x| x.device().is_cpu())
        && matches!(q.dtype(), DType::F32 | DType::BF16 | DType::F16)
        && fits
        && is_known(&args.scores.bias)
        && args.scores.sinks.is_none()
        // There is a gradient for one form of bias alone.
        && (!args.scores.bias.track_op() || tracked_table(&args.scores.bias).is_some())
}

fn is_known(bias: &ScoreBias) -> bool {
    !matches!(bias, ScoreBias::Keys { .. } | ScoreBias::RowBank { .. } | ScoreBias::Curve(_))
}

/// See [`attend`](super::attend), which checks the arguments first.
pub(super) fn attend(q: &Tensor, k: &Tensor, v: &Tensor, args: &AttendArgs, options: &KernelOptions) -> Result<Tensor> {
    let path = KernelPath::choose(options.path)?;
    let [q, k, v] = [q, k, v].map(with_contiguous_rows);
    let (q, k, v) = (q?, k?, v?);
    let tracks = tracked([&q, &k, &v], &args.scores.bias);
    let (log_sums, kept) = (Arc::default(), Kept::default());
    let op = Fused { args: args.clone(), options: options.clone(), path, tracks, log_sums, kept: kept.clone() };
    let out = apply(op, kept, [&q, &k, &v], &args.scores.bias)?;
    // Without gradients the op's result is (b, tq, h, dv): transposed back, heads of one token lie side by side, as the
    // layer wants them. With them, Candle would transpose and add up the gradient of every such view.
    if tracks { Ok(out) } else { out.transpose(1, 2) }
}

/// The largest norm in each run of keys that shares a bound, per batch row and head of `(b, h_kv, t, d)`; the first run
/// already holds `filled` keys.
pub(super) fn largest_norms(k: &CpuStorage, layout: &Layout, filled: usize) -> Result<Vec<Vec<f32>>> {
    let s = Sizes::new(layout, layout, layout)?;
    Ok(match k {
        CpuStorage::F32(_) => skip::measure(&View::<f32>::new(k, layout)?, &s.key_rows(), s.tk, filled),
        CpuStorage::BF16(_) => skip::measure(&View::<bf16>::new(k, layout)?, &s.key_rows(), s.tk, filled),
        CpuStorage::F16(_) => skip::measure(&View::<f16>::new(k, layout)?, &s.key_rows(), s.tk, filled),
        _ => bail!("fused attention takes f32, bf16 and f16"),
    })
}

#[cfg(test)]
pub(super) use skip::tiles_visited;

#[derive(Clone)]
struct Fused {
    args: AttendArgs,
    options: KernelOptions,
    path: KernelPath,
    /// Whether a backward pass may follow.
    tracks: bool,
    /// From the forward pass: log2 of each row's sum of weights, `(b, h, tq)`.
    log_sums: Arc<OnceLock<Vec<f32>>>,
    kept: Kept,
}

impl Fused {
    fn run<T: Input>(&self, [q, k, v]: [(&CpuStorage, &Layout); 3]) -> Result<(Vec<T>, Shape)> {
        let s = Sizes::new(q.1, k.1, v.1)?;
        let inputs =
            Inputs { q: View::<T>::new(q.0, q.1)?, k: View::<T>::new(k.0, k.1)?, v: View::<T>::new(v.0, v.1)? };
        let source = BiasSource::new(&self.args.scores.bias, &s)?;
        let locked = source.lock();
        let mut problem = Problem::new(s, &self.args, Bias::new(&self.args.scores.bias, &locked, &s)?);
        problem.skip = Skip::new(&problem, &inputs, self.options.key_norms.as_ref());
        let mut out = vec![T::zero(); s.b * s.tq * s.h * s.dv];
        let mut log_sums = vec![0f32; if self.tracks { s.b * s.h * s.tq } else { 0 }];
        let sums = self.tracks.then(|| Shared::new(&mut log_sums));
        let output = Output { out: Shared::new(&mut out), by_head: self.tracks, log_sums: sums };
        forward::forward(self.path, &problem, inputs, &output);
        self.log_sums.get_or_init(|| log_sums);
        let shape = if self.tracks { (s.b, s.h, s.tq, s.dv) } else { (s.b, s.tq, s.h, s.dv) };
        Ok((out, shape.into()))
    }
}

/// `x` in f32, its last dimension contiguous and padded with zeros to whole vectors of any path.
fn padded(x: &Tensor) -> Result<Tensor> {
    let last = x.dims()[3];
    let x = x.detach().to_dtype(DType::F32)?;
    with_contiguous_rows(&x.pad_with_zeros(3, 0, last.next_multiple_of(16) - last)?)
}

/// `(outer, n, inner)` summed over `n`, in order.
fn summed(x: Vec<f32>, n: usize, inner: usize) -> Vec<f32> {
    if n == 1 || inner == 0 {
        return x;
    }
    let mut sums = vec![0f32; x.len() / n];
    sums.par_chunks_mut(inner).zip(x.par_chunks(n * inner)).for_each(|(sums, parts)| {
        sums.copy_from_slice(&parts[..inner]);
        for part in parts[inner..].chunks_exact(inner) {
            for (sum, x) in sums.iter_mut().zip(part) {
                *sum += x;
            }
        }
    });
    sums
}

impl Backward for Fused {
    fn gradients(
        &self,
        [q, k, v]: [&Tensor; 3],
        out: &Tensor,
        grad: &Tensor,
        with_table: bool,
    ) -> Result<([Tensor; 3], Option<Tensor>)> {
        let Some(log_sums) = self.log_sums.get().filter(|_| self.tracks) else {
            bail!("fused attention: the forward pass was not told of a backward pass")
        };
        let (d, dv) = (q.dim(3)?, v.dim(3)?);
        let [qf, kf, vf, grad, out] = [q, k, v, grad, out].map(padded);
        let (qf, kf, vf, grad, out) = (qf?, kf?, vf?, grad?, out?);
        let guards = [&qf, &kf, &vf, &grad, &out].map(|x| x.storage_and_layout());
        let [qv, kv, vv, gv, ov] = guards.each_ref().map(|(storage, layout)| match &**storage {
            Storage::Cpu(storage) => View::<f32>::new(storage, layout),
            _ => bail!("fused attention runs on the CPU"),
        });
        let s = Sizes::new(qf.layout(), kf.layout(), vf.layout())?;
        let source = BiasSource::new(&self.args.scores.bias, &s)?;
        let locked = source.lock();
        let problem = Problem::new(s, &self.args, Bias::new(&self.args.scores.bias, &locked, &s)?);
        let (heads, parts) = (s.b * s.h, parts(&s));
        let mut dq = vec![0f32; heads * parts * s.tq * s.d];
        let [mut dk, mut dvs] = [s.d, s.dv].map(|width| vec![0f32; s.b * s.h_kv * s.tk * width]);
        let mut table = vec![0f32; if with_table { heads * parts * problem.columns() } else { 0 }];
        let to = Gradients {
            q: Shared::new(&mut dq),
            k: Shared::new(&mut dk),
            v: Shared::new(&mut dvs),
            table: with_table.then(|| Shared::new(&mut table)),
        };
        let saved = Saved { out: ov?, grad: gv?, log_sums };
        backward::backward(self.path, &problem, Inputs { q: qv?, k: kv?, v: vv? }, &saved, &to);
        let tensor = |x: Vec<f32>, h: usize, t: usize, width: usize, keep: usize| -> Result<Tensor> {
            Tensor::from_vec(x, (s.b, h, t, width), &Device::Cpu)?.narrow(3, 0, keep)?.to_dtype(q.dtype())
        };
        let gradients = [
            tensor(summed(dq, parts, s.tq * s.d), s.h, s.tq, s.d, d)?,
            tensor(dk, s.h_kv, s.tk, s.d, d)?,
            tensor(dvs, s.h_kv, s.tk, s.dv, dv)?,
        ];
        // Over the parts of a head, then over the batch.
        let columns = problem.columns();
        let table = with_table.then(|| summed(summed(table, parts, columns), s.b, s.h * columns));
        let table = table.map(|x| Tensor::from_vec(x, (s.h, columns), &Device::Cpu)).transpose()?;
        Ok((gradients, table))
    }
}

impl CustomOp3 for Fused {
    fn name(&self) -> &'static str {
        "fused-attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let inputs = [(q, q_layout), (k, k_layout), (v, v_layout)];
        match q {
            CpuStorage::F32(_) => self.run::<f32>(inputs).map(|(out, shape)| (CpuStorage::F32(out), shape)),
            CpuStorage::BF16(_) => self.run::<bf16>(inputs).map(|(out, shape)| (CpuStorage::BF16(out), shape)),
            CpuStorage::F16(_) => self.run::<f16>(inputs).map(|(out, shape)| (CpuStorage::F16(out), shape)),
            _ => bail!("fused attention takes f32, bf16 and f16"),
        }
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        self.kept.gradients(self, [q, k, v], out, grad)
    }
}
