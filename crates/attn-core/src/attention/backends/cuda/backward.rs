//! Gradients: a kernel that owns rows for those of q, one that owns keys for those of k and v, see `gradients.cuh`.

use super::{
    Attend, Backward,
    call::{Call, Placed},
};
use crate::{attention::view::with_contiguous_rows, cuda::place_of};
use candle_core::{
    DType, Result, Tensor, bail,
    cuda_backend::cudarc::driver::{DeviceRepr, LaunchConfig},
};
use std::mem::offset_of;

/// The same fields in the same order as `Gradients` in `gradients.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Gradients {
    call: Call,
    grad: u64,
    deltas: u64,
    dq: u64,
    dk: u64,
    dv: u64,
    partial: u64,
    table: u64,
    grad_strides: [i64; 3],
}

// SAFETY: plain numbers, laid out as the kernels read them.
unsafe impl DeviceRepr for Gradients {}

// `gradients.cuh` asserts the same of its `Gradients`.
const _: () = assert!(size_of::<Gradients>() == 352 && offset_of!(Gradients, grad_strides) == 328);

/// Sizes of the blocks: the constants in `gradients_*.cu`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tiles {
    single: bool,
    head_dim: usize,
    /// Rows or keys that a block owns, and those of the other side that it takes at a time.
    own: usize,
    walk: usize,
}

impl Tiles {
    const THREADS: u32 = 128;

    /// For head dims up to `head_dim`.
    pub(super) fn new(dtype: DType, head_dim: usize) -> Self {
        let single = dtype == DType::F32;
        let (own, walk) = match (single, head_dim) {
            (_, ..=64) | (false, ..=128) => (64, 64),
            (true, _) => (32, 32),
            (false, _) => (64, 16),
        };
        Self { single, head_dim, own, walk }
    }

    /// Bytes of shared memory that a block needs: either side's two tensors, what is saved of rows, and in f32 weights and
    /// gradients of the scores. In other dtypes these are needed only if a table has a gradient.
    pub(super) fn shared(&self, table: bool) -> usize {
        let Self { own, walk, head_dim, .. } = *self;
        const SAVED_ROW: usize = 40;
        match self.single {
            true => 8 * (own + walk) * (head_dim + 4) + own.max(walk) * SAVED_ROW + 8 * own * (walk + 4),
            false => {
                let scores = if table { 4 * own * (walk + 1) } else { 0 };
                4 * (own + 2 * walk) * (head_dim + 8) + 2 * own.max(walk) * SAVED_ROW + scores
            }
        }
    }

    /// Parts of the rows, so that `blocks` blocks of keys over `tiles` tiles each become enough to fill the device.
    fn splits(&self, multiprocessors: usize, blocks: usize, tiles: usize) -> usize {
        (4 * multiprocessors / blocks.max(1)).min(tiles / 8).clamp(1, 16)
    }
}

impl Backward for Attend {
    fn gradients(
        &self,
        [q, k, v]: [&Tensor; 3],
        out: &Tensor,
        grad: &Tensor,
        _lse_grad: Option<&Tensor>,
        with_table: bool,
    ) -> Result<([Tensor; 3], Option<Tensor>)> {
        let saved = self.saved()?;
        let Some(log_sums) = saved.log_sums.get() else {
            bail!("CUDA attention: a backward pass before the forward pass")
        };
        let device = q.device();
        let (b, h, tq, d) = q.dims4()?;
        let (_, h_kv, tk, dv) = v.dims4()?;
        let (rows, tiles) = (h / h_kv * tq, saved.tiles);
        let row_blocks = rows.div_ceil(tiles.own);
        let key_blocks = tk.div_ceil(tiles.own);
        let splits = tiles.splits(self.limits.multiprocessors, key_blocks * b * h_kv, rows.div_ceil(tiles.walk));

        // By head, as q is.
        let grad = with_contiguous_rows(&grad.transpose(1, 2)?)?;
        let placed_grad = Placed::of(&grad)?;
        let mut call = self.arguments.call([Placed::of(q)?, Placed::of(k)?, Placed::of(v)?])?;
        call.out = place_of(out)?;
        call.log_sums = place_of(log_sums)?;
        call.aligned &= i32::from(placed_grad.aligned());
        // SAFETY: the kernels write every element before one is read.
        let empty = |shape: &[usize], dtype| unsafe { Tensor::empty(shape, dtype, device) };
        let dq = empty(&[b, tq, h, d], q.dtype())?;
        let dk = empty(&[b, tk, h_kv, d], q.dtype())?;
        let dvs = empty(&[b, tk, h_kv, dv], q.dtype())?;
        let deltas = empty(&[b, tq, h], DType::F32)?;
        let parts = [splits, b * tk * h_kv, d + dv];
        let partial = if splits > 1 { Some(empty(&parts, DType::F32)?) } else { None };
        let columns = self.arguments.columns();
        let table = match with_table {
            true => Some(Tensor::zeros((row_blocks * b, h, columns), DType::F32, device)?),
            false => None,
        };
        let place = |x: &Option<Tensor>| x.as_ref().map_or(Ok(0), place_of);
        let mut arguments = Gradients {
            call,
            grad: placed_grad.place,
            deltas: place_of(&deltas)?,
            dq: place_of(&dq)?,
            dk: place_of(&dk)?,
            dv: place_of(&dvs)?,
            partial: place(&partial)?,
            table: place(&table)?,
            grad_strides: placed_grad.strides(),
        };
        let launch = |kernel: &str, arguments: &Gradients, grid_dim, block_dim, shared: usize| {
            let config = LaunchConfig { grid_dim, block_dim, shared_mem_bytes: shared as u32 };
            // SAFETY: `Gradients` of the tensors above, which the stream frees after the launches.
            unsafe { saved.module.launch(device.as_cuda_device()?, kernel, arguments, config) }
        };
        let (threads, heads) = ((Tiles::THREADS, 1, 1), (b * h_kv) as u32);
        launch("deltas", &arguments, (((b * tq * h).div_ceil(8)) as u32, 1, 1), (32, 8, 1), 0)?;
        launch("rows_gradient", &arguments, (row_blocks as u32, heads, 1), threads, tiles.shared(with_table))?;
        arguments.call.splits = splits as i32;
        launch("keys_gradient", &arguments, (key_blocks as u32, heads, splits as u32), threads, tiles.shared(false))?;
        if splits > 1 {
            let numbers = b * tk * h_kv * (d + dv);
            launch("sum", &arguments, (numbers.div_ceil(256) as u32, 1, 1), (256, 1, 1), 0)?;
        }
        let gradients = [dq.transpose(1, 2)?, dk.transpose(1, 2)?, dvs.transpose(1, 2)?];
        Ok((gradients, table.map(|x| x.sum(0)?.flatten_all()).transpose()?))
    }

    fn log_sums(&self) -> Result<Tensor> {
        bail!("CUDA attention: the log-sum-exp is the reference's")
    }
}
