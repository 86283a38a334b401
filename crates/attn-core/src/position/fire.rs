//! FIRE (Li et al. 2023, arXiv:2310.04418): a small network maps the distance, relative to the query's own position, to a
//! bias per head. The bias depends on the query and on the distance, and yet no `(t, t)` tensor is made: see [`Curve`].

use super::{BiasContext, PositionEncoding};
use crate::{Curve, ScoreBias};
use candle_core::{Result, Tensor, bail};
use candle_nn::{Init, VarBuilder, init::DEFAULT_KAIMING_NORMAL};

/// The learned numbers of FIRE.
#[derive(Debug, Clone)]
pub struct FireParts {
    /// Scalar: how soon the logarithm bends distances.
    pub c: Tensor,
    /// Scalar: the position up to which queries are treated alike.
    pub threshold: Tensor,
    /// `(m,)`: into the hidden units.
    pub hidden_weight: Tensor,
    /// `(m,)`
    pub hidden_bias: Tensor,
    /// `(heads, m)`: out of the hidden units.
    pub out_weight: Tensor,
    /// `(heads,)`
    pub out_bias: Tensor,
}

/// `mlp(ln(|c| D + 1) / ln(|c| max(|threshold|, i) + 1))` for the query at position `i` and the key `D` before it.
#[derive(Debug, Clone)]
pub struct Fire {
    parts: FireParts,
}

impl Fire {
    /// Takes `c`, `threshold`, `mlp.0` and `mlp.2` (weights and biases, `units` hidden units) from `vb`; in a fresh `VarMap`
    /// they start as in the paper.
    ///
    /// # Errors
    /// Tensors that are missing or of another shape.
    pub fn new(heads: usize, units: usize, vb: VarBuilder) -> Result<Self> {
        let scalar = |name, value| vb.get_with_hints((), name, Init::Const(value));
        let bound = |n: usize| Init::Uniform { lo: -(n as f64).powf(-0.5), up: (n as f64).powf(-0.5) };
        Self::from_parts(FireParts {
            c: scalar("c", 0.1)?,
            threshold: scalar("threshold", 512.0)?,
            hidden_weight: vb.get_with_hints((units, 1), "mlp.0.weight", DEFAULT_KAIMING_NORMAL)?.squeeze(1)?,
            hidden_bias: vb.get_with_hints(units, "mlp.0.bias", bound(1))?,
            out_weight: vb.get_with_hints((heads, units), "mlp.2.weight", DEFAULT_KAIMING_NORMAL)?,
            out_bias: vb.get_with_hints(heads, "mlp.2.bias", bound(units))?,
        })
    }

    /// From its numbers; gradients flow into all of them.
    ///
    /// # Errors
    /// Shapes that don't fit each other.
    pub fn from_parts(parts: FireParts) -> Result<Self> {
        let (heads, units) = parts.out_weight.dims2()?;
        let fit = parts.hidden_weight.dims() == [units]
            && parts.hidden_bias.dims() == [units]
            && parts.out_bias.dims() == [heads]
            && parts.c.rank() == 0
            && parts.threshold.rank() == 0;
        if !fit {
            let shapes = [
                ("hidden_weight", &parts.hidden_weight),
                ("hidden_bias", &parts.hidden_bias),
                ("out_bias", &parts.out_bias),
                ("c", &parts.c),
                ("threshold", &parts.threshold),
            ];
            let shapes: Vec<String> = shapes.iter().map(|(name, x)| format!("{name} {:?}", x.dims())).collect();
            bail!("fire: these do not fit {units} hidden units and {heads} heads: {}", shapes.join(", "))
        }
        Ok(Self { parts })
    }
}

impl PositionEncoding for Fire {
    fn bias(&self, at: &BiasContext) -> Result<ScoreBias> {
        let Some((first, _)) = at.distances() else { return Ok(ScoreBias::None) };
        let (device, dtype) = (self.parts.c.device(), self.parts.c.dtype());
        let numbers = |values: Vec<f64>| Tensor::new(values, device)?.to_dtype(dtype);
        let c = self.parts.c.abs()?;
        let bent = |x: &Tensor| (c.broadcast_mul(x)? + 1.0)?.log();
        let positions = at.at.positions;
        let rows = numbers(positions.all().map(|i| i as f64).collect())?;
        let rows = rows.broadcast_maximum(&self.parts.threshold.abs()?)?;
        let rows = (bent(&rows)? + 1e-6)?.recip()?.reshape((positions.rows(), positions.len()))?;
        let farthest = (-first).max(0);
        Ok(ScoreBias::Curve(Curve {
            distances: bent(&numbers((0..=farthest).map(|d| d as f64).collect())?)?,
            rows,
            hidden_weight: self.parts.hidden_weight.clone(),
            hidden_bias: self.parts.hidden_bias.clone(),
            out_weight: self.parts.out_weight.clone(),
            out_bias: self.parts.out_bias.clone(),
        }))
    }
}
