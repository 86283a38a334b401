//! Contexts that could not be measured: a context that does not fit is skipped and named, and the others are measured.

use crate::perplexity::check_room;
use attn_models::Model;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Checks that a context is possible, for example that there is enough memory. The error is the reason for which reports say that
/// the context was skipped.
pub type Fits<'a> = dyn Fn(usize) -> Result<(), String> + 'a;

/// Checks that a context is possible: the model has positions for it, and `fits` does not refuse it.
pub(crate) fn has_room(model: &Model, context: usize, fits: &Fits<'_>) -> Result<(), String> {
    check_room(model, context).map_err(|error| error.to_string())?;
    fits(context)
}

/// A context that could not be measured, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Tokens of a window, or of prompt and answer.
    pub context: usize,
    /// The task that could not be measured, which may be `perplexity`; in a comparison of several models, the model. Absent if
    /// all tasks of retrieval could not be measured.
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
