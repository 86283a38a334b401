//! RoPE's configuration and how it is read from a Hugging Face `config.json`.
//!
//! Two spellings exist: `rope_scaling` beside a top-level `rope_theta`, and since transformers 5 `rope_parameters`,
//! which may hold one set per layer type. Both end in a [`RopeConfig`]. A key that would change the result is either
//! understood or refused by name: a scaling that is quietly dropped still generates fluent text, only a worse one.

use super::rope_scaling::{Frequencies, Ramp, RopeScaling, positive};
use candle_core::{Error, Result, bail};
use serde_json::{Map, Value};

type Dict = Map<String, Value>;

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
            scaling: RopeScaling::Default,
        }
    }

    /// Reads the rotary encoding of a whole `config.json` as transformers 5.23 does.
    ///
    /// * `layer_type` picks the entry of a `rope_parameters` that is nested per layer type (`sliding_attention`); a
    ///   flat one serves every type.
    /// * Returns `None` for a layer type whose entry is null: its layers have no position encoding.
    ///
    /// # Errors
    /// An unknown rope type, an unknown key inside the rope dictionary, a missing or ill-typed one, a value outside its
    /// range: one line that names the key.
    pub fn from_hf(config: &Value, layer_type: Option<&str>, defaults: &RopeDefaults) -> Result<Option<Self>> {
        let Some(top) = config.as_object() else { bail!("config: expected an object") };
        let read = |key| match top.get(key) {
            None | Some(Value::Null) => Ok(None),
            // Older configs hold an empty dictionary for "no scaling".
            Some(Value::Object(dict)) if dict.is_empty() => Ok(None),
            Some(Value::Object(dict)) => Reader { key, top, dict, defaults }.read(layer_type).map(Some),
            Some(other) => bail!("{key}: expected an object or null, got {other}"),
        };
        match (read("rope_scaling")?, read("rope_parameters")?) {
            (Some(old), Some(new)) if old != new => {
                bail!("rope_scaling and rope_parameters are both set and disagree")
            }
            (Some(parsed), _) | (_, Some(parsed)) => Ok(parsed),
            (None, None) => {
                let dict = Dict::new();
                Reader { key: "rope_parameters", top, dict: &dict, defaults }.flat(&dict, false).map(Some)
            }
        }
    }

    /// The frequencies for a sequence of `len` tokens.
    pub fn frequencies(&self, len: usize) -> Frequencies {
        self.scaling.frequencies(self, len)
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
        if matches!(self.scaling, RopeScaling::Proportional { .. }) && rotary_dim != head_dim {
            bail!("rope type proportional rotates the full head: rotary_dim {rotary_dim} is not head_dim {head_dim}")
        }
        self.scaling.validate(self)
    }
}

/// One of the two dictionaries and what surrounds it.
struct Reader<'a> {
    key: &'static str,
    top: &'a Dict,
    dict: &'a Dict,
    defaults: &'a RopeDefaults,
}

