//! The encodings that are learned layer by layer, as data: what `attn train` can train and a config can name.
//!
//! Each encoding's own `new` says which tensors it takes and how they start; [`learned_tensors`] reads them off a trial
//! run of it, so that loading and initialising need no second list.

use super::{
    Cope, Fire, Fox, Kerple, KerpleKernel, LearnedFrequencies, PositionConfig, PositionEncoding, Rope, RopeConfig,
    Shaw, Ssmax, build,
};
use candle_core::{DType, Device, Result, Shape, Tensor, bail};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use std::sync::{Arc, Mutex, PoisonError};

/// An encoding with numbers of its own in every layer.
#[derive(Debug, Clone, PartialEq)]
pub enum TrainedConfig {
    /// [`Kerple`]: a bias that falls with the distance along a learned curve.
    Kerple {
        /// Which curve.
        kernel: KerpleKernel,
        /// Query heads.
        heads: usize,
    },
    /// [`Fire`]: a small network from distance and place to a bias.
    Fire {
        /// Query heads.
        heads: usize,
        /// Hidden units of the network.
        units: usize,
    },
    /// [`Fox`]: forget gates made of the hidden states.
    Fox {
        /// Width of the hidden states.
        hidden_size: usize,
        /// Query heads.
        heads: usize,
    },
    /// [`Shaw`]: products of queries with learned vectors by distance.
    Shaw {
        /// Width of a head.
        head_dim: usize,
        /// The distance from which on all are alike.
        max_distance: usize,
    },
    /// [`Cope`]: positions counted by gates.
    Cope {
        /// Width of a head.
        head_dim: usize,
        /// Positions that can be counted.
        positions: usize,
    },
    /// [`LearnedFrequencies`]: a rotation whose speeds are learned.
    Frequencies {
        /// The rotation that training starts from.
        rope: RopeConfig,
    },
    /// [`Ssmax`] over a rotation: scores that grow with the log of the position, by a learned number per head.
    Ssmax {
        /// The rotation.
        rope: RopeConfig,
        /// Query heads.
        heads: usize,
    },
}

impl TrainedConfig {
    /// The name, as configs and `attn train --position` spell it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Kerple { kernel: KerpleKernel::Logarithmic, .. } => "kerple",
            Self::Kerple { kernel: KerpleKernel::Power, .. } => "kerple-power",
            Self::Fire { .. } => "fire",
            Self::Fox { .. } => "fox",
            Self::Shaw { .. } => "shaw",
            Self::Cope { .. } => "cope",
            Self::Frequencies { .. } => "learned-frequencies",
            Self::Ssmax { .. } => "ssmax",
        }
    }

    /// Builds the encoding of one layer, whose tensors are at `vb`.
    ///
    /// # Errors
    /// Tensors that are missing or of another shape; whatever [`Rope::new`] refuses.
    pub fn build(&self, vb: VarBuilder) -> Result<Arc<dyn PositionEncoding>> {
        Ok(match self.clone() {
            Self::Kerple { kernel, heads } => Arc::new(Kerple::new(kernel, heads, vb)?),
            Self::Fire { heads, units } => Arc::new(Fire::new(heads, units, vb)?),
            Self::Fox { hidden_size, heads } => Arc::new(Fox::new(hidden_size, heads, vb)?),
            Self::Shaw { head_dim, max_distance } => Arc::new(Shaw::new(head_dim, max_distance, vb)?),
            Self::Cope { head_dim, positions } => Arc::new(Cope::new(head_dim, positions, vb)?),
            Self::Frequencies { rope } => Arc::new(LearnedFrequencies::new(rope, vb)?),
            Self::Ssmax { rope, heads } => Arc::new(Ssmax::new(Arc::new(Rope::new(rope)?), heads, vb)?),
        })
    }
}

/// A tensor that an encoding learns.
#[derive(Debug, Clone)]
pub struct LearnedTensor {
    /// Its name under the encoding's own prefix.
    pub name: String,
    /// Its shape.
    pub shape: Shape,
    /// What it starts as in a new model.
    pub init: Init,
}

/// The tensors that [`build`] takes for `config`, in the order in which it asks for them: none for encodings that learn
/// nothing.
///
/// # Errors
/// As [`build`].
pub fn learned_tensors(config: &PositionConfig) -> Result<Vec<LearnedTensor>> {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let listener = Listener { asked: asked.clone() };
    build(config, Some(VarBuilder::from_backend(Box::new(listener), DType::F32, Device::Cpu)))?;
    let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(std::mem::take(&mut *asked))
}

/// Answers with zeros and remembers what was asked for.
struct Listener {
    asked: Arc<Mutex<Vec<LearnedTensor>>>,
}

impl SimpleBackend for Listener {
    fn get(&self, shape: Shape, name: &str, init: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let zeros = Tensor::zeros(&shape, dtype, device)?;
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.push(LearnedTensor { name: name.to_string(), shape, init });
        Ok(zeros)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        bail!("tensor {name} was asked for without a shape")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_encoding_says_what_it_learns() {
        let names = |config| {
            let tensors = learned_tensors(&PositionConfig::Trained(config)).unwrap();
            tensors.into_iter().map(|t| (t.name, t.shape.into_dims())).collect::<Vec<_>>()
        };
        let named = |name: &str, shape: &[usize]| (name.to_string(), shape.to_vec());
        let kerple = TrainedConfig::Kerple { kernel: KerpleKernel::Logarithmic, heads: 4 };
        assert_eq!(names(kerple), [named("r1", &[4]), named("r2", &[4])]);
        let fox = TrainedConfig::Fox { hidden_size: 12, heads: 4 };
        assert_eq!(names(fox), [named("fgate_proj.weight", &[4, 12]), named("fgate_proj.bias", &[4])]);
        let rope = RopeConfig::new(16, 1e4);
        assert_eq!(names(TrainedConfig::Frequencies { rope: rope.clone() }), [named("shift", &[8])]);
        assert_eq!(names(TrainedConfig::Ssmax { rope: rope.clone(), heads: 4 }), [named("s", &[4])]);
        assert!(learned_tensors(&PositionConfig::Rope(rope)).unwrap().is_empty());
    }
}
