//! RoPE's configuration and how it is read from a Hugging Face `config.json`.
//!
//! Two spellings exist: `rope_scaling` beside a top-level `rope_theta`, and since transformers 5 `rope_parameters`,
//! which may hold one set per layer type. Both end in a [`RopeConfig`]. A key that would change the result is either
//! understood or refused by name: a scaling that is quietly dropped still generates fluent text, only a worse one.

use super::scaling::{
    self, ConfigKeys, Dict, ORIGINAL, RopeScaling, Rotary, SchemeInfo, Source, count, number, within,
};
use crate::position::frequencies::{Frequencies, positive};
use candle_core::{Result, bail};
use serde_json::Value;

/// Which lanes of a head form a pair that is rotated together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Layout {
    /// Lanes `i` and `i + rotary_dim / 2`: Llama in transformers, GPT-NeoX.
    #[default]
    Half,
    /// Lanes `2i` and `2i + 1`: the paper, GPT-J, Cohere, Meta's and GGUF's Llama weights.
    Interleaved,
}

/// Everything that decides how a rotary encoding turns a head.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Width of a query or key as it is passed to `rotate`.
    pub head_dim: usize,
    /// The first `rotary_dim` lanes are rotated, the others pass through.
    pub rotary_dim: usize,
    /// `rope_theta`, the base of the frequencies.
    pub theta: f64,
    /// Which lanes form a pair.
    pub layout: Layout,
    /// The context that the checkpoint declares, extension included.
    pub max_position_embeddings: usize,
    /// What is done to the frequencies.
    pub scaling: RopeScaling,
}

/// What a model family knows when its `config.json` is silent.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeDefaults {
    /// Width of a query or key as it is passed to `rotate`.
    pub head_dim: usize,
    /// `rope_theta` if the config names none; 10000 in most families.
    pub theta: f64,
    /// The rotated share of the head if the config names none.
    pub partial_rotary_factor: f64,
    /// Which lanes form a pair; no config says so.
    pub layout: Layout,
    /// `max_position_embeddings` if the config spells it otherwise (`n_positions`) or not at all.
    pub max_position_embeddings: Option<usize>,
    /// `original_max_position_embeddings` if the config has none beside its rope dictionary. It wins over the one inside.
    pub original_max_position_embeddings: Option<usize>,
    /// The rope dictionary if the config has none.
    pub parameters: Option<Dict>,
}

impl RopeDefaults {
    /// Full-width, half-split rotation with theta 10000: what most families use.
    pub fn new(head_dim: usize) -> Self {
        Self {
            head_dim,
            theta: 10_000.0,
            partial_rotary_factor: 1.0,
            layout: Layout::Half,
            max_position_embeddings: None,
            original_max_position_embeddings: None,
            parameters: None,
        }
    }
}

impl RopeConfig {
    /// Plain RoPE over the full width of a head, half-split, with a declared context of 2048.
    pub fn new(head_dim: usize, theta: f64) -> Self {
        Self {
            head_dim,
            rotary_dim: head_dim,
            theta,
            layout: Layout::Half,
            max_position_embeddings: 2048,
            scaling: RopeScaling::default(),
        }
    }

    /// Reads the rotary encoding of a whole `config.json` as transformers 5.24 does.
    ///
    /// * `layer_type` picks the entry of a `rope_parameters` that is nested per layer type (`sliding_attention`); a
    ///   flat one serves every type.
    /// * Returns `None` for a layer type whose entry is null: its layers have no position encoding.
    ///
    /// # Errors
    /// An unknown rope type, an unknown key inside the rope dictionary, a missing or ill-typed one, a value outside its
    /// range: one line that names the key.
    pub fn from_hf(config: &Value, layer_type: Option<&str>, defaults: &RopeDefaults) -> Result<Option<Self>> {
        let reading = Self::read_hf(config, layer_type, defaults)?;
        match reading.unknown.first() {
            Some(key) => bail!("unknown key {key} may change the result"),
            None => Ok(reading.config),
        }
    }

