//! Changing a checkpoint's RoPE scaling after the fact, from the command line or for a comparison across schemes.
//!
//! A scaling is always applied to the context the model was trained for, never on top of another scaling: comparing
//! `yarn` with `linear` on a checkpoint that ships with YaRN means replacing YaRN.

use super::RopeConfig;
use super::rope_scaling::{Ramp, RopeScaling};
use candle_core::{Result, bail};

/// What the user asks for. Everything absent stays as the checkpoint has it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RopeOverride {
    /// `none`, `default`, `linear`, `ntk`, `dynamic`, `ntk-by-parts`, `yarn`, `longrope`, `llama3` or `proportional`.
    /// `none` and `default` remove the scaling and keep theta.
    pub scaling: Option<String>,
    /// The ratio of the wanted context to the trained one.
    pub factor: Option<f64>,
    /// Replaces `rope_theta`.
    pub theta: Option<f64>,
    /// The trained context, if the checkpoint is silent or wrong about it.
    pub original_context: Option<usize>,
    /// Further keys of the scaling as `config.json` spells them; a list is written `short_factor=1,1.5,2`.
    pub params: Vec<(String, String)>,
}

impl RopeConfig {
    /// This configuration with parts replaced.
    ///
    /// The trained context is `original_context`, else the checkpoint's own `original_max_position_embeddings`, else
    /// its `max_position_embeddings`; `dynamic` starts from it too. Keys that are not given keep the checkpoint's
    /// values if its scaling is of the same type, except that a new factor drops an explicit `attention_factor`, which
    /// belonged to the old one. `llama3`'s boundaries default to the original implementation's 1 and 4.
    ///
    /// # Errors
    /// An unknown scaling or key, a missing or ill-formed value, anything [`validate`](Self::validate) refuses.
    pub fn with_override(&self, change: &RopeOverride) -> Result<Self> {
        let mut config = self.clone();
        config.theta = change.theta.unwrap_or(config.theta);
        let mut params = Params { given: &change.params, used: vec![] };
        let kind = match (&change.scaling, &self.scaling) {
            (Some(kind), _) => kind.as_str(),
            (None, scaling) => scaling.name(),
        };
        let factor = match (change.factor, params.number("factor")?) {
            (Some(a), Some(b)) if a != b => bail!("rope: the factor is given twice, as {a} and {b}"),
            (a, b) => a.or(b),
        };
        config.scaling = Builder {
            kind,
            factor,
            original: change.original_context.unwrap_or(self.original_context()),
            current: &self.scaling,
        }
        .build(&mut params)?;
        if let RopeScaling::Proportional { .. } = config.scaling {
            config.rotary_dim = config.head_dim;
        }
        params.finish(kind)?;
        config.validate()?;
        Ok(config)
    }

    /// The configuration for one column of a comparison: the scaling called `mode` with this factor. `none` and
    /// `default` take no factor; `longrope` needs a checkpoint that has factor lists, and keeps its attention factor.
    pub fn for_mode(&self, mode: &str, factor: f64) -> Result<Self> {
        let takes_factor = !matches!(mode, "none" | "default" | "longrope" | "su");
        let factor = takes_factor.then_some(factor);
        self.with_override(&RopeOverride { scaling: Some(mode.to_string()), factor, ..Default::default() })
    }
}

struct Builder<'a> {
    kind: &'a str,
    factor: Option<f64>,
    original: usize,
    current: &'a RopeScaling,
}

