//! What a name such as `rerope:window=128` or `yarn+window+log-n` asks for: a method, its numbers, and whether queries
//! grow with the logarithm of their position. The frequencies' scaling in such a name is
//! [`rope::scaling`](crate::position::rope::scaling)'s.

use super::ExtendConfig;
use crate::position::rope::scaling::{self, RopeScaling, SchemeInfo};
use crate::position::{
    Context, Over, PositionConfig, PositionEncoding, QueryStep, Rope, RopeConfig, RopeOverride, Temperature,
};
use candle_core::{Result, Tensor, bail};
use std::{fmt, str::FromStr, sync::Arc};

/// How many times the trained context a method is made for where the length of the texts is not given.
const USUAL_TIMES: usize = 8;
/// The name of log-n scaling in a setting.
pub const LOG_N: &str = "log-n";

/// A method by name.
#[derive(Debug)]
pub struct MethodInfo {
    /// Its name, as [`ExtendConfig::NAMES`] has it.
    pub name: &'static str,
    /// The names of its numbers.
    pub params: &'static [&'static str],
    /// What it does, in a sentence.
    pub summary: &'static str,
}

/// Every method, in the order in which lists show them.
pub static METHODS: &[MethodInfo] = &[
    MethodInfo {
        name: "self-extend",
        params: &["group", "window"],
        summary: "Near keys unchanged, far positions in groups (Jin et al. 2024).",
    },
    MethodInfo {
        name: "rerope",
        params: &["window"],
        summary: "Near keys unchanged, all far keys at one distance (Su 2023).",
    },
    MethodInfo {
        name: "leaky-rerope",
        params: &["window", "factor"],
        summary: "Near keys unchanged, far distances grow more slowly (Su 2023).",
    },
    MethodInfo {
        name: "dual-chunk",
        params: &["chunk", "local"],
        summary: "Bounded distances to earlier chunks (An et al. 2024).",
    },
    MethodInfo {
        name: "string",
        params: &["shift", "local"],
        summary: "Far distances reduced by a constant (An et al. 2024).",
    },
    MethodInfo {
        name: "lm-infinite",
        params: &["sinks", "window"],
        summary: "A window, and the first keys at its edge (Han et al. 2023).",
    },
    MethodInfo {
        name: "streaming",
        params: &["sinks", "window"],
        summary: "Only the first keys and a window (Xiao et al. 2023).",
    },
    MethodInfo { name: "window", params: &["window"], summary: "Only a window; all keys before it are dropped." },
];

impl PartialEq for MethodInfo {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

/// The method called `name`.
pub fn method(name: &str) -> Option<&'static MethodInfo> {
    METHODS.iter().find(|method| method.name == name)
}

