//! The training loop, one step at a time.

use crate::adamw::{AdamW, Moments};
use crate::error::{Error, Result};
use crate::schedule::learning_rate;
use attn_eval::rng::Rng;
use attn_models::config::UnknownKeys;
use attn_models::{Model, Options};
use candle_core::{DType, Device, Tensor, Var};
use rayon::{ThreadPool, ThreadPoolBuilder, prelude::*};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Everything that decides what a run computes. It is saved with every checkpoint, and a run resumes only with the same settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Seed of the batches (and of a new model's weights).
    pub seed: u64,
    /// Steps of the whole run.
    pub steps: usize,
    /// Rows of a micro-batch.
    pub batch: usize,
    /// Micro-batches per step, whose gradients are averaged.
    pub accumulate: usize,
    /// Tokens per row.
    pub context: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Steps of warm-up.
    pub warmup: usize,
    /// Largest norm of a gradient: longer ones are scaled down to it.
    pub clip: f64,
    /// The optimizer's constants.
    pub adamw: AdamW,
    /// `f32`, or `bf16`: products and activations in bf16, weights and optimizer in f32.
    pub dtype: String,
    /// SHA-256 of the token ids.
    pub data: String,
    /// The config that is trained, position settings included.
    pub config: Value,
    /// Whether config keys that nothing reads are ignored instead of refused.
    #[serde(default)]
    pub allow_unknown_config_keys: bool,
}

impl Settings {
    /// Refuses settings that leave nothing to train on, given a text of this many tokens.
    fn check(&self, tokens: usize) -> Result<()> {
        let context = self.context;
        if context < 2 {
            return Err(Error::Setting { reason: "the context has to be at least two tokens".into() });
        }
        if tokens <= context {
            let reason = format!("the text has {tokens} tokens, but a context of {context} needs more than that many");
            return Err(Error::TextTooShort { reason });
        }
        if self.steps == 0 || self.batch == 0 || self.accumulate == 0 {
            return Err(Error::Setting {
                reason: "steps, rows of a batch and micro-batches per step have to be at least 1".into(),
            });
        }
        Ok(())
    }

    fn compute_dtype(&self) -> Result<DType> {
        match self.dtype.as_str() {
            "f32" => Ok(DType::F32),
            "bf16" => Ok(DType::BF16),
            other => Err(Error::Setting { reason: format!("training runs in f32 or bf16, not in {other}") }),
        }
    }

    /// Rows that go through the model together.
    fn shard_rows(&self) -> usize {
        (SHARD_TOKENS / self.context).clamp(1, self.batch)
    }

    /// Shards of a step.
    fn shards(&self) -> usize {
        self.batch.div_ceil(self.shard_rows()) * self.accumulate
    }
}

/// What one step did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// The number of the step, from 1.
    pub step: usize,
    /// Mean negative log-likelihood of the step's tokens, in nats, before the update.
    pub loss: f64,
    /// Learning rate of the update.
    pub learning_rate: f64,
    /// Length of the gradient before it was clipped.
    pub grad_norm: f64,
    /// Tokens read per second.
    pub tokens_per_second: f64,
    /// The loss after the update on text that is not trained on, where it was measured ([`Trainer::held_out_loss`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_out: Option<f64>,
}

/// A weight and the optimizer's moments for it.
pub(crate) struct Parameter {
    pub(crate) var: Var,
    pub(crate) moments: Moments,
}

/// A training run.
pub struct Trainer {
    pub(crate) settings: Settings,
    pub(crate) parameters: BTreeMap<String, Parameter>,
    pub(crate) done: usize,
    tokens: Vec<u32>,
    options: Options,
    pools: Vec<ThreadPool>,
}

/// Tokens that go through the model together: enough for matrix products to reach their full speed, and no more, since
/// activations take memory.
const SHARD_TOKENS: usize = 1024;

impl Trainer {
    /// A run before its first step, on the ids `tokens`, with the initial weights under their Hugging Face names.
    /// `settings.data` is filled in.
    ///
    /// # Errors
    /// A text that is not longer than a row, another impossible setting, or weights that don't fit the config.
    pub fn new(mut settings: Settings, weights: BTreeMap<String, Tensor>, tokens: Vec<u32>) -> Result<Self> {
        settings.check(tokens.len())?;
        settings.data = digest(&tokens);
        let unknown_keys =
            if settings.allow_unknown_config_keys { UnknownKeys::Collect } else { UnknownKeys::default() };
        let options = Options { dtype: settings.compute_dtype()?, unknown_keys, ..Options::default() };
        let parameter = |(name, tensor): (String, Tensor)| -> Result<(String, Parameter)> {
            let var = Var::from_tensor(&tensor.to_dtype(DType::F32)?.contiguous()?)?;
            let moments = Moments::new(var.elem_count());
            Ok((name, Parameter { var, moments }))
        };
        let parameters = weights.into_iter().map(parameter).collect::<Result<_>>()?;
        let pools = pools(settings.shards())?;
        let trainer = Self { settings, parameters, done: 0, tokens, options, pools };
        trainer.load().map_err(|source| Error::FirstWeights { source })?;
        Ok(trainer)
    }

