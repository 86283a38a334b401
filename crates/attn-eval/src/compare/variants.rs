//! The model under every mode of a plan: with which factor, and with which change of its positions.

use super::{Factor, Mode, Plan};
use crate::error::{Result, Within, bail};
use crate::perplexity::check_room;
use attn_core::position::ExtendOverride;
use attn_core::{PositionOverride, RopeOverride};
use attn_models::Model;

/// A model under one of the plan's modes.
#[derive(Debug)]
pub(crate) struct Variant {
    pub(crate) mode: Mode,
    pub(crate) factor: f64,
    pub(crate) model: Model,
    /// An earlier mode that is the same computation.
    pub(crate) same_as: Option<Mode>,
}

/// The model under every mode of the plan, for windows of `context`.
pub(crate) fn variants(model: &Model, plan: &Plan, context: usize) -> Result<Vec<Variant>> {
    check_room(model, context)?;
    let factor = factor_at(model, plan, context)?;
    // If the scaling can't be removed from the checkpoint, no mode is the same as the model without it.
    let unscaled = scaled(model, plan, Mode::none(), factor).ok();
    let length = plan.length.unwrap_or(context);
    let mut variants: Vec<Variant> = vec![];
    // The first of the modes that change nothing is measured for all of them.
    let mut first = None;
    for &mode in &plan.modes {
        let model = scaled(model, plan, mode, factor).within(|| format!("mode {mode}"))?;
        let alike = |unscaled: &Model| unscaled.spec().places_alike(model.spec(), length);
        let is_none = unscaled.as_ref().is_some_and(alike);
        let same_as = if is_none { first } else { None };
        first = first.or(is_none.then_some(mode));
        variants.push(Variant { mode, factor, model, same_as });
    }
    Ok(variants)
}

/// The plan's factor for `context`. Every mode's cell is labelled with it, whether the mode takes a factor or not. On a model of
/// unknown trained context it is 1 as long as no mode needs it.
///
/// # Errors
/// A mode needs it, and neither the plan nor the checkpoint says what context the model was trained for.
pub fn factor_at(model: &Model, plan: &Plan, context: usize) -> Result<f64> {
    let length = match plan.factor {
        Factor::Fixed(factor) => return Ok(factor),
        Factor::Auto => context,
        Factor::Longest => plan.contexts.iter().copied().max().unwrap_or(context),
    };
    match plan.rope.original_context.or(model.trained_context()) {
        Some(trained) => Ok((length as f64 / trained as f64).max(1.0)),
        None if !plan.modes.iter().any(|mode| mode.takes_factor()) => Ok(1.0),
        None => bail!(Setting, "the checkpoint doesn't say what context it was trained for: give a factor"),
    }
}

/// The model under `mode`; a model without rotary layers can only be used as it is.
pub(crate) fn scaled(model: &Model, plan: &Plan, mode: Mode, factor: f64) -> Result<Model> {
    let change = change(plan, mode, factor)?;
    if mode == Mode::Checkpoint && change.is_none() {
        return Ok(model.clone());
    }
    Ok(model.with_positions(&change)?)
}

/// The change that a mode of the plan makes to the model's positions. Methods get defaults for the plan's longest context.
///
/// # Errors
/// A parameter of the mode's method has an impossible value.
pub fn change(plan: &Plan, mode: Mode, factor: f64) -> Result<PositionOverride> {
    let rope = &plan.rope;
    let mut extend = ExtendOverride { longest: plan.contexts.iter().copied().max(), ..mode.extend() };
    for (key, value) in rope.params.iter().filter(|(key, _)| mode.extend().takes(key)) {
        extend = extend.with_param(key, value)?;
    }
    let rope = RopeOverride {
        scaling: mode.scaling(),
        factor: mode.takes_factor().then_some(factor),
        theta: rope.theta,
        original_context: rope.original_context,
        params: rope.params.iter().filter(|(key, _)| mode.scaling_takes(key)).cloned().collect(),
    };
    Ok(PositionOverride { rope, extend })
}

/// Refuses a parameter that no mode of the plan reads, which would otherwise be ignored.
pub(crate) fn check_params(plan: &Plan) -> Result<()> {
    match plan.rope.params.iter().find(|(key, _)| !plan.modes.iter().any(|mode| mode.takes(key))) {
        Some((key, _)) => bail!(Setting, "none of the modes compared has a parameter {key:?}"),
        None => Ok(()),
    }
}
