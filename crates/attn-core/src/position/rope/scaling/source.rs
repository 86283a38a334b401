//! Where a scheme reads its values from: a rope dictionary of a config, or what the command line replaces in one.
//!
//! Both answer the same questions, so a scheme is read by one function. What differs is what an absent key means: in a
//! config an error or the scheme's default, on the command line first the checkpoint's own value, if it has the same
//! scheme.

use candle_core::{Error, Result, bail};
use serde_json::{Map, Value};

/// Keys of a rope dictionary and their values.
pub type Dict = Map<String, Value>;

/// `original_max_position_embeddings`, the trained context.
pub(crate) const ORIGINAL: &str = "original_max_position_embeddings";

/// The keys a scheme is read from, and a record of those it asked for.
pub(crate) struct Source<'a> {
    keys: Keys<'a>,
    used: Vec<&'static str>,
}

enum Keys<'a> {
    Config(ConfigKeys<'a>),
    Override(OverrideKeys<'a>),
}

/// A rope dictionary and what the config says beside it.
#[derive(Clone, Copy)]
pub(crate) struct ConfigKeys<'a> {
    /// The name of the dictionary, for messages.
    pub(crate) at: &'static str,
    pub(crate) dict: &'a Dict,
    /// The config around it.
    pub(crate) top: &'a Dict,
    /// `max_position_embeddings`, if the config or its family says so.
    pub(crate) declared: Option<usize>,
    /// `original_max_position_embeddings` beside the dictionary, which wins over the one inside.
    pub(crate) original: Option<usize>,
}

/// What is replaced on the command line.
#[derive(Clone, Copy)]
pub(crate) struct OverrideKeys<'a> {
    /// What the user calls the scheme.
    pub(crate) scheme: &'a str,
    pub(crate) factor: Option<f64>,
    pub(crate) params: &'a [(String, String)],
    /// The trained context.
    pub(crate) original: usize,
    /// The values of the scaling that is replaced.
    pub(crate) own: &'a Dict,
    /// Whether that one is of the same scheme.
    pub(crate) same: bool,
}

impl<'a> Source<'a> {
    /// A config's dictionary.
    pub(crate) fn config(keys: ConfigKeys<'a>) -> Self {
        Self { keys: Keys::Config(keys), used: vec![] }
    }

    /// An override.
    ///
    /// # Errors
    /// Two factors that differ.
    pub(crate) fn overriding(mut keys: OverrideKeys<'a>) -> Result<Self> {
        let mut source = Self { keys: Keys::Override(keys), used: vec![] };
        let param = source.given("factor")?.map(|given| given.number("rope", "factor")).transpose()?.flatten();
        keys.factor = match (keys.factor, param) {
            (Some(a), Some(b)) if a != b => bail!("rope: the factor is given twice, as {a} and {b}"),
            (a, b) => a.or(b),
        };
        source.keys = Keys::Override(keys);
        Ok(source)
    }

