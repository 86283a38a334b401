//! What could not be measured: a length that does not fit is left out and named, and the others are measured.

use serde::{Deserialize, Serialize};
use std::fmt;

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
    pub(crate) fn new(context: usize, task: Option<&str>, error: &anyhow::Error) -> Self {
        Self { context, task: task.map(str::to_string), reason: format!("{error:#}") }
    }

    /// The error of a measurement of which nothing is left.
    pub fn all(skipped: &[Self]) -> anyhow::Error {
        let why: Vec<String> = skipped.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("nothing can be measured: {}", why.join("; "))
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = self.task.as_ref().map_or(String::new(), |task| format!(" of {task}"));
        write!(f, "{} tokens{of} are left out: {}", self.context, self.reason)
    }
}