/// A method, or log-n scaling, or both, put over a model's rotary layers.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ExtendOverride {
    /// The method.
    pub method: Option<&'static MethodInfo>,
    /// Numbers of the method in the place of its defaults.
    pub params: [Option<(&'static str, f64)>; 2],
    /// Whether queries are multiplied by `max(1, ln(i + 1) / ln L)`.
    pub log_n: bool,
    /// The longest text, which some defaults are made for; `None`: eight times the trained context.
    pub longest: Option<usize>,
}

impl ExtendOverride {
    /// True if it changes nothing.
    pub fn is_none(&self) -> bool {
        self.method.is_none() && !self.log_n
    }

    /// Whether the method has a number of this name.
    pub fn takes(&self, key: &str) -> bool {
        self.method.is_some_and(|method| method.params.contains(&key))
    }

    /// With one of the method's numbers.
    ///
    /// # Errors
    /// No method, or one without a number of this name; a value that is none.
    pub fn with_param(mut self, key: &str, value: &str) -> Result<Self> {
        let Some(method) = self.method else {
            bail!("{key}={value}: no method is given to which this parameter could belong")
        };
        let Some(name) = method.params.iter().find(|name| **name == key) else {
            bail!("{} has no parameter {key:?}; its parameters: {}", method.name, method.params.join(" and "))
        };
        let number = match value.parse::<f64>() {
            Ok(number) if number.is_finite() && number > 0.0 => number,
            _ => bail!("{}: {key} has to be a positive number, not {value:?}", method.name),
        };
        let is_it = |slot: &Option<(&str, f64)>| slot.is_none_or(|(held, _)| held == *name);
        if let Some(slot) = self.params.iter_mut().find(|slot| is_it(slot)) {
            *slot = Some((*name, number));
        }
        Ok(self)
    }

    /// The encoding of a layer that rotates by `rope`, in a model trained for `trained` tokens.
    ///
    /// # Errors
    /// A context too short to extend, numbers that make no sense.
    pub fn over(&self, rope: RopeConfig, trained: usize) -> Result<PositionConfig> {
        if self.is_none() {
            return Ok(PositionConfig::Rope(rope));
        }
        let longest = self.longest.unwrap_or(trained.saturating_mul(USUAL_TIMES));
        let method = match self.method {
            Some(method) => {
                let mut config = ExtendConfig::new(method.name, trained, longest)?;
                for (name, value) in self.params.iter().flatten() {
                    config.set(name, *value)?;
                }
                Some(config)
            }
            None => None,
        };
        let log_n = self.log_n.then_some(trained);
        let config = ExtendedConfig { rope, method, log_n };
        config.build()?;
        Ok(PositionConfig::Extended(config))
    }
}

/// What the user asks of a model's rotary layers. Everything absent stays as the checkpoint has it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PositionOverride {
    /// What is done to the frequencies.
    pub rope: RopeOverride,
    /// What is done to positions.
    pub extend: ExtendOverride,
}

impl PositionOverride {
    /// True if it changes nothing.
    pub fn is_none(&self) -> bool {
        self.rope == RopeOverride::default() && self.extend.is_none()
    }

    /// True if all it asks for is that there be no scaling, which models without rotation are as they stand.
    pub fn only_unscales(&self) -> bool {
        let RopeOverride { scaling, factor, theta, original_context: _, params } = &self.rope;
        let unscaled = scaling.as_deref().is_none_or(|name| {
            scaling::scheme(name).is_some_and(|scheme| scheme.called() == RopeScaling::default().scheme().called())
        });
        unscaled && factor.is_none() && theta.is_none() && params.is_empty() && self.extend.is_none()
    }

    /// The encoding of a layer that rotates by `rope`.
    ///
    /// # Errors
    /// As [`RopeConfig::with_override`] and [`ExtendOverride::over`].
    pub fn over(&self, rope: &RopeConfig) -> Result<PositionConfig> {
        let trained = self.rope.original_context.unwrap_or(rope.original_context());
        self.extend.over(rope.with_override(&self.rope)?, trained)
    }
}

impl From<RopeOverride> for PositionOverride {
    fn from(rope: RopeOverride) -> Self {
        Self { rope, extend: ExtendOverride::default() }
    }
}

/// A rotary encoding under a method, log-n scaling, or both.
#[derive(Debug, Clone, PartialEq)]
pub struct ExtendedConfig {
    /// The rotation, its scaling included.
    pub rope: RopeConfig,
    /// How near and far keys are placed, if they differ.
    pub method: Option<ExtendConfig>,
    /// The trained context of log-n scaling.
    pub log_n: Option<usize>,
}

impl ExtendedConfig {
    /// The encoding.
    ///
    /// # Errors
    /// Numbers that make no sense.
    pub fn build(&self) -> Result<Arc<dyn PositionEncoding>> {
        let inner: Arc<dyn PositionEncoding> = match self.method {
            Some(method) => method.build(self.rope.clone())?,
            None => Arc::new(Rope::new(self.rope.clone())?),
        };
        let Some(trained_context) = self.log_n else { return Ok(inner) };
        let temperature = Temperature::LogN { trained_context };
        temperature.check()?;
        Ok(Arc::new(Over { inner, step: temperature }))
    }

    /// True if texts of `len` tokens are placed as by the rotation alone.
    pub fn is_plain(&self, len: usize) -> bool {
        self.method.is_none_or(|method| method.is_plain(len)) && self.log_n.is_none_or(|trained| len <= trained)
    }
}