    /// Where the keys stand, for messages.
    fn at(&self) -> &'static str {
        match &self.keys {
            Keys::Config(keys) => keys.at,
            Keys::Override(_) => "rope",
        }
    }

    fn missing<T>(&self, key: &str) -> Result<T> {
        match &self.keys {
            Keys::Config(keys) => bail!("{}: {key} is missing", keys.at),
            Keys::Override(keys) => bail!("rope_scaling {} needs a `{key}`, which is not given", keys.scheme),
        }
    }

    fn given(&mut self, key: &'static str) -> Result<Option<Given<'a>>> {
        self.used.push(key);
        match &self.keys {
            Keys::Config(keys) => Ok(keys.dict.get(key).map(Given::Json)),
            Keys::Override(keys) => {
                let mut found = keys.params.iter().filter(|(k, _)| k == key).map(|(_, v)| v.as_str());
                match (found.next(), found.next()) {
                    (Some(_), Some(_)) => bail!("rope: {key} is given twice"),
                    (value, _) => Ok(value.map(Given::Text)),
                }
            }
        }
    }

    /// The value under `key`; an override without one has that of the scaling that it replaces, if the schemes are the
    /// same or `inherited`.
    fn find(&mut self, key: &'static str, inherited: bool) -> Result<Option<Given<'a>>> {
        let given = self.given(key)?;
        Ok(match &self.keys {
            Keys::Override(keys) if given.is_none() && (keys.same || inherited) => keys.own.get(key).map(Given::Json),
            _ => given,
        })
    }

    /// A number, if there is one; null counts as none.
    pub(super) fn number(&mut self, key: &'static str) -> Result<Option<f64>> {
        let at = self.at();
        Ok(self.find(key, false)?.map(|given| given.number(at, key)).transpose()?.flatten())
    }

    /// A number that holds for every scheme that has the key: an override without one keeps the checkpoint's.
    pub(super) fn inherited_number(&mut self, key: &'static str) -> Result<Option<f64>> {
        let at = self.at();
        Ok(self.find(key, true)?.map(|given| given.number(at, key)).transpose()?.flatten())
    }

    /// As [`number`](Self::number); a config may also say it beside the dictionary.
    pub(super) fn number_or_beside(&mut self, key: &'static str) -> Result<Option<f64>> {
        match (self.number(key)?, &self.keys) {
            (None, Keys::Config(keys)) => number(key, keys.top.get(key)),
            (found, _) => Ok(found),
        }
    }

    /// A number that has to be there.
    pub(super) fn required(&mut self, key: &'static str) -> Result<f64> {
        self.number(key)?.map_or_else(|| self.missing(key), Ok)
    }

    /// A number that a config has to have; an override falls back on `default`.
    pub(super) fn required_or(&mut self, key: &'static str, default: f64) -> Result<f64> {
        match self.keys {
            Keys::Config(_) => self.required(key),
            Keys::Override(_) => Ok(self.number(key)?.unwrap_or(default)),
        }
    }

    /// A flag that holds for every scheme that has the key; `absent` and `null` are what it is without a value and
    /// with a value of null.
    pub(super) fn inherited_flag(&mut self, key: &'static str, absent: bool, null: bool) -> Result<bool> {
        let at = self.at();
        match self.find(key, true)? {
            None => Ok(absent),
            Some(Given::Json(Value::Null)) => Ok(null),
            Some(Given::Json(Value::Bool(b))) => Ok(*b),
            Some(Given::Text("true")) => Ok(true),
            Some(Given::Text("false")) => Ok(false),
            Some(Given::Json(other)) => bail!("{at}: {key} must be true or false, got {other}"),
            Some(Given::Text(other)) => bail!("{at}: {key} must be true or false, got {other:?}"),
        }
    }

    /// A list of numbers that has to be there, one per rotated pair.
    pub(super) fn list(&mut self, key: &'static str) -> Result<Vec<f64>> {
        let at = self.at();
        match (self.find(key, false)?, &self.keys) {
            (Some(Given::Json(Value::Array(values))), _) => {
                let values = values.iter().map(Value::as_f64).collect();
                let Some(values) = values else { bail!("{at}: {key} must hold numbers only") };
                Ok(values)
            }
            (Some(Given::Text(text)), _) => text.split(',').map(|item| parse_number(at, key, item)).collect(),
            (None | Some(Given::Json(Value::Null)), Keys::Config(_)) => self.missing(key),
            (None | Some(Given::Json(Value::Null)), Keys::Override(keys)) => {
                bail!("rope_scaling {} needs `{key}`, a list of one number per rotated pair", keys.scheme)
            }
            (Some(Given::Json(other)), _) => bail!("{at}: {key} must be a list of numbers, got {other}"),
        }
    }

    /// The scaling's factor, which has to be there.
    pub(super) fn factor(&mut self) -> Result<f64> {
        self.factor_opt()?.map_or_else(|| self.missing("factor"), Ok)
    }

    /// The scaling's factor.
    pub(super) fn factor_opt(&mut self) -> Result<Option<f64>> {
        match &self.keys {
            Keys::Override(OverrideKeys { factor: Some(factor), .. }) => Ok(Some(*factor)),
            _ => self.number("factor"),
        }
    }

    /// As [`factor`](Self::factor); where a config says null it is the ratio of the declared context to the trained one.
    pub(super) fn factor_or_ratio(&mut self, original: usize) -> Result<f64> {
        if let Keys::Config(ConfigKeys { dict, declared: Some(declared), .. }) = &self.keys
            && dict.get("factor").is_some_and(Value::is_null)
        {
            self.used.push("factor");
            return Ok(*declared as f64 / original as f64);
        }
        self.factor()
    }

    /// Refuses a factor on the command line, for a scheme that has none.
    pub(super) fn refuse_factor(&self, why: &str) -> Result<()> {
        match &self.keys {
            Keys::Override(OverrideKeys { factor: Some(factor), .. }) => bail!("rope: a factor of {factor} {why}"),
            _ => Ok(()),
        }
    }

    /// `attention_factor`. On the command line a new factor drops the checkpoint's, which belonged to the old one.
    pub(super) fn attention_factor(&mut self) -> Result<Option<f64>> {
        const KEY: &str = "attention_factor";
        if let Keys::Override(keys) = &self.keys
            && keys.factor.is_some()
            && keys.factor != keys.own.get("factor").and_then(Value::as_f64)
        {
            return Ok(self.given(KEY)?.map(|given| given.number("rope", KEY)).transpose()?.flatten());
        }
        self.number(KEY)
    }

    /// The trained context: in a config the key beside the dictionary, the one inside, or the declared context.
    pub(super) fn original(&mut self) -> Result<usize> {
        match self.keys {
            Keys::Override(keys) => Ok(keys.original),
            Keys::Config(ConfigKeys { at, dict, declared, original, .. }) => {
                self.used.push(ORIGINAL);
                let inside = count(ORIGINAL, dict.get(ORIGINAL)).map_err(|e| within(at, e))?;
                match original.or(inside).or(declared) {
                    Some(n) => Ok(n),
                    None => bail!("{at}: {ORIGINAL} is missing, and so is max_position_embeddings"),
                }
            }
        }
    }

    /// The context that a scheme starts from which takes the declared one for the trained one.
    pub(super) fn declared(&self, scheme: &str) -> Result<usize> {
        match self.keys {
            Keys::Override(keys) => Ok(keys.original),
            Keys::Config(ConfigKeys { declared: Some(n), .. }) => Ok(n),
            Keys::Config(ConfigKeys { at, .. }) => bail!("{at}: rope type {scheme} needs max_position_embeddings"),
        }
    }

    /// The keys of a config that no one asked for.
    pub(crate) fn unread(&self) -> impl Iterator<Item = (&'a String, &'a Value)> {
        let dict = match &self.keys {
            Keys::Config(keys) => Some(keys.dict),
            Keys::Override(_) => None,
        };
        dict.into_iter().flatten().filter(|(key, _)| !self.used.contains(&key.as_str()))
    }

    /// Refuses parameters of the command line that no one asked for.
    pub(crate) fn finish_override(&self) -> Result<()> {
        let Keys::Override(keys) = &self.keys else { return Ok(()) };
        match keys.params.iter().find(|(key, _)| !self.used.contains(&key.as_str())) {
            Some((key, _)) => bail!("rope_scaling {} has no parameter {key:?}", keys.scheme),
            None => Ok(()),
        }
    }
}

/// A value as it was given.
enum Given<'a> {
    Json(&'a Value),
    Text(&'a str),
}

impl Given<'_> {
    fn number(&self, at: &str, key: &str) -> Result<Option<f64>> {
        match self {
            Self::Json(value) => number(key, Some(value)).map_err(|e| within(at, e)),
            Self::Text(text) => parse_number(at, key, text).map(Some),
        }
    }
}

fn parse_number(at: &str, key: &str, text: &str) -> Result<f64> {
    match text.trim().parse::<f64>() {
        Ok(value) => Ok(value),
        Err(_) => bail!("{at}: {key} must be a number, got {text:?}"),
    }
}

/// Says where the key stands; one line even where candle records a backtrace with every error.
pub(crate) fn within(at: &str, error: Error) -> Error {
    let error = match error {
        Error::WithBacktrace { inner, .. } => *inner,
        other => other,
    };
    Error::Msg(format!("{at}: {error}"))
}

/// A number, if there is one; null counts as none.
pub(crate) fn number(key: &str, value: Option<&Value>) -> Result<Option<f64>> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Number(n)) if n.as_f64().is_some() => Ok(n.as_f64()),
        Some(other) => bail!("{key} must be a number, got {other}"),
    }
}

/// A positive whole number; configs write some of them as `8192.0`.
pub(crate) fn count(key: &str, value: Option<&Value>) -> Result<Option<usize>> {
    match number(key, value)? {
        Some(n) if n >= 1.0 && n.fract() == 0.0 && n <= u32::MAX as f64 => Ok(Some(n as usize)),
        Some(n) => bail!("{key} must be a positive whole number, got {n}"),
        None => Ok(None),
    }
}
