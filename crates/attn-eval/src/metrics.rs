//! Metrics that depend on far text.
//!
//! Most tokens of a text can be predicted from the few hundred before them, so perplexity hardly shows whether a model uses text
//! that is further back. Two metrics show that better. Both compare a setting with the *reference*: the model as it is, within
//! the context it was trained for.
//!
//! - **LongPPL** (Fang et al. 2024, What is Wrong with Perplexity for Long-context Language Modeling?): the perplexity of
//!   the key tokens alone. These are the tokens that the reference predicts well from the whole window (at less than `-beta`
//!   nats) and much worse, by more than `alpha` nats, from only the last `trunc_len` tokens. The definition is that of the Python
//!   package `longppl`: `sliding_window` tokens share one short context, and a key token stands for its characters, so that a
//!   token that shares a character with a key token is one too. There is one exception: in a window past the trained context, the
//!   reference reads at most as many tokens as the trained context has, while the package reads the whole window with a model that
//!   was not trained for it.
//! - **KL divergence** from the reference: by how many nats per token a setting's prediction, from the whole window, differs
//!   from the reference's prediction of the same token. It is exactly 0 for the model as it is, within the trained context.

use crate::clock::Clock;
use crate::error::{Result, ensure};
use crate::perplexity::{ScoreOptions, Scores, rows, score_windows};
use crate::stats::WindowNll;
use crate::windows::{Window, Windows};
use attn_models::Model;
use candle_core::Tensor;
use loader::Tokenizer;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// How key tokens are told from others.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct KeyTokens {
    /// The smallest number of tokens of the short context.
    pub trunc_len: usize,
    /// The number of tokens that share a short context, which grows by one for each of them.
    pub sliding_window: usize,
    /// The number of nats by which the prediction from the short context has to be worse.
    pub alpha: f64,
    /// The log-likelihood that the prediction from the whole context has to exceed.
    pub beta: f64,
}

impl KeyTokens {
    /// The defaults of the package: a `trunc_len` of 4096 and a `sliding_window` of 1024 tokens, 2 nats and -2. For a model that was
    /// trained for less than 8192 tokens, half and an eighth of its trained context.
    pub fn for_trained(trained: Option<usize>) -> Self {
        let trunc_len = trained.map_or(4096, |trained| (trained / 2).clamp(1, 4096));
        Self { trunc_len, sliding_window: (trunc_len / 4).max(1), alpha: 2.0, beta: -2.0 }
    }
}

/// What a setting is measured by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricName {
    /// Perplexity of all tokens.
    Ppl,
    /// Perplexity of the key tokens.
    LongPpl,
    /// Divergence from the reference.
    Kl,
}

impl MetricName {
    /// All metrics.
    pub const ALL: [Self; 3] = [Self::Ppl, Self::LongPpl, Self::Kl];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ppl => "ppl",
            Self::LongPpl => "longppl",
            Self::Kl => "kl",
        }
    }
}

impl fmt::Display for MetricName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for MetricName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|metric| metric.name() == text);
        found.ok_or_else(|| format!("known: {}", Self::ALL.map(Self::name).join(", ")))
    }
}

/// Metrics beside perplexity, as a report names them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MetricSettings {
    /// How the tokens of LongPPL are found; absent if it is not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub longppl: Option<KeyTokens>,
    /// Whether the divergence is measured.
    pub kl: bool,
}

/// Which metrics are measured, and the reference for them.
#[derive(Debug, Clone, Copy)]
pub struct Metrics<'a> {
    /// The model as it is.
    pub model: &'a Model,
    /// Its tokenizer, which says which tokens share a character.
    pub tokenizer: &'a Tokenizer,
    /// The context it was trained for, beyond which it is not used; `None` if it is unknown, which leaves out this limit.
    pub trained: Option<usize>,
    /// Which metrics.
    pub settings: MetricSettings,
}

/// What the reference makes of one window.
#[derive(Debug, Clone, Default)]
pub struct Reference {
    /// The places of the key tokens among the window's ids, for those tokens that are scored in it.
    pub keys: Vec<usize>,
    /// Hidden states `(n, hidden_size)` from which its `n` scored tokens are predicted.
    hidden: Option<Tensor>,
}

