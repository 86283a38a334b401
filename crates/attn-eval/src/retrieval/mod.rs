//! Retrieval: whether a model can still find what stood far back, which its perplexity does not show (RULER, Hsieh et al. 2024).
//!
//! A trial is a prompt of exactly as many tokens as a context has, less the room for the answer: a text with something in it,
//! and a question at its end. A [`Task`] decides what is hidden and asked for; a [`Haystack`] is the text in which it is hidden.
//! A cell is a task, a context, a mode and a depth: the place of the hidden thing in the text, from 0 to 1. Every trial has its
//! own things to find, and with a text of the user's its own passage. They depend on the seed, the task, the context and the
//! depth but not on the mode, so modes are compared on the same trials.
//!
//! A trial is scored twice: by the model's greedy answer, and by what the tokens of the right answer cost it, which
//! shows differences between modes even if none of them finds anything. Shares have Wilson's intervals, and differences between
//! shares Newcombe's ([`Share`]).
//!
//! If a model can't do a task at the length it was trained for, its failure at a longer one says nothing about scalings. Reports
//! say so, and nothing is concluded from the task ([`TaskResult::able`]).

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
