//! The element-wise work around attention, each in one pass: norms, activations and gates, the loss.
//!
//! Candle runs such formulas op by op, each of which reads and writes a whole tensor on one core, and its own fused ops
//! keep no gradient. These read and write everything once, on every core, compute in f32 whatever the dtype, and have
//! gradients that are as fused as they are. On CUDA norms and gates have kernels of their own where no gradient is
//! tracked. Plain Candle ops serve where neither applies (Metal, f64), with the same result.
//!
//! | op | what | gradients of |
//! |---|---|---|
//! | [`norm`](fn@norm) | RMS or layer norm | input, weight, bias |
//! | [`Activation::forward`], [`gated`], [`gated_pair`] | `act(x)`, `act(gate) * up` | every input |
//! | [`add`](fn@add) | residual sum | every input |
//! | [`add_norm`] | residual sum and its norm | every input (then in two passes) |
//! | [`split_heads`], [`merge_heads`] | `(b, t, n d)` to `(b, n, t, d)` and back | input |
//! | [`nll`] | `log(sum(exp(logits))) - logits[target]` | logits |
//! | [`kl_divergence`] | `sum(p log(p / q))` of two rows of logits | both, in plain ops |

mod activation;
mod add;
#[cfg(feature = "cuda")]
mod cuda;
mod heads;
mod kl;
mod nll;
mod norm;
mod rows;

pub use activation::{Activation, gated, gated_pair};
pub use add::add;
pub use heads::{merge_heads, split_heads};
pub use kl::kl_divergence;
pub use nll::nll;
pub use norm::{NormKind, add_norm, norm};
