//! Scaled dot-product attention: [`attend`] is the only place that picks a kernel.
//!
//! | device | dtype | gradients tracked | kernel |
//! |---|---|---|---|
//! | CPU | f32, bf16, f16 | none, or of q, k, v and a relative bias | fused: tiles, one pass; recomputed for gradients |
//! | CPU | f32, bf16, f16 | of another bias | reference: plain Candle ops, which keep the graph |
//! | CUDA | f32, bf16, f16 | none | fused, or candle-flash-attn where it is built in and right, see `accelerator` |
//! | CUDA | f32, bf16, f16 | of q, k, v and a relative bias | fused: recomputed for gradients |
//! | Metal | those that Candle's own kernel gets right | none | Candle's, see `accelerator` |
//! | any | else | any | reference |
//!
//! Candle's own fast ops return no gradient and no error, which is why the choice looks at `track_op()`.
//! The fused kernel runs on rayon's current pool: `RAYON_NUM_THREADS` or `ThreadPool::install` set how many threads. Up to
//! eight queries go to Candle's threads (`CANDLE_NUM_THREADS`), unless those are more or the caller is one of rayon's.

mod accelerator;
pub(crate) mod fused_cpu;
#[cfg(feature = "cuda")]
mod fused_cuda;
mod gradients;
mod key_norms;
#[cfg(test)]
pub(crate) mod laws;
mod path;
pub mod reference;

pub use key_norms::KeyNorms;
pub use path::{KernelOptions, KernelPath};

use crate::{Mask, ScoreBias, profile};
use candle_core::{Result, Tensor, bail};

/// Everything about one attention call but the tensors. Order of operations: scale, softcap, bias, mask, softmax.
#[derive(Debug, Clone)]
pub struct AttendArgs {
    /// Multiplies the scores, usually `head_dim^-1/2`.
    pub scale: f64,
    /// Gemma 2's `softcap * tanh(score / softcap)`.
    pub softcap: Option<f64>,
    /// Added to the scores.
    pub bias: ScoreBias,
    /// Which keys a query sees. A query that sees none gives zeros.
    pub mask: Mask,
    /// The slot of the first query: the number of tokens before it in its row.
    pub q_start: usize,
    /// The slot of the first key; above 0 when a windowed cache has dropped the oldest.
    pub k_start: usize,
}

impl AttendArgs {
    /// Causal attention of `tq` queries over `tk` keys that end at the same token, scaled by `head_dim^-1/2`.
    pub fn causal(head_dim: usize, tq: usize, tk: usize) -> Self {
        Self {
            scale: (head_dim as f64).powf(-0.5),
            softcap: None,
            bias: ScoreBias::None,
            mask: Mask::causal(),
            q_start: tk - tq,
            k_start: 0,
        }
    }
}

/// Multi-head attention: `softmax(mask(softcap(scale q k^T) + bias)) v`, accumulated in f32 (f64 for f64 inputs).
///
/// # Shapes
/// * `q`: `(b, h, tq, d)`
/// * `k`: `(b, h_kv, tk, d)` with `h` a multiple of `h_kv`; query head `i` reads key head `i / (h / h_kv)`
/// * `v`: `(b, h_kv, tk, dv)`
/// * returns `(b, h, tq, dv)` in the dtype of `q`
///
/// # Errors
/// Shapes that don't fit together, a bias that doesn't cover the heads or distances, mixed dtypes.
pub fn attend(q: &Tensor, k: &Tensor, v: &Tensor, args: &AttendArgs) -> Result<Tensor> {
    attend_with(q, k, v, args, &KernelOptions::default())
}

/// [`attend`], with a say in how it is computed.
///
/// # Errors
/// As [`attend`]; also a path that this machine doesn't have, and key norms that don't match `k`.
pub fn attend_with(q: &Tensor, k: &Tensor, v: &Tensor, args: &AttendArgs, options: &KernelOptions) -> Result<Tensor> {
    let _scope = profile::scope(profile::Op::Attention);
    check(q, k, v, args)?;
    if let Some(norms) = &options.key_norms {
        norms.check(k)?;
    }
    if fused_cpu::supports(q, k, v, args) {
        return fused_cpu::attend(q, k, v, args, options);
    }
    match accelerator::attend(q, k, v, args)? {
        Some(out) => Ok(out),
        None => reference::attend(q, k, v, args),
    }
}

/// `(b, h, t, d)` with the last dimension's numbers side by side, copied only if they aren't.
fn with_contiguous_rows(x: &Tensor) -> Result<Tensor> {
    if x.stride()[3] == 1 || x.dim(3)? == 1 { Ok(x.clone()) } else { x.contiguous() }
}

fn check(q: &Tensor, k: &Tensor, v: &Tensor, args: &AttendArgs) -> Result<()> {
    let (b, h, tq, d) = q.dims4()?;
    let (kb, h_kv, tk, kd) = k.dims4()?;
    let (vb, vh, vt, _) = v.dims4()?;
    if kb != b || vb != b || vh != h_kv || vt != tk || kd != d || h_kv == 0 || !h.is_multiple_of(h_kv) {
        bail!("attend: shapes do not fit: q {:?}, k {:?}, v {:?}", q.dims(), k.dims(), v.dims())
    }
    if k.dtype() != q.dtype() || v.dtype() != q.dtype() {
        bail!("attend: dtypes differ: q {:?}, k {:?}, v {:?}", q.dtype(), k.dtype(), v.dtype())
    }
    if let Some(keys) = &args.mask.keys
        && keys.len() != b
    {
        bail!("attend: the mask has key ranges for {} rows, the batch has {b}", keys.len())
    }
    if args.mask.window == Some(0) || args.mask.chunk == Some(0) {
        bail!("attend: a window or chunk of 0 tokens sees nothing")
    }
    match &args.bias {
        ScoreBias::None => {}
        ScoreBias::Linear { slopes } => {
            if slopes.dims() != [h] {
                bail!("attend: {h} heads but slopes of shape {:?}", slopes.dims())
            }
        }
        ScoreBias::Relative { table, first } => {
            let (rows, n) = table.dims2()?;
            // distances run from (first key - last query) to (last key - first query)
            let low = args.k_start as i64 - (args.q_start + tq) as i64 + 1;
            let high = (args.k_start + tk) as i64 - 1 - args.q_start as i64;
            if rows != h || low < *first || high >= *first + n as i64 {
                bail!(
                    "attend: relative bias ({rows}, {n}) from {first} does not cover {h} heads, distances {low}..={high}"
                )
            }
        }
        ScoreBias::Dense(bias) => {
            bias.broadcast_as((b, h, tq, tk))?;
        }
    }
    Ok(())
}