impl QueryStep for Temperature {
    fn change(&self, q: &Tensor, at: &Context) -> Result<Tensor> {
        self.apply(q, at.positions)
    }
}

/// A scaling of the frequencies, a method, log-n scaling: any of them, joined by `+` in text. A method's numbers follow it,
/// each after a colon: `self-extend:group=4:window=128`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Setting {
    /// What is done to the frequencies.
    pub scheme: Option<&'static SchemeInfo>,
    /// What is done to positions.
    pub extend: ExtendOverride,
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = vec![];
        words.extend(self.scheme.map(|scheme| scheme.called().to_string()));
        if let Some(method) = self.extend.method {
            let params = self.extend.params.iter().flatten().map(|(name, value)| format!(":{name}={value}"));
            words.push(std::iter::once(method.name.to_string()).chain(params).collect());
        }
        words.extend(self.extend.log_n.then(|| LOG_N.to_string()));
        f.pad(&words.join("+"))
    }
}

impl FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let mut setting = Self::default();
        for word in text.to_ascii_lowercase().split('+') {
            let mut pieces = word.split(':');
            let name = pieces.next().unwrap_or_default();
            let twice = if name == LOG_N {
                std::mem::replace(&mut setting.extend.log_n, true)
            } else if let Some(method) = method(name) {
                setting.extend.method.replace(method).is_some()
            } else if let Some(scheme) = scaling::scheme(name) {
                setting.scheme.replace(scheme).is_some()
            } else {
                let schemes = scaling::named().map(|scheme| scheme.called());
                let known = schemes.chain(METHODS.iter().map(|method| method.name)).chain([LOG_N]);
                return Err(format!("unknown {name:?}; known: {}", known.collect::<Vec<_>>().join(", ")));
            };
            if twice {
                return Err(format!("{name}: only one scaling and one method can be combined"));
            }
            for piece in pieces {
                let Some((key, value)) = piece.split_once('=') else {
                    return Err(format!("{name}: {piece:?} must have the form NAME=NUMBER"));
                };
                if method(name).is_none() {
                    return Err(format!(
                        "{name}: only methods take numbers after a colon; give {key} as a parameter of the scaling"
                    ));
                }
                setting.extend = setting.extend.with_param(key, value).map_err(|e| e.to_string())?;
            }
        }
        Ok(setting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_as_they_are_written() {
        for text in
            ["yarn", "rerope", "rerope:window=128", "self-extend:group=4:window=128", "yarn+window+log-n", "log-n"]
        {
            assert_eq!(text.parse::<Setting>().unwrap().to_string(), text);
        }
        let set: Setting = "rerope:window=128:window=64".parse().unwrap();
        assert_eq!(set.extend.params, [Some(("window", 64.0)), None]);
        for (text, said) in [
            ("yarm", "unknown"),
            ("yarn+ntk", "only one"),
            ("rerope+window", "only one"),
            ("rerope:group=3", "no parameter"),
            ("rerope:window", "NAME=NUMBER"),
            ("rerope:window=-3", "positive"),
            ("yarn:factor=3", "only methods"),
        ] {
            let error = text.parse::<Setting>().unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn every_method_takes_the_numbers_it_names() {
        for info in METHODS {
            let mut config = ExtendConfig::new(info.name, 64, 256).unwrap();
            for (name, value) in info.params.iter().zip([4.0, 16.0]) {
                config.set(name, value).unwrap();
            }
            assert!(config.set("nothing", 1.0).is_err());
        }
        assert_eq!(METHODS.iter().map(|m| m.name).collect::<Vec<_>>(), ExtendConfig::NAMES);
    }

    #[test]
    fn short_texts_are_placed_plainly() {
        let rope = RopeConfig { max_position_embeddings: 64, ..RopeConfig::new(8, 1e4) };
        for info in METHODS {
            let over = ExtendOverride { method: Some(info), log_n: true, ..ExtendOverride::default() };
            let PositionConfig::Extended(config) = over.over(rope.clone(), 64).unwrap() else { panic!("no method") };
            assert!(config.is_plain(16) && !config.is_plain(200), "{}", info.name);
        }
    }
}
