//! What a scaling scheme has to say about itself: the trait that each file of this folder implements once.
//!
//! A scheme decides two things and nothing else: the inverse frequency of each rotated pair and one factor on cos and
//! sin. Keeping that free of tensors makes each scheme a few lines that read like its paper, testable against published
//! values. Formulas follow `modeling_rope_utils.py` of transformers 5.24, which is what checkpoints were validated with,
//! also where a paper says otherwise (YaRN's ramp is linear in the dimension index, not in rotations).

use super::source::{Dict, ORIGINAL, Source};
use crate::position::Resolution;
use crate::position::frequencies::{plain_frequencies, positive};
use candle_core::{Result, bail};
use serde_json::Value;

/// The encoding that a scheme scales, as far as its frequencies depend on it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rotary {
    /// Lanes that turn.
    pub rotary_dim: usize,
    /// The base of the frequencies without scaling.
    pub theta: f64,
    /// The context that the checkpoint declares, extension included.
    pub max_position_embeddings: usize,
}

impl Rotary {
    /// Pairs of lanes.
    pub fn pairs(self) -> usize {
        self.rotary_dim / 2
    }

    /// The frequencies without scaling.
    pub fn plain(self) -> Vec<f64> {
        plain_frequencies(self.theta, self.rotary_dim, self.pairs())
    }

    /// Each frequency without scaling divided by its own number.
    pub(super) fn divided(self, by: &[f64]) -> Vec<f64> {
        self.plain().iter().zip(by).map(|(f, by)| f / by).collect()
    }

    /// The base of NTK-aware scaling, under which the slowest pair turns `stretch` times as slowly.
    pub(super) fn ntk_theta(self, stretch: f64) -> f64 {
        let d = self.rotary_dim as f64;
        self.theta * stretch.powf(d / (d - 2.0))
    }

    /// Refuses a width of one pair, for which NTK-aware scaling has no base.
    pub(super) fn check_ntk(self, scheme: &str) -> Result<()> {
        if self.rotary_dim <= 2 {
            bail!("rope type {scheme} needs a rotary width above 2, got {}", self.rotary_dim)
        }
        Ok(())
    }
}

/// What is known of a scheme without an instance of it.
#[derive(Debug, Clone, Copy)]
pub struct Info {
    /// The `rope_type` of configs.
    pub name: &'static str,
    /// What the command line and reports call it, if not by its name.
    pub called: Option<&'static str>,
    /// Other spellings of the `rope_type`.
    pub aliases: &'static [&'static str],
    /// What it does, in one line that ends in a full stop.
    pub summary: &'static str,
    /// Its keys in a rope dictionary beside `factor` and `original_max_position_embeddings`.
    pub keys: &'static [&'static str],
    /// Keys that published configs have beside these, and that transformers ignores with a warning.
    pub ignored: &'static [&'static str],
    /// Whether its strength is one factor.
    pub takes_factor: bool,
    /// Whether a factor is all it needs, so that any checkpoint can be put under it.
    pub any_checkpoint: bool,
    /// Whether comparisons have it without being asked.
    pub compared: bool,
    /// Whether configs and the command line can name it. Otherwise it comes only from a file's tensors.
    pub named: bool,
    /// Whether it rotates the whole head and ignores `partial_rotary_factor`.
    pub whole_head: bool,
}

impl Info {
    /// A scheme with one factor that any checkpoint can take, and without further keys.
    pub(super) const fn new(name: &'static str, summary: &'static str) -> Self {
        Self {
            name,
            called: None,
            aliases: &[],
            summary,
            keys: &[],
            ignored: &[],
            takes_factor: true,
            any_checkpoint: true,
            compared: false,
            named: true,
            whole_head: false,
        }
    }

    /// What the command line and reports call it.
    pub fn called(&self) -> &'static str {
        self.called.unwrap_or(self.name)
    }

    /// Whether `name` is one of its spellings; `_` stands for `-`.
    pub fn answers_to(&self, name: &str) -> bool {
        let mut spellings = [self.name, self.called()].into_iter().chain(self.aliases.iter().copied());
        spellings.any(|spelling| spelling == name || spelling.replace('-', "_") == name)
    }
}

/// An encoding in the words of transformers.
#[derive(Debug, Clone, PartialEq)]
pub struct HfRope {
    /// The `rope_type`.
    pub rope_type: &'static str,
    /// The `rope_theta`.
    pub theta: f64,
    /// The keys of that type.
    pub keys: Dict,
}

