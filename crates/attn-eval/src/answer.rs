//! Answers to single requests, as evaluation harnesses make them: how likely a continuation is after a context, and how a prompt
//! continues.
//!
//! A harness asks for all endings of a question one after the other. So the tokens that a request has in common with the one
//! before are not read again, unless the model's positions depend on the length of the sequence. Up to rounding, an answer does
//! not depend on the requests before it.

use crate::error::{Error, Result, ensure, error};
use crate::generate::{GenerateOptions, Writer, reused, row};
use crate::protocol::{Protocol, score_passes};
use crate::sample::{SampleOptions, Sampler};
use attn_core::ops;
use attn_models::{Architecture, Model, RopeLength, Session};
use candle_core::{D, Tensor};
use loader::Tokenizer;
use std::ops::ControlFlow;

/// How likely a text is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Likelihood {
    /// Natural logarithm of its probability.
    pub logprob: f64,
    /// Whether each of its tokens is the most likely one at its place.
    pub is_greedy: bool,
    /// How many tokens it is.
    pub tokens: usize,
    /// Tokens of context that did not fit and were left out, at the beginning.
    pub left_out: usize,
}

/// The continuation of a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Continuation {
    /// Its text, without what stopped it.
    pub text: String,
    /// Tokens that were chosen.
    pub tokens: usize,
    /// Whether a text or token ended it, rather than the number of tokens.
    pub stopped: bool,
    /// Tokens of the prompt that did not fit and were left out, at its beginning.
    pub left_out: usize,
}

/// Answers requests to a model.
#[derive(Debug)]
pub struct Answerer<'a> {
    model: &'a Model,
    max_length: usize,
    /// The length that length-dependent scalings resolve for; `None`: the sequence's own length.
    length: Option<usize>,
    /// A running sequence, and the tokens that it was fed.
    session: Option<(Session, Vec<u32>)>,
    writer: Option<Writer<'a>>,
}

impl<'a> Answerer<'a> {
    /// Answers from at most `max_length` tokens. `length` is the length that length-dependent scalings resolve for, in place of
    /// each sequence's length.
    ///
    /// # Errors
    /// The model does not predict the next token, or `max_length` is below 2 or past the model's positions.
    pub fn new(model: &'a Model, max_length: usize, length: Option<usize>) -> Result<Self> {
        ensure!(
            model.architecture() == Architecture::Decoder,
            UnsuitableModel,
            "only models that predict the next token can answer requests"
        );
        ensure!(
            max_length >= 2,
            Setting,
            "a length of {max_length} leaves no token to predict: it has to be at least 2"
        );
        crate::perplexity::check_room(model, max_length)?;
        Ok(Self { model, max_length, length, session: None, writer: None })
    }

    /// The largest number of tokens of a sequence.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// How likely `continuation` is after `context`. What does not fit is left out at the beginning of the context.
    ///
    /// # Errors
    /// Either is empty, or the continuation alone does not fit; or the model fails.
    pub fn likelihood(&mut self, context: &[u32], continuation: &[u32]) -> Result<Likelihood> {
        let (tokens, most) = (continuation.len(), self.max_length);
        ensure!(!context.is_empty(), Request, "the context is empty: there is nothing before the continuation");
        ensure!(tokens > 0, Request, "the continuation has no tokens");
        ensure!(tokens <= most, Request, "the continuation has {tokens} tokens, but the model reads {most} at most");
        // The last token is only predicted and not read.
        let left_out = (context.len() + tokens).saturating_sub(most + 1);
        let context = &context[left_out..];
        let read = [context, &continuation[..tokens - 1]].concat();
        let (mut session, known) = self.begin(&read, context.len() - 1)?;
        let (mut logprob, mut is_greedy) = (0.0, true);
        let first = session.feed(&row(&read[known..context.len()], self.model)?)?;
        let mut score = |logits: Tensor, wanted: &[u32]| -> Result<()> {
            let targets = Tensor::new(wanted, logits.device())?;
            let nll: Vec<f32> = ops::nll(&logits, &targets)?.to_vec1()?;
            ensure!(nll.iter().all(|nll| nll.is_finite()), NotFinite, "a token of the continuation has no likelihood");
            logprob -= nll.iter().map(|&nll| f64::from(nll)).sum::<f64>();
            is_greedy &= logits.argmax(D::Minus1)?.to_vec1::<u32>()? == wanted;
            Ok(())
        };
        score(first, &continuation[..1])?;
        let chunk = self.model.logits_at_once();
        for (fed, wanted) in read[context.len()..].chunks(chunk).zip(continuation[1..].chunks(chunk)) {
            score(session.feed_all(&row(fed, self.model)?)?.squeeze(0)?, wanted)?;
        }
        if !self.model.depends_on_length() {
            self.session = Some((session, read));
        }
        Ok(Likelihood { logprob, is_greedy, tokens, left_out })
    }

