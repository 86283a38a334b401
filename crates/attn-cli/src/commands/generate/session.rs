//! What a single answer and a conversation have in common: how to generate, room for it, the prompt of a chat, the figures at
//! the end.

use super::args::GenerateArgs;
use crate::model::Opened;
use crate::output::{note, print, usage};
use crate::parse::{BosChoice, LengthPolicy, Predict};
use crate::{positions, template};
use anyhow::Result;
use attn_eval::compare::Mode;
use attn_eval::generate::{GenerateOptions, Generated};
use attn_eval::sample::SampleOptions;
use attn_models::memory::Workload;
use attn_models::{Architecture, RopeLength};

/// Tokens to make room for at first where the length has no other meaning.
pub(super) const FIRST_ROOM: usize = 4096;

/// What is missing where neither an option nor stdin has a prompt.
pub(super) const NO_PROMPT: &str = "there is no prompt: give one with -p or -f";

/// How to generate, under this policy.
pub(super) fn options(opened: &Opened, max_new: usize, length: RopeLength) -> GenerateOptions {
    GenerateOptions {
        max_new,
        stop: opened.checkpoint.generation.eos_ids.clone(),
        length,
        decoder_start: opened.config_id("decoder_start_token_id"),
    }
}

pub(super) fn sampling(args: &GenerateArgs) -> SampleOptions {
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

/// How many tokens may follow a prompt of this many, and how many that makes in all: checked against the model's positions and
/// the memory.
///
/// # Errors
/// There are no positions or there is no memory for so many.
pub(super) fn room(args: &GenerateArgs, opened: &Opened, prompt: usize, default: Predict) -> Result<(usize, usize)> {
    let most = match args.n_predict.unwrap_or(default) {
        Predict::AtMost(n) => n,
        Predict::ToTheEnd => room_left(opened, prompt),
    };
    let declared = prompt.saturating_add(most);
    if let Some(max) = opened.model.max_context()
        && declared > max
    {
        return usage(format!(
            "{prompt} tokens of prompt and {most} new ones are more than the {max} positions that the model has learned"
        ));
    }
    opened.check_memory(declared, |total| work(args, opened, prompt, total))?;
    Ok((most, declared))
}

/// Tokens until the trained context is full; some where it is unknown or full already.
fn room_left(opened: &Opened, prompt: usize) -> usize {
    let room = opened.model.trained_context().map_or(FIRST_ROOM, |trained| trained.saturating_sub(prompt));
    let last = opened.model.max_context().map_or(usize::MAX, |end| end.saturating_sub(prompt));
    if room == 0 { FIRST_ROOM.min(last) } else { room.min(last) }
}

/// The workload of `total` tokens, of which at most `prompt` are the prompt's.
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

/// Prints a hint if rotary positions go past what the model has seen and no scaling is set.
pub(super) fn hint(opened: &Opened, declared: usize) {
    let unscaled =
        positions::has_rope(&opened.model) && positions::scaling(&opened.model).0 == Mode::none().to_string();
    if let Some(trained) = opened.model.trained_context().filter(|&trained| unscaled && declared > trained) {
        note(&format!(
            "warning: prompt and answer can have {declared} tokens, but the model was trained for {trained}: attn compare \
             shows which --rope-scaling helps"
        ));
    }
}

/// Refuses what a chat template decides by itself.
pub(super) fn check_chat(args: &GenerateArgs) -> Result<()> {
    if args.bos != BosChoice::Auto {
        return usage("--bos works only for plain prompts: in a chat the checkpoint's template decides");
    }
    Ok(())
}

/// What comes before the first message: the system's, if there is one.
pub(super) fn opening(args: &GenerateArgs) -> Vec<(String, String)> {
    args.system.iter().map(|text| ("system".to_string(), text.clone())).collect()
}

/// The tokens of a chat, up to where the answer begins.
pub(super) fn encode_chat(opened: &Opened, messages: &[(String, String)]) -> Result<Vec<u32>> {
    Ok(opened.tokenizer()?.encode(&template::render(&opened.checkpoint, messages)?, false)?)
}

/// What it took, as a line on stderr or, with `--json`, as a document.
pub(super) fn report(args: &GenerateArgs, opened: &Opened, ids: &[u32], result: &Generated) -> Result<()> {
    let begins = opened.tokenizer()?.bos_id.filter(|bos| ids.first() == Some(bos));
    if args.json {
        return print(&format!("{}\n", figures(result, begins)));
    }
    note(&speed(result, begins));
    Ok(())
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
        bos.map_or(String::new(), |id| format!(" including BOS ({id})")),
        per_second(result.prompt_tokens, result.prompt_seconds)
    );
    if decoded > 0 {
        let speed = per_second(decoded, result.decode_seconds);
        line.push_str(&format!("; generated: {} tokens, {speed:.1} tokens/s", result.new_tokens));
    }
    line.push(']');
    line
}
