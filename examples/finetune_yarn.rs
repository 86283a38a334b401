//! Fine-tunes a Llama checkpoint for four times its context with YaRN, after the recipe of position interpolation
//! (Chen et al. 2023): change the frequencies, then train a few steps at the long context on text of your own.
//!
//! ```text
//! cargo run --release -p integration --example finetune_yarn                      the tiny model, a sample text
//! cargo run --release -p integration --example finetune_yarn MODEL TEXT STEPS
//! ```
//!
//! It prints the perplexity at the long context, on the last fifth of the text, which is not trained on: as the checkpoint
//! is, under YaRN, and under YaRN after the steps.

use anyhow::{Context, Result, ensure};
use attn_eval::perplexity::{Label, ScoreOptions, score};
use attn_eval::windows::WindowOptions;
use attn_models::Model;
use attn_train::{Settings, Trainer, adamw::AdamW};
use candle_core::{DType, Device, Tensor};
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Context wanted over context trained.
const FACTOR: usize = 4;

fn main() -> Result<()> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let mut args = std::env::args().skip(1);
    let folder = args.next().unwrap_or_else(|| format!("{root}/crates/attn-cli/models/tiny-austen"));
    let text = args.next().unwrap_or_else(|| format!("{root}/crates/attn-cli/models/sample.txt"));
    let steps: usize = args.next().map_or(Ok(10), |n| n.parse()).context("STEPS is a number")?;

    let checkpoint = loader::Checkpoint::open(&folder, &loader::LoadOptions::default())?;
    let text = std::fs::read_to_string(&text).with_context(|| format!("can't read {text}"))?;
    let ids = checkpoint.require_tokenizer()?.encode(&text, false)?;
    let source = &checkpoint.weights;
    let weights: BTreeMap<String, Tensor> = source
        .names()
        .into_iter()
        .map(|name| Ok((name.clone(), source.load(&name, DType::F32, &Device::Cpu)?)))
        .collect::<Result<_>>()?;

    // What transformers calls rope_parameters is all that changes in the config.
    let mut config = checkpoint.config.clone();
    let trained = config["max_position_embeddings"].as_u64().context("config.json has no context")? as usize;
    let theta = config["rope_parameters"]["rope_theta"].as_f64().or(config["rope_theta"].as_f64()).unwrap_or(10_000.0);
    let context = FACTOR * trained;
    config["rope_parameters"] = json!({"rope_type": "yarn", "factor": FACTOR, "rope_theta": theta,
        "original_max_position_embeddings": trained});
    config["max_position_embeddings"] = json!(context);

    let cut = ids.len() / 5 * 4;
    let (train, held_out) = ids.split_at(cut);
    ensure!(held_out.len() >= context, "the text is too short: its last fifth has to hold {context} tokens");
    let options = ScoreOptions { windows: WindowOptions { context, ..Default::default() }, ..Default::default() };
    let perplexity = |model: &Model| {
        Ok::<_, anyhow::Error>(score(model, held_out, &options, &mut |_| {})?.cell(&Label::default()).perplexity)
    };
    let untracked: HashMap<String, Tensor> = weights.clone().into_iter().collect();
    let plain = Model::load(&checkpoint.config, Arc::new(untracked), &Default::default())?;
    println!("{context} tokens, as the checkpoint is: perplexity {:.2}", perplexity(&plain)?);

    let settings = Settings {
        seed: 0,
        steps,
        batch: 2,
        accumulate: 1,
        context,
        learning_rate: 2e-4,
        warmup: steps / 5,
        clip: 1.0,
        adamw: AdamW { weight_decay: 0.0, ..AdamW::default() },
        dtype: "f32".into(),
        data: String::new(),
        config,
        allow_unknown_config_keys: false,
    };
    let mut trainer = Trainer::new(settings, weights, train.into())?;
    println!("{context} tokens, YaRN:                 perplexity {:.2}", perplexity(&trainer.model()?)?);
    while trainer.done() < steps {
        let step = trainer.step()?;
        println!("step {:3}  loss {:.3}  {:.0} tokens/s", step.step, step.loss, step.tokens_per_second);
    }
    println!("{context} tokens, YaRN, fine-tuned:     perplexity {:.2}", perplexity(&trainer.model()?)?);
    Ok(())
}
