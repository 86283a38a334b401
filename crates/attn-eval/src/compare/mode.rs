//! The modes of a comparison: scalings of the frequencies, methods that place near and far keys differently, and log-n scaling,
//! alone or together; and the factor that scalings are given.

use attn_core::position::extend::{ExtendOverride, METHODS, Setting, method};
use attn_core::position::rope::scaling::{self, SchemeInfo};
use std::fmt;
use std::str::FromStr;

/// A row of a comparison.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mode {
    /// What the checkpoint's own config says, scaling included.
    Checkpoint,
    /// A setting put over the checkpoint in place of its own scaling.
    Setting(Setting),
}

/// Methods that are compared unless others are named. The last one drops far text, so that a comparison with it shows what far
/// text is worth.
const DEFAULT_METHODS: [&str; 3] = ["self-extend", "rerope", "streaming"];

fn of_scheme(scheme: &'static SchemeInfo) -> Mode {
    Mode::Setting(Setting { scheme: Some(scheme), ..Setting::default() })
}

fn of_method(name: &str) -> Option<Mode> {
    let extend = ExtendOverride { method: Some(method(name)?), ..ExtendOverride::default() };
    Some(Mode::Setting(Setting { extend, ..Setting::default() }))
}

impl Mode {
    /// The checkpoint's own scaling, and each scheme that the command line can name.
    pub fn frequencies() -> impl Iterator<Item = Self> {
        std::iter::once(Self::Checkpoint).chain(scaling::named().map(of_scheme))
    }

    /// The methods that place near and far keys differently, and log-n scaling.
    pub fn positions() -> impl Iterator<Item = Self> {
        let log_n = ExtendOverride { log_n: true, ..ExtendOverride::default() };
        let log_n = Self::Setting(Setting { extend: log_n, ..Setting::default() });
        METHODS.iter().filter_map(|method| of_method(method.name)).chain([log_n])
    }

    /// Every mode that has a name of its own.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::frequencies().chain(Self::positions())
    }

    /// The modes that any RoPE model can be compared across.
    pub fn defaults() -> Vec<Self> {
        let schemes = scaling::named().filter(|scheme| scheme.compared).map(of_scheme);
        schemes.chain(DEFAULT_METHODS.into_iter().filter_map(of_method)).collect()
    }

    /// The modes that a list of names stands for: `all`, `frequencies` and `positions` for several at once.
    ///
    /// # Errors
    /// No mode has this name; the error lists the names that exist.
    pub fn named(text: &str) -> Result<Vec<Self>, String> {
        // Without scalings that need more than a factor.
        let usual = || scaling::named().filter(|scheme| scheme.compared).map(of_scheme);
        Ok(match text.to_ascii_lowercase().as_str() {
            "all" => usual().chain(Self::positions()).collect(),
            "frequencies" => usual().collect(),
            "positions" => std::iter::once(Self::none()).chain(Self::positions()).collect(),
            name => vec![name.parse()?],
        })
    }

    /// The checkpoint without any scaling.
    pub fn none() -> Self {
        of_scheme(scaling::RopeScaling::default().scheme())
    }

    /// What it does, in one sentence each for its scaling, its method and log-n scaling.
    pub fn summary(self) -> String {
        let Self::Setting(setting) = self else {
            return "The scaling that the model's own config asks for.".to_string();
        };
        let mut parts = vec![];
        parts.extend(setting.scheme.map(|scheme| scheme.summary));
        parts.extend(setting.extend.method.map(|method| method.summary));
        parts.extend(setting.extend.log_n.then_some("Queries are multiplied by max(1, ln(i + 1) / ln L) (Su 2021)."));
        parts.join(" ")
    }

    /// What is done to the frequencies, in place of the checkpoint's scaling.
    pub(crate) fn scaling(self) -> Option<String> {
        match self {
            Self::Checkpoint => None,
            Self::Setting(setting) => {
                Some(setting.scheme.unwrap_or(scaling::RopeScaling::default().scheme()).called().to_string())
            }
        }
    }

    /// What is done to positions.
    pub fn extend(self) -> ExtendOverride {
        match self {
            Self::Checkpoint => ExtendOverride::default(),
            Self::Setting(setting) => setting.extend,
        }
    }

    /// Whether its scaling takes a factor.
    pub fn takes_factor(self) -> bool {
        matches!(self, Self::Setting(Setting { scheme: Some(scheme), .. }) if scheme.takes_factor)
    }

    /// Whether its scaling reads a parameter of this name.
    pub(super) fn scaling_takes(self, key: &str) -> bool {
        match self {
            Self::Checkpoint => true,
            Self::Setting(setting) => setting.scheme.is_some_and(|scheme| scheme.keys.contains(&key)),
        }
    }

    /// Whether it reads a parameter of this name.
    pub(super) fn takes(self, key: &str) -> bool {
        self.scaling_takes(key) || self.extend().takes(key)
    }

    /// Whether some keys are never seen, however long the text is.
    pub(crate) fn drops_keys(self) -> bool {
        let drops = ["streaming", "window", "lm-infinite"];
        self.extend().method.is_some_and(|method| drops.contains(&method.name))
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Checkpoint => f.pad("checkpoint"),
            Self::Setting(setting) => f.pad(&setting.to_string()),
        }
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            own if own.eq_ignore_ascii_case("checkpoint") => Ok(Self::Checkpoint),
            _ => text.parse().map(Self::Setting).map_err(|e: String| match e.strip_prefix("unknown ") {
                Some(unknown) => format!("unknown mode {unknown}, checkpoint"),
                None => e,
            }),
        }
    }
}

