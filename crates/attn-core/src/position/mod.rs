//! Position encodings: the open trait, its explicit positions, and the closed set that configs name.
//!
//! A model never asks which encoding it has: it calls every hook, and most do nothing. So the encoding of a loaded model
//! can be exchanged.
//!
//! A new encoding is one file, then a `mod`, a variant and an arm here. A new scaling of RoPE is one file and one line in
//! [`rope::scaling`].

pub mod alibi;
mod context;
mod cope;
pub mod extend;
mod fire;
mod fox;
pub mod frequencies;
mod kerple;
#[cfg(test)]
mod laws;
pub mod learned;
pub mod nope;
mod over;
mod positions;
pub mod rope;
mod sandwich;
mod shaw;
pub mod sinusoidal;
mod ssmax;
pub mod t5;
mod temperature;
mod trained;
mod xpos;

pub use alibi::{Alibi, AlibiConfig};
pub use context::{BiasContext, Context, Part};
pub use cope::Cope;
pub use extend::{ExtendConfig, ExtendOverride, ExtendedConfig, PositionOverride};
pub use fire::{Fire, FireParts};
pub use fox::Fox;
pub use frequencies::Frequencies;
pub use kerple::{Kerple, KerpleKernel};
pub use learned::{Learned, LearnedConfig};
pub use nope::{Nope, NopeConfig};
pub use over::{Over, QueryStep};
pub use positions::{Positions, Resolution};
pub use rope::{
    Layout, LearnedFrequencies, Rope, RopeConfig, RopeDefaults, RopeOverride, RopeReading, RopeScaling, RotaryTable,
    RotaryTableConfig, yarn_mscale,
};
pub use sandwich::{Sandwich, SandwichConfig};
pub use shaw::Shaw;
pub use sinusoidal::{Sinusoidal, SinusoidalConfig, SinusoidalLayout};
pub use ssmax::{LearnedLog, Ssmax};
pub use t5::{T5Bias, T5Config};
pub use temperature::Temperature;
pub use trained::{LearnedTensor, TrainedConfig, learned_tensors};
pub use xpos::{Xpos, XposConfig};

use crate::ScoreBias;
use candle_core::{Device, Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};
use std::{fmt::Debug, sync::Arc};

/// How a learned table starts in a fresh `VarMap`: as candle-nn's embeddings do.
const TABLE_INIT: Init = Init::Randn { mean: 0.0, stdev: 1.0 };

/// A way to tell attention where tokens are. Each hook has a default that does nothing, so an encoding implements only
/// those that it needs; the empty implementation is NoPE.
///
/// An encoding may be written outside this crate. Learned numbers are tensors it holds: gradients flow into them.
///
/// ```
/// use attn_core::candle_core::{Result, Tensor};
/// use attn_core::{PositionEncoding, ScoreBias, position::BiasContext};
///
/// /// ALiBi with learned slopes `(h,)`.
/// #[derive(Debug)]
/// struct LearnedAlibi {
///     slopes: Tensor,
/// }
///
/// impl PositionEncoding for LearnedAlibi {
///     fn bias(&self, _: &BiasContext) -> Result<ScoreBias> {
///         Ok(ScoreBias::Linear { slopes: self.slopes.clone() })
///     }
/// }
/// ```
pub trait PositionEncoding: Debug + Send + Sync {
    /// Places queries `(b, h, t, d)`: rotation, temperature. An encoding by [`parts`](Self::parts) places them for the
    /// part [`Context::part`].
    fn queries(&self, q: &Tensor, _at: &Context) -> Result<Tensor> {
        Ok(q.clone())
    }

    /// Places keys `(b, h_kv, t, d)`, once when they come; the cache keeps the result. An encoding by
    /// [`parts`](Self::parts) places them for the copy [`Context::copy`].
    fn keys(&self, k: &Tensor, _at: &Context) -> Result<Tensor> {
        Ok(k.clone())
    }

    /// Numbers that the cache keeps beside the keys of the tokens `at`, `(b, h, t, w)`, and that [`bias`](Self::bias)
    /// gets for all keys: the running sums of FoX's log forget gates. `last` is what was remembered of the token before
    /// them, `(b, h, 1, w)`, if there is one.
    fn remember(&self, _at: &Context, _last: Option<&Tensor>) -> Result<Option<Tensor>> {
        Ok(None)
    }

    /// Added to the scores: ALiBi, T5.
    fn bias(&self, _at: &BiasContext) -> Result<ScoreBias> {
        Ok(ScoreBias::None)
    }

    /// A logit per query head, `(h,)`, in the denominator of the softmax.
    fn sinks(&self) -> Option<Tensor> {
        None
    }

    /// The regions of keys that are treated each in its own way, together all the keys that are seen; none if all keys
    /// are treated alike. They may not change while a cache is in use.
    fn parts(&self) -> &[Part] {
        &[]
    }

    /// Which frequencies a sequence of `len` tokens uses.
    fn resolve(&self, _len: usize) -> Resolution {
        Resolution::Fixed
    }

    /// How many positions the encoding can tell apart (learned tables), `None` if it has no end. Layers refuse tokens
    /// past it.
    fn max_positions(&self) -> Option<usize> {
        None
    }
}

/// A position encoding that is added to the token embeddings before the first layer: sinusoidal, learned. No attention
/// layer takes one.
pub trait EmbeddingEncoding: Debug + Send + Sync {
    /// `xs`, `(b, t, hidden)`, with the positions added.
    ///
    /// # Errors
    /// A position past [`max_positions`](Self::max_positions).
    fn embed(&self, xs: &Tensor, positions: &Positions) -> Result<Tensor>;

