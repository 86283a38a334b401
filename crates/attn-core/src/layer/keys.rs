//! [`KeyValues`]: what a layer's queries read, to be read by other layers too.

use candle_core::Tensor;

/// The keys and values of the tokens so far, as [`forward_sharing`](crate::MultiHeadAttention::forward_sharing) left
/// them: views of the layer's cache if it has one, good until the next tokens come. Cloning shares them.
#[derive(Debug, Clone)]
pub struct KeyValues {
    /// `(b, h_kv, s, d)`, placed.
    pub(super) k: Tensor,
    /// `(b, h_kv, s, dv)`
    pub(super) v: Tensor,
    /// The slot of the first.
    pub(super) start: usize,
}
