//! Every way to stretch RoPE past its trained context: one file per scheme, and the table of them.
//!
//! A new scheme is a file that implements `Scheme` and its line in the table below (with the `mod`
//! that any file needs). Reading of configs, overrides, export, the modes of comparisons, help texts and lists of what
//! is known follow from the table.

mod dynamic;
mod freq_factors;
mod linear;
mod llama3;
mod longrope;
mod ntk;
mod ntk_by_parts;
mod ntk_mixed;
mod proportional;
mod ramp;
mod scheme;
mod source;
mod unscaled;
mod yarn;

pub use dynamic::Dynamic;
pub use freq_factors::FreqFactors;
pub use linear::Linear;
pub use llama3::Llama3;
pub use longrope::LongRope;
pub use ntk::Ntk;
pub use ntk_by_parts::NtkByParts;
pub use ntk_mixed::NtkMixed;
pub use proportional::Proportional;
pub use ramp::{Ramp, yarn_mscale};
pub use scheme::{HfRope, Info, LlamaCpp, Rotary};
pub use source::Dict;
pub use unscaled::Unscaled;
pub use yarn::Yarn;

pub(super) use source::{ConfigKeys, ORIGINAL, OverrideKeys, Source, count, number, within};

use crate::position::Resolution;
use crate::position::frequencies::{Frequencies, positive};
use candle_core::{Result, bail};
use scheme::Scheme;
use std::hash::{Hash, Hasher};

