//! `attn generate`: text, shown as it comes.

use crate::args::GenerateArgs;
use crate::memory;
use crate::model::{self, Opened};
use crate::output::{note, print, usage};
use crate::parse::{BosChoice, LengthPolicy};
use crate::{template, text};
use anyhow::Result;
use attn_eval::generate::{GenerateOptions, Generated, generate};
use attn_eval::sample::{SampleOptions, Sampler};
use attn_models::memory::Workload;
use attn_models::{Architecture, RopeLength};

/// Tokens to make room for at first where the length has no other meaning.
const FIRST_ROOM: usize = 4096;

/// Runs the command.
///
/// # Errors
/// The model can't be loaded or has no tokenizer, the prompt is empty or too long, or stdout is closed.
pub(crate) fn run(args: &GenerateArgs) -> Result<()> {
    let prompt = match (&args.prompt, &args.file) {
        (Some(prompt), _) => prompt.clone(),
        (None, Some(file)) => text::read_file(file)?,
        (None, None) => return usage("there is no prompt: give one with -p or -f"),
    };
    let opened = model::open(&args.model)?;
    let ids = encode(&opened, &prompt, args)?;
    let declared = ids.len().saturating_add(args.n_predict);
    let length = length(args, &opened, ids.len(), declared)?;
    memory::check(&opened, declared, |total| work(args, &opened, ids.len(), total))?;
    let options = GenerateOptions {
        max_new: args.n_predict,
        stop: opened.checkpoint.generation.eos_ids.clone(),
        length,
        decoder_start: opened.config_id("decoder_start_token_id"),
    };
    let mut sampler = Sampler::new(sampling(args));
    let mut decoder = opened.checkpoint.require_tokenizer()?.stream(true);
    let result = generate(&opened.model, &ids, &mut sampler, &options, &mut |token| {
        let text = decoder.push(token)?;
        if text.is_empty() { Ok(()) } else { print(&text) }
    })?;
    print(&format!("{}\n", decoder.finish()?))?;
    let bos = opened.checkpoint.require_tokenizer()?.bos_id;
    let begins = bos.filter(|bos| ids.first() == Some(bos));
    note(&speed(&result, begins));
    Ok(())
}

fn encode(opened: &Opened, prompt: &str, args: &GenerateArgs) -> Result<Vec<u32>> {
    let tokenizer = opened.checkpoint.require_tokenizer()?;
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
    if args.bos != BosChoice::Auto {
        return usage("--bos is for plain prompts: with --chat the checkpoint's template decides");
    }
    Ok(tokenizer.encode(&template::render(&opened.checkpoint, prompt)?, false)?)
}

/// The policy for the session. Where the length changes nothing but how much room is made at first, a huge `-n` makes
/// no huge room.
fn length(args: &GenerateArgs, opened: &Opened, prompt: usize, declared: usize) -> Result<RopeLength> {
    if let Some(max) = opened.model.max_context()
        && declared > max
    {
        let message = format!("{prompt} tokens of prompt and {} new ones", args.n_predict);
        return usage(format!("{message} are past the model's learned positions, which end at {max}"));
    }
    if !opened.model.depends_on_length() {
        return Ok(RopeLength::Declared(declared.min(prompt + FIRST_ROOM)));
    }
    Ok(model::session_length(args.model.rope.rope_length, declared))
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

fn sampling(args: &GenerateArgs) -> SampleOptions {
    let sampling = &args.sampling;
    SampleOptions {
        temperature: sampling.temperature,
        top_k: (sampling.top_k > 0).then_some(sampling.top_k),
        top_p: sampling.top_p,
        repeat_penalty: sampling.repeat_penalty,
        repeat_last_n: sampling.repeat_last_n,
        seed: sampling.seed,
    }
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
