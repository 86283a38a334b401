//! A position encoding outside the crate, in one file, whose bias comes from the hidden states: FoX (Lin et al. 2025),
//! forget gates. The cache keeps what the encoding asks it to keep. It is trained here to find what stood a few tokens
//! back.
//!
//! ```text
//! cargo run --release -p integration --example fox
//! ```

mod recall;

use attn_core::candle_core::{D, Module, Result, Tensor};
use attn_core::candle_nn::VarBuilder;
use attn_core::position::{BiasContext, Context};
use attn_core::{Linear, PositionEncoding, ScoreBias};
use std::sync::Arc;

/// A score is lowered by the log gates of all tokens between key and query.
#[derive(Debug)]
struct Fox {
    gate: Linear,
}

impl PositionEncoding for Fox {
    /// The running sum of the log gates at every token, `(b, h, t, 1)`.
    fn remember(&self, at: &Context, last: Option<&Tensor>) -> Result<Option<Tensor>> {
        let logits = self.gate.forward(at.hidden("fox")?)?.transpose(1, 2)?;
        let log_gates = (logits.minimum(0f64)? - (logits.abs()?.neg()?.exp()? + 1.0)?.log()?)?;
        let sums = log_gates.contiguous()?.cumsum(2)?.unsqueeze(D::Minus1)?;
        Ok(Some(match last {
            Some(last) => sums.broadcast_add(last)?,
            None => sums,
        }))
    }

    fn bias(&self, at: &BiasContext) -> Result<ScoreBias> {
        let keys = at.remembered("fox")?.squeeze(D::Minus1)?.contiguous()?;
        let queries = keys.narrow(2, at.queries().start - at.keys.start, at.queries().len())?.contiguous()?;
        Ok(ScoreBias::Keys { queries, keys })
    }
}

fn new(hidden: usize, heads: usize, vb: VarBuilder) -> Result<Arc<dyn PositionEncoding>> {
    Ok(Arc::new(Fox { gate: Linear::load(hidden, heads, true, &vb)? }))
}

fn main() -> anyhow::Result<()> {
    recall::train("fox", new)
}
