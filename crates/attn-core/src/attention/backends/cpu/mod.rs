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
//! `bias` and `curve` have the bias row by row, `problem` the call's sizes and bounds, `tile` the steps on one tile, `block` the
//! loop over the tiles of a block of queries, `pairs` the same for bf16 where the machine multiplies it, `output` what a row
//! becomes in the end, `forward` the cut into blocks and threads, `backward` and `score_sums` the gradients.

mod backward;
mod bias;
mod block;
mod curve;
mod forward;
mod output;
#[cfg(target_arch = "x86_64")]
mod pairs;
mod problem;
mod score_sums;
mod skip;
mod task;
mod tile;
mod unit;

use super::{Answer, Call, Plan};
use crate::{
    attention::{
        bias::ScoreBias,
        gradients::{Backward, Kept, apply, of_tracked},
        options::KernelOptions,
        scores::AttendArgs,
        tokens::Tokens,
        view::{Inputs, Sizes, View, with_contiguous_rows},
    },
    parallel::Disjoint,
    simd::KernelPath,
    stored::{CacheType, turned},
};
use backward::{Gradients, Saved, parts};
use candle_core::{CpuStorage, CustomOp3, DType, Device, Layout, Result, Shape, Storage, Tensor, bail};
use forward::Input;
use half::{bf16, f16};
use output::Output;
use problem::Problem;
use rayon::prelude::*;
use skip::Skip;
use std::sync::{Arc, OnceLock};

#[cfg(test)]
pub(in crate::attention) use skip::tiles_visited;

/// Calls on the CPU in f32, bf16 and f16, over keys and values of any cache type; a dense bias that a gradient flows into
/// is left to the reference.
pub(super) fn plan<'a>(call: &Call<'a>) -> Result<Option<Plan<'a>>> {
    let Call { q, k, v, args, .. } = *call;
    let (Some(k_type), Some(v_type)) = (k.kind(), v.kind()) else { return Ok(None) };
    // Lengths are kept in 32 bits, and distances in f32, which is exact below 2^24.
    let fits = [q, k.data(), v.data()].iter().all(|x| x.device().is_cpu() && x.elem_count() > 0)
        && k.data().dims()[2] < 1 << 24;
    let dtype = matches!(q.dtype(), DType::F32 | DType::BF16 | DType::F16);
    let bias = match &args.scores.bias {
        ScoreBias::Dense(bias) => !bias.track_op(),
        ScoreBias::Curve(curve) => curve::follows(curve)?,
        _ => true,
    };
    if !fits || !dtype || !bias {
        return Ok(None);
    }
    let call = *call;
    Ok(Some(Box::new(move || attend(call, [k_type, v_type]))))
}

fn attend(Call { q, k, v, args, options, lse, tracked }: Call, types: [CacheType; 2]) -> Result<Answer> {
    let path = KernelPath::choose(options.path)?;
    // The kernel multiplies with blocks as they are: turned.
    let turned_q = k.turn().map(|size| turned(q, size)).transpose()?;
    let (q, v_turn) = (turned_q.as_ref().unwrap_or(q), v.turn());
    let [q, k, v] = [q, k.data(), v.data()].map(with_contiguous_rows);
    let (q, k, v) = (q?, k?, v?);
    let (log_sums, kept) = (Arc::default(), Kept::default());
    let (args, options) = (args.clone(), options.clone());
    let scores = args.scores.clone();
    let op = Fused { args, options, path, types, tracked, lse, log_sums, kept: kept.clone() };
    let (out, lse) = apply(op, kept, [&q, &k, &v], &scores, lse)?;
    let out = v_turn.map_or(Ok(out.clone()), |size| turned(&out, size))?;
    // Without gradients the op's result is (b, tq, h, dv): transposed back, heads of one token lie side by side, as the
    // layer wants them. With them, Candle would transpose and add up the gradient of every such view.
    Ok((if tracked { out } else { out.transpose(1, 2)? }, lse))
}

#[derive(Clone)]
struct Fused {
    args: AttendArgs,
    options: KernelOptions,
    path: KernelPath,
    /// How keys and values are stored; as the queries are if a backward pass may follow.
    types: [CacheType; 2],
    /// Whether a backward pass may follow.
    tracked: bool,
    /// Whether the log-sum-exp is asked for.
    lse: bool,
    /// From the forward pass, if a backward pass may follow or they are asked for: log2 of each row's sum of weights,
    /// `(b, h, tq)`, and its shape.
    log_sums: Arc<OnceLock<(Vec<f32>, [usize; 3])>>,
    kept: Kept,
}

impl Fused {
    fn run<T: Input>(&self, [q, k, v]: [(&CpuStorage, &Layout); 3]) -> Result<(Vec<T>, Shape)> {
        let [k_type, v_type] = self.types;
        let q = View::<T>::new(q.0, q.1)?;
        let inputs = Inputs { q, k: Tokens::new(k.0, k.1, k_type)?, v: Tokens::new(v.0, v.1, v_type)? };
        let s = inputs.sizes();
        let source = Problem::source(&s, &self.args)?;
        let locked = source.lock();
        let problem = Problem::new(s, &self.args, &locked)?;
        let skip = Skip::new(&problem, &inputs, self.options.key_norms.as_ref());
        let mut out = vec![T::zero(); s.b * s.tq * s.h * s.dv];
        let keeps = self.tracked || self.lse;
        let mut log_sums = vec![0f32; if keeps { s.b * s.h * s.tq } else { 0 }];
        let sums = keeps.then(|| Disjoint::of(&mut log_sums));
        let output = Output { out: Disjoint::of(&mut out), by_head: self.tracked, log_sums: sums };
        forward::forward(self.path, &problem, inputs, skip, output);
        self.log_sums.get_or_init(|| (log_sums, [s.b, s.h, s.tq]));
        let shape = if self.tracked { (s.b, s.h, s.tq, s.dv) } else { (s.b, s.tq, s.h, s.dv) };
        Ok((out, shape.into()))
    }

