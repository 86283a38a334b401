//! A rotation whose speeds are learned: each starts at RoPE's and is multiplied by `e^shift` of a learned shift, so that a step
//! of the optimizer changes fast and slow pairs by the same share.

use super::{RopeConfig, apply::rotate_plain};
use crate::position::{Context, PositionEncoding, Positions};
use candle_core::{D, DType, Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};

/// The rotation.
#[derive(Debug, Clone)]
pub struct LearnedFrequencies {
    config: RopeConfig,
    /// `(1, pairs)`: the speeds that training starts from.
    inv_freq: Tensor,
    /// `(pairs,)`
    shift: Tensor,
}

impl LearnedFrequencies {
    /// Takes the tensor `shift` of shape `(rotary_dim / 2,)` from `vb`; in a fresh `VarMap` it starts at zero, which is plain
    /// RoPE.
    ///
    /// # Errors
    /// The tensor is missing or of another shape; a config that [`from_shift`](Self::from_shift) refuses.
    pub fn new(config: RopeConfig, vb: VarBuilder) -> Result<Self> {
        let shift = vb.get_with_hints(config.rotary_dim / 2, "shift", Init::Const(0.0))?;
        Self::from_shift(config, shift)
    }

    /// From the shifts `(rotary_dim / 2,)`, natural logs of factors; gradients flow into them.
    ///
    /// # Errors
    /// Another shape; a config that [`RopeConfig::validate`] refuses, or one whose frequencies depend on the length.
    pub fn from_shift(config: RopeConfig, shift: Tensor) -> Result<Self> {
        config.validate()?;
        if shift.dims() != [config.rotary_dim / 2] {
            bail!("learned frequencies: shifts {:?} do not fit {} pairs", shift.dims(), config.rotary_dim / 2)
        }
        if config.scaling.name() != "default" {
            bail!("learned frequencies start from unscaled ones, not from the scaling {}", config.scaling.name())
        }
        let inv_freq = Tensor::new(config.frequencies(1).inv_freq, shift.device())?.unsqueeze(0)?;
        Ok(Self { config, inv_freq, shift })
    }

    fn rotate(&self, xs: &Tensor, positions: &Positions) -> Result<Tensor> {
        if xs.dim(D::Minus1)? != self.config.head_dim || xs.dim(2)? != positions.len() {
            bail!("learned frequencies: {:?} does not fit {} positions", xs.dims(), positions.len())
        }
        let device = self.shift.device();
        let dtype = if xs.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        // Angles in f64: those of far positions are large.
        let at = Tensor::from_iter(positions.all().map(|p| p as f64), device)?.unsqueeze(1)?;
        let speeds = self.inv_freq.broadcast_mul(&self.shift.to_dtype(DType::F64)?.exp()?)?;
        let angles = at.matmul(&speeds)?.reshape((positions.rows(), 1, positions.len(), ()))?;
        let (cos, sin) = (angles.cos()?.to_dtype(dtype)?, angles.sin()?.to_dtype(dtype)?);
        rotate_plain(xs, &cos, &sin, &self.config)
    }
}

impl PositionEncoding for LearnedFrequencies {
    fn queries(&self, q: &Tensor, at: &Context) -> Result<Tensor> {
        self.rotate(q, at.positions)
    }

    fn keys(&self, k: &Tensor, at: &Context) -> Result<Tensor> {
        self.rotate(k, at.positions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::{Layout, Rope};
    use crate::testing::randn;
    use candle_core::{Device, Var};

    /// Without shifts it is RoPE, and its gradient is that of finite differences.
    #[test]
    fn it_starts_as_rope_and_has_a_gradient() {
        for layout in [Layout::Half, Layout::Interleaved] {
            let config = RopeConfig { layout, ..RopeConfig::new(8, 100.0) };
            let xs = randn(0.0, 1.0, (2, 3, 5, 8)).unwrap().to_dtype(DType::F64).unwrap();
            let positions = Positions::new(700..705);
            let shift = Var::zeros(4, DType::F64, &Device::Cpu).unwrap();
            let learned = LearnedFrequencies::from_shift(config.clone(), shift.as_tensor().clone()).unwrap();
            let rope = Rope::new(config.clone()).unwrap().rotate(&xs, &positions).unwrap();
            let out = learned.rotate(&xs, &positions).unwrap();
            let off = (&out - rope).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
            assert!(off < 1e-12, "{layout:?}: {off:e}");
            // The derivative by finite differences.
            let loss = |x: &Tensor| x.sqr().unwrap().mul(&x.sin().unwrap()).unwrap().sum_all().unwrap();
            let grads = loss(&out).backward().unwrap();
            let grad = grads.get(&shift).unwrap().to_vec1::<f64>().unwrap();
            let step = 1e-7;
            for pair in 0..4 {
                let moved = |by: f64| {
                    let mut shifts = [0f64; 4];
                    shifts[pair] = by;
                    let shifts = Tensor::new(&shifts, &Device::Cpu).unwrap();
                    let learned = LearnedFrequencies::from_shift(config.clone(), shifts).unwrap();
                    loss(&learned.rotate(&xs, &positions).unwrap()).to_scalar::<f64>().unwrap()
                };
                let slope = (moved(step) - moved(-step)) / (2.0 * step);
                assert!((slope - grad[pair]).abs() < 1e-4 * slope.abs().max(1.0), "{pair}: {slope} {grad:?}");
            }
        }
        assert!(
            LearnedFrequencies::from_shift(
                RopeConfig::new(8, 1e4),
                Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap()
            )
            .is_err()
        );
    }
}
