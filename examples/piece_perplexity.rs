//! Perplexity with the text fed in pieces of up to eight tokens, which run on the same kernels as generation: it shows
//! what these kernels of few rows do to a model's predictions.
//!
//! ```text
//! cargo run --release -p integration --example piece_perplexity -- FILE.gguf TEXT [TOKENS [CONTEXT]]
//! ATTN_ACTIVATIONS=int8 cargo run --release -p integration --example piece_perplexity -- FILE.gguf TEXT
//! ```
//!
//! The blocks of the file stay quantised. `attn perplexity` feeds whole windows, which other kernels multiply.

use anyhow::{Context, Result};
use attn_models::{Model, Options, RopeLength, Session};
use candle_core::{D, Tensor};
use loader::{Checkpoint, LoadOptions};
use std::path::Path;

/// Rows up to which the products are those of generation.
const PIECE: usize = attn_core::product::FEW_ROWS;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (file, text) = (args.first().context("no model given")?, args.get(1).context("no text given")?);
    let number = |i: usize, default: usize| args.get(i).map_or(Ok(default), |n| n.parse());
    let (tokens, context) = (number(2, 2048)?, number(3, 512)?);
    let checkpoint = Checkpoint::open(file, &LoadOptions { keep_quantized: true, ..Default::default() })?;
    let model = Model::load(&checkpoint.config, checkpoint.weights.clone(), &Options::default())?;
    let text = std::fs::read_to_string(Path::new(text))?;
    let mut ids = checkpoint.require_tokenizer()?.encode(&text, false)?;
    ids.truncate(tokens);
    let windows = ids.chunks_exact(context);
    let count = windows.len() * (context - 1);
    let mut total = 0f64;
    for window in windows {
        total += negative_log_likelihood(&model, window)?;
    }
    println!("perplexity {:.4} over {count} tokens", (total / count as f64).exp());
    Ok(())
}

/// The sum over all tokens of a window except the first, in nats.
fn negative_log_likelihood(model: &Model, window: &[u32]) -> Result<f64> {
    let mut session = Session::new(model, RopeLength::Declared(window.len()), None)?;
    let mut total = 0f64;
    let mut done = 0;
    for piece in window.chunks(PIECE) {
        let input = Tensor::from_slice(piece, (1, piece.len()), model.device())?;
        let logits = session.feed_all(&input)?.squeeze(0)?;
        let targets = &window[done + 1..window.len().min(done + piece.len() + 1)];
        let log_probs = candle_nn::ops::log_softmax(&logits, D::Minus1)?.narrow(0, 0, targets.len())?;
        let targets = Tensor::from_slice(targets, (targets.len(), 1), model.device())?;
        total -= f64::from(log_probs.gather(&targets, 1)?.sum_all()?.to_scalar::<f32>()?);
        done += piece.len();
    }
    Ok(total)
}