    /// As [`from_hf`](Self::from_hf), but the caller decides what to do about unknown keys.
    ///
    /// # Errors
    /// As `from_hf`, unknown keys excepted.
    pub fn read_hf(config: &Value, layer_type: Option<&str>, defaults: &RopeDefaults) -> Result<RopeReading> {
        let Some(top) = config.as_object() else { bail!("config: expected an object") };
        let find = |key| match top.get(key) {
            None | Some(Value::Null) => Ok(None),
            // Older configs hold an empty dictionary for "no scaling".
            Some(Value::Object(dict)) => Ok(Some(dict).filter(|dict| !dict.is_empty())),
            Some(other) => bail!("{key}: expected an object or null, got {other}"),
        };
        let absent = defaults.parameters.clone().unwrap_or_default();
        // If there are both, transformers reads only the older one.
        let (at, dict) = match (find("rope_scaling")?, find("rope_parameters")?) {
            (Some(dict), _) => ("rope_scaling", dict),
            (None, dict) => ("rope_parameters", dict.unwrap_or(&absent)),
        };
        let mut reader = Reader { at, top, dict, defaults, unknown: vec![], ignored: vec![] };
        let config = reader.read(layer_type)?;
        Ok(RopeReading { config, unknown: reader.unknown, ignored: reader.ignored })
    }

    /// The frequencies for a sequence of `len` tokens.
    pub fn frequencies(&self, len: usize) -> Frequencies {
        self.scaling.frequencies(self.rotary(), len)
    }

    /// What a scaling's frequencies depend on.
    pub fn rotary(&self) -> Rotary {
        let Self { rotary_dim, theta, max_position_embeddings, .. } = *self;
        Rotary { rotary_dim, theta, max_position_embeddings }
    }

    /// The context the model was trained for before any scaling: the scaling's own, else the declared one.
    pub fn original_context(&self) -> usize {
        self.scaling.original_max_position_embeddings().unwrap_or(self.max_position_embeddings)
    }

    /// Refuses what cannot be computed: an odd or too large rotary width, a base of 1 or less, factors that are not
    /// positive numbers, factor lists of the wrong length.
    pub fn validate(&self) -> Result<()> {
        let Self { head_dim, rotary_dim, theta, .. } = *self;
        if rotary_dim == 0 || !rotary_dim.is_multiple_of(2) || rotary_dim > head_dim {
            bail!("rotary_dim must be even and in 2..={head_dim} (head_dim), got {rotary_dim}")
        }
        positive("rope_theta", theta)?;
        if theta <= 1.0 {
            bail!("rope_theta must be above 1, got {theta}")
        }
        if self.max_position_embeddings == 0 {
            bail!("max_position_embeddings must be positive, got 0")
        }
        if self.scaling.scheme().whole_head && rotary_dim != head_dim {
            let kind = self.scaling.name();
            bail!("rope type {kind} rotates the full head: rotary_dim {rotary_dim} is not head_dim {head_dim}")
        }
        self.scaling.validate(self.rotary())
    }
}

/// What a config says of a rotary encoding.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeReading {
    /// The encoding; `None` for a layer type that has none.
    pub config: Option<RopeConfig>,
    /// The path of each key of the rope dictionary that is not known and may change the result.
    pub unknown: Vec<String>,
    /// A line about each key that does nothing here, as in transformers, though its author may have meant it to.
    pub ignored: Vec<String>,
}

/// One of the two dictionaries and what surrounds it.
struct Reader<'a> {
    at: &'static str,
    top: &'a Dict,
    dict: &'a Dict,
    defaults: &'a RopeDefaults,
    unknown: Vec<String>,
    ignored: Vec<String>,
}

