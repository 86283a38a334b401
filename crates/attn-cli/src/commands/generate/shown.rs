//! Text on its way out, shown as it comes.

use super::args::GenerateArgs;
use crate::output::print;
use anyhow::Result;
use std::ops::ControlFlow;

/// Text on its way out: what could become one of the texts that end it is held back.
pub(super) struct Shown<'a> {
    json: bool,
    stop: &'a [String],
    held: String,
    /// What was shown so far.
    pub(super) text: String,
}

impl<'a> Shown<'a> {
    pub(super) fn new(args: &'a GenerateArgs) -> Self {
        Self { json: args.json, stop: &args.stop, held: String::new(), text: String::new() }
    }

    /// Shows what is certain, and ends the text at the first of the texts that end it.
    pub(super) fn push(&mut self, text: &str) -> Result<ControlFlow<()>> {
        self.held.push_str(text);
        let stops = self.stop.iter().filter(|stop| !stop.is_empty());
        if let Some(at) = stops.clone().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(at);
            self.show(at)?;
            return Ok(ControlFlow::Break(()));
        }
        let begun = |from: &usize| stops.clone().any(|stop| stop.starts_with(&self.held[*from..]));
        let from = self.held.char_indices().map(|(at, _)| at).find(begun).unwrap_or(self.held.len());
        self.show(from)?;
        Ok(ControlFlow::Continue(()))
    }

    fn show(&mut self, until: usize) -> Result<()> {
        let text: String = self.held.drain(..until).collect();
        self.text.push_str(&text);
        match (text.is_empty(), self.json) {
            (true, _) => Ok(()),
            (false, true) => print(&format!("{}\n", serde_json::json!({ "text": text }))),
            (false, false) => print(&text),
        }
    }

    pub(super) fn finish(&mut self, rest: &str) -> Result<()> {
        if self.push(rest)?.is_continue() {
            self.show(self.held.len())?;
        }
        if self.json { Ok(()) } else { print("\n") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_become_a_stop_text_is_held_back() {
        let stop = ["END".to_string(), "\n\n".to_string()];
        let mut shown = Shown { json: true, stop: &stop, held: String::new(), text: String::new() };
        assert!(shown.push("a E").unwrap().is_continue());
        assert_eq!(shown.held, "E");
        assert!(shown.push("N").unwrap().is_continue());
        assert_eq!(shown.held, "EN");
        assert!(shown.push("x\n").unwrap().is_continue());
        assert_eq!(shown.held, "\n");
        assert!(shown.push("é END more").unwrap().is_break());
        assert_eq!((shown.held.as_str(), shown.text.as_str()), ("", "a ENx\né "));
    }
}
