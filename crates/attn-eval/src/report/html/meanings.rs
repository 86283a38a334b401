//! A page's explanation of the modes on it.

use super::Page;
use crate::compare::Mode;

/// What each mode does, for readers who do not know its name.
pub(super) fn meanings<'a>(page: &mut Page, modes: impl IntoIterator<Item = &'a str>) {
    page.heading("What the modes do");
    let summary = |mode: &str| mode.parse::<Mode>().ok().map(|mode| mode.summary().to_string());
    let known: Vec<(&str, String)> = modes.into_iter().filter_map(|mode| Some((mode, summary(mode)?))).collect();
    page.facts(&known);
}
