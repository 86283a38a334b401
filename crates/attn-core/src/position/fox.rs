//! FoX, the forgetting transformer (Lin et al. 2025, arXiv:2503.02130): every token has a forget gate per head, and a
//! score is lowered by the log gates of all tokens between key and query. The gates are computed from the hidden states,
//! which are gone when later tokens come, so the cache keeps the running sum of the log gates up to each key.

use super::{BiasContext, Context, PositionEncoding};
use crate::{Linear, ScoreBias};
use candle_core::{D, DType, Module, Result, Tensor};
use candle_nn::VarBuilder;

/// The forget gates of one layer.
#[derive(Debug, Clone)]
pub struct Fox {
    gate: Linear,
}

impl Fox {
    /// Takes the projection `fgate_proj` from hidden states to the gates' logits, with a bias, from `vb`; in a fresh `VarMap`
    /// it starts as candle-nn's do.
    ///
    /// # Errors
    /// Tensors that are missing or of another shape.
    pub fn new(hidden_size: usize, heads: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self::from_gate(Linear::load(hidden_size, heads, true, &vb.pp("fgate_proj"))?))
    }

    /// From the projection of hidden states to the logits of the gates, `(heads, hidden_size)`.
    pub fn from_gate(gate: Linear) -> Self {
        Self { gate }
    }
}

impl PositionEncoding for Fox {
    /// The running sums of `ln sigmoid(gate)`, `(b, h, t, 1)`, f32 or f64.
    fn remember(&self, at: &Context, last: Option<&Tensor>) -> Result<Option<Tensor>> {
        let hidden = at.hidden("fox")?;
        // Sums over a long text need more than bf16's eight bits, so the gates are computed in the dtype of their weights.
        let hidden = match self.gate.weight() {
            Some(weight) => &hidden.to_dtype(weight.dtype())?,
            None => hidden,
        };
        let logits = self.gate.forward(hidden)?.transpose(1, 2)?;
        let logits = if logits.dtype() == DType::F64 { logits } else { logits.to_dtype(DType::F32)? };
        // ln sigmoid(x) = min(x, 0) - ln(1 + exp(-|x|)), which never overflows.
        let gates = (logits.minimum(0f64)? - (logits.abs()?.neg()?.exp()? + 1.0)?.log()?)?;
        let sums = running_sum(&gates.contiguous()?)?.unsqueeze(D::Minus1)?;
        Ok(Some(match last {
            Some(last) => sums.broadcast_add(last)?,
            None => sums,
        }))
    }

    fn bias(&self, at: &BiasContext) -> Result<ScoreBias> {
        let keys = at.remembered("fox")?.squeeze(D::Minus1)?;
        let queries = at.queries();
        let first = queries.start - at.keys.start;
        Ok(ScoreBias::Keys { queries: keys.narrow(2, first, queries.len())?.contiguous()?, keys: keys.contiguous()? })
    }
}

/// Sums along the last dimension of `(b, h, t)`, by blocks: Candle's multiplies with a `(t, t)` matrix.
fn running_sum(xs: &Tensor) -> Result<Tensor> {
    const BLOCK: usize = 64;
    let (b, h, t) = xs.dims3()?;
    if t <= BLOCK {
        return xs.cumsum(2);
    }
    let blocks = t.div_ceil(BLOCK);
    let padded = xs.pad_with_zeros(2, 0, blocks * BLOCK - t)?.reshape((b, h, blocks, BLOCK))?;
    let within = padded.cumsum(3)?;
    let totals = within.narrow(3, BLOCK - 1, 1)?.squeeze(3)?.contiguous()?;
    let before = (running_sum(&totals)? - totals)?;
    within.broadcast_add(&before.unsqueeze(3)?)?.reshape((b, h, blocks * BLOCK))?.narrow(2, 0, t)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn sums_by_blocks_are_sums() -> Result<()> {
        for t in [1, 64, 65, 200, 5000] {
            let xs = Tensor::rand(0f64, 1., (2, 1, t), &Device::Cpu)?;
            let (sums, xs) = (running_sum(&xs)?.flatten_to(1)?.to_vec2::<f64>()?, xs.flatten_to(1)?.to_vec2::<f64>()?);
            for (sums, xs) in sums.iter().zip(xs) {
                let mut sum = 0.0;
                for (got, x) in sums.iter().zip(xs) {
                    sum += x;
                    assert!((got - sum).abs() < 1e-9, "{t}");
                }
            }
        }
        Ok(())
    }
}
