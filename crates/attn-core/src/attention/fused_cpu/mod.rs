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
//! a block of queries, `forward` the cut into blocks and threads, `problem` the call's sizes, bounds and bias.

mod block;
mod forward;
mod problem;
mod scratch;
pub(crate) mod simd;
mod skip;
mod tile;

use super::{AttendArgs, KernelOptions, KernelPath};
use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};
use forward::{Output, Shared};
use half::{bf16, f16};
use problem::{Bias, BiasSource, Inputs, Problem, Sizes, View};
use simd::Element;
use skip::Skip;

/// True if the kernel can run the call; otherwise it is the reference kernel's.
pub(super) fn supports(q: &Tensor, k: &Tensor, v: &Tensor, args: &AttendArgs) -> bool {
    let all = [q, k, v];
    // Lengths are kept in 32 bits, and distances in f32, which is exact below 2^24.
    let fits = q.elem_count() > 0 && v.elem_count() > 0 && k.elem_count() > 0 && k.dims()[2] < 1 << 24;
    all.iter().all(|x| x.device().is_cpu())
        && matches!(q.dtype(), DType::F32 | DType::BF16 | DType::F16)
        && fits
        && !args.bias.track_op()
        && !all.iter().any(|x| x.track_op())
}

/// See [`attend`](super::attend), which checks the arguments first.
pub(super) fn attend(q: &Tensor, k: &Tensor, v: &Tensor, args: &AttendArgs, options: &KernelOptions) -> Result<Tensor> {
    let path = KernelPath::choose(options.path)?;
    let op = Fused { args: args.clone(), options: options.clone(), path };
    let [q, k, v] = [q, k, v].map(with_contiguous_rows);
    // The op's result is (b, tq, h, dv): transposed back, heads of one token lie side by side, as the layer wants them.
    q?.apply_op3(&k?, &v?, op)?.transpose(1, 2)
}

fn with_contiguous_rows(x: &Tensor) -> Result<Tensor> {
    if x.stride()[3] == 1 || x.dims()[3] == 1 { Ok(x.clone()) } else { x.contiguous() }
}

struct Fused {
    args: AttendArgs,
    options: KernelOptions,
    path: KernelPath,
}

impl Fused {
    fn run<T: Element>(&self, [q, k, v]: [(&CpuStorage, &Layout); 3]) -> Result<(Vec<T>, Shape)> {
        let s = Sizes::new(q.1, k.1, v.1)?;
        let inputs =
            Inputs { q: View::<T>::new(q.0, q.1)?, k: View::<T>::new(k.0, k.1)?, v: View::<T>::new(v.0, v.1)? };
        let source = BiasSource::new(&self.args.bias, &s)?;
        let locked = source.lock();
        let mut problem = Problem::new(s, &self.args, Bias::new(&self.args.bias, &locked, &s)?);
        problem.skip = Skip::new(&problem, &inputs, self.options.key_norms.as_ref());
        let mut out = vec![T::zero(); s.b * s.tq * s.h * s.dv];
        let output = Output { out: Shared::new(&mut out), log_sums: None };
        forward::forward(self.path, &problem, inputs, &output);
        drop(output);
        Ok((out, (s.b, s.tq, s.h, s.dv).into()))
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
}