impl Metrics<'_> {
    /// Refuses windows in which no token can be a key token.
    ///
    /// # Errors
    /// They are no longer than the short context.
    pub fn check(&self, context: usize) -> Result<()> {
        if let Some(KeyTokens { trunc_len, .. }) = self.settings.longppl {
            ensure!(
                trunc_len < context,
                Setting,
                "LongPPL compares a context of {context} with a short one of {trunc_len} tokens, which has to be shorter: take a \
                 smaller trunc_len or longer windows"
            );
        }
        Ok(())
    }

    /// The number of tokens that the reference reads for a window of `context`.
    pub fn work(&self, context: usize) -> usize {
        let full: usize = passes_within(context, self.longest(context)).iter().map(|(input, _)| input.len()).sum();
        let short = self.settings.longppl.map_or(0, |keys| {
            let tail = context.saturating_sub(keys.trunc_len);
            tail + tail.div_ceil(keys.sliding_window) * keys.trunc_len
        });
        full + short
    }

    /// Bytes of memory for the references of `windows` windows of `context`, and for the logits that are compared with them.
    pub fn kept_bytes(&self, windows: usize, context: usize) -> u64 {
        let (hidden, logits) = (self.model.spec().hidden_size, self.model.logits_at_once() * self.model.vocab_size());
        let numbers = windows.saturating_mul(context).saturating_mul(hidden).saturating_add(logits);
        if self.settings.kl { numbers.saturating_mul(4) as u64 } else { 0 }
    }

    /// What the reference makes of a window with these ids. `lead` says that the first one is a token put before the text;
    /// `scored` are the places of the ids that count. `progress` is told the number of tokens read after each forward pass.
    ///
    /// # Errors
    /// A forward pass fails, or its likelihoods are not finite.
    pub fn reference(
        &self,
        ids: &[u32],
        lead: bool,
        scored: Range<usize>,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Reference> {
        let hidden = self.full(ids, lead, progress)?;
        let keys = match &self.settings.longppl {
            Some(keys) => self.keys(keys, ids, lead, &hidden, progress)?,
            None => vec![],
        };
        let hidden =
            if self.settings.kl { Some(hidden.narrow(0, scored.start - 1, scored.len())?.contiguous()?) } else { None };
        Ok(Reference { keys: keys.into_iter().filter(|key| scored.contains(key)).collect(), hidden })
    }

    /// Hidden states `(t - 1, hidden_size)` of the reference after every token of a window but the last.
    fn full(&self, ids: &[u32], lead: bool, progress: &mut dyn FnMut(usize)) -> Result<Tensor> {
        let mut parts = vec![];
        for (input, new) in passes_within(ids.len(), self.longest(ids.len())) {
            let n = input.len();
            let hidden = self.hidden(&[part(ids, lead, input)], self.longest(ids.len()))?.squeeze(0)?;
            parts.push(hidden.narrow(0, n - new, new)?);
            progress(n);
        }
        Ok(Tensor::cat(&parts, 0)?)
    }

    /// Tokens of a window of `t` that the reference reads at once.
    fn longest(&self, t: usize) -> usize {
        self.trained.unwrap_or(t).clamp(1, t)
    }

    /// Hidden states `(b, t, hidden_size)` of rows of equal length.
    fn hidden(&self, rows: &[Vec<u32>], length: usize) -> Result<Tensor> {
        let ids = Tensor::from_vec(rows.concat(), (rows.len(), rows[0].len()), self.model.device())?;
        Ok(self.model.hidden(&ids, length, None)?)
    }

    /// The key tokens of a window, of which `full` are the hidden states from the whole context.
    fn keys(
        &self,
        options: &KeyTokens,
        ids: &[u32],
        lead: bool,
        full: &Tensor,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<usize>> {
        let (t, first) = (ids.len(), options.trunc_len);
        if t <= first {
            return Ok(vec![]);
        }
        let targets = |range: Range<usize>| Tensor::new(&ids[range], self.model.device());
        let states = full.narrow(0, first - 1, t - first)?.unsqueeze(0)?;
        let full = self.model.nll_after(&states, &targets(first..t)?.unsqueeze(0)?)?.squeeze(0)?.to_vec1::<f32>()?;
        let starts: Vec<usize> = (0..t - first).step_by(options.sliding_window).collect();
        let end = |start: usize| (start + first + options.sliding_window).min(t);
        let mut short = Vec::with_capacity(full.len());
        // Only the last short context may have another length than the others; it is then a batch of its own.
        for alike in starts.chunk_by(|&a, &b| end(a) - a == end(b) - b) {
            for batch in alike.chunks(rows(end(0))) {
                let n = end(batch[0]) - batch[0] - first;
                let inputs: Vec<Vec<u32>> = batch.iter().map(|&start| part(ids, lead, start..end(start) - 1)).collect();
                let hidden = self.hidden(&inputs, first + n)?.narrow(1, first - 1, n)?;
                let wanted: Vec<u32> =
                    batch.iter().flat_map(|&start| &ids[start + first..end(start)]).copied().collect();
                let wanted = Tensor::from_vec(wanted, (batch.len(), n), self.model.device())?;
                short.extend(self.model.nll_after(&hidden, &wanted)?.flatten_all()?.to_vec1::<f32>()?);
                progress(inputs.iter().map(Vec::len).sum());
            }
        }
        let finite = full.iter().chain(&short).all(|nll| nll.is_finite());
        ensure!(finite, NotFinite, "the model as it is gives a log-likelihood that is not finite");
        let is_key =
            |(full, short): (&f32, &f32)| f64::from(short - full) > options.alpha && f64::from(*full) < -options.beta;
        let found: Vec<usize> = (first..t).filter(|&i| is_key((&full[i - first], &short[i - first]))).collect();
        Ok(as_text(&spans(self.tokenizer, ids)?, &found))
    }

    /// Scores a text under `model`, window by window against the reference. `progress` is told the number of tokens read
    /// after each forward pass.
    ///
    /// # Errors
    /// As [`crate::perplexity::score`] and [`check`](Self::check).
    pub fn measure(
        &self,
        model: &Model,
        tokens: &[u32],
        options: &ScoreOptions,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Scores> {
        let clock = Clock::start();
        let windows = Windows::new(tokens.len(), &options.windows)?;
        self.check(windows.context())?;
        let mut parts = vec![];
        for some in windows.windows().chunks(rows(windows.context())) {
            let references = self.references(tokens, &windows, some, progress)?;
            parts.push(self.score(model, tokens, (&windows, some), &references, options.length, progress)?);
        }
        Ok(Scores { seconds: clock.seconds(), ..Scores::pooled(&parts) })
    }

    /// Scores some windows of a text, against what the reference made of them.
    ///
    /// # Errors
    /// As [`crate::perplexity::score`].
    pub(crate) fn score(
        &self,
        model: &Model,
        tokens: &[u32],
        (windows, some): (&Windows, &[Window]),
        references: &[Reference],
        length: Option<usize>,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Scores> {
        let (mut longppl, mut kl) = (vec![], vec![]);
        let mut next = some.iter().zip(references);
        let t = windows.context();
        let mut nll = |batch: &[Vec<u32>]| -> candle_core::Result<Vec<Vec<f32>>> {
            let ids = Tensor::from_vec(batch.concat(), (batch.len(), t), model.device())?;
            let hidden = model.hidden(&ids, length.unwrap_or(t), None)?.narrow(1, 0, t - 1)?;
            let rows: Vec<Vec<f32>> = model.nll_after(&hidden, &ids.narrow(1, 1, t - 1)?)?.to_vec2()?;
            for (i, row) in rows.iter().enumerate() {
                let Some((window, reference)) = next.next() else { candle_core::bail!("a window has no reference") };
                longppl.push(sums(reference.keys.iter().map(|key| row[key - 1])));
                if let Some(known) = &reference.hidden {
                    let scored = windows.positions(window);
                    let hidden = hidden.get(i)?.narrow(0, scored.start - 1, scored.len())?;
                    let found = model.divergence(known, &hidden)?.to_vec1::<f32>()?;
                    // A divergence can be below 0 only by rounding.
                    kl.push(sums(found.into_iter().map(|nats| if nats < 0.0 { 0.0 } else { nats })));
                }
            }
            Ok(rows)
        };
        let mut scores = score_windows(&mut nll, tokens, windows, some, progress)?;
        let finite = longppl.iter().chain(&kl).all(|window: &WindowNll| window.sum.is_finite());
        ensure!(finite, NotFinite, "a log-likelihood is not finite");
        scores.longppl = self.settings.longppl.map(|_| longppl);
        scores.kl = self.settings.kl.then_some(kl);
        Ok(scores)
    }

    /// What the reference makes of some windows of a text.
    ///
    /// # Errors
    /// As [`reference`](Self::reference).
    pub(crate) fn references(
        &self,
        tokens: &[u32],
        windows: &Windows,
        some: &[Window],
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<Reference>> {
        let lead = windows.bos().is_some();
        let of =
            |window: &Window| self.reference(&windows.ids(window, tokens), lead, windows.positions(window), progress);
        some.iter().map(of).collect()
    }
}

/// The passes over a window of `t` tokens of which at most `longest` are read at once: the tokens that a pass reads, and how many
/// of its last hidden states are new. From the second one on, three quarters of the tokens of a full pass come before the new
/// ones. No state is needed after the last token.
fn passes_within(t: usize, longest: usize) -> Vec<(Range<usize>, usize)> {
    let (end, step) = (t - 1, (longest / 4).max(1));
    let mut passes = vec![];
    let mut done = 0;
    while done < end {
        let to = if done == 0 { longest.min(end) } else { (done + step).min(end) };
        passes.push((to.saturating_sub(longest)..to, to - done));
        done = to;
    }
    passes
}

/// A part of a window. If the window begins with a token put before the text, so does the part.
fn part(ids: &[u32], lead: bool, range: Range<usize>) -> Vec<u32> {
    let mut part = ids[range].to_vec();
    if lead {
        part[0] = ids[0];
    }
    part
}

/// The sums over the numbers of one window.
fn sums(numbers: impl Iterator<Item = f32>) -> WindowNll {
    numbers.map(f64::from).fold(WindowNll::default(), |sum, x| WindowNll {
        sum: sum.sum + x,
        squares: sum.squares + x * x,
        tokens: sum.tokens + 1,
        ..sum
    })
}

/// A character has at most four bytes, so one that is incomplete after this many tokens stays incomplete.
const MAX_HELD: usize = 4;

/// The characters of which each token has bytes, by index. A character whose bytes are in several tokens belongs to all of them.
fn spans(tokenizer: &Tokenizer, ids: &[u32]) -> Result<Vec<Range<usize>>> {
    let mut spans: Vec<Range<usize>> = Vec::with_capacity(ids.len());
    // Where the tokens begin that are decoded together, in tokens and in characters; whether the last character was cut.
    let (mut group, mut before, mut cut) = (0, 0, false);
    for i in 0..ids.len() {
        let text = tokenizer.decode(&ids[group..=i], false)?;
        let last = spans.last().map_or(0, |span| span.end);
        let start = if cut { last - 1 } else { last };
        let end = (before + text.chars().count()).max(start + 1);
        spans.push(start..end);
        cut = text.ends_with(char::REPLACEMENT_CHARACTER) && i - group < MAX_HELD;
        if !cut {
            (group, before) = (i + 1, end);
        }
    }
    Ok(spans)
}

/// The tokens that lie within the characters of the key tokens. The package goes through the text because it allows another
/// tokenizer than the one that the key tokens were found with.
fn as_text(spans: &[Range<usize>], keys: &[usize]) -> Vec<usize> {
    let mut parts: Vec<Range<usize>> = vec![];
    for span in keys.iter().map(|&key| &spans[key]) {
        match parts.last_mut().filter(|part| part.end == span.start) {
            Some(part) => part.end = span.end,
            None => parts.push(span.clone()),
        }
    }
    let (mut found, mut part) = (vec![], 0);
    let mut i = 0;
    while i < spans.len() && part < parts.len() {
        let (span, within) = (&spans[i], &parts[part]);
        if span.start >= within.start && span.end <= within.end {
            found.push(i);
            i += 1;
        } else if span.start < within.start {
            i += 1;
        } else {
            part += 1;
        }
    }
    found
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
