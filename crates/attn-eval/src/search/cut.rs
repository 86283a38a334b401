//! The windows of a search: all texts cut side by side and counted through, and scalings measured on some of them.

use crate::compare::{Plan, Text, window_options};
use crate::error::{Result, Within, ensure};
use crate::metrics::{Metrics, Reference};
use crate::perplexity::{Scores, score_windows, scorer};
use crate::stats::MIN_WINDOWS;
use crate::windows::{Window, Windows};
use attn_core::PositionOverride;
use attn_models::Model;
use serde::Serialize;

/// A range of tokens of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Span {
    /// Index of the text.
    pub text: usize,
    /// The first token.
    pub from: usize,
    /// The one after the last.
    pub to: usize,
}

/// Texts cut into windows, which are numbered through all texts.
pub(super) struct Cut<'a> {
    texts: &'a [Text],
    cuts: Vec<Windows>,
    pub(super) windows: Vec<(usize, Window)>,
    metrics: Option<Metrics<'a>>,
    /// What the reference made of the windows, if further metrics are measured.
    pub(super) references: Vec<Reference>,
}

pub(super) fn cut<'a>(texts: &'a [Text], plan: &Plan, context: usize) -> Result<Cut<'a>> {
    let cuts: Result<Vec<Windows>> = texts
        .iter()
        .map(|text| Windows::new(text.tokens.len(), &window_options(plan, context)).within(|| text.name.clone()))
        .collect();
    let cuts = cuts?;
    let numbered = cuts.iter().enumerate();
    let windows: Vec<_> =
        numbered.flat_map(|(text, cut)| cut.windows().iter().map(move |window| (text, window.clone()))).collect();
    let needed = 2 * MIN_WINDOWS;
    ensure!(
        windows.len() >= needed,
        TextTooShort,
        "a search chooses on one half of the windows and confirms on the other: it takes {needed} windows of {context} \
         tokens, and there are {}",
        windows.len()
    );
    Ok(Cut { texts, cuts, windows, metrics: None, references: vec![] })
}

impl<'a> Cut<'a> {
    /// Measures these metrics too, and computes the references for every window.
    pub(super) fn refer(&mut self, metrics: Metrics<'a>) -> Result<()> {
        for (text, window) in &self.windows {
            let (tokens, some) = (&self.texts[*text].tokens, std::slice::from_ref(window));
            self.references.extend(metrics.references(tokens, &self.cuts[*text], some, &mut |_| ())?);
        }
        self.metrics = Some(metrics);
        Ok(())
    }

    pub(super) fn measure(
        &self,
        model: &Model,
        rope: &PositionOverride,
        indices: &[usize],
        length: Option<usize>,
    ) -> Result<Scores> {
        let model = model.with_positions(rope)?;
        let mut parts = vec![];
        for &index in indices {
            let (text, window) = &self.windows[index];
            let cut = &self.cuts[*text];
            let (tokens, some) = (&self.texts[*text].tokens, std::slice::from_ref(window));
            parts.push(match &self.metrics {
                None => {
                    let mut nll = scorer(&model, cut.context(), length);
                    score_windows(&mut nll, tokens, cut, some, &mut |_| ())?
                }
                Some(metrics) => {
                    let reference = std::slice::from_ref(&self.references[index]);
                    metrics.score(&model, tokens, (cut, some), reference, length, &mut |_| ())?
                }
            });
        }
        Ok(Scores::pooled(&parts))
    }

    pub(super) fn spans(&self, keep: impl Fn(usize) -> bool) -> Vec<Span> {
        let kept = self.windows.iter().enumerate().filter(|(index, _)| keep(*index));
        kept.map(|(_, (text, w))| Span { text: *text, from: w.text.start, to: w.text.end }).collect()
    }
}