impl Builder<'_> {
    fn build(&self, params: &mut Params) -> Result<RopeScaling> {
        let original_max_position_embeddings = self.original;
        if let RopeScaling::Proportional { partial_rotary_factor, .. } = self.current {
            return self.proportional(*partial_rotary_factor, params);
        }
        Ok(match self.kind {
            "none" | "default" => {
                if let Some(factor) = self.factor {
                    bail!("rope: a factor of {factor} needs a scaling to apply it to, such as yarn")
                }
                RopeScaling::Default
            }
            "linear" => RopeScaling::Linear { factor: self.factor()? },
            "ntk" => RopeScaling::Ntk { factor: self.factor()? },
            "dynamic" => RopeScaling::Dynamic { factor: self.factor()?, original_max_position_embeddings },
            "ntk-by-parts" | "ntk_by_parts" => RopeScaling::NtkByParts {
                factor: self.factor()?,
                original_max_position_embeddings,
                ramp: self.ramp(params)?,
            },
            "yarn" => self.yarn(params)?,
            "longrope" | "su" => self.longrope(params)?,
            "llama3" => self.llama3(params)?,
            "proportional" => RopeScaling::Proportional {
                partial_rotary_factor: params.number("partial_rotary_factor")?.unwrap_or(1.0),
                factor: self.factor.unwrap_or(1.0),
            },
            "freq-factors" => match self.factor {
                None => self.current.clone(),
                Some(_) => bail!("rope: the checkpoint's frequency factors take no factor; name a scaling"),
            },
            unknown => bail!(
                "rope: unknown scaling {unknown:?} (known: none, default, linear, ntk, dynamic, ntk-by-parts, yarn, \
                 longrope, llama3, proportional)"
            ),
        })
    }

    /// A proportional encoding is part of the architecture: its share of turning pairs survives any override.
    fn proportional(&self, share: f64, params: &mut Params) -> Result<RopeScaling> {
        let factor = match self.kind {
            "none" | "default" => 1.0,
            "linear" => self.factor()?,
            "proportional" => self.factor.or(self.current.factor()).unwrap_or(1.0),
            other => bail!("rope: {other} is not defined on top of this checkpoint's proportional encoding"),
        };
        Ok(RopeScaling::Proportional {
            partial_rotary_factor: params.number("partial_rotary_factor")?.unwrap_or(share),
            factor,
        })
    }

    fn same_kind(&self) -> bool {
        self.current.name() == self.kind || (self.kind == "su" && self.current.name() == "longrope")
    }

    fn factor(&self) -> Result<f64> {
        match self.factor.or(if self.same_kind() { self.current.factor() } else { None }) {
            Some(factor) => Ok(factor),
            None => bail!("rope: scaling {} needs a factor", self.kind),
        }
    }

    /// An explicit attention factor of the checkpoint holds for the checkpoint's own factor alone.
    fn attention_factor(&self, own: Option<f64>, params: &mut Params) -> Result<Option<f64>> {
        let kept = self.factor.is_none() || self.factor == self.current.factor();
        Ok(params.number("attention_factor")?.or(if kept { own } else { None }))
    }

    fn ramp(&self, params: &mut Params) -> Result<Ramp> {
        let own = match self.current {
            RopeScaling::Yarn { ramp, .. } | RopeScaling::NtkByParts { ramp, .. } => *ramp,
            _ => Ramp::default(),
        };
        Ok(Ramp {
            beta_fast: params.number("beta_fast")?.unwrap_or(own.beta_fast),
            beta_slow: params.number("beta_slow")?.unwrap_or(own.beta_slow),
            truncate: params.boolean("truncate")?.unwrap_or(own.truncate),
        })
    }

    fn yarn(&self, params: &mut Params) -> Result<RopeScaling> {
        let (own_attention, own_mscale, own_all) = match self.current {
            RopeScaling::Yarn { attention_factor, mscale, mscale_all_dim, .. } => {
                (*attention_factor, *mscale, *mscale_all_dim)
            }
            _ => (None, None, None),
        };
        Ok(RopeScaling::Yarn {
            factor: self.factor()?,
            original_max_position_embeddings: self.original,
            ramp: self.ramp(params)?,
            attention_factor: self.attention_factor(own_attention, params)?,
            mscale: params.number("mscale")?.or(own_mscale),
            mscale_all_dim: params.number("mscale_all_dim")?.or(own_all),
        })
    }

    fn longrope(&self, params: &mut Params) -> Result<RopeScaling> {
        let (own_short, own_long, own_factor, own_attention) = match self.current {
            RopeScaling::LongRope { short_factor, long_factor, factor, attention_factor, .. } => {
                (Some(short_factor), Some(long_factor), *factor, *attention_factor)
            }
            _ => (None, None, None, None),
        };
        let mut list = |key, own: Option<&Vec<f64>>| match params.list(key)?.or(own.cloned()) {
            Some(values) => Ok(values),
            None => bail!("rope: scaling longrope needs {key}, one number per rotated pair"),
        };
        Ok(RopeScaling::LongRope {
            short_factor: list("short_factor", own_short)?,
            long_factor: list("long_factor", own_long)?,
            original_max_position_embeddings: self.original,
            factor: self.factor.or(own_factor),
            attention_factor: self.attention_factor(own_attention, params)?,
        })
    }

    fn llama3(&self, params: &mut Params) -> Result<RopeScaling> {
        let (low, high) = match self.current {
            RopeScaling::Llama3 { low_freq_factor, high_freq_factor, .. } => (*low_freq_factor, *high_freq_factor),
            _ => (1.0, 4.0),
        };
        Ok(RopeScaling::Llama3 {
            factor: self.factor()?,
            low_freq_factor: params.number("low_freq_factor")?.unwrap_or(low),
            high_freq_factor: params.number("high_freq_factor")?.unwrap_or(high),
            original_max_position_embeddings: self.original,
        })
    }
}

/// The `key=value` pairs, and which of them were asked for.
struct Params<'a> {
    given: &'a [(String, String)],
    used: Vec<&'static str>,
}

impl<'a> Params<'a> {
    fn get(&mut self, key: &'static str) -> Result<Option<&'a str>> {
        self.used.push(key);
        let mut found = self.given.iter().filter(|(k, _)| k == key).map(|(_, v)| v.as_str());
        match (found.next(), found.next()) {
            (Some(_), Some(_)) => bail!("rope: {key} is given twice"),
            (value, _) => Ok(value),
        }
    }

    fn number(&mut self, key: &'static str) -> Result<Option<f64>> {
        self.get(key)?.map(|text| parse_number(key, text)).transpose()
    }

    fn boolean(&mut self, key: &'static str) -> Result<Option<bool>> {
        match self.get(key)? {
            None => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(other) => bail!("rope: {key} must be true or false, got {other:?}"),
        }
    }

    fn list(&mut self, key: &'static str) -> Result<Option<Vec<f64>>> {
        self.get(key)?.map(|text| text.split(',').map(|item| parse_number(key, item)).collect()).transpose()
    }

    fn finish(&self, kind: &str) -> Result<()> {
        match self.given.iter().find(|(key, _)| !self.used.contains(&key.as_str())) {
            Some((key, _)) => bail!("rope: scaling {kind} has no parameter {key:?}"),
            None => Ok(()),
        }
    }
}

fn parse_number(key: &str, text: &str) -> Result<f64> {
    match text.trim().parse::<f64>() {
        Ok(value) => Ok(value),
        Err(_) => bail!("rope: {key} must be a number, got {text:?}"),
    }
}

#[cfg(test)]
#[path = "override_tests.rs"]
mod tests;