impl Reader<'_> {
    fn read(&self, layer_type: Option<&str>) -> Result<Option<RopeConfig>> {
        if !self.dict.values().any(Value::is_object) {
            return self.flat(self.dict, false).map(Some);
        }
        // Nested per layer type. What transformers leaves beside the entries (and ignores) is tolerated.
        let beside = ["rope_theta", "partial_rotary_factor", "rope_type", "type"];
        let types = || self.dict.keys().filter(|k| !beside.contains(&k.as_str())).cloned().collect::<Vec<_>>();
        for name in types() {
            if !self.dict[&name].is_object() && !self.dict[&name].is_null() {
                bail!("{}.{name}: unknown key beside entries per layer type", self.key)
            }
        }
        let found = match layer_type {
            Some(name) => self.dict.get(name),
            None if types().len() == 1 => self.dict.get(&types()[0]),
            None => bail!("{} differs per layer type ({}): name one", self.key, types().join(", ")),
        };
        match found {
            Some(Value::Object(dict)) => self.flat(dict, true).map(Some),
            Some(_) => Ok(None),
            None => bail!("{} has no entry for {}, only {}", self.key, layer_type.unwrap_or(""), types().join(", ")),
        }
    }

    fn flat(&self, dict: &Dict, nested: bool) -> Result<RopeConfig> {
        let mut keys = Keys { at: self.key, dict, used: MODEL_KEYS.to_vec() };
        let kind = match (keys.string("rope_type")?, keys.string("type")?) {
            (Some(a), Some(b)) if canonical(a) != canonical(b) => {
                bail!("{}: rope_type {a} and type {b} disagree", self.key)
            }
            (a, b) => canonical(a.or(b).unwrap_or("default")),
        };
        let declared = match count("max_position_embeddings", self.top.get("max_position_embeddings"))? {
            Some(n) => Some(n),
            None => self.defaults.max_position_embeddings,
        };
        let theta = match keys.number("rope_theta")? {
            Some(theta) => theta,
            None => self.alias(&["rope_theta", "rotary_emb_base"])?.unwrap_or(self.defaults.theta),
        };
        let head_dim = self.defaults.head_dim;
        let partial = keys.number("partial_rotary_factor")?;
        let rotary_dim = if kind == "proportional" { head_dim } else { self.rotary_dim(partial)? };
        // At the top level it wins over the dictionary, as in Phi-3, unless the dictionary is nested.
        let above = if nested { None } else { count(ORIGINAL, self.top.get(ORIGINAL))? };
        let mut config = RopeConfig {
            head_dim,
            rotary_dim,
            theta,
            layout: self.defaults.layout,
            max_position_embeddings: declared.unwrap_or(2048),
            scaling: RopeScaling::Default,
        };
        let context = Context { declared, above, partial };
        config.scaling = scaling(&mut keys, kind, &context)?;
        keys.finish(kind)?;
        config.validate().map_err(|e| within(self.key, e))?;
        Ok(config)
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
                bail!("partial_rotary_factor must lie above 0 and up to 1, got {factor}")
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

const ORIGINAL: &str = "original_max_position_embeddings";

/// Keys of a rope dictionary that do not change what a text model computes: how M-RoPE shares its lanes between axes
/// (equal for text), and YaRN-Llama's note that it was fine-tuned.
const MODEL_KEYS: [&str; 3] = ["mrope_section", "mrope_interleaved", "finetuned"];

fn canonical(kind: &str) -> &str {
    match kind {
        "su" => "longrope",
        "mrope" => "default",
        "ntk_by_parts" => "ntk-by-parts",
        other => other,
    }
}

/// What a scaling may fall back on.
struct Context {
    declared: Option<usize>,
    above: Option<usize>,
    partial: Option<f64>,
}

impl Context {
    fn original(&self, keys: &mut Keys) -> Result<usize> {
        let inside = count(ORIGINAL, keys.get(ORIGINAL))?;
        match self.above.or(inside).or(self.declared) {
            Some(n) => Ok(n),
            None => bail!("{}: {ORIGINAL} is missing, and so is max_position_embeddings", keys.at),
        }
    }
}

fn scaling(keys: &mut Keys, kind: &str, context: &Context) -> Result<RopeScaling> {
    let scaling = match kind {
        "default" => RopeScaling::Default,
        "linear" => {
            keys.get(ORIGINAL); // says how the factor came about, changes nothing
            RopeScaling::Linear { factor: keys.required("factor")? }
        }
        "ntk" => {
            keys.get(ORIGINAL);
            RopeScaling::Ntk { factor: keys.required("factor")? }
        }
        "dynamic" => {
            let Some(declared) = context.declared else {
                bail!("{}: rope type dynamic needs max_position_embeddings", keys.at)
            };
            if let Some(n) = count(ORIGINAL, keys.get(ORIGINAL))?
                && n != declared
            {
                bail!("{}: {ORIGINAL} {n} differs from max_position_embeddings, which dynamic starts from", keys.at)
            }
            RopeScaling::Dynamic { factor: keys.required("factor")?, original_max_position_embeddings: declared }
        }
        "ntk-by-parts" => RopeScaling::NtkByParts {
            original_max_position_embeddings: context.original(keys)?,
            factor: keys.required("factor")?,
            ramp: ramp(keys)?,
        },
        "yarn" => {
            let original = context.original(keys)?;
            RopeScaling::Yarn {
                factor: match (keys.get("factor"), context.declared) {
                    // DeepSeek: a factor of null stands for the ratio of the contexts; an absent one is an error.
                    (Some(Value::Null), Some(declared)) => declared as f64 / original as f64,
                    _ => keys.required("factor")?,
                },
                original_max_position_embeddings: original,
                ramp: ramp(keys)?,
                attention_factor: keys.number("attention_factor")?,
                mscale: keys.number("mscale")?,
                mscale_all_dim: keys.number("mscale_all_dim")?,
            }
        }
        "longrope" => RopeScaling::LongRope {
            short_factor: keys.list("short_factor")?,
            long_factor: keys.list("long_factor")?,
            original_max_position_embeddings: context.original(keys)?,
            factor: keys.number("factor")?,
            attention_factor: keys.number("attention_factor")?,
        },
        "llama3" => RopeScaling::Llama3 {
            factor: keys.required("factor")?,
            low_freq_factor: keys.required("low_freq_factor")?,
            high_freq_factor: keys.required("high_freq_factor")?,
            original_max_position_embeddings: context.original(keys)?,
        },
        "proportional" => RopeScaling::Proportional {
            partial_rotary_factor: context.partial.unwrap_or(1.0),
            factor: keys.number("factor")?.unwrap_or(1.0),
        },
        unknown => bail!(
            "{}: unknown rope type {unknown:?} (known: default, linear, ntk, dynamic, ntk-by-parts, yarn, longrope, \
             llama3, proportional)",
            keys.at
        ),
    };
    Ok(scaling)
}

fn ramp(keys: &mut Keys) -> Result<Ramp> {
    let default = Ramp::default();
    let truncate = match keys.get("truncate") {
        None | Some(Value::Null) => default.truncate,
        Some(Value::Bool(b)) => *b,
        Some(other) => bail!("{}: truncate must be true or false, got {other}", keys.at),
    };
    Ok(Ramp {
        beta_fast: keys.number("beta_fast")?.unwrap_or(default.beta_fast),
        beta_slow: keys.number("beta_slow")?.unwrap_or(default.beta_slow),
        truncate,
    })
}

/// A dictionary that remembers which keys were asked for, so that the others can be refused.
struct Keys<'a> {
    at: &'static str,
    dict: &'a Dict,
    used: Vec<&'static str>,
}

