//! Scaled dot-product attention: [`attend`] is the only place that picks a kernel.
//!
//! Which one takes a call, and why, is in `backends`.
//!
//! Candle's own fast ops return no gradient and no error, which is why the choice looks at `track_op()`.
//! The fused kernel runs on rayon's current pool: `RAYON_NUM_THREADS` or `ThreadPool::install` set how many threads. Up to
//! eight queries go to the threads of decoding (`CANDLE_NUM_THREADS`), unless those are more or the caller is one of rayon's.

mod backends;
mod bias;
#[cfg(test)]
mod gradient_laws;
mod gradients;
mod key_norms;
#[cfg(test)]
pub(crate) mod laws;
mod merge;
mod options;
mod scores;
mod tokens;
mod view;

pub use crate::simd::KernelPath;
pub use backends::reference;
pub use bias::{Curve, ScoreBias};
pub use key_norms::KeyNorms;
pub use merge::merge;
pub use options::KernelOptions;
pub use scores::{AttendArgs, Scores};

use crate::{profile, stored::Stored};
use candle_core::{Result, Tensor, bail};

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
    args.check_dtypes(q, k, v)?;
    attend_stored(q, &k.into(), &v.into(), args, options)
}

/// [`attend_with`] over keys and values as a [`LayerCache`](crate::LayerCache) stores them. The result is that of [`attend`] over
/// their numbers: the kernel of the CPU reads them as they are, a tile at a time; other kernels have them widened first.
///
/// # Errors
/// As [`attend_with`]; the dtypes of keys and values need not be that of the queries.
pub fn attend_stored(q: &Tensor, k: &Stored, v: &Stored, args: &AttendArgs, options: &KernelOptions) -> Result<Tensor> {
    let _scope = profile::scope(profile::Op::Attention);
    args.check(q, k, v)?;
    if let Some(norms) = &options.key_norms {
        norms.check(k)?;
    }
    backends::run(q, [k, v], args, options, false).map(|(out, _)| out)
}

/// [`attend`], and with it the natural log of the sum of `exp(score)` over the keys that each query sees, and its sink:
/// `(b, h, tq)` in f32 (f64 for f64 inputs), minus infinity where there is nothing to sum. [`merge`] joins the results of
/// calls over disjoint keys; gradients flow through both results.
///
/// # Errors
/// As [`attend`].
pub fn attend_lse(q: &Tensor, k: &Tensor, v: &Tensor, args: &AttendArgs) -> Result<(Tensor, Tensor)> {
    args.check_dtypes(q, k, v)?;
    attend_stored_lse(q, &k.into(), &v.into(), args)
}

/// [`attend_lse`] over keys and values as a cache stores them, see [`attend_stored`].
///
/// # Errors
/// As [`attend_stored`].
pub fn attend_stored_lse(q: &Tensor, k: &Stored, v: &Stored, args: &AttendArgs) -> Result<(Tensor, Tensor)> {
    let _scope = profile::scope(profile::Op::Attention);
    args.check(q, k, v)?;
    match backends::run(q, [k, v], args, &KernelOptions::default(), true)? {
        (out, Some(lse)) => Ok((out, lse)),
        (_, None) => bail!("attend: a backend left the log-sum-exp out"),
    }
}

/// [`attend`], and with it the weight of each key in each query's sum, `(b, h, tq, tk)` in the dtype of `q`. For
/// inspection: it runs on the reference kernel and takes memory for all of these weights.
///
/// # Errors
/// As [`attend`].
pub fn attend_weights(q: &Tensor, k: &Tensor, v: &Tensor, args: &AttendArgs) -> Result<(Tensor, Tensor)> {
    args.check_dtypes(q, k, v)?;
    args.check(q, &k.into(), &v.into())?;
    reference::attend_weights(q, k, v, args)
}