/// The factor of a comparison's scalings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Factor {
    /// For every context the longest context divided by the trained one, at least 1: a setting that a model can be served with.
    Longest,
    /// For each context the context divided by the trained one, at least 1.
    Auto,
    /// The same for every context.
    Fixed(f64),
}

#[cfg(test)]
mod tests {
    use super::*;
    use attn_core::position::extend::LOG_N;

    #[test]
    fn modes_are_known_by_either_spelling_and_unknown_ones_refused_by_list() {
        for mode in Mode::all() {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        assert_eq!("YaRN+Log-N".parse::<Mode>().map(|mode| mode.to_string()), Ok("yarn+log-n".to_string()));
        assert_eq!("pi".parse::<Mode>().map(|mode| mode.to_string()), Ok("linear".to_string()));
        assert_eq!("ntk_by_parts".parse::<Mode>().map(|mode| mode.to_string()), Ok("ntk-by-parts".to_string()));
        let error = "yarm".parse::<Mode>().unwrap_err();
        assert!(error.contains("unknown mode") && error.contains("ntk-by-parts") && error.contains(LOG_N), "{error}");
    }

    #[test]
    fn the_scalings_are_the_schemes_that_have_names() {
        let names: Vec<_> = Mode::frequencies().skip(1).map(|mode| mode.to_string()).collect();
        assert_eq!(names, scaling::named().map(|scheme| scheme.called()).collect::<Vec<_>>());
        assert_eq!((names[0].as_str(), Mode::none().to_string().as_str()), ("none", "none"));
        assert!(!names.contains(&"freq-factors".to_string()), "comes from tensors alone");
        let all: Vec<Mode> = Mode::all().collect();
        assert!(Mode::defaults().iter().all(|mode| all.contains(mode)));
    }

    #[test]
    fn settings_join_a_scaling_and_a_method() {
        let mode: Mode = "yarn+window:window=64+log-n".parse().unwrap();
        assert!(mode.takes_factor() && mode.takes("window") && mode.takes("beta_fast") && mode.drops_keys());
        assert_eq!(mode.scaling().as_deref(), Some("yarn"));
        let alone: Mode = "rerope".parse().unwrap();
        assert_eq!((alone.scaling().as_deref(), alone.takes_factor()), (Some("none"), false));
        assert_eq!(Mode::named("positions").unwrap().len(), METHODS.len() + 2);
    }
}
