//! `attn generate`: text, shown as it comes.

use crate::args::GenerateArgs;
use crate::memory;
use crate::model::{self, Opened};
use crate::output::{note, print, usage};
use crate::parse::{BosChoice, LengthPolicy, Predict};
use crate::{inspect, template, text};
use anyhow::Result;
use attn_eval::compare::Mode;
use attn_eval::generate::{GenerateOptions, Generated, generate};
use attn_eval::sample::{SampleOptions, Sampler};
use attn_models::memory::Workload;
use attn_models::{Architecture, RopeLength};
use std::ops::ControlFlow;
use std::path::Path;

/// Tokens to make room for at first where the length has no other meaning.
const FIRST_ROOM: usize = 4096;

/// New tokens at most, where nothing else is asked for.
const NEW_TOKENS: usize = 128;

/// What is missing where neither an option nor stdin has a prompt.
pub(crate) const NO_PROMPT: &str = "there is no prompt: give one with -p or -f";

/// Runs the command.
///
/// # Errors
/// The model can't be loaded or has no tokenizer, the prompt is empty or too long, or stdout is closed.
pub(crate) fn run(args: &GenerateArgs) -> Result<()> {
    if args.system.is_some() && !args.chat {
        return usage("--system is a message of a chat: it goes with --chat or --conversation");
    }
    let prompt = match (&args.prompt, &args.file) {
        (Some(prompt), _) => prompt.clone(),
        (None, Some(file)) => text::read_file(file)?,
        (None, None) => text::read_file(Path::new("-"))?,
    };
    if args.prompt.is_none() && args.file.is_none() && prompt.is_empty() {
        return usage(NO_PROMPT);
    }
    let opened = model::open_checked(&args.model, |checkpoint| {
        if args.chat {
            checkpoint.require_chat_template()?;
        }
        Ok(())
    })?;
    let ids = encode(&opened, &prompt, args)?;
    let (most, declared) = room(args, &opened, ids.len(), Predict::AtMost(NEW_TOKENS))?;
    let options = options(&opened, most, length(args, &opened, ids.len(), declared));
    hint(&opened, declared);
    let mut sampler = Sampler::new(sampling(args));
    let mut decoder = opened.tokenizer()?.stream(true);
    let mut shown = Shown::new(args);
    let result = generate(&opened.model, &ids, &mut sampler, &options, &mut |token| shown.push(&decoder.push(token)?))?;
    shown.finish(&decoder.finish()?)?;
    report(args, &opened, &ids, &result)
}

/// How to generate, under this policy.
pub(crate) fn options(opened: &Opened, max_new: usize, length: RopeLength) -> GenerateOptions {
    GenerateOptions {
        max_new,
        stop: opened.checkpoint.generation.eos_ids.clone(),
        length,
        decoder_start: opened.config_id("decoder_start_token_id"),
    }
}

/// What it took, as a line on stderr or, with `--json`, as a document.
pub(crate) fn report(args: &GenerateArgs, opened: &Opened, ids: &[u32], result: &Generated) -> Result<()> {
    let begins = opened.tokenizer()?.bos_id.filter(|bos| ids.first() == Some(bos));
    if args.json {
        return print(&format!("{}\n", figures(result, begins)));
    }
    note(&speed(result, begins));
    Ok(())
}

/// How many tokens may follow a prompt of this many, and how many that makes in all: checked against the model's positions and
/// the memory.
///
/// # Errors
/// There are no positions or there is no memory for so many.
pub(crate) fn room(args: &GenerateArgs, opened: &Opened, prompt: usize, default: Predict) -> Result<(usize, usize)> {
    let most = match args.n_predict.unwrap_or(default) {
        Predict::AtMost(n) => n,
        Predict::ToTheEnd => room_left(opened, prompt),
    };
    let declared = prompt.saturating_add(most);
    if let Some(max) = opened.model.max_context()
        && declared > max
    {
        return usage(format!(
            "{prompt} tokens of prompt and {most} new ones are past the model's learned positions, which end at {max}"
        ));
    }
    memory::check(opened, declared, |total| work(args, opened, prompt, total))?;
    Ok((most, declared))
}

/// Text on its way out: what could become one of the texts that end it is held back.
pub(crate) struct Shown<'a> {
    json: bool,
    stop: &'a [String],
    held: String,
    /// What was shown so far.
    pub(crate) text: String,
}

impl<'a> Shown<'a> {
    pub(crate) fn new(args: &'a GenerateArgs) -> Self {
        Self { json: args.json, stop: &args.stop, held: String::new(), text: String::new() }
    }

