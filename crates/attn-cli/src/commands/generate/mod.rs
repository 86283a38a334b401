//! `attn generate`: text, shown as it comes.

pub(crate) mod args;
pub(crate) mod conversation;
mod session;
mod shown;

use crate::model::{self, Opened};
use crate::output::usage;
use crate::parse::{BosChoice, Predict};
use crate::text;
use anyhow::Result;
use args::GenerateArgs;
use attn_eval::generate::generate;
use attn_eval::sample::Sampler;
use attn_models::RopeLength;
use session::{FIRST_ROOM, NO_PROMPT, check_chat, encode_chat, hint, opening, options, report, room, sampling};
use shown::Shown;
use std::path::Path;

/// New tokens at most, where nothing else is asked for.
const NEW_TOKENS: usize = 128;

/// Runs the command.
///
/// # Errors
/// The model can't be loaded or has no tokenizer, the prompt is empty or too long, or stdout is closed.
pub(crate) fn run(args: &GenerateArgs) -> Result<()> {
    if conversation::is_meant(args) {
        return conversation::run(args);
    }
    if args.system.is_some() && !args.chat {
        return usage("--system needs --chat or --conversation");
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

/// The policy for the session. Where the length only decides how much room is made at first, a huge `-n` does not make
/// huge room.
fn length(args: &GenerateArgs, opened: &Opened, prompt: usize, declared: usize) -> RopeLength {
    if !opened.model.depends_on_length() {
        return RopeLength::Declared(declared.min(prompt + FIRST_ROOM));
    }
    model::session_length(args.model.rope.rope_length, declared)
}
