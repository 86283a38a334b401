//! `attn generate --conversation`: messages and answers in turns.
//!
//! In every turn the checkpoint's chat template writes the whole conversation as one prompt, because only the template
//! knows how a turn ends. What this prompt has in common with the last one is cached, so a turn takes only the time for
//! its new tokens.

use super::args::GenerateArgs;
use super::session::{NO_PROMPT, check_chat, encode_chat, hint, opening, options, report, room, sampling};
use super::shown::Shown;
use crate::model::{self, Opened};
use crate::output::{note, usage};
use crate::parse::{LengthPolicy, Predict};
use anyhow::{Context, Result};
use attn_eval::generate::Writer;
use attn_eval::sample::Sampler;
use attn_models::RopeLength;
use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU8, Ordering};

/// Nothing is being written: Ctrl-C ends the program.
const LISTENING: u8 = 0;
/// An answer is being written: Ctrl-C ends the answer.
const ANSWERING: u8 = 1;
/// An answer is to end; one more Ctrl-C ends the program.
const BROKEN_OFF: u8 = 2;

static STATE: AtomicU8 = AtomicU8::new(LISTENING);

/// Ends the answer that is being written. False if there is none, or it was asked to end before.
pub(crate) fn break_off() -> bool {
    STATE.compare_exchange(ANSWERING, BROKEN_OFF, Ordering::SeqCst, Ordering::SeqCst).is_ok()
}

/// Whether that is what the command asks for: by name, or by giving no prompt at a terminal.
pub(super) fn is_meant(args: &GenerateArgs) -> bool {
    args.conversation || (args.prompt.is_none() && args.file.is_none() && io::stdin().is_terminal())
}

/// Runs the command.
///
/// # Errors
/// The model can't be loaded, has no tokenizer or no chat template, the conversation gets too long, or stdout is closed.
pub(super) fn run(args: &GenerateArgs) -> Result<()> {
    check_chat(args)?;
    let asked = args.conversation || args.chat;
    let opened = model::open_checked(&args.model, |checkpoint| match checkpoint.require_chat_template() {
        Ok(_) => Ok(()),
        Err(error) if asked => Err(error.into()),
        Err(_) => usage(format!(
            "{NO_PROMPT} (a conversation without a prompt needs a chat template, and the model has none)"
        )),
    })?;
    let mut writer = Writer::new(&opened.model, options(&opened, 0, length(args, &opened)));
    let (mut sampler, mut messages) = (Sampler::new(sampling(args)), opening(args));
    let at_terminal = io::stdin().is_terminal();
    if at_terminal {
        note(
            "Each line is a message; \\ at its end continues it. Ctrl-C stops an answer, Ctrl-D ends the conversation.",
        );
    }
    let mut first = args.prompt.clone();
    while let Some(message) = first.take().map_or_else(|| next_message(at_terminal), |text| Ok(Some(text)))? {
        if message.trim().is_empty() {
            continue;
        }
        messages.push(("user".to_string(), message));
        let answer = answer(args, &opened, &messages, &mut writer, &mut sampler)?;
        messages.push(("assistant".to_string(), answer));
    }
    if at_terminal {
        note("");
    }
    Ok(())
}

/// The policy for a text whose length is not known beforehand.
fn length(args: &GenerateArgs, opened: &Opened) -> RopeLength {
    match args.model.rope.rope_length {
        _ if !opened.model.depends_on_length() => RopeLength::Declared(0),
        Some(LengthPolicy::Fixed(n)) => RopeLength::Declared(n),
        Some(LengthPolicy::Declared) => RopeLength::Declared(opened.model.trained_context().unwrap_or(0)),
        Some(LengthPolicy::Exact) | None => RopeLength::Exact,
    }
}

/// The next message from stdin; `None` at its end.
fn next_message(at_terminal: bool) -> Result<Option<String>> {
    let mut message = String::new();
    loop {
        if at_terminal {
            // stdout has only the answers.
            let _ = write!(io::stderr(), "{}", if message.is_empty() { "> " } else { "  " });
        }
        let before = message.len();
        if io::stdin().read_line(&mut message).context("can't read a message from stdin")? == 0 {
            return Ok((before > 0).then_some(message));
        }
        let line = message.trim_end_matches(['\n', '\r']).len();
        message.truncate(line);
        match message.strip_suffix('\\') {
            Some(begun) => message = format!("{begun}\n"),
            None => return Ok(Some(message)),
        }
    }
}

/// Answers the last of `messages`, showing the answer as it comes.
fn answer(
    args: &GenerateArgs,
    opened: &Opened,
    messages: &[(String, String)],
    writer: &mut Writer,
    sampler: &mut Sampler,
) -> Result<String> {
    let ids = encode_chat(opened, messages)?;
    let (most, declared) = room(args, opened, ids.len(), Predict::ToTheEnd)?;
    hint(opened, declared);
    let (mut decoder, mut shown) = (opened.tokenizer()?.stream(true), Shown::new(args));
    STATE.store(ANSWERING, Ordering::SeqCst);
    writer.limit(most);
    let result = writer.write(&ids, sampler, &mut |token| {
        if STATE.load(Ordering::SeqCst) == BROKEN_OFF {
            return Ok(ControlFlow::Break(()));
        }
        shown.push(&decoder.push(token)?)
    });
    STATE.store(LISTENING, Ordering::SeqCst);
    let result = result?;
    shown.finish(&decoder.finish()?)?;
    report(args, opened, &ids, &result)?;
    Ok(shown.text)
}