    /// As [`PositionEncoding::max_positions`].
    fn max_positions(&self) -> Option<usize> {
        None
    }
}

/// The encodings that come with this crate, as data.
#[derive(Debug, Clone, PartialEq)]
pub enum PositionConfig {
    /// None, or Llama 4's tempered none.
    Nope(NopeConfig),
    /// Fixed sinusoids on the embeddings.
    Sinusoidal(SinusoidalConfig),
    /// A learned table on the embeddings.
    Learned(LearnedConfig),
    /// Rotated queries and keys.
    Rope(RopeConfig),
    /// Rotated queries and keys, by a table of sines and cosines.
    RotaryTable(RotaryTableConfig),
    /// Rotated queries and keys, near and far ones at different positions, or queries that grow with theirs.
    Extended(ExtendedConfig),
    /// A linear bias on the scores.
    Alibi(AlibiConfig),
    /// The inner product of two positions' sinusoids, added to the scores.
    Sandwich(SandwichConfig),
    /// A learned bias on the scores by bucketed distance.
    T5(T5Config),
    /// Rotated queries and keys that decay with the distance.
    Xpos(XposConfig),
    /// Learned with the model, layer by layer.
    Trained(TrainedConfig),
}

impl PositionConfig {
    /// The rotation, if there is one.
    pub fn rope(&self) -> Option<&RopeConfig> {
        match self {
            Self::Rope(rope)
            | Self::Extended(ExtendedConfig { rope, .. })
            | Self::Xpos(XposConfig { rope, .. })
            | Self::Trained(TrainedConfig::Ssmax { rope, .. }) => Some(rope),
            _ => None,
        }
    }

    /// With its rotation changed; `None` if it has none.
    ///
    /// # Errors
    /// As [`PositionOverride::over`]; a method by parts for an encoding that is more than a rotation.
    pub fn with_override(&self, change: &PositionOverride) -> Result<Option<Self>> {
        let Some(rope) = self.rope() else { return Ok(None) };
        Ok(Some(match (self, change.over(rope)?) {
            (Self::Rope(_) | Self::Extended(_), changed) => changed,
            (Self::Xpos(config), Self::Rope(rope)) => Self::Xpos(XposConfig { rope, ..config.clone() }),
            (Self::Trained(TrainedConfig::Ssmax { heads, .. }), Self::Rope(rope)) => {
                Self::Trained(TrainedConfig::Ssmax { rope, heads: *heads })
            }
            _ => bail!("methods that place near and far keys differently can be applied only to plain RoPE"),
        }))
    }
}

/// Builds the encoding of an attention layer. `vb` stands at the encoding's own table for those that learn one
/// (`...relative_attention_bias`), or at the layer's own numbers; for the others its device is all that matters, and
/// without it they live on the CPU.
///
/// # Errors
/// Values out of range, a learned encoding without a `vb` or without its tensor there, and encodings that are added to
/// the embeddings: [`build_embedding`] builds those.
pub fn build(config: &PositionConfig, vb: Option<VarBuilder>) -> Result<Arc<dyn PositionEncoding>> {
    Ok(match config.clone() {
        PositionConfig::Nope(config) => Arc::new(Nope::new(config)?),
        PositionConfig::Rope(config) => Arc::new(Rope::new(config)?),
        PositionConfig::RotaryTable(config) => Arc::new(RotaryTable::new(&config, table("rotary table", vb)?)?),
        PositionConfig::Extended(config) => config.build()?,
        PositionConfig::Alibi(config) => {
            Arc::new(Alibi::new(config, vb.as_ref().map_or(&Device::Cpu, |vb| vb.device()))?)
        }
        PositionConfig::Sandwich(config) => {
            Arc::new(Sandwich::new(config, vb.as_ref().map_or(&Device::Cpu, |vb| vb.device()))?)
        }
        PositionConfig::T5(config) => Arc::new(T5Bias::new(config, table("T5", vb)?)?),
        PositionConfig::Xpos(config) => Arc::new(Xpos::new(config)?),
        PositionConfig::Trained(config) => config.build(table(config.name(), vb)?)?,
        PositionConfig::Sinusoidal(_) => bail!("sinusoidal positions are added to embeddings, not to attention"),
        PositionConfig::Learned(_) => bail!("learned positions are added to embeddings, not to attention"),
    })
}

/// Builds an encoding of embeddings, or `None` for the configuration of no encoding. `vb` as for [`build`].
///
/// # Errors
/// As [`build`]; encodings that act in attention.
pub fn build_embedding(config: &PositionConfig, vb: Option<VarBuilder>) -> Result<Option<Arc<dyn EmbeddingEncoding>>> {
    Ok(match config.clone() {
        PositionConfig::Nope(NopeConfig { temperature: None }) => None,
        PositionConfig::Sinusoidal(config) => Some(Arc::new(Sinusoidal::new(config)?)),
        PositionConfig::Learned(config) => Some(Arc::new(Learned::new(config, table("learned", vb)?)?)),
        other => bail!("{other:?} acts in attention, not on embeddings"),
    })
}

fn table<'a>(name: &str, vb: Option<VarBuilder<'a>>) -> Result<VarBuilder<'a>> {
    match vb {
        Some(vb) => Ok(vb),
        None => bail!("{name} positions are learned: they need weights, which are not given"),
    }
}
