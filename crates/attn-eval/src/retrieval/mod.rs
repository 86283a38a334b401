//! Retrieval: can the model still find what stood far back? A flat perplexity does not say so (RULER, Hsieh et al. 2024).
//!
//! A trial is a prompt of exactly as many tokens as a context has, less the room for the answer: a text with something in it,
//! and a question at its end. What is hidden and asked for is up to a [`Task`]; what it is hidden in is a [`Haystack`]. A cell
//! is a task, a context, a mode and a depth: where in the text the thing stands. Every trial has its own things to find, and
//! with a text of the user's its own passage; they depend on the seed, the task, the context and the depth but not on the
//! mode, so modes are compared on the same trials.
//!
//! A trial is scored twice: by what the model goes on with greedily, and by what the tokens of the right answer cost it, which
//! still tells models apart where none of them finds anything. Shares have Wilson's intervals, and differences between shares
//! Newcombe's ([`Share`]).
//!
//! A model that can't do a task at the length it was trained for says nothing about scalings by failing it at a longer one.
//! That is said, and nothing is concluded from the task ([`TaskResult::able`]).

mod check;
mod grid;
mod haystack;
mod list;
mod results;
mod share;
mod tasks;
mod words;

pub use grid::{Grid, RetrievalPlan, RetrievalScores, RetrievalSpec};
pub use haystack::{Haystack, HaystackReader};
pub use results::{ABLE, Retrieval, RetrievalCell, TaskResult, Total, summarise};
pub use share::Share;
pub use tasks::{TASKS, Task};

#[cfg(test)]
mod tests;
