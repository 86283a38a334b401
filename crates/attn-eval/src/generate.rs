//! Text generation: the loop between a session and a sampler.

use crate::clock::Clock;
use crate::sample::Sampler;
use anyhow::{Context, Result, ensure};
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
    /// What the decoder of an encoder-decoder model starts from.
    pub decoder_start: Option<u32>,
}

/// What a generation took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Generated {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Seconds until the first new token was known.
    pub prompt_seconds: f64,
    /// New tokens, the one that ended the text included.
    pub new_tokens: usize,
    /// Seconds for the tokens after the first.
    pub decode_seconds: f64,
    /// Whether a stop token, or whoever took the tokens, ended the text.
    pub stopped: bool,
}

/// Continues `prompt`, handing each new token to `emit` as it is chosen, which may end the text there.
///
/// # Errors
/// The prompt is empty, the model is an encoder or out of positions, or `emit` fails.
pub fn generate(
    model: &Model,
    prompt: &[u32],
    sampler: &mut Sampler,
    options: &GenerateOptions,
    emit: &mut dyn FnMut(u32) -> Result<ControlFlow<()>>,
) -> Result<Generated> {
    ensure!(model.architecture() != Architecture::Encoder, "the model is an encoder and can't generate text");
    ensure!(!prompt.is_empty(), "the prompt is empty: there is nothing to continue");
    let clock = Clock::start();
    let mut session = Session::new(model, options.length, None)?;
    let mut history = prompt.to_vec();
    if model.architecture() == Architecture::EncoderDecoder {
        session.encode(&row(prompt, model)?, None)?;
        history = vec![options.decoder_start.context("the config names no decoder_start_token_id")?];
    }
    let mut result = Generated {
        prompt_tokens: prompt.len(),
        prompt_seconds: 0.0,
        new_tokens: 0,
        decode_seconds: 0.0,
        stopped: false,
    };
    let mut logits = session.feed(&row(&history, model)?)?;
    result.prompt_seconds = clock.seconds();
    for _ in 0..options.max_new {
        let token = sampler.next(logits.squeeze(0)?.to_vec1()?, &history)?;
        if result.new_tokens == 0 {
            result.prompt_seconds = clock.seconds();
        }
        result.new_tokens += 1;
        result.stopped = options.stop.contains(&token);
        if result.stopped {
            break;
        }
        if emit(token)?.is_break() {
            result.stopped = true;
            break;
        }
        history.push(token);
        if result.new_tokens < options.max_new {
            logits = session.feed(&row(&[token], model)?)?;
        }
    }
    result.decode_seconds = clock.seconds() - result.prompt_seconds;
    Ok(result)
}

fn row(ids: &[u32], model: &Model) -> Result<Tensor> {
    Ok(Tensor::new(ids, model.device())?.unsqueeze(0)?)
}
