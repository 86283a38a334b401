//! The tiny models: a text scored position by position, and a prompt continued.

use crate::{Emit, stretch, within};
use anyhow::{Context, Result, ensure};
use attn_core::ops;
use attn_eval::compare::Mode;
use attn_eval::generate::{GenerateOptions, generate};
use attn_eval::perplexity::{CURVE, Label, ScoreOptions, check_room, score_with};
use attn_eval::sample::{SampleOptions, Sampler};
use attn_eval::windows::WindowOptions;
use attn_models::{Model, Options, RopeLength, Session};
use candle_core::Tensor;
use loader::Checkpoint;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// Tokens of a text that are scored at most.
const LONGEST: f64 = 4096.0;

/// A model that the page has fetched.
#[derive(Debug)]
struct Loaded {
    checkpoint: Checkpoint,
    model: Model,
}

/// The models, by name.
#[derive(Debug, Default)]
pub(crate) struct Models(BTreeMap<String, Loaded>);

/// The name of a model whose files were given.
#[derive(Debug, Deserialize)]
pub(crate) struct Load {
    name: String,
}

impl Models {
    /// Reads a model.
    pub(crate) fn load(&mut self, Load { name }: Load, [config, weights, tokenizer]: [Vec<u8>; 3]) -> Result<Value> {
        let checkpoint = Checkpoint::from_bytes(&config, weights, Some(&tokenizer))?;
        let model = Model::load(&checkpoint.config, checkpoint.weights.clone(), &Options::default())?;
        let facts = json!({
            "name": name, "parameters": model.parameters(), "trained": model.trained_context(),
            "max_context": model.max_context(),
        });
        self.0.insert(name, Loaded { checkpoint, model });
        Ok(facts)
    }

    fn find(&self, name: &str) -> Result<&Loaded> {
        self.0.get(name).with_context(|| format!("{name} is not loaded"))
    }

    /// The files of a model.
    pub(crate) fn checkpoint(&self, name: &str) -> Result<&Checkpoint> {
        Ok(&self.find(name)?.checkpoint)
    }
}

/// A text to be scored in one window.
#[derive(Debug, Deserialize)]
pub(crate) struct Score {
    model: String,
    mode: String,
    factor: f64,
    text: String,
    /// Tokens of the text that are used.
    context: usize,
}

impl Score {
    /// The cell of `attn compare` for this mode and window; its curve is emitted as it comes.
    pub(crate) fn answer(&self, models: &Models, emit: &mut Emit) -> Result<Value> {
        within("the number of tokens", self.context as f64, 2.0..=LONGEST)?;
        within("the factor", self.factor, 1.0..=1024.0)?;
        let Loaded { checkpoint, model } = models.find(&self.model)?;
        let tokenizer = checkpoint.require_tokenizer()?;
        let mut ids = tokenizer.encode(&self.text, false)?;
        let all = ids.len();
        ids.truncate(self.context);
        ensure!(ids.len() >= 2, "the text has {all} tokens: two are the least that can be scored");
        let context = ids.len();
        check_room(model, context)?;
        let mode = stretch::mode(&self.mode)?;
        let model = match mode {
            Mode::Checkpoint => model.clone(),
            mode => model.with_positions(&stretch::change(mode, self.factor, context, None)?)?,
        };
        let nll = likelihoods(&model, &ids, emit)?;
        let windows = WindowOptions { context, stride: None, bos: None };
        // No token is put before the text: none of the tokenizers of these models does.
        ensure!(tokenizer.begins_with()?.is_none(), "{} begins its texts with a token of its own", self.model);
        let mut known = |_: &[Vec<u32>]| Ok(vec![nll.clone()]);
        let scores = score_with(&mut known, &ids, &ScoreOptions { windows, length: None }, &mut |_| ())?;
        let label = Label { mode: self.mode.clone(), factor: self.factor, context, stride: context, seed: 0 };
        Ok(json!({ "cell": scores.cell(&label), "tokens": context, "all": all }))
    }
}

/// The negative log-likelihoods of tokens 1.. of a text, in nats. The mean of each part of the text is emitted when it is known;
/// the parts are those of the cell's curve.
fn likelihoods(model: &Model, ids: &[u32], emit: &mut Emit) -> Result<Vec<f32>> {
    let mut session = Session::new(model, RopeLength::Declared(ids.len()), None)?;
    let mut all = vec![];
    for part in 0..CURVE {
        let begin = |part: usize| (part * ids.len()).div_ceil(CURVE).max(1);
        let targets = &ids[begin(part)..begin(part + 1)];
        if targets.is_empty() {
            continue;
        }
        // Each token is predicted from those before it: the last is no input.
        let inputs = Tensor::new(&ids[begin(part) - 1..begin(part + 1) - 1], model.device())?.unsqueeze(0)?;
        let logits = session.feed_all(&inputs)?.squeeze(0)?;
        let nll = ops::nll(&logits, &Tensor::new(targets, model.device())?)?.to_vec1::<f32>()?;
        let mean = nll.iter().map(|nll| f64::from(*nll)).sum::<f64>() / nll.len() as f64;
        emit(&json!({ "part": part, "nll": mean, "of": ids.len() }));
        all.extend(nll);
    }
    Ok(all)
}

/// A prompt to be continued.
#[derive(Debug, Deserialize)]
pub(crate) struct Generate {
    model: String,
    prompt: String,
    /// New tokens.
    tokens: usize,
    /// 0 takes the most likely token.
    temperature: f64,
    seed: u64,
}

impl Generate {
    /// The text and the figures of `attn generate --json`; each piece of text is emitted as it comes, with the number of tokens
    /// so far.
    pub(crate) fn answer(&self, models: &Models, emit: &mut Emit) -> Result<Value> {
        within("the number of new tokens", self.tokens as f64, 1.0..=LONGEST)?;
        within("the temperature", self.temperature, 0.0..=10.0)?;
        let Loaded { checkpoint, model } = models.find(&self.model)?;
        let tokenizer = checkpoint.require_tokenizer()?;
        let prompt = tokenizer.encode(&self.prompt, true)?;
        let room = model.max_context().map_or(usize::MAX, |end| end.saturating_sub(prompt.len()));
        ensure!(room > 0, "the prompt of {} tokens fills the table of learned positions", prompt.len());
        let max_new = self.tokens.min(room);
        let options = GenerateOptions {
            max_new,
            stop: checkpoint.generation.eos_ids.clone(),
            length: RopeLength::Declared(prompt.len() + max_new),
            decoder_start: None,
        };
        let sampling = SampleOptions { temperature: self.temperature, seed: self.seed, ..SampleOptions::default() };
        let mut text = tokenizer.stream(true);
        let mut whole = String::new();
        let mut at = prompt.len();
        let result =
            generate(model, &prompt, &mut Sampler::new(sampling), &options, &mut |token| -> Result<ControlFlow<()>> {
                at += 1;
                let piece = text.push(token)?;
                emit(&json!({ "text": piece, "at": at }));
                whole.push_str(&piece);
                Ok(ControlFlow::Continue(()))
            })?;
        let rest = text.finish()?;
        emit(&json!({ "text": rest, "at": at }));
        whole.push_str(&rest);
        Ok(json!({
            "text": whole, "prompt_tokens": result.prompt_tokens, "new_tokens": result.new_tokens,
            "stopped": result.stopped, "at_the_end": max_new < self.tokens,
        }))
    }
}