impl Reader<'_> {
    fn read(&mut self, layer_type: Option<&str>) -> Result<Option<RopeConfig>> {
        if !self.dict.values().any(Value::is_object) {
            return self.flat(self.dict, false).map(Some);
        }
        // Nested per layer type. What transformers leaves beside the entries (and ignores) is tolerated.
        let mut types = vec![];
        for (name, entry) in self.dict.iter().filter(|(name, _)| !BESIDE.contains(&name.as_str())) {
            if entry.is_object() || entry.is_null() {
                types.push(name.as_str());
            } else {
                self.unknown.push(format!("{}.{name}", self.at));
            }
        }
        let found = match layer_type {
            Some(name) => self.dict.get(name),
            None if types.len() == 1 => self.dict.get(types[0]),
            None => bail!("{} differs per layer type ({}): name one", self.at, types.join(", ")),
        };
        match found {
            Some(Value::Object(dict)) => self.flat(dict, true).map(Some),
            Some(_) => Ok(None),
            None => bail!("{} has no entry for {}, only {}", self.at, layer_type.unwrap_or(""), types.join(", ")),
        }
    }

    fn flat(&mut self, dict: &Dict, nested: bool) -> Result<RopeConfig> {
        let at = self.at;
        // `rope_type` wins, as in transformers.
        let kind = text(at, dict, "rope_type")?.or(text(at, dict, "type")?);
        let scheme = scheme(at, kind.unwrap_or("default"))?;
        let declared = match count("max_position_embeddings", self.top.get("max_position_embeddings"))? {
            Some(n) => Some(n),
            None => self.defaults.max_position_embeddings,
        };
        let inside = |key: &str| number(key, dict.get(key)).map_err(|e| within(at, e));
        let theta = match inside("rope_theta")? {
            Some(theta) => theta,
            None => self.alias(&["rope_theta", "rotary_emb_base"])?.unwrap_or(self.defaults.theta),
        };
        let partial = inside("partial_rotary_factor")?;
        let head_dim = self.defaults.head_dim;
        let rotary_dim = if scheme.whole_head { head_dim } else { self.rotary_dim(partial)? };
        // At the top level it wins over the dictionary, as in Phi-3, unless the dictionary is nested.
        let above = || -> Result<Option<usize>> {
            Ok(count(ORIGINAL, self.top.get(ORIGINAL))?.or(self.defaults.original_max_position_embeddings))
        };
        let original = if nested { None } else { above()? };
        let mut source = Source::config(ConfigKeys { at, dict, top: self.top, declared, original });
        let config = RopeConfig {
            head_dim,
            rotary_dim,
            theta,
            layout: self.defaults.layout,
            max_position_embeddings: declared.unwrap_or(2048),
            scaling: scheme.read(&mut source)?,
        };
        self.note(&source, scheme);
        config.validate().map_err(|e| within(at, e))?;
        Ok(config)
    }

    /// Sorts the keys that no one asked for into unknown ones and such as transformers ignores with a warning.
    fn note(&mut self, source: &Source, scheme: &SchemeInfo) {
        let (at, kind) = (self.at, scheme.name);
        for (key, value) in source.unread() {
            if value.is_null() || BESIDE.contains(&key.as_str()) || HARMLESS.contains(&key.as_str()) {
                continue;
            }
            if scheme.ignored.contains(&key.as_str()) || scaling::is_known_key(key) {
                self.ignored.push(format!("{at}: {key} does nothing under rope type {kind}"));
            } else {
                self.unknown.push(format!("{at}.{key}"));
            }
        }
    }

    /// A number under any of several top-level names.
    fn alias(&self, names: &[&str]) -> Result<Option<f64>> {
        let mut found: Option<(&str, f64)> = None;
        for &name in names {
            match (number(name, self.top.get(name))?, found) {
                (Some(value), Some((other, earlier))) if value != earlier => {
                    bail!("config: {name} = {value} and {other} = {earlier} disagree")
                }
                (Some(value), None) => found = Some((name, value)),
                _ => {}
            }
        }
        Ok(found.map(|(_, value)| value))
    }

    fn rotary_dim(&self, partial: Option<f64>) -> Result<usize> {
        let width = |factor: f64| -> Result<usize> {
            if !(factor > 0.0 && factor <= 1.0) {
                bail!("partial_rotary_factor must be above 0 and at most 1, got {factor}")
            }
            Ok((self.defaults.head_dim as f64 * factor) as usize)
        };
        if let Some(factor) = partial {
            return width(factor);
        }
        let factor = self.alias(&["partial_rotary_factor", "rotary_pct", "rope_pct"])?;
        match (factor, count("rotary_dim", self.top.get("rotary_dim"))?) {
            (Some(factor), Some(n)) if width(factor)? != n => {
                bail!("config: rotary_dim = {n} and a rotary share of {factor} disagree")
            }
            (_, Some(n)) => Ok(n),
            (Some(factor), None) => width(factor),
            (None, None) => width(self.defaults.partial_rotary_factor),
        }
    }
}

/// Keys of a rope dictionary that do not change what a text model computes: how M-RoPE shares its lanes between axes,
/// whose positions are equal for text, and YaRN-Llama's note that it was fine-tuned.
const HARMLESS: [&str; 3] = ["mrope_section", "mrope_interleaved", "finetuned"];

/// Keys that are read for every scheme, also where they stand beside entries per layer type.
const BESIDE: [&str; 4] = ["rope_theta", "partial_rotary_factor", "rope_type", "type"];

fn scheme(at: &str, kind: &str) -> Result<&'static SchemeInfo> {
    match scaling::scheme(kind) {
        Some(scheme) => Ok(scheme),
        None => {
            let known: Vec<&str> = scaling::named().map(|scheme| scheme.name).collect();
            bail!("{at}: unknown rope type {kind:?} (known: {})", known.join(", "))
        }
    }
}

fn text<'a>(at: &str, dict: &'a Dict, key: &str) -> Result<Option<&'a str>> {
    match dict.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(s)) => Ok(Some(s)),
        Some(other) => bail!("{at}: {key} must be a string, got {other}"),
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
