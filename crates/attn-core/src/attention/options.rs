//! How to compute an attention call, as opposed to what.

use super::key_norms::KeyNorms;
use crate::simd::KernelPath;
use std::sync::Arc;

/// How to compute an attention call, as opposed to what: nothing here changes the result beyond rounding.
#[derive(Debug, Clone, Default)]
pub struct KernelOptions {
    /// The instruction set; `None`: `ATTN_KERNEL` or the fastest. Only the fused CPU kernel looks at it.
    pub path: Option<KernelPath>,
    /// Bounds on the norms of the keys, kept by a cache as it grows. With ALiBi they let decoding leave far keys
    /// unread; without them the kernel computes its own bounds where that pays (long prompts).
    pub key_norms: Option<Arc<KeyNorms>>,
}
