//! Saving and resuming a run.
//!
//! ```text
//! OUT/checkpoint-0000500/   config.json, model.safetensors (f32), tokenizer.json: loads like any checkpoint
//!                           optimizer.safetensors, trainer.json: what resuming needs besides
//! OUT/                      config.json, model.safetensors, tokenizer.json: the result, once the run is done
//! OUT/train.jsonl           one line per step
//! ```
//!
//! A checkpoint is written under another name and renamed when it is whole, so whatever `checkpoint-N` is found can be
//! trusted, however the run ended.

use crate::adamw::Moments;
use crate::trainer::{Settings, Step, Trainer};
use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Checkpoints kept: the newest, and the one before it.
const KEEP: usize = 2;

const PREFIX: &str = "checkpoint-";

#[derive(Serialize, Deserialize)]
struct State {
    step: usize,
    settings: Settings,
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = || format!("can't write {}", path.display());
    let mut file = fs::File::create(path).with_context(failed)?;
    file.write_all(bytes).with_context(failed)?;
    file.sync_all().with_context(failed)
}

fn save_tensors(tensors: &HashMap<String, Tensor>, path: &Path) -> Result<()> {
    // transformers reads only files that say which framework's layout they have.
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    write(path, &safetensors::serialize(tensors, Some(metadata))?)
}

impl Trainer {
    fn weights(&self, dtype: DType) -> Result<HashMap<String, Tensor>> {
        let weight = |(name, p): (&String, &crate::trainer::Parameter)| {
            Ok((name.clone(), p.var.as_tensor().detach().to_dtype(dtype)?))
        };
        self.parameters.iter().map(weight).collect()
    }

    /// Writes the model as a Hugging Face folder, weights in `dtype`.
    ///
    /// # Errors
    /// The folder can't be written.
    pub fn export(&self, out: &Path, tokenizer: &str, dtype: DType) -> Result<()> {
        fs::create_dir_all(out).with_context(|| format!("can't create {}", out.display()))?;
        let mut config = self.settings.config.clone();
        config["dtype"] = serde_json::json!(if dtype == DType::BF16 { "bfloat16" } else { "float32" });
        write(&out.join("config.json"), serde_json::to_string_pretty(&config)?.as_bytes())?;
        write(&out.join("tokenizer.json"), tokenizer.as_bytes())?;
        save_tensors(&self.weights(dtype)?, &out.join("model.safetensors"))
    }

    /// Writes `OUT/checkpoint-N` and removes those that are no longer kept.
    ///
    /// # Errors
    /// The folder can't be written.
    pub fn save(&self, out: &Path, tokenizer: &str) -> Result<PathBuf> {
        let name = format!("{PREFIX}{:07}", self.done);
        let (target, partial) = (out.join(&name), out.join(format!(".{name}.partial")));
        if partial.exists() {
            fs::remove_dir_all(&partial).with_context(|| format!("can't remove {}", partial.display()))?;
        }
        self.export(&partial, tokenizer, DType::F32)?;
        let mut moments = HashMap::new();
        for (name, p) in &self.parameters {
            let tensor = |data: &[f32]| Tensor::from_slice(data, data.len(), &Device::Cpu);
            moments.insert(format!("mean.{name}"), tensor(&p.moments.mean)?);
            moments.insert(format!("square.{name}"), tensor(&p.moments.square)?);
        }
        save_tensors(&moments, &partial.join("optimizer.safetensors"))?;
        let state = State { step: self.done, settings: self.settings.clone() };
        write(&partial.join("trainer.json"), serde_json::to_string_pretty(&state)?.as_bytes())?;
        if target.exists() {
            fs::remove_dir_all(&target).with_context(|| format!("can't replace {}", target.display()))?;
        }
        fs::rename(&partial, &target).with_context(|| format!("can't name {}", target.display()))?;
        let all = list(out)?;
        for (_, old) in &all[..all.len().saturating_sub(KEEP)] {
            fs::remove_dir_all(old).with_context(|| format!("can't remove {}", old.display()))?;
        }
        Ok(target)
    }