    fn kept_sums(&self) -> Result<&(Vec<f32>, [usize; 3])> {
        match self.log_sums.get().filter(|_| self.tracked || self.lse) {
            Some(sums) => Ok(sums),
            None => bail!("fused attention: the forward pass was not told that its sums are needed"),
        }
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

/// What the gradients of a row's scores are relative to, `(b, h, tq)`: the product of the output and its gradient,
/// minus the gradient of the log-sum-exp. Rows are multiples of 16 numbers.
fn deltas(s: &Sizes, out: &View<f32>, grad: &View<f32>, lse_grad: Option<&Tensor>) -> Result<Vec<f32>> {
    let mut deltas = match lse_grad {
        Some(grad) => grad.detach().to_dtype(DType::F32)?.neg()?.flatten_all()?.to_vec1()?,
        None => vec![0f32; s.b * s.h * s.tq],
    };
    deltas.par_chunks_mut(s.tq).enumerate().for_each(|(i, deltas)| {
        for (t, delta) in deltas.iter_mut().enumerate() {
            let (out, grad) = (out.row(i / s.h, i % s.h, t), grad.row(i / s.h, i % s.h, t));
            let mut sums = [0f32; 16];
            for (out, grad) in out.as_chunks::<16>().0.iter().zip(grad.as_chunks::<16>().0) {
                for ((sum, out), grad) in sums.iter_mut().zip(out).zip(grad) {
                    *sum += out * grad;
                }
            }
            *delta += sums.iter().sum::<f32>();
        }
    });
    Ok(deltas)
}

impl Backward for Fused {
    fn gradients(
        &self,
        [q, k, v]: [&Tensor; 3],
        out: &Tensor,
        grad: &Tensor,
        lse_grad: Option<&Tensor>,
        with_scores: bool,
    ) -> Result<([Tensor; 3], Option<Tensor>)> {
        let (log_sums, _) = self.kept_sums()?;
        let (d, dv) = (q.dim(3)?, v.dim(3)?);
        let [qf, kf, vf, grad, out] = [q, k, v, grad, out].map(padded);
        let (qf, kf, vf, grad, out) = (qf?, kf?, vf?, grad?, out?);
        let guards = [&qf, &kf, &vf, &grad, &out].map(|x| x.storage_and_layout());
        let [qv, kv, vv, gv, ov] = guards.each_ref().map(|(storage, layout)| match &**storage {
            Storage::Cpu(storage) => View::<f32>::new(storage, layout),
            _ => bail!("fused attention runs on the CPU"),
        });
        let s = Sizes::new(qf.layout(), kf.layout(), vf.layout())?;
        let source = Problem::source(&s, &self.args)?;
        let locked = source.lock();
        let problem = Problem::new(s, &self.args, &locked)?;
        let (heads, parts) = (s.b * s.h, parts(&s));
        let mut dq = vec![0f32; heads * parts * s.tq * s.d];
        let [mut dk, mut dvs] = [s.d, s.dv].map(|width| vec![0f32; s.b * s.h_kv * s.tk * width]);
        let mut sums = vec![0f32; if with_scores { heads * parts * problem.score_sums() } else { 0 }];
        let to = Gradients {
            q: Disjoint::of(&mut dq),
            k: Disjoint::of(&mut dk),
            v: Disjoint::of(&mut dvs),
            scores: (!sums.is_empty()).then(|| Disjoint::of(&mut sums)),
        };
        let gv = gv?;
        let deltas = deltas(&s, &ov?, &gv, lse_grad)?;
        let saved = Saved { grad: gv, log_sums, deltas: &deltas };
        backward::backward(self.path, &problem, backward::Inputs { q: qv?, k: kv?, v: vv? }, &saved, &to);
        let tensor = |x: Vec<f32>, h: usize, t: usize, width: usize, keep: usize| -> Result<Tensor> {
            Tensor::from_vec(x, (s.b, h, t, width), &Device::Cpu)?.narrow(3, 0, keep)?.to_dtype(q.dtype())
        };
        let gradients = [
            tensor(summed(dq, parts, s.tq * s.d), s.h, s.tq, s.d, d)?,
            tensor(dk, s.h_kv, s.tk, s.d, d)?,
            tensor(dvs, s.h_kv, s.tk, s.dv, dv)?,
        ];
        if !with_scores {
            return Ok((gradients, None));
        }
        let (bias, sinks) = (problem.bias_gradients(&sums, parts), problem.sink_gradients(log_sums, &deltas));
        Ok((gradients, Some(of_tracked(&self.args.scores, &bias, &sinks, &Device::Cpu)?)))
    }

    fn log_sums(&self) -> Result<Tensor> {
        let (sums, shape) = self.kept_sums()?;
        let natural = sums.iter().map(|x| x * std::f32::consts::LN_2).collect::<Vec<_>>();
        Tensor::from_vec(natural, &shape[..], &Device::Cpu)
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