/// Makes [`RopeScaling`] and [`SCHEMES`] of the lines of the table.
macro_rules! table {
    ($($(#[$attributes:meta])* $scheme:ident,)+) => {
        /// How RoPE's frequencies are changed.
        #[derive(Debug, Clone, PartialEq)]
        #[non_exhaustive]
        pub enum RopeScaling {
            $($(#[$attributes])* #[doc = concat!("See [`", stringify!($scheme), "`].")] $scheme($scheme),)+
        }

        /// The schemes, in the order in which lists show them.
        pub static SCHEMES: &[SchemeInfo] = &[
            $($(#[$attributes])* <$scheme as Line>::LINE,)+
        ];

        $($(#[$attributes])* impl Line for $scheme {
            const LINE: SchemeInfo = SchemeInfo {
                info: <$scheme as Scheme>::INFO,
                read: |source| Ok(RopeScaling::$scheme(<$scheme as Scheme>::read(source)?)),
            };
        })+

        $($(#[$attributes])* impl From<$scheme> for RopeScaling {
            fn from(scheme: $scheme) -> Self {
                Self::$scheme(scheme)
            }
        })+

        /// Evaluates an expression for whichever scheme a scaling is of.
        macro_rules! each {
            ($scaling:expr, $name:ident => $value:expr) => {
                match $scaling {
                    $($(#[$attributes])* RopeScaling::$scheme($name) => $value,)+
                }
            };
        }
    };
}

table! {
    Unscaled,
    Linear,
    Ntk,
    Dynamic,
    NtkByParts,
    NtkMixed,
    Yarn,
    LongRope,
    Llama3,
    Proportional,
    FreqFactors,
    #[cfg(test)]
    Tenth,
}

impl Default for RopeScaling {
    /// None: `theta^(-2i/d)`.
    fn default() -> Self {
        Self::Unscaled(Unscaled)
    }
}

/// A line of the table: a scheme without its values.
#[derive(Debug, Clone, Copy)]
pub struct SchemeInfo {
    info: Info,
    read: fn(&mut Source) -> Result<RopeScaling>,
}

/// A scheme's own line.
trait Line: Scheme {
    const LINE: SchemeInfo;
}

impl SchemeInfo {
    /// Reads a scaling of this scheme.
    pub(super) fn read(&self, source: &mut Source) -> Result<RopeScaling> {
        (self.read)(source)
    }
}

impl std::ops::Deref for SchemeInfo {
    type Target = Info;

    fn deref(&self) -> &Info {
        &self.info
    }
}

impl PartialEq for SchemeInfo {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for SchemeInfo {}

impl Hash for SchemeInfo {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

/// The scheme of any of its spellings; those that configs and the command line can't name are not found.
pub fn scheme(name: &str) -> Option<&'static SchemeInfo> {
    SCHEMES.iter().find(|scheme| scheme.named && scheme.answers_to(name))
}

/// The schemes that configs and the command line can name.
pub fn named() -> impl Iterator<Item = &'static SchemeInfo> {
    SCHEMES.iter().filter(|scheme| scheme.named)
}

/// Whether transformers knows the key from some scheme, and so ignores it under another one with a warning.
pub(super) fn is_known_key(key: &str) -> bool {
    ["factor", ORIGINAL].contains(&key) || SCHEMES.iter().any(|scheme| scheme.keys.contains(&key))
}

impl RopeScaling {
    /// Its line in the table.
    pub fn scheme(&self) -> &'static SchemeInfo {
        fn line<S: Line>(_: &S) -> &'static SchemeInfo {
            &S::LINE
        }
        each!(self, scheme => line(scheme))
    }

    /// The `rope_type` that configs use.
    pub fn name(&self) -> &'static str {
        self.scheme().name
    }

    /// Whether frequencies stay as they are.
    pub fn is_none(&self) -> bool {
        matches!(self, Self::Unscaled(_))
    }

    /// The scaling's factor, if it has a single one: the ratio of the wanted context to the trained one.
    pub fn factor(&self) -> Option<f64> {
        each!(self, scheme => scheme.factor())
    }

    /// Its values under the keys of a rope dictionary, without `original_max_position_embeddings`.
    pub fn values(&self) -> Dict {
        each!(self, scheme => scheme.write())
    }

    /// The trained context that the scaling starts from, if it depends on one.
    pub fn original_max_position_embeddings(&self) -> Option<usize> {
        each!(self, scheme => scheme.original_context())
    }

    /// Which frequencies a sequence of `len` tokens uses: constant but for LongRoPE, which switches once, and dynamic
    /// NTK, which changes with every token past the trained context.
    pub fn resolve(&self, len: usize) -> Resolution {
        each!(self, scheme => scheme.resolve(len))
    }

    /// The frequencies and the attention factor for a sequence of `len` tokens. Infallible for values that
    /// [`validate`](Self::validate) accepts.
    pub fn frequencies(&self, rotary: Rotary, len: usize) -> Frequencies {
        let inv_freq = each!(self, scheme => scheme.frequencies(rotary, len));
        Frequencies { inv_freq, attention_factor: self.attention_factor(rotary, len) }
    }

    /// What multiplies cos and sin in a sequence of `len` tokens: the same for every length but in Phi 3.5 MoE.
    pub fn attention_factor(&self, rotary: Rotary, len: usize) -> f64 {
        each!(self, scheme => scheme.attention_factor(rotary, len))
    }

    /// What latent attention (DeepSeek) multiplies its scores by beside the attention factor.
    pub fn latent_score_factor(&self) -> f64 {
        each!(self, scheme => scheme.latent_score_factor())
    }

    /// The context it makes of a trained one.
    pub fn extended(&self, original: usize) -> usize {
        each!(self, scheme => scheme.extended(original))
    }

    /// Refuses values that no formula can take, naming the key.
    pub fn validate(&self, rotary: Rotary) -> Result<()> {
        if let Some(factor) = self.factor() {
            positive("factor", factor)?;
        }
        if self.original_max_position_embeddings() == Some(0) {
            bail!("{ORIGINAL} must be positive, got 0")
        }
        each!(self, scheme => scheme.validate(rotary))
    }

    /// The same encoding in the words of transformers.
    ///
    /// # Errors
    /// transformers has no scaling that computes the same.
    pub fn to_hf(&self, rotary: Rotary) -> Result<HfRope> {
        each!(self, scheme => scheme.to_hf(rotary))
    }

    /// The same encoding in the options of llama.cpp.
    ///
    /// # Errors
    /// llama.cpp has no such options; the error says why.
    pub fn to_llama_cpp(&self, rotary: Rotary) -> std::result::Result<LlamaCpp, String> {
        each!(self, scheme => scheme.to_llama_cpp(rotary))
    }

    /// Keys that vLLM needs beside those of [`to_hf`](Self::to_hf) to compute the same, when it serves up to `context` tokens.
    ///
    /// # Errors
    /// vLLM computes something else; the error says why.
    pub fn to_vllm(&self, rotary: Rotary, context: usize) -> std::result::Result<Dict, String> {
        each!(self, scheme => scheme.to_vllm(rotary, context))
    }

    /// See [`Scheme::under`].
    pub(super) fn under(&self, wanted: &Info, source: &mut Source) -> Result<Option<Self>> {
        Ok(each!(self, scheme => scheme.under(wanted, source)?.map(Into::into)))
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
#[cfg(test)]
use tests::Tenth;