    /// How likely a text is as lm-evaluation-harness measures it ([`Protocol::LmEval`]): every token of it, the first after
    /// `prefix`. `is_greedy` is always false.
    ///
    /// # Errors
    /// There is no `prefix`, or the model fails.
    pub fn rolling(&mut self, tokens: &[u32], prefix: Option<u32>) -> Result<Likelihood> {
        let passes = Protocol::LmEval.passes(tokens.len(), self.max_length, self.max_length, prefix)?;
        let scores = score_passes(self.model, tokens, &passes, self.length, &mut |_| ())?;
        let logprob = -scores.windows.iter().map(|window| window.sum).sum::<f64>();
        Ok(Likelihood { logprob, is_greedy: false, tokens: tokens.len(), left_out: 0 })
    }

    /// Continues `prompt` greedily or as `sampling` says, by at most `most` tokens. One of the tokens `ends` or of the texts `stop`
    /// ends it, and is not part of it. What does not fit is left out at the beginning of the prompt.
    ///
    /// # Errors
    /// The prompt is empty, `most` tokens leave no room for it, or the model fails.
    pub fn continuation(
        &mut self,
        tokenizer: &Tokenizer,
        prompt: &[u32],
        most: usize,
        (ends, stop): (&[u32], &[String]),
        sampling: SampleOptions,
    ) -> Result<Continuation> {
        ensure!(!prompt.is_empty(), Request, "the prompt is empty: there is nothing to continue");
        ensure!(
            most < self.max_length,
            Request,
            "{most} new tokens leave no room for a prompt in a length of {}",
            self.max_length
        );
        let left_out = (prompt.len() + most).saturating_sub(self.max_length);
        let prompt = &prompt[left_out..];
        let length = RopeLength::Declared(self.length.unwrap_or(prompt.len() + most));
        let options = GenerateOptions { max_new: most, stop: vec![], length, decoder_start: None };
        let mut writer = match self.writer.take() {
            Some(mut writer) if !self.model.depends_on_length() => {
                writer.limit(most);
                writer
            }
            _ => Writer::new(self.model, options),
        };
        // A stop text may be a special token, which the text that is returned does not contain.
        let (mut spoken, mut shown) = (tokenizer.stream(false), tokenizer.stream(true));
        let (mut all, mut text) = (String::new(), String::new());
        let stop: Vec<&str> = stop.iter().map(String::as_str).filter(|stop| !stop.is_empty()).collect();
        let result = writer.write(prompt, &mut Sampler::new(sampling), &mut |token| -> Result<ControlFlow<()>> {
            if ends.contains(&token) {
                return Ok(ControlFlow::Break(()));
            }
            all.push_str(&spoken.push(token)?);
            text.push_str(&shown.push(token)?);
            let ended = stop.iter().any(|stop| all.contains(stop));
            Ok(if ended { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        text.push_str(&shown.finish()?);
        if let Some(at) = stop.iter().filter_map(|stop| text.find(stop)).min() {
            text.truncate(at);
        }
        self.writer = Some(writer);
        Ok(Continuation { text, tokens: result.new_tokens, stopped: result.stopped, left_out })
    }

    /// A session that has read the first of `tokens`, at most `most` of them, and how many it has read.
    fn begin(&mut self, tokens: &[u32], most: usize) -> Result<(Session, usize)> {
        if let Some(found) = reused(self.session.take(), tokens, most) {
            return Ok(found);
        }
        let length = RopeLength::Declared(self.length.unwrap_or(tokens.len()));
        Ok((Session::new(self.model, length, None)?, 0))
    }
}

/// The tokens of a context and of what follows it, as lm-evaluation-harness splits them: spaces at the end of the context belong to
/// the continuation, and the continuation's tokens are those of both together after as many as the context has by itself. An empty
/// context is `prefix`.
///
/// # Errors
/// An error of `encode`, unchanged; or the context is empty and there is no `prefix`.
pub fn split<E: From<Error>>(
    context: &str,
    continuation: &str,
    prefix: Option<u32>,
    encode: impl Fn(&str, bool) -> Result<Vec<u32>, E>,
) -> Result<(Vec<u32>, Vec<u32>), E> {
    if context.is_empty() {
        let none = || error!(UnsuitableModel, "an empty context is replaced by a BOS or EOS token, but there is none");
        let prefix = prefix.ok_or_else(none)?;
        let mut tokens = encode(continuation, false)?;
        // A prefix that the continuation begins with is not doubled.
        if tokens.first() == Some(&prefix) {
            tokens.remove(0);
        }
        return Ok((vec![prefix], tokens));
    }
    // What Python's `str.rstrip` removes.
    let space = |c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c);
    let whole = encode(&format!("{context}{continuation}"), true)?;
    let before = encode(context.trim_end_matches(space), true)?;
    let tokens = whole.get(before.len()..).unwrap_or_default().to_vec();
    Ok((before, tokens))
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
