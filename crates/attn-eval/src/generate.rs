//! Text generation: a session gives logits, a sampler chooses tokens.

use crate::clock::Clock;
use crate::error::{Error, Result, ensure, error};
use crate::sample::Sampler;
use attn_models::{Architecture, Model, RopeLength, Session};
use candle_core::Tensor;
use std::ops::ControlFlow;

/// When to stop, and under which frequencies to run.
#[derive(Debug, Clone)]
pub struct GenerateOptions {
    /// At most this many new tokens.
    pub max_new: usize,
    /// Tokens that end the text; they are not passed on.
    pub stop: Vec<u32>,
    /// The policy for length-dependent scalings.
    pub length: RopeLength,
    /// The token that the decoder of an encoder-decoder model starts from.
    pub decoder_start: Option<u32>,
}

/// What a generation read and wrote, and how long it took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Generated {
    /// Tokens of the prompt that were read; those that a [`Writer`] had read before are not counted.
    pub prompt_tokens: usize,
    /// Seconds until the first new token was chosen.
    pub prompt_seconds: f64,
    /// New tokens, the one that ended the text included.
    pub new_tokens: usize,
    /// Seconds for the tokens after the first.
    pub decode_seconds: f64,
    /// Whether a stop token or the caller's function ended the text.
    pub stopped: bool,
}

/// Continues `prompt`, and hands each new token to `emit` as soon as it is chosen; `emit` may end the text there.
///
/// # Errors
/// The prompt is empty, or the model is an encoder or has too few positions; or an error of `emit`, unchanged.
pub fn generate<E: From<Error>>(
    model: &Model,
    prompt: &[u32],
    sampler: &mut Sampler,
    options: &GenerateOptions,
    emit: &mut dyn FnMut(u32) -> Result<ControlFlow<()>, E>,
) -> Result<Generated, E> {
    Writer::new(model, options.clone()).write(prompt, sampler, emit)
}

/// A text that others and the model write in turns, as in a conversation. Keys and values stay cached from turn to turn: what
/// a prompt has in common with the text so far is not read again.
#[derive(Debug)]
pub struct Writer<'a> {
    model: &'a Model,
    options: GenerateOptions,
    /// The running sequence, once there is one.
    session: Option<Session>,
    /// The tokens that the session was fed.
    read: Vec<u32>,
}

impl<'a> Writer<'a> {
    /// A writer that has read nothing yet.
    pub fn new(model: &'a Model, options: GenerateOptions) -> Self {
        Self { model, options, session: None, read: vec![] }
    }

    /// Sets the largest number of new tokens for all later calls, as [`GenerateOptions::max_new`] does.
    pub fn limit(&mut self, max_new: usize) {
        self.options.max_new = max_new;
    }

    /// Continues `prompt` as [`generate`] does. The prompt is the whole text, not only its new part.
    ///
    /// # Errors
    /// As [`generate`]. After an error, the next call reads its whole prompt again.
    pub fn write<E: From<Error>>(
        &mut self,
        prompt: &[u32],
        sampler: &mut Sampler,
        emit: &mut dyn FnMut(u32) -> Result<ControlFlow<()>, E>,
    ) -> Result<Generated, E> {
        self.check(prompt)?;
        let clock = Clock::start();
        // The session is taken out of `self`, so that after an error no half-read one is left there.
        let (mut session, mut history, new) = self.begin(prompt)?;
        let mut result =
            Generated { prompt_tokens: new, prompt_seconds: 0.0, new_tokens: 0, decode_seconds: 0.0, stopped: false };
        let mut logits = self.fed(&mut session, &history)?;
        result.prompt_seconds = clock.seconds();
        for _ in 0..self.options.max_new {
            let token = sampler.next(logits, &history)?;
            if result.new_tokens == 0 {
                result.prompt_seconds = clock.seconds();
            }
            result.new_tokens += 1;
            result.stopped = self.options.stop.contains(&token);
            if result.stopped {
                break;
            }
            if emit(token)?.is_break() {
                result.stopped = true;
                break;
            }
            history.push(token);
            if result.new_tokens == self.options.max_new {
                break;
            }
            logits = self.fed(&mut session, &history)?;
        }
        result.decode_seconds = clock.seconds() - result.prompt_seconds;
        history.truncate(session.len());
        (self.session, self.read) = (Some(session), history);
        Ok(result)
    }

    fn check(&self, prompt: &[u32]) -> Result<()> {
        let encoder = self.model.architecture() == Architecture::Encoder;
        ensure!(!encoder, UnsuitableModel, "the model is an encoder and can't generate text");
        ensure!(!prompt.is_empty(), Request, "the prompt is empty: there is nothing to continue");
        Ok(())
    }

    /// The logits of the token after `tokens`; the session reads those of them that it has not read.
    fn fed(&self, session: &mut Session, tokens: &[u32]) -> Result<Vec<f32>> {
        let new = row(&tokens[session.len()..], self.model)?;
        Ok(session.feed(&new)?.squeeze(0)?.to_vec1()?)
    }

    /// A session that has read as much of `prompt` as could be kept from the call before, the tokens to continue, and the number
    /// of the prompt's tokens that are new. At least one token is left to be read.
    fn begin(&mut self, prompt: &[u32]) -> Result<(Session, Vec<u32>, usize)> {
        let (model, length) = (self.model, self.options.length);
        let read = std::mem::take(&mut self.read);
        if model.architecture() == Architecture::EncoderDecoder {
            let mut session = Session::new(model, length, None)?;
            session.encode(&row(prompt, model)?, None)?;
            let none = || error!(UnsuitableModel, "the config names no decoder_start_token_id");
            let start = self.options.decoder_start.ok_or_else(none)?;
            return Ok((session, vec![start], prompt.len()));
        }
        let before = self.session.take().map(|session| (session, read));
        let (session, known) = match reused(before, prompt, prompt.len() - 1) {
            Some(found) => found,
            None => (Session::new(model, length, None)?, 0),
        };
        Ok((session, prompt.to_vec(), prompt.len() - known))
    }
}

/// A session that was fed other tokens, truncated to those that it has in common with the beginning of `tokens`, `most` of them
/// at most, and their number. `None` without a session, or if a layer with a sliding window may have dropped keys that would be
/// needed again.
pub(crate) fn reused(before: Option<(Session, Vec<u32>)>, tokens: &[u32], most: usize) -> Option<(Session, usize)> {
    let (mut session, read) = before?;
    let alike = tokens.iter().zip(&read).take_while(|(a, b)| a == b).count().min(most);
    session.truncate(alike).ok()?;
    Some((session, alike))
}

/// Ids `(1, t)` on the model's device.
pub(crate) fn row(ids: &[u32], model: &Model) -> candle_core::Result<Tensor> {
    Tensor::new(ids, model.device())?.unsqueeze(0)
}
