//! What the gradients of the fused kernels have in common: how Candle's graph gets four of them.
//!
//! An op has at most three arguments with gradients, and a relative bias is a fourth. So its table enters through an op
//! of its own, [`OfTable`], which hands the output on. The backward pass comes to it first; what the kernel computes for
//! q, k and v at the same time is left for their op in [`Kept`].

use crate::ScoreBias;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};
use std::sync::{Arc, Mutex};

/// A kernel with a backward pass.
pub(super) trait Backward {
    /// Gradients of `inputs`, q, k and v, given the output of their op and its gradient; and that of the relative table
    /// `(h, columns)` in f32, if `with_table`.
    fn gradients(
        &self,
        inputs: [&Tensor; 3],
        out: &Tensor,
        grad: &Tensor,
        with_table: bool,
    ) -> Result<([Tensor; 3], Option<Tensor>)>;
}

/// Gradients of q, k and v that were computed together with a table's.
#[derive(Debug, Clone, Default)]
pub(super) struct Kept(Arc<Mutex<Option<[Tensor; 3]>>>);

impl Kept {
    /// The backward pass of the op: what was kept, else what the kernel computes now.
    pub(super) fn gradients(
        &self,
        kernel: &impl Backward,
        inputs: [&Tensor; 3],
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let kept = self.0.lock().ok().and_then(|mut kept| kept.take());
        let [q, k, v] = match kept {
            Some(gradients) => gradients,
            None => kernel.gradients(inputs, out, grad, false)?.0,
        };
        Ok((Some(q), Some(k), Some(v)))
    }
}

/// The relative table, if a gradient has to flow into it.
pub(super) fn tracked_table(bias: &ScoreBias) -> Option<&Tensor> {
    match bias {
        ScoreBias::Relative { table, .. } if table.track_op() => Some(table),
        _ => None,
    }
}

/// True if a gradient has to flow into any of them.
pub(super) fn tracked([q, k, v]: [&Tensor; 3], bias: &ScoreBias) -> bool {
    q.track_op() || k.track_op() || v.track_op() || bias.track_op()
}

/// Puts the op into the graph, and that of the table if there is one.
pub(super) fn apply<K>(kernel: K, kept: Kept, [q, k, v]: [&Tensor; 3], bias: &ScoreBias) -> Result<Tensor>
where
    K: CustomOp3 + Backward + Clone + Send + Sync + 'static,
{
    let Some(table) = tracked_table(bias) else { return q.apply_op3(k, v, kernel) };
    let inputs = [q.detach(), k.detach(), v.detach()];
    let of_table = OfTable { kernel: kernel.clone(), inputs, kept };
    q.apply_op3(k, v, kernel)?.apply_op2(table, of_table)
}

/// Hands the output on, and has the gradient of a relative table.
struct OfTable<K> {
    kernel: K,
    /// q, k and v, without gradients.
    inputs: [Tensor; 3],
    kept: Kept,
}

impl<K: Backward + Send + Sync> CustomOp2 for OfTable<K> {
    fn name(&self) -> &'static str {
        "fused-attention-table"
    }

    // The output was just made by the op before: whole and contiguous.

    fn cpu_fwd(&self, out: &CpuStorage, layout: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((out.clone(), layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        out: &candle_core::CudaStorage,
        layout: &Layout,
        _: &candle_core::CudaStorage,
        _: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        Ok((out.try_clone(layout)?, layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, table: &Tensor, out: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let inputs = self.inputs.each_ref();
        let (gradients, sums) = self.kernel.gradients(inputs, out, grad, true)?;
        if let Ok(mut kept) = self.kept.0.lock() {
            *kept = Some(gradients);
        }
        let sums = sums.map(|x| x.reshape(table.shape())?.to_device(table.device())?.to_dtype(table.dtype()));
        Ok((Some(grad.clone()), sums.transpose()?))
    }
}
