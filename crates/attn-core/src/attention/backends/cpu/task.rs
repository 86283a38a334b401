//! What all units of one forward pass share.

use super::{output::Output, problem::Problem, skip::Skip};
use crate::{attention::view::Inputs, parallel::Disjoint};

/// A forward pass.
pub(super) struct Task<'a, T> {
    pub(super) p: &'a Problem<'a>,
    pub(super) inputs: Inputs<'a, T>,
    /// Bounds that tell which keys don't matter, where the bias is linear and they are worth having.
    pub(super) skip: Option<Skip>,
    pub(super) output: Output<'a, T>,
    /// The parts of results whose keys several units have.
    pub(super) parts: Disjoint<'a, f32>,
}
