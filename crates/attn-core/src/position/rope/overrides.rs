//! Changing a checkpoint's RoPE scaling after the fact, from the command line or for a comparison across schemes.
//!
//! A scaling is always applied to the context the model was trained for, never on top of another scaling: comparing
//! `yarn` with `linear` on a checkpoint that ships with YaRN means replacing YaRN.

use super::config::RopeConfig;
use super::scaling::{self, OverrideKeys, Source};
use candle_core::{Result, bail};

/// What the user asks for. Everything absent stays as the checkpoint has it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RopeOverride {
    /// Any spelling of a scheme of [`SCHEMES`](super::scaling::SCHEMES). `none` (or `default`) removes the scaling and
    /// keeps theta.
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
        let (own, current) = (self.scaling.values(), self.scaling.scheme());
        let scheme = match &change.scaling {
            None => current,
            Some(name) => match scaling::scheme(name) {
                Some(scheme) => scheme,
                None => {
                    let known: Vec<&str> = scaling::named().map(|scheme| scheme.called()).collect();
                    bail!("rope: unknown scaling {name:?} (known: {})", known.join(", "))
                }
            },
        };
        let mut source = Source::overriding(OverrideKeys {
            scheme: scheme.called(),
            factor: change.factor,
            params: &change.params,
            original: change.original_context.unwrap_or(self.original_context()),
            own: &own,
            same: scheme == current,
        })?;
        let scaling = match self.scaling.under(scheme, &mut source)? {
            Some(scaling) => scaling,
            None => scheme.read(&mut source)?,
        };
        source.finish_override()?;
        let whole = scaling.scheme().whole_head;
        let config = Self {
            theta: change.theta.unwrap_or(self.theta),
            rotary_dim: if whole { self.head_dim } else { self.rotary_dim },
            scaling,
            ..self.clone()
        };
        config.validate()?;
        Ok(config)
    }

    /// The configuration for one column of a comparison: the scaling called `mode` with this factor. `none` and
    /// `default` take no factor; `longrope` needs a checkpoint that has factor lists, and keeps its attention factor.
    pub fn for_mode(&self, mode: &str, factor: f64) -> Result<Self> {
        let takes_factor = scaling::scheme(mode).is_some_and(|scheme| scheme.takes_factor);
        let factor = takes_factor.then_some(factor);
        self.with_override(&RopeOverride { scaling: Some(mode.to_string()), factor, ..Default::default() })
    }
}

#[cfg(test)]
#[path = "override_tests.rs"]
mod tests;
