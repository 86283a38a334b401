//! What the commands that measure a model have in common: which scalings and contexts, how long it takes, runs that go on,
//! reports.

pub(crate) mod about;
pub(crate) mod apply;
pub(crate) mod estimate;
pub(crate) mod long_run;
pub(crate) mod plan;
pub(crate) mod present;
pub(crate) mod scoring;
pub(crate) mod trials;