    /// Goes on from the newest checkpoint in `out`; false if there is none.
    ///
    /// # Errors
    /// A checkpoint of other settings, by the name of the first that differs; one that can't be read.
    pub fn resume(&mut self, out: &Path) -> Result<bool> {
        let Some((_, folder)) = list(out)?.pop() else { return Ok(false) };
        let read = |name: &str| -> Result<Vec<u8>> {
            let path = folder.join(name);
            fs::read(&path).with_context(|| format!("can't read {}", path.display()))
        };
        let state: State = serde_json::from_slice(&read("trainer.json")?)
            .with_context(|| format!("{}: not a trainer's state", folder.join("trainer.json").display()))?;
        if let Some(key) = first_difference(&state.settings, &self.settings)? {
            bail!(
                "{} was made with another {key}: resuming would mix two runs; use another --out or the same settings",
                folder.display()
            )
        }
        let weights = candle_core::safetensors::load_buffer(&read("model.safetensors")?, &Device::Cpu)?;
        let moments = candle_core::safetensors::load_buffer(&read("optimizer.safetensors")?, &Device::Cpu)?;
        for (name, p) in &mut self.parameters {
            let find = |all: &HashMap<String, Tensor>, key: String| match all.get(&key) {
                Some(tensor) => Ok(tensor.clone()),
                None => bail!("{} has no tensor {key}", folder.display()),
            };
            p.var.set(&find(&weights, name.clone())?)?;
            let vector = |key: String| -> Result<Vec<f32>> {
                let data = find(&moments, key)?.to_vec1::<f32>()?;
                ensure!(
                    data.len() == p.var.elem_count(),
                    "{}: the optimizer's state has other shapes",
                    folder.display()
                );
                Ok(data)
            };
            p.moments = Moments { mean: vector(format!("mean.{name}"))?, square: vector(format!("square.{name}"))? };
        }
        self.done = state.step;
        Ok(true)
    }
}

/// The first setting that differs.
fn first_difference(a: &Settings, b: &Settings) -> Result<Option<String>> {
    let (a, b) = (serde_json::to_value(a)?, serde_json::to_value(b)?);
    let keys = a.as_object().into_iter().flat_map(|map| map.keys());
    Ok(keys.into_iter().find(|key| a[key.as_str()] != b[key.as_str()]).cloned())
}

/// The checkpoints in `out` by step, oldest first.
fn list(out: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let mut all = BTreeMap::new();
    match fs::read_dir(out) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(e).with_context(|| format!("can't read {}", out.display())),
        Ok(entries) => {
            for entry in entries {
                let entry = entry.with_context(|| format!("can't read {}", out.display()))?;
                let name = entry.file_name();
                let step = name.to_str().and_then(|n| n.strip_prefix(PREFIX)).and_then(|n| n.parse().ok());
                if let Some(step) = step {
                    all.insert(step, entry.path());
                }
            }
        }
    }
    Ok(all.into_iter().collect())
}

/// The log of a run, `OUT/train.jsonl`.
pub struct Log {
    path: PathBuf,
    steps: Vec<Step>,
    file: fs::File,
}

impl Log {
    /// Opens the log of a run that has done `done` steps; lines of later steps, which will be done again, are dropped.
    ///
    /// # Errors
    /// The file can't be read or written.
    pub fn open(out: &Path, done: usize) -> Result<Self> {
        let path = out.join("train.jsonl");
        let old = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(e).with_context(|| format!("can't read {}", path.display())),
        };
        // A line that a kill cut short is dropped too.
        let steps: Vec<Step> =
            old.lines().filter_map(|line| serde_json::from_str(line).ok()).filter(|s: &Step| s.step <= done).collect();
        let mut text = String::new();
        for step in &steps {
            text.push_str(&serde_json::to_string(step)?);
            text.push('\n');
        }
        let partial = out.join(".train.jsonl.partial");
        write(&partial, text.as_bytes())?;
        fs::rename(&partial, &path).with_context(|| format!("can't name {}", path.display()))?;
        let file = fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .with_context(|| format!("can't write {}", path.display()))?;
        Ok(Self { path, steps, file })
    }

    /// Appends a step.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn add(&mut self, step: &Step) -> Result<()> {
        let line = format!("{}\n", serde_json::to_string(step)?);
        self.file.write_all(line.as_bytes()).with_context(|| format!("can't write {}", self.path.display()))?;
        self.steps.push(step.clone());
        Ok(())
    }

    /// All steps so far.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }
}
