//! What the gradients of the fused kernels have in common: how Candle's graph gets more than three of them, and how it
//! gets two results.
//!
//! An op has at most three arguments with gradients: q, k and v. What a bias and the sinks are made of enters through
//! an op of its own, [`OfScores`], as one flat tensor; the op passes the output through. The log-sum-exp leaves through
//! [`OfSums`]. The backward pass reaches these ops first. The kernel computes the gradients of q, k and v at the same time; they
//! are kept for their op in [`Kept`].

use super::scores::Scores;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Device, Layout, Result, Shape, Tensor, backend::BackendStorage,
    bail,
};
use std::sync::{Arc, Mutex};

/// A kernel with a backward pass.
pub(super) trait Backward {
    /// Gradients of `inputs`, q, k and v, given the output of their op, its gradient, and that of the log-sum-exp `(b,
    /// h, tq)` if there is one; and, if `with_scores`, those of the scores' tensors, see [`Scores::tensors`], in f32
    /// one after another, but only of those that a gradient has to flow into.
    fn gradients(
        &self,
        inputs: [&Tensor; 3],
        out: &Tensor,
        grad: &Tensor,
        lse_grad: Option<&Tensor>,
        with_scores: bool,
    ) -> Result<([Tensor; 3], Option<Tensor>)>;

    /// From the forward pass, the natural log of each row's sum of weights `(b, h, tq)`.
    fn log_sums(&self) -> Result<Tensor>;
}

/// What one op of the backward pass leaves for the next.
#[derive(Debug, Clone, Default)]
pub(super) struct Kept(Arc<Mutex<Parcel>>);

#[derive(Debug, Default)]
struct Parcel {
    /// Gradients of q, k and v.
    inputs: Option<[Tensor; 3]>,
    /// The gradient of the log-sum-exp.
    lse: Option<Tensor>,
}

impl Kept {
    fn take(&self) -> Parcel {
        self.0.lock().map(|mut parcel| std::mem::take(&mut *parcel)).unwrap_or_default()
    }

    fn put(&self, change: impl FnOnce(&mut Parcel)) {
        if let Ok(mut parcel) = self.0.lock() {
            change(&mut parcel);
        }
    }

    /// The backward pass of the op of q, k and v: what was kept, else what the kernel computes now.
    pub(super) fn gradients(
        &self,
        kernel: &impl Backward,
        inputs: [&Tensor; 3],
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let parcel = self.take();
        let [q, k, v] = match parcel.inputs {
            Some(gradients) => gradients,
            None => kernel.gradients(inputs, out, grad, parcel.lse.as_ref(), false)?.0,
        };
        Ok((Some(q), Some(k), Some(v)))
    }
}

/// True if a gradient has to flow into any of them.
pub(super) fn tracked([q, k, v]: [&Tensor; 3], scores: &Scores) -> bool {
    q.track_op() || k.track_op() || v.track_op() || scores.track_op()
}

/// Puts the op into the graph, that of the scores' tensors if a gradient flows into some of them, and that of the
/// log-sum-exp if it is asked for.
pub(super) fn apply<K>(
    kernel: K,
    kept: Kept,
    [q, k, v]: [&Tensor; 3],
    scores: &Scores,
    lse: bool,
) -> Result<(Tensor, Option<Tensor>)>
where
    K: CustomOp3 + Backward + Clone + Send + Sync + 'static,
{
    let mut out = q.apply_op3(k, v, kernel.clone())?;
    let flat = |x: &Tensor| x.flatten_all()?.to_dtype(DType::F32)?.to_device(q.device());
    let parts = scores.tensors().into_iter().filter(|x| x.track_op()).map(flat).collect::<Result<Vec<_>>>()?;
    if !parts.is_empty() {
        let inputs = [q.detach(), k.detach(), v.detach()];
        out =
            out.apply_op2(&Tensor::cat(&parts, 0)?, OfScores { kernel: kernel.clone(), inputs, kept: kept.clone() })?;
    }
    let sums = if lse { Some(out.apply_op1(OfSums { kernel, kept })?) } else { None };
    Ok((out, sums))
}

/// Passes the output through, and has the gradients of the scores' tensors.
struct OfScores<K> {
    kernel: K,
    /// q, k and v, without gradients.
    inputs: [Tensor; 3],
    kept: Kept,
}

impl<K: Backward + Send + Sync> CustomOp2 for OfScores<K> {
    fn name(&self) -> &'static str {
        "fused-attention-scores"
    }

    // The output was just made by the op before: whole and contiguous.

    fn cpu_fwd(&self, out: &CpuStorage, layout: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((out.try_clone(layout)?, layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        out: &candle_core::CudaStorage,
        layout: &Layout,
        _: &candle_core::CudaStorage,
        _: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        Ok((out.try_clone(layout)?, layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, out: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let lse = self.kept.take().lse;
        let (gradients, scores) = self.kernel.gradients(self.inputs.each_ref(), out, grad, lse.as_ref(), true)?;
        self.kept.put(|parcel| parcel.inputs = Some(gradients));
        Ok((Some(grad.clone()), scores))
    }
}

/// From the output to the log-sum-exp that was computed with it.
struct OfSums<K> {
    kernel: K,
    kept: Kept,
}

impl<K: Backward + Send + Sync> CustomOp1 for OfSums<K> {
    fn name(&self) -> &'static str {
        "fused-attention-log-sums"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let sums = self.kernel.log_sums()?;
        let (storage, layout) = sums.storage_and_layout();
        match &*storage {
            candle_core::Storage::Cpu(storage) => Ok((storage.try_clone(layout)?, layout.shape().clone())),
            _ => bail!("fused attention: the sums of another device"),
        }
    }

    fn bwd(&self, out: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        self.kept.put(|parcel| parcel.lse = Some(grad.clone()));
        // The output's op has to be visited also where nothing else needs the output.
        Ok(Some(out.zeros_like()?))
    }
}

/// The gradients that are asked for, out of those of all tensors of the bias, one after another, and of the sinks.
pub(super) fn of_tracked(scores: &Scores, bias: &[f32], sinks: &[f32], device: &Device) -> Result<Tensor> {
    let (mut picked, mut rest) = (Vec::new(), bias);
    for tensor in scores.bias.tensors() {
        let (these, left) = rest.split_at_checked(tensor.elem_count()).unwrap_or_default();
        if tensor.track_op() {
            picked.extend_from_slice(these);
        }
        rest = left;
    }
    if scores.sinks.as_ref().is_some_and(Tensor::track_op) {
        picked.extend_from_slice(sinks);
    }
    let wanted: usize = scores.tensors().into_iter().filter(|x| x.track_op()).map(Tensor::elem_count).sum();
    if picked.len() != wanted {
        bail!("attention: {} gradients of the scores instead of {wanted}", picked.len())
    }
    Tensor::new(picked, device)
}