    /// The settings of the run.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Steps done so far.
    pub fn done(&self) -> usize {
        self.done
    }

    /// The number of weights, all layers together.
    pub fn parameters(&self) -> usize {
        self.parameters.values().map(|p| p.var.elem_count()).sum()
    }

    /// The model with the present weights. Gradients flow into them.
    ///
    /// Built anew for every step: whatever a model derives from its weights while loading (projections joined into one
    /// product, transposed or shifted weights) is then derived from the weights of that step, and has their gradients.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn model(&self) -> Result<Model> {
        Ok(self.load()?)
    }

    fn load(&self) -> candle_core::Result<Model> {
        let tensors: HashMap<String, Tensor> =
            self.parameters.iter().map(|(name, p)| (name.clone(), p.var.as_tensor().clone())).collect();
        Model::load(&self.settings.config, Arc::new(tensors), &self.options)
    }

    /// Runs one step.
    ///
    /// # Errors
    /// A loss or gradient that is not finite, a weight that got no gradient.
    pub fn step(&mut self) -> Result<Step> {
        let started = Instant::now();
        let number = self.done + 1;
        let (loss, gradients) = self.gradients()?;
        if !loss.is_finite() {
            let reason = format!("the loss is {loss}; try a lower learning rate");
            return Err(Error::Diverged { step: number, reason });
        }
        let square = |g: &Vec<f32>| g.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        let grad_norm = gradients.par_iter().map(square).collect::<Vec<_>>().iter().sum::<f64>().sqrt();
        if !grad_norm.is_finite() {
            let reason = "the gradient is not finite; try a lower learning rate".to_string();
            return Err(Error::Diverged { step: number, reason });
        }
        let s = &self.settings;
        let rate = learning_rate(self.done, s.steps, s.warmup, s.learning_rate);
        let scale = (s.clip / grad_norm.max(1e-12)).min(1.0);
        let parameters: Vec<_> = self.parameters.iter_mut().collect();
        parameters.into_par_iter().zip(gradients).try_for_each(|((name, parameter), gradient)| -> Result<()> {
            let mut weights = parameter.var.flatten_all()?.to_vec1::<f32>()?;
            // Norms and biases don't decay, nor do the curves and tables of an encoding; projections do.
            let of_encoding = name.contains("relative_attention_bias") || name.contains(".self_attn.position.");
            let decays = parameter.var.rank() >= 2 && (!of_encoding || name.ends_with("_proj.weight"));
            s.adamw.update(&mut weights, &gradient, &mut parameter.moments, (number, rate, scale), decays);
            Ok(parameter.var.set(&Tensor::from_vec(weights, parameter.var.shape(), &Device::Cpu)?)?)
        })?;
        self.done = number;
        let tokens = (s.batch * s.accumulate * s.context) as f64;
        let tokens_per_second = tokens / started.elapsed().as_secs_f64();
        Ok(Step { step: number, loss, learning_rate: rate, grad_norm, tokens_per_second, held_out: None })
    }

    /// The mean negative log-likelihood, in nats, of `tokens` in windows of the run's context side by side; tokens after the last
    /// full window are not read. The run itself is not changed.
    ///
    /// # Errors
    /// Fewer tokens than a window has; a loss that is not finite.
    pub fn held_out_loss(&self, tokens: &[u32]) -> Result<f64> {
        let (model, context) = (self.model()?, self.settings.context);
        let windows = tokens.len() / context;
        if windows == 0 {
            let reason = format!("the held-out text has {} tokens, fewer than a window of {context}", tokens.len());
            return Err(Error::TextTooShort { reason });
        }
        let mut sum = 0.0;
        for ids in tokens[..windows * context].chunks(self.settings.shard_rows() * context) {
            let ids = Tensor::from_slice(ids, (ids.len() / context, context), &Device::Cpu)?;
            let nll = model.nll(&ids, context)?.flatten_all()?.to_vec1::<f32>()?;
            sum += nll.into_iter().map(f64::from).sum::<f64>();
        }
        let loss = sum / (windows * (context - 1)) as f64;
        match loss.is_finite() {
            true => Ok(loss),
            false => {
                let reason = format!("the loss on the held-out text is {loss}");
                Err(Error::Diverged { step: self.done, reason })
            }
        }
    }

    /// The mean loss of the step's rows, and its gradient by every parameter in their order.
    ///
    /// The rows go through the model in shards, each on threads of its own from beginning to end, because most operations of
    /// a small model are too short to divide among threads. Neither the rows of a shard nor the order in which shards are
    /// added depends on the number of threads, so the result does not either.
    fn gradients(&self) -> Result<(f64, Vec<Vec<f32>>)> {
        let (shards, model) = (self.shards()?, self.model()?);
        let (next, sum) = (AtomicUsize::new(0), Mutex::new(Sum::default()));
        let work = || -> Result<()> {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(ids) = shards.get(number) else { return Ok(()) };
                let shard = self.shard(&model, ids)?;
                // The sum uses this thread alone: a thread that waits for its pool takes other work, which may need the lock too.
                sum.lock().unwrap_or_else(PoisonError::into_inner).add(number, shard);
            }
        };
        self.pools.par_iter().try_for_each(|pool| pool.install(work))?;
        let sum = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok((sum.loss, sum.gradients))
    }

    /// A shard's share of the loss and of its gradients.
    fn shard(&self, model: &Model, ids: &Tensor) -> Result<(f64, Vec<Vec<f32>>)> {
        let s = &self.settings;
        let predictions = s.batch * s.accumulate * (s.context - 1);
        let nll = (model.nll(ids, s.context)?.sum_all()? / predictions as f64)?;
        let store = nll.backward()?;
        let gradient = |(name, parameter): (&String, &Parameter)| match store.get(parameter.var.as_tensor()) {
            Some(gradient) => Ok(gradient.flatten_all()?.to_vec1()?),
            None => Err(Error::NoGradient { name: name.clone() }),
        };
        Ok((f64::from(nll.to_scalar::<f32>()?), self.parameters.iter().map(gradient).collect::<Result<_>>()?))
    }

    /// The step's rows in pieces of about [`SHARD_TOKENS`].
    fn shards(&self) -> Result<Vec<Tensor>> {
        let s = &self.settings;
        let mut shards = Vec::new();
        for part in 0..s.accumulate {
            let ids = self.rows(part);
            for ids in ids.chunks(s.shard_rows() * s.context) {
                shards.push(Tensor::from_slice(ids, (ids.len() / s.context, s.context), &Device::Cpu)?);
            }
        }
        Ok(shards)
    }

    /// Ids `(batch, context)` of micro-batch `part` of the next step: rows that start anywhere in the text, drawn from
    /// the seed and the numbers of step and micro-batch alone.
    fn rows(&self, part: usize) -> Vec<u32> {
        let s = &self.settings;
        let run = Rng::new(s.seed ^ 0x7261_7773).next_u64();
        let number = (self.done * s.accumulate + part) as u64;
        let mut rng = Rng::new(Rng::new(run ^ number).next_u64());
        let mut ids = Vec::with_capacity(s.batch * s.context);
        for _ in 0..s.batch {
            let start = rng.below(self.tokens.len() - s.context + 1);
            ids.extend_from_slice(&self.tokens[start..start + s.context]);
        }
        ids
    }
}

