//! Everything about a score but the product of query and key, and everything about a call but its tensors.

use super::bias::{Extent, ScoreBias};
use crate::{Mask, stored::Stored};
use candle_core::{Result, Tensor, bail};

/// How a product of a query and a key becomes a score: scale, then softcap, then bias; and what else is in the
/// softmax's denominator.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Scores {
    /// Multiplies the products, usually `head_dim^-1/2`.
    pub scale: f64,
    /// Gemma 2's `softcap * tanh(score / softcap)`.
    pub softcap: Option<f64>,
    /// Added to the scores.
    pub bias: ScoreBias,
    /// `(h,)`, f32: a score per head that is in the denominator of the softmax and has no value (gpt-oss). No mask hides
    /// it.
    pub sinks: Option<Tensor>,
}

impl Scores {
    /// Products times `scale` and nothing else.
    pub fn new(scale: f64) -> Self {
        Self { scale, softcap: None, bias: ScoreBias::None, sinks: None }
    }

    /// With a softcap, see [`Scores::softcap`].
    #[must_use]
    pub fn with_softcap(mut self, softcap: Option<f64>) -> Self {
        self.softcap = softcap;
        self
    }

    /// With a bias, see [`ScoreBias`].
    #[must_use]
    pub fn with_bias(mut self, bias: ScoreBias) -> Self {
        self.bias = bias;
        self
    }

    /// With sinks, see [`Scores::sinks`].
    #[must_use]
    pub fn with_sinks(mut self, sinks: Option<Tensor>) -> Self {
        self.sinks = sinks;
        self
    }

    /// The tensors that a gradient may have to flow into: those of the bias, then the sinks.
    pub(super) fn tensors(&self) -> Vec<&Tensor> {
        let mut all = self.bias.tensors();
        all.extend(&self.sinks);
        all
    }

    /// True if a gradient has to flow into the bias or the sinks.
    pub fn track_op(&self) -> bool {
        self.tensors().iter().any(|x| x.track_op())
    }
}

/// Everything about one attention call but q, k and v. Order of operations: scale, softcap, bias, mask, softmax with
/// sinks.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AttendArgs {
    /// From products to scores.
    pub scores: Scores,
    /// Which keys a query sees. A query that sees none gives zeros.
    pub mask: Mask,
    /// The slot of the first query: the number of tokens before it in its row.
    pub q_start: usize,
    /// The slot of the first key; above 0 when a windowed cache has dropped the oldest.
    pub k_start: usize,
}

impl AttendArgs {
    /// Every query sees every key; the first query and the first key are in slot 0.
    pub fn new(scores: Scores) -> Self {
        Self { scores, mask: Mask::bidirectional(), q_start: 0, k_start: 0 }
    }

    /// Causal attention of `tq` queries over `tk` keys that end at the same token, scaled by `head_dim^-1/2`.
    ///
    /// # Errors
    /// More queries than keys.
    pub fn causal(head_dim: usize, tq: usize, tk: usize) -> Result<Self> {
        let Some(q_start) = tk.checked_sub(tq) else { bail!("attend: {tq} queries cannot end with {tk} keys") };
        let scores = Scores::new((head_dim as f64).powf(-0.5));
        Ok(Self::new(scores).with_mask(Mask::causal()).with_slots(q_start, 0))
    }

    /// Under another mask.
    #[must_use]
    pub fn with_mask(mut self, mask: Mask) -> Self {
        self.mask = mask;
        self
    }

    /// With the slots of the first query and the first key.
    #[must_use]
    pub fn with_slots(mut self, q_start: usize, k_start: usize) -> Self {
        (self.q_start, self.k_start) = (q_start, k_start);
        self
    }

    /// With a bias, see [`ScoreBias`].
    #[must_use]
    pub fn with_bias(mut self, bias: ScoreBias) -> Self {
        self.scores.bias = bias;
        self
    }

    /// An error unless q, k and v have one dtype.
    pub(super) fn check_dtypes(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<()> {
        if k.dtype() != q.dtype() || v.dtype() != q.dtype() {
            bail!("attend: dtypes differ: q {:?}, k {:?}, v {:?}", q.dtype(), k.dtype(), v.dtype())
        }
        Ok(())
    }

    /// An error that says what does not fit, for q `(b, h, tq, d)`, k `(b, h_kv, tk, d)` and v `(b, h_kv, tk, dv)`.
    pub(super) fn check(&self, q: &Tensor, k: &Stored, v: &Stored) -> Result<()> {
        let (b, h, tq, d) = q.dims4()?;
        let (kb, h_kv, tk, kd) = k.dims4()?;
        let (vb, vh, vt, dv) = v.dims4()?;
        if kb != b || vb != b || vh != h_kv || vt != tk || kd != d || h_kv == 0 || !h.is_multiple_of(h_kv) {
            let (k, v) = ([kb, h_kv, tk, kd], [vb, vh, vt, dv]);
            bail!("attend: shapes do not fit: q {:?}, k {k:?}, v {v:?}", q.dims())
        }
        self.mask.check(b)?;
        if let Some(sinks) = &self.scores.sinks
            && sinks.dims() != [h]
        {
            bail!("attend: {h} heads but sinks of shape {:?}", sinks.dims())
        }
        let (q_start, k_start) = (self.q_start, self.k_start);
        self.scores.bias.check(Extent { b, h, tq, tk, q_start, k_start })
    }
}