    /// Shows what is certain, and ends the text at the first of the texts that end it.
    pub(crate) fn push(&mut self, text: &str) -> Result<ControlFlow<()>> {
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

    pub(crate) fn finish(&mut self, rest: &str) -> Result<()> {
        if self.push(rest)?.is_continue() {
            self.show(self.held.len())?;
        }
        if self.json { Ok(()) } else { print("\n") }
    }
}

/// Tokens until the trained context is full; some where it is unknown or full already.
fn room_left(opened: &Opened, prompt: usize) -> usize {
    let room = opened.model.trained_context().map_or(FIRST_ROOM, |trained| trained.saturating_sub(prompt));
    let last = opened.model.max_context().map_or(usize::MAX, |end| end.saturating_sub(prompt));
    if room == 0 { FIRST_ROOM.min(last) } else { room.min(last) }
}

/// Says so where rotary positions go past what the model has seen, and nothing is done about it.
pub(crate) fn hint(opened: &Opened, declared: usize) {
    let unscaled = inspect::has_rope(&opened.model) && inspect::scaling(&opened.model).0 == Mode::none().to_string();
    if let Some(trained) = opened.model.trained_context().filter(|&trained| unscaled && declared > trained) {
        note(&format!(
            "warning: prompt and answer of up to {declared} tokens go past the {trained} that the model was trained for: \
             attn compare shows which --rope-scaling helps"
        ));
    }
}

fn encode(opened: &Opened, prompt: &str, args: &GenerateArgs) -> Result<Vec<u32>> {
    let tokenizer = opened.tokenizer()?;
    if !args.chat {
        return Ok(match args.bos {
            BosChoice::Auto => tokenizer.encode(prompt, true)?,
            BosChoice::On => {
                opened.bos(args.bos)?;
                tokenizer.encode_with_bos(prompt, true)?
            }
            BosChoice::Off => tokenizer.encode_with_bos(prompt, false)?,
        });
    }
    check_chat(args)?;
    let mut messages = opening(args);
    messages.push(("user".to_string(), prompt.to_string()));
    encode_chat(opened, &messages)
}

/// Refuses what a chat template decides by itself.
pub(crate) fn check_chat(args: &GenerateArgs) -> Result<()> {
    if args.bos != BosChoice::Auto {
        return usage("--bos is for plain prompts: in a chat the checkpoint's template decides");
    }
    Ok(())
}

/// The tokens of a chat, up to where the answer begins.
pub(crate) fn encode_chat(opened: &Opened, messages: &[(String, String)]) -> Result<Vec<u32>> {
    Ok(opened.tokenizer()?.encode(&template::render(&opened.checkpoint, messages)?, false)?)
}

/// What comes before the first message: the system's, if there is one.
pub(crate) fn opening(args: &GenerateArgs) -> Vec<(String, String)> {
    args.system.iter().map(|text| ("system".to_string(), text.clone())).collect()
}

/// The policy for the session. Where the length changes nothing but how much room is made at first, a huge `-n` makes
/// no huge room.
fn length(args: &GenerateArgs, opened: &Opened, prompt: usize, declared: usize) -> RopeLength {
    if !opened.model.depends_on_length() {
        return RopeLength::Declared(declared.min(prompt + FIRST_ROOM));
    }
    model::session_length(args.model.rope.rope_length, declared)
}

/// What `total` tokens, of which at most `prompt` are the prompt's, ask of the model.
fn work(args: &GenerateArgs, opened: &Opened, prompt: usize, total: usize) -> Workload {
    let prompt = prompt.min(total);
    let depends = opened.model.depends_on_length();
    let room = match args.model.rope.rope_length {
        Some(LengthPolicy::Fixed(room)) if depends => room.max(total),
        // Room for all of them from the start; else the cache doubles when it is full.
        Some(LengthPolicy::Declared) | None if depends || total <= prompt + FIRST_ROOM => total,
        _ => total.saturating_mul(2),
    };
    let recomputed = depends && args.model.rope.rope_length == Some(LengthPolicy::Exact);
    let (pass, cached, encoded) = match opened.model.architecture() {
        Architecture::EncoderDecoder => (1, total - prompt, prompt),
        _ => (if recomputed { total } else { prompt }, room, 0),
    };
    Workload { rows: 1, pass, cached, encoded, logits: 1 }
}

pub(crate) fn sampling(args: &GenerateArgs) -> SampleOptions {
    let sampling = &args.sampling;
    SampleOptions {
        temperature: sampling.temperature,
        top_k: (sampling.top_k > 0).then_some(sampling.top_k),
        top_p: sampling.top_p,
        min_p: sampling.min_p,
        repeat_penalty: sampling.repeat_penalty,
        repeat_last_n: sampling.repeat_last_n,
        seed: sampling.seed,
    }
}

/// The figures of [`speed`] as JSON.
fn figures(result: &Generated, bos: Option<u32>) -> serde_json::Value {
    serde_json::json!({
        "prompt_tokens": result.prompt_tokens, "prompt_seconds": result.prompt_seconds, "bos": bos,
        "new_tokens": result.new_tokens, "decode_seconds": result.decode_seconds, "stopped": result.stopped,
    })
}

fn speed(result: &Generated, bos: Option<u32>) -> String {
    let per_second = |tokens: usize, seconds: f64| tokens as f64 / seconds.max(1e-9);
    let decoded = result.new_tokens.saturating_sub(1);
    let mut line = format!(
        "[prompt: {} tokens{}, {:.1} tokens/s",
        result.prompt_tokens,
        bos.map_or(String::new(), |id| format!(" from BOS ({id}) on")),
        per_second(result.prompt_tokens, result.prompt_seconds)
    );
    if decoded > 0 {
        let speed = per_second(decoded, result.decode_seconds);
        line.push_str(&format!("; generated: {} tokens, {speed:.1} tokens/s", result.new_tokens));
    }
    line.push(']');
    line
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
