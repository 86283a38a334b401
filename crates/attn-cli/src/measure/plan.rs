//! Which scalings and contexts are measured where the options leave it open.

use crate::model::Opened;
use crate::parse::Modes;
use crate::positions;
use attn_core::PositionOverride;
use attn_eval::compare::Mode;
use attn_eval::stats::MIN_WINDOWS;

/// What `--quick` compares beside the model as it is.
const QUICK: [&str; 3] = ["dynamic", "yarn", "streaming"];

/// Those asked for, else those that can be compared.
pub(crate) fn modes(asked: &[Modes], opened: &Opened) -> Vec<Mode> {
    match asked {
        [] => default_modes(opened),
        asked => named(asked),
    }
}

/// The modes that were named, each once.
pub(crate) fn named(asked: &[Modes]) -> Vec<Mode> {
    unique(asked.iter().flat_map(|modes| modes.0.iter().copied()).collect())
}

/// All that apply to any RoPE model, methods as far as its layers take them, and the checkpoint's own scaling if it has
/// one; models without rotary layers can only run as they are.
fn default_modes(opened: &Opened) -> Vec<Mode> {
    if !positions::has_rope(&opened.model) {
        return vec![Mode::Checkpoint];
    }
    let takes = |mode: &Mode| {
        let change = PositionOverride { extend: mode.extend(), ..PositionOverride::default() };
        change.extend.is_none() || opened.model.spec().with_positions(&change).is_ok()
    };
    let own = (positions::scaling(&opened.model).0 != Mode::none().to_string()).then_some(Mode::Checkpoint);
    own.into_iter().chain(Mode::defaults().into_iter().filter(takes)).collect()
}

/// Few modes of the default ones, for a first look.
pub(crate) fn quick_modes(opened: &Opened) -> Vec<Mode> {
    let mut modes = default_modes(opened);
    let first = [Mode::Checkpoint, Mode::none()];
    modes.retain(|mode| first.contains(mode) || QUICK.contains(&mode.to_string().as_str()));
    modes
}

/// The trained context and its next three doublings, as far as the text has enough windows for an interval. The first
/// one past the trained context is included even with fewer windows.
pub(crate) fn default_contexts(trained: Option<usize>, tokens: usize) -> Vec<usize> {
    let first = trained.unwrap_or(512).min(tokens);
    let enough = |context: usize| context.saturating_mul(MIN_WINDOWS) <= tokens;
    let doublings = [1, 2, 4, 8].into_iter().map(|times| first.saturating_mul(times));
    doublings.filter(|&context| context <= tokens && (context <= first * 2 || enough(context))).collect()
}

/// The contexts named, and before them the trained one if all of them are past it: what a setting costs there belongs to its
/// judgement.
pub(crate) fn with_trained(named: &[usize], trained: Option<usize>, tokens: usize) -> Vec<usize> {
    let before = trained.filter(|&n| n <= tokens && named.iter().all(|&context| context > n));
    before.into_iter().chain(named.iter().copied()).collect()
}

/// Each once, where it stands first.
pub(crate) fn unique<T: PartialEq>(items: Vec<T>) -> Vec<T> {
    items.into_iter().fold(vec![], |mut kept, item| {
        if !kept.contains(&item) {
            kept.push(item);
        }
        kept
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_contexts_double_from_the_trained_one_while_the_text_lasts() {
        assert_eq!(default_contexts(Some(256), 8192), [256, 512, 1024, 2048]);
        assert_eq!(default_contexts(Some(8192), 16384), [8192, 16384]);
        assert_eq!(default_contexts(Some(8192), 65536), [8192, 16384]);
        assert_eq!(default_contexts(Some(8192), 100), [100]);
        assert_eq!(default_contexts(None, 1024), [512, 1024]);
    }

    #[test]
    fn what_a_setting_costs_at_the_trained_length_is_measured_too() {
        assert_eq!(with_trained(&[512, 1024], Some(256), 4096), [256, 512, 1024]);
        assert_eq!(with_trained(&[128, 1024], Some(256), 4096), [128, 1024]);
        assert_eq!(with_trained(&[512], None, 4096), [512]);
    }

    #[test]
    fn repeats_are_dropped() {
        assert_eq!(unique(vec![1, 2, 1, 3, 2]), [1, 2, 3]);
    }
}
