//! A position encoding outside the crate, in one file: Kerple (Chi et al. 2022), a bias that falls with the distance
//! along a learned curve per head. It is trained here to find what stood a few tokens back.
//!
//! ```text
//! cargo run --release -p integration --example kerple
//! ```

mod recall;

use attn_core::candle_core::{Result, Tensor};
use attn_core::candle_nn::{Init, VarBuilder};
use attn_core::{PositionEncoding, ScoreBias, position::BiasContext};
use std::sync::Arc;

/// `-r1 ln(1 + r2 distance)`; both are learned, `(heads,)`.
#[derive(Debug)]
struct Kerple {
    r1: Tensor,
    r2: Tensor,
}

impl Kerple {
    fn new(heads: usize, vb: VarBuilder) -> Result<Self> {
        let init = Init::Uniform { lo: 0.1, up: 1.0 };
        Ok(Self { r1: vb.get_with_hints(heads, "r1", init)?, r2: vb.get_with_hints(heads, "r2", init)? })
    }
}

impl PositionEncoding for Kerple {
    fn bias(&self, at: &BiasContext) -> Result<ScoreBias> {
        let Some((first, n)) = at.distances() else { return Ok(ScoreBias::None) };
        let distances = (0..n as i64).map(|i| (first + i).abs() as f32);
        let distances = Tensor::from_iter(distances, self.r1.device())?.unsqueeze(0)?;
        let curve = (self.r2.maximum(0.01)?.unsqueeze(1)?.broadcast_mul(&distances)? + 1.0)?.log()?;
        let table = self.r1.maximum(0.01)?.unsqueeze(1)?.broadcast_mul(&curve)?.neg()?;
        Ok(ScoreBias::Relative { table, first })
    }
}

fn main() -> anyhow::Result<()> {
    recall::train("kerple", |_, heads, vb| Ok(Arc::new(Kerple::new(heads, vb)?)))
}
