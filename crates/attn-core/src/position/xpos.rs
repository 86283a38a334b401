//! xPos (Sun et al. 2022, arXiv:2212.10554): rotation, and a decay with the distance that is faster for the lanes that turn
//! fast. Queries grow and keys shrink with their position, so that their product depends on the distance alone.

use super::{Context, PositionEncoding, Resolution, Rope, RopeConfig};
use candle_core::{DType, Result, Tensor, bail};

/// The rotation and the decay.
#[derive(Debug, Clone, PartialEq)]
pub struct XposConfig {
    /// The rotation.
    pub rope: RopeConfig,
    /// Tokens over which a pair of lanes decays by its factor; 512 in the paper.
    pub scale_base: f64,
    /// The position at which nothing is scaled. It cancels in every score; in the middle of the texts to come, it keeps the
    /// numbers small.
    pub center: usize,
}

impl XposConfig {
    /// The paper's, centred on position 0.
    pub fn new(rope: RopeConfig) -> Self {
        Self { rope, scale_base: 512.0, center: 0 }
    }
}

/// The encoding.
#[derive(Debug)]
pub struct Xpos {
    rope: Rope,
    config: XposConfig,
    /// Natural log of each pair's factor.
    log_zeta: Vec<f64>,
}

impl Xpos {
    /// xPos over a rotation.
    ///
    /// # Errors
    /// A `scale_base` that is not a positive number; whatever [`Rope::new`] refuses.
    pub fn new(config: XposConfig) -> Result<Self> {
        super::frequencies::positive("scale_base", config.scale_base)?;
        let half = config.rope.rotary_dim as f64 / 2.0;
        let log_zeta = (0..config.rope.rotary_dim / 2).map(|m| ((m as f64 / half + 0.4) / 1.4).ln()).collect();
        Ok(Self { rope: Rope::new(config.rope.clone())?, config, log_zeta })
    }

    /// `xs` rotated, each pair of lanes times `zeta^(sign (p - center) / scale_base)`.
    fn place(&self, xs: &Tensor, at: &Context, sign: f64) -> Result<Tensor> {
        /// Natural log of the largest factor: products of two stay within f32.
        const LARGEST: f64 = 40.0;
        let positions = at.positions;
        let (rotary, head_dim) = (self.config.rope.rotary_dim, self.config.rope.head_dim);
        let mut factors = Vec::with_capacity(positions.rows() * positions.len() * head_dim);
        for position in positions.all() {
            let steps = sign * (position as f64 - self.config.center as f64) / self.config.scale_base;
            if self.log_zeta.iter().any(|zeta| (zeta * steps).abs() > LARGEST) {
                bail!(
                    "xpos: position {position} is too far from the centre {} for a scale_base of {}",
                    self.config.center,
                    self.config.scale_base
                )
            }
            let pair = |lane: usize| match self.config.rope.layout {
                super::Layout::Half => lane % (rotary / 2),
                super::Layout::Interleaved => lane / 2,
            };
            factors.extend((0..rotary).map(|lane| (self.log_zeta[pair(lane)] * steps).exp()));
            factors.extend(std::iter::repeat_n(1.0, head_dim - rotary));
        }
        let dtype = if xs.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let shape = (positions.rows(), 1, positions.len(), head_dim);
        let factors = Tensor::from_vec(factors, shape, xs.device())?.to_dtype(dtype)?;
        self.rope.rotate(&xs.to_dtype(dtype)?, positions)?.broadcast_mul(&factors)?.to_dtype(xs.dtype())
    }
}

impl PositionEncoding for Xpos {
    fn queries(&self, q: &Tensor, at: &Context) -> Result<Tensor> {
        self.place(q, at, 1.0)
    }

    fn keys(&self, k: &Tensor, at: &Context) -> Result<Tensor> {
        self.place(k, at, -1.0)
    }

    fn resolve(&self, len: usize) -> Resolution {
        self.rope.resolve(len)
    }
}
