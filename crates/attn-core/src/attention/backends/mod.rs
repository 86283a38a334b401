//! The kernels that attention runs on, in the order in which they are asked.
//!
//! Each backend has one function, its `plan`, that looks at a call and says whether it computes it correctly and with
//! every gradient that is asked for. The CPU's kernel is asked first, since it reads keys and values as a cache stores
//! them; the others get tensors in the queries' dtype. The reference comes last and computes everything.
//!
//! | backend | device | calls |
//! |---|---|---|
//! | `cpu` | CPU | f32, bf16, f16: everything but the gradient of a dense bias |
//! | `flash` | CUDA, feature `flash-attn` | long prompts; f16 and bf16; head dims up to 256 in steps of 8; causal and sliding-window masks whose queries end with the keys, or none; ALiBi where causal; softcap; no gradients |
//! | `cuda` | CUDA | f32, and f16 and bf16 from compute capability 8.0; head dims up to 256; masks of one window, chunk and padding; no bias, or a linear, relative or dense one; gradients of q, k, v and, without softcap, a relative table |
//! | `metal` | Metal | no bias, softcap or window; one query that sees every key; more queries as far as the kernel's blocks of 32 end with the keys; no gradients |
//! | `reference` | any | everything, in plain Candle ops that keep the graph |
//!
//! Which calls the accelerators' kernels compute correctly is known from their sources. The choice among them depends
//! only on the call's [`Facts`](facts::Facts), so it is tested on machines that have none of them.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod cuda_rule;
mod facts;
mod flash;
mod metal;
pub mod reference;
#[cfg(test)]
mod rule_tests;

#[cfg(test)]
pub(super) use cpu::tiles_visited;

use super::{gradients, options::KernelOptions, scores::AttendArgs};
use crate::stored::Stored;
use candle_core::{Error, Result, Tensor, bail};

/// A call, checked, over keys and values as they are stored.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    q: &'a Tensor,
    k: &'a Stored,
    v: &'a Stored,
    args: &'a AttendArgs,
    options: &'a KernelOptions,
    /// Whether the log-sum-exp is asked for.
    lse: bool,
    /// Whether a gradient has to flow into anything.
    tracked: bool,
}

/// The same over tensors in the queries' dtype.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    q: &'a Tensor,
    k: &'a Tensor,
    v: &'a Tensor,
    args: &'a AttendArgs,
    /// Whether the log-sum-exp is asked for.
    lse: bool,
    /// Whether a gradient has to flow into anything.
    tracked: bool,
}

/// The output `(b, h, tq, dv)` and, if asked for, the log-sum-exp `(b, h, tq)`.
pub(super) type Answer = (Tensor, Option<Tensor>);

/// How a backend computes a call.
type Plan<'a> = Box<dyn FnOnce() -> Result<Answer> + 'a>;

/// Says how a backend computes a call, or `None` if it does not.
type Planner = for<'a> fn(&Request<'a>) -> Result<Option<Plan<'a>>>;

/// The backends after the CPU's kernel, in the order in which they are asked.
const BACKENDS: &[Planner] = &[
    #[cfg(feature = "flash-attn")]
    flash::plan,
    #[cfg(feature = "cuda")]
    cuda::plan,
    metal::plan,
    reference::plan,
];

/// Computes a checked call on the first backend that takes it.
pub(super) fn run(
    q: &Tensor,
    [k, v]: [&Stored; 2],
    args: &AttendArgs,
    options: &KernelOptions,
    lse: bool,
) -> Result<Answer> {
    let tracked = gradients::tracked([q, k.data(), v.data()], &args.scores);
    // The conversion is part of the graph, so that each gradient has the dtype of its tensor.
    let alike =
        |x: &Stored| if tracked { Ok(Stored::from(&x.to_dtype(q.dtype())?)) } else { Ok::<_, Error>(x.clone()) };
    let (k, v) = (&alike(k)?, &alike(v)?);
    if let Some(compute) = cpu::plan(&Call { q, k, v, args, options, lse, tracked })? {
        return compute();
    }
    let (k, v) = (&k.to_dtype(q.dtype())?, &v.to_dtype(q.dtype())?);
    let request = Request { q, k, v, args, lse, tracked };
    for plan in BACKENDS {
        if let Some(compute) = plan(&request)? {
            return compute();
        }
    }
    bail!("attend: no backend computes q {:?}, k {:?}, v {:?}", q.dims(), k.dims(), v.dims())
}