/// llama.cpp's options for an encoding, without the context and the base.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaCpp {
    /// The options that choose the scaling.
    pub flags: String,
    /// The value of `--rope-freq-base`.
    pub theta: f64,
}

/// A way to stretch RoPE past its trained context. One file implements it for one type; the table in
/// [`super`] lists the types, and everything else that knows of scalings follows from the table.
pub(crate) trait Scheme: Sized {
    /// What is known without an instance.
    const INFO: Info;

    /// Reads its values from a config's rope dictionary or from the command line.
    ///
    /// # Errors
    /// A key that is missing or ill-typed.
    fn read(source: &mut Source) -> Result<Self>;

    /// Its values under the keys that [`read`](Self::read) asks for, without `original_max_position_embeddings`.
    fn write(&self) -> Dict;

    /// Radians per position of each pair in a sequence of `len` tokens. Infallible for values that
    /// [`validate`](Self::validate) accepts.
    fn frequencies(&self, rotary: Rotary, len: usize) -> Vec<f64>;

    /// Refuses values that the formula can't take, naming the key. `factor` and the trained context are checked already.
    fn validate(&self, _rotary: Rotary) -> Result<()> {
        Ok(())
    }

    /// Its factor, if it has a single one: always the ratio of the wanted context to the trained one.
    fn factor(&self) -> Option<f64> {
        None
    }

    /// The trained context that it starts from, if it depends on one.
    fn original_context(&self) -> Option<usize> {
        None
    }

    /// Which frequencies a sequence of `len` tokens uses.
    fn resolve(&self, _len: usize) -> Resolution {
        Resolution::Fixed
    }

    /// What multiplies cos and sin in a sequence of `len` tokens.
    fn attention_factor(&self, _rotary: Rotary, _len: usize) -> f64 {
        1.0
    }

    /// What DeepSeek's latent attention multiplies its scores by.
    fn latent_score_factor(&self) -> f64 {
        1.0
    }

    /// The context it makes of a trained one, for the `max_position_embeddings` of an exported config.
    fn extended(&self, original: usize) -> usize {
        (original as f64 * self.factor().unwrap_or(1.0)).round() as usize
    }

    /// The same encoding in the words of transformers.
    ///
    /// # Errors
    /// transformers has no scaling that computes the same.
    fn to_hf(&self, rotary: Rotary) -> Result<HfRope> {
        let mut keys = self.write();
        keys.extend(self.original_context().map(|n| (ORIGINAL.to_string(), n.into())));
        Ok(HfRope { rope_type: Self::INFO.name, theta: rotary.theta, keys })
    }

    /// The same encoding in the options of llama.cpp.
    ///
    /// # Errors
    /// llama.cpp has no such options; the error says why.
    fn to_llama_cpp(&self, _rotary: Rotary) -> std::result::Result<LlamaCpp, String> {
        Err("llama.cpp has no such scaling".into())
    }

    /// Keys that vLLM needs beside those of [`to_hf`](Self::to_hf) to compute the same, when it serves up to `context` tokens.
    ///
    /// # Errors
    /// vLLM computes something else; the error says why.
    fn to_vllm(&self, _rotary: Rotary, _context: usize) -> std::result::Result<Dict, String> {
        Ok(Dict::new())
    }

    /// What takes the place of the scheme `wanted` where this one is a part of the architecture that no override may
    /// remove; `None` if any scheme may replace it.
    ///
    /// # Errors
    /// `wanted` is not defined on top of it.
    fn under(&self, _wanted: &Info, _source: &mut Source) -> Result<Option<Self>> {
        Ok(None)
    }
}

/// Refuses anything but one positive divisor per rotated pair.
pub(super) fn divisors(key: &str, values: &[f64], rotary: Rotary) -> Result<()> {
    if values.len() != rotary.pairs() {
        bail!("{key} has {} entries, but {} pairs are rotated", values.len(), rotary.pairs())
    }
    values.iter().try_for_each(|&v| positive(key, v))
}

/// A dictionary of the values that are there.
pub(super) fn dict<const N: usize>(pairs: [(&str, Option<Value>); N]) -> Dict {
    pairs.into_iter().filter_map(|(key, value)| Some((key.to_string(), value?))).collect()
}

/// Why llama.cpp has no options for factors per frequency.
pub(super) const TENSORS_OF_GGUF: &str =
    "its factors are tensors of the GGUF file: convert the exported folder with convert_hf_to_gguf.py";