/// A sum over shards, added in the order of their numbers, whatever the order in which they are finished.
#[derive(Default)]
struct Sum {
    loss: f64,
    gradients: Vec<Vec<f32>>,
    /// Shards that are in the sum.
    done: usize,
    /// Shards that came before their turn.
    early: BTreeMap<usize, (f64, Vec<Vec<f32>>)>,
}

impl Sum {
    fn add(&mut self, number: usize, shard: (f64, Vec<Vec<f32>>)) {
        self.early.insert(number, shard);
        while let Some((loss, gradients)) = self.early.remove(&self.done) {
            self.done += 1;
            self.loss += loss;
            if self.gradients.is_empty() {
                self.gradients = gradients;
                continue;
            }
            for (sum, gradient) in self.gradients.iter_mut().zip(gradients) {
                sum.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += g);
            }
        }
    }
}

/// One pool for each shard that runs at a time; the threads of the current pool are divided among them.
fn pools(shards: usize) -> Result<Vec<ThreadPool>> {
    let threads = rayon::current_num_threads();
    let pools = threads.min(shards);
    let pool = |i| ThreadPoolBuilder::new().num_threads(threads / pools + usize::from(i < threads % pools)).build();
    Ok((0..pools).map(pool).collect::<Result<_, _>>()?)
}

/// SHA-256 of token ids, little-endian.
fn digest(tokens: &[u32]) -> String {
    let mut parts = loader::Sha256Parts::default();
    for chunk in tokens.chunks(1 << 14) {
        parts.push(&chunk.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>());
    }
    parts.finish()
}