impl<'a> Keys<'a> {
    fn get(&mut self, key: &'static str) -> Option<&'a Value> {
        self.used.push(key);
        self.dict.get(key)
    }

    fn number(&mut self, key: &'static str) -> Result<Option<f64>> {
        number(key, self.get(key)).map_err(|e| within(self.at, e))
    }

    fn required(&mut self, key: &'static str) -> Result<f64> {
        match self.number(key)? {
            Some(value) => Ok(value),
            None => bail!("{}: {key} is missing", self.at),
        }
    }

    fn string(&mut self, key: &'static str) -> Result<Option<&'a str>> {
        match self.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => bail!("{}: {key} must be a string, got {other}", self.at),
        }
    }

    fn list(&mut self, key: &'static str) -> Result<Vec<f64>> {
        let at = self.at;
        match self.get(key) {
            Some(Value::Array(values)) => {
                let values = values.iter().map(|v| v.as_f64());
                let Some(values) = values.collect() else { bail!("{at}: {key} must hold numbers alone") };
                Ok(values)
            }
            None | Some(Value::Null) => bail!("{at}: {key} is missing"),
            Some(other) => bail!("{at}: {key} must be a list of numbers, got {other}"),
        }
    }

    fn finish(&self, kind: &str) -> Result<()> {
        let unread = |(key, value): &(&String, &Value)| !value.is_null() && !self.used.contains(&key.as_str());
        match self.dict.iter().find(unread) {
            Some((key, value)) => bail!("{}: rope type {kind} has no key {key} (= {value})", self.at),
            None => Ok(()),
        }
    }
}

/// Says where the key stands; one line even where candle records a backtrace with every error.
fn within(at: &str, error: Error) -> Error {
    let error = match error {
        Error::WithBacktrace { inner, .. } => *inner,
        other => other,
    };
    Error::Msg(format!("{at}: {error}"))
}

fn number(key: &str, value: Option<&Value>) -> Result<Option<f64>> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Number(n)) if n.as_f64().is_some() => Ok(n.as_f64()),
        Some(other) => bail!("{key} must be a number, got {other}"),
    }
}

/// A positive whole number; configs write some of them as `8192.0`.
fn count(key: &str, value: Option<&Value>) -> Result<Option<usize>> {
    match number(key, value)? {
        Some(n) if n >= 1.0 && n.fract() == 0.0 && n <= u32::MAX as f64 => Ok(Some(n as usize)),
        Some(n) => bail!("{key} must be a positive whole number, got {n}"),
        None => Ok(None),
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
