//! What a call of a layer may ask for beside its output, and what it gives: [`ForwardOptions`], [`Attended`], [`KeyValues`].

use crate::{
    Positions,
    attention::{KernelOptions, attend_stored, attend_stored_lse, attend_weights},
    placing::{Beside, Call, Held},
};
use candle_core::{DType, Result, Tensor, bail};

/// What a call may ask for beside the layer's output. `ForwardOptions::default()` asks for nothing.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ForwardOptions<'a> {
    /// A mask as a tensor, beside the layer's own: `u8`, 0 for a key that is hidden, or a float that is added to the
    /// scores (minus infinity hides). Any shape that broadcasts to `(b, h, tq, tk)`, `tk` being the keys in the cache
    /// and the new ones. This runs on the slower reference kernel; give conditions that a [`Mask`](crate::Mask) can
    /// express there.
    pub mask: Option<&'a Tensor>,
    /// Whether to return the attention weights, for inspection. This runs on the slower reference kernel.
    pub weights: bool,
}

impl<'a> ForwardOptions<'a> {
    /// With a mask given as a tensor, see [`ForwardOptions::mask`].
    #[must_use]
    pub fn with_mask(mut self, mask: Option<&'a Tensor>) -> Self {
        self.mask = mask;
        self
    }

    /// With attention weights, see [`ForwardOptions::weights`].
    #[must_use]
    pub fn with_weights(mut self, weights: bool) -> Self {
        self.weights = weights;
        self
    }
}

/// What a call gives.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Attended {
    /// The layer's output, `(b, t, hidden_size)`.
    pub out: Tensor,
    /// The weight of each key in each query's sum, `(b, h, tq, tk)`, if asked for.
    pub weights: Option<Tensor>,
}

/// The keys and values of the tokens so far, as [`forward_sharing`](crate::MultiHeadAttention::forward_sharing) gives them:
/// views of the layer's cache if it has one, good until the next tokens come. Cloning shares them.
#[derive(Debug, Clone)]
pub struct KeyValues {
    pub(super) held: Held,
}

impl KeyValues {
    /// An error unless the last keys are those of the tokens at `positions`.
    pub(super) fn check(&self, positions: &Positions) -> Result<()> {
        let slots = self.held.slots()?;
        if slots.end != positions.slots().end {
            bail!("attention: shared keys in slots {slots:?} do not end with the tokens in {:?}", positions.slots())
        }
        Ok(())
    }

    /// One call of attention over a copy of these keys.
    pub(super) fn attend(&self, call: &Call) -> Result<(Tensor, Option<Tensor>)> {
        let Some(v) = &self.held.values else { bail!("attention: keys without values") };
        let (q, k) = (call.q, &self.held.copies[call.copy]);
        match call.beside {
            Beside::Nothing => {
                let options = KernelOptions { key_norms: call.key_norms.clone(), ..KernelOptions::default() };
                Ok((attend_stored(q, k, v, &call.args, &options)?, None))
            }
            Beside::Lse => attend_stored_lse(q, k, v, &call.args).map(|(out, lse)| (out, Some(lse))),
            Beside::Weights => {
                let (k, v) = (k.to_dtype(q.dtype())?, v.to_dtype(q.dtype())?);
                attend_weights(q, &k, &v, &call.args).map(|(out, weights)| (out, Some(weights)))
            }
        }
    }
}

/// A mask as numbers to add to the scores: minus infinity where a key is hidden.
pub(super) fn additive(mask: &Tensor) -> Result<Tensor> {
    match mask.dtype() {
        DType::U8 => {
            let zeros = Tensor::zeros(mask.shape(), DType::F32, mask.device())?;
            mask.where_cond(&zeros, &Tensor::full(f32::NEG_INFINITY, mask.shape(), mask.device())?)
        }
        dtype if dtype.is_float() => Ok(mask.clone()),
        dtype => bail!("attention: a mask is u8 or a float, not {dtype:?}"),
    }
}
