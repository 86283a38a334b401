//! What could not be measured: a length that does not fit is left out and named, and the others are measured.

use crate::perplexity::check_room;
use attn_models::Model;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Says why a context can't be had, such as for want of memory. A reason is all that becomes of it: such a context is skipped.
pub type Fits<'a> = dyn Fn(usize) -> Result<(), String> + 'a;

/// Why a context can't be had: the model has no room for it, or `fits` says so.
pub(crate) fn has_room(model: &Model, context: usize, fits: &Fits<'_>) -> Result<(), String> {
    check_room(model, context).map_err(|error| error.to_string())?;
    fits(context)
}

/// What could not be measured, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Tokens of a window, or of prompt and answer.
    pub context: usize,
    /// The task, perplexity among them; absent if it holds for all tasks of retrieval.
    pub task: Option<String>,
    /// Why.
    pub reason: String,
}

impl Skipped {
    pub(crate) fn new(context: usize, task: Option<&str>, reason: String) -> Self {
        Self { context, task: task.map(str::to_string), reason }
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = self.task.as_ref().map_or(String::new(), |task| format!(" of {task}"));
        write!(f, "{} tokens{of} are left out: {}", self.context, self.reason)
    }
}
