//! LongRoPE (Ding et al. 2024), as in Phi-3: one divisor per pair, and another set of them past the trained context.

use super::scheme::{HfRope, Info, LlamaCpp, Rotary, Scheme, TENSORS_OF_GGUF, dict, divisors};
use super::source::{Dict, ORIGINAL, Source};
use crate::position::Resolution;
use crate::position::frequencies::positive;
use candle_core::{Result, bail};

/// LongRoPE.
#[derive(Debug, Clone, PartialEq)]
pub struct LongRope {
    /// Divisors for sequences of up to `original_max_position_embeddings` tokens, one per rotated pair.
    pub short_factor: Vec<f64>,
    /// Divisors for longer sequences.
    pub long_factor: Vec<f64>,
    /// The trained context.
    pub original_max_position_embeddings: usize,
    /// For the attention factor alone; `max_position_embeddings / original_max_position_embeddings` if absent.
    pub factor: Option<f64>,
    /// Multiplies cos and sin; derived from the factor if absent.
    pub attention_factor: Option<f64>,
    /// Multiplies cos and sin in place of the attention factor: up to the trained context, and past it (Phi 3.5 MoE's
    /// `short_mscale` and `long_mscale`).
    pub mscale: Option<[f64; 2]>,
}

impl Scheme for LongRope {
    const INFO: Info = Info {
        aliases: &["su"],
        keys: &["short_factor", "long_factor", "attention_factor", "short_mscale", "long_mscale"],
        takes_factor: false,
        any_checkpoint: false,
        ..Info::new("longrope", "One factor per frequency, found by a search for this model.")
    };

    fn read(source: &mut Source) -> Result<Self> {
        Ok(Self {
            short_factor: source.list("short_factor")?,
            long_factor: source.list("long_factor")?,
            original_max_position_embeddings: source.original()?,
            factor: source.factor_opt()?,
            attention_factor: source.attention_factor()?,
            mscale: match (source.inherited_number("short_mscale")?, source.inherited_number("long_mscale")?) {
                (Some(short), Some(long)) => Some([short, long]),
                (None, None) => None,
                _ => bail!("short_mscale and long_mscale must be given together"),
            },
        })
    }

    fn write(&self) -> Dict {
        dict([
            ("short_factor", Some(self.short_factor.clone().into())),
            ("long_factor", Some(self.long_factor.clone().into())),
            ("factor", self.factor.map(Into::into)),
            ("attention_factor", self.attention_factor.map(Into::into)),
            ("short_mscale", self.mscale.map(|[short, _]| short.into())),
            ("long_mscale", self.mscale.map(|[_, long]| long.into())),
        ])
    }

    fn frequencies(&self, rotary: Rotary, len: usize) -> Vec<f64> {
        let long = self.resolve(len) == Resolution::Long;
        rotary.divided(if long { &self.long_factor } else { &self.short_factor })
    }

    fn validate(&self, rotary: Rotary) -> Result<()> {
        if self.original_max_position_embeddings < 2 {
            bail!("original_max_position_embeddings must be above 1 for longrope")
        }
        self.attention_factor.map_or(Ok(()), |a| positive("attention_factor", a))?;
        if let Some([short, long]) = self.mscale {
            positive("short_mscale", short)?;
            positive("long_mscale", long)?;
        }
        divisors("short_factor", &self.short_factor, rotary)?;
        divisors("long_factor", &self.long_factor, rotary)
    }

    fn factor(&self) -> Option<f64> {
        self.factor
    }

    fn original_context(&self) -> Option<usize> {
        Some(self.original_max_position_embeddings)
    }

    fn resolve(&self, len: usize) -> Resolution {
        if len > self.original_max_position_embeddings { Resolution::Long } else { Resolution::Short }
    }

    fn attention_factor(&self, rotary: Rotary, len: usize) -> f64 {
        if let Some([short, long]) = self.mscale {
            return if self.resolve(len) == Resolution::Long { long } else { short };
        }
        let original = self.original_max_position_embeddings as f64;
        let factor = self.factor.unwrap_or(rotary.max_position_embeddings as f64 / original);
        let derived = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() };
        self.attention_factor.unwrap_or(derived)
    }

    fn to_hf(&self, rotary: Rotary) -> Result<HfRope> {
        let mut keys = self.write();
        // Written out, since the exported config may declare another context.
        if self.mscale.is_none() {
            keys.insert("attention_factor".into(), self.attention_factor(rotary, 1).into());
        }
        keys.insert(ORIGINAL.into(), self.original_max_position_embeddings.into());
        Ok(HfRope { rope_type: Self::INFO.name, theta: rotary.theta, keys })
    }

    /// vLLM takes one set of divisors for all texts, and reads no `attention_factor`.
    fn to_vllm(&self, rotary: Rotary, context: usize) -> std::result::Result<Dict, String> {
        if context > self.original_max_position_embeddings {
            return Err(format!(
                "with --max-model-len above {}, vLLM uses the long factors for every text, but this encoding only for longer \
                 texts",
                self.original_max_position_embeddings
            ));
        }
        let attention = self.attention_factor(rotary, context);
        Ok(dict([("short_mscale", Some(attention.into())), ("long_mscale", Some(attention.into()))]))
    }

    fn to_llama_cpp(&self, _rotary: Rotary) -> std::result::Result<LlamaCpp, String> {
        Err(TENSORS_OF_GGUF.into())
    }
}
