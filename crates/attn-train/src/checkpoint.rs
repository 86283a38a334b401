//! Saving and resuming a run.
//!
//! ```text
//! OUT/checkpoint-0000500/   config.json, model.safetensors (f32), tokenizer.json: loads like any checkpoint
//!                           optimizer.safetensors, trainer.json: what else resuming needs
//! OUT/                      config.json, model.safetensors, tokenizer.json: the result, once the run is done
//! OUT/train.jsonl           one line per step
//! ```
//!
//! A checkpoint is written under a temporary name and renamed once it is complete. So a folder `checkpoint-N` is complete,
//! however the run ended; damage that a disk did to it later is found by a checksum of every tensor. The files of the result
//! get their names only after all of them have been written, too.

use crate::adamw::Moments;
use crate::error::{Error, Result};
use crate::trainer::{Settings, Step, Trainer};
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
    /// SHA-256 of every tensor, by file and name.
    tensors: BTreeMap<String, String>,
}

/// What trainer.json holds: the state as JSON text, and the SHA-256 of that text.
#[derive(Serialize, Deserialize)]
struct Sealed {
    sha256: String,
    state: String,
}

const WEIGHTS: &str = "model.safetensors";
const MOMENTS: &str = "optimizer.safetensors";
const STATE: &str = "trainer.json";

/// SHA-256 of a tensor's shape and numbers.
fn digest(tensor: &Tensor) -> Result<String> {
    let mut parts = loader::Sha256Parts::default();
    parts.push(format!("{:?}", tensor.dims()).as_bytes());
    for value in tensor.flatten_all()?.to_vec1::<f32>()? {
        parts.push(&value.to_le_bytes());
    }
    Ok(parts.finish())
}

/// A lock on a run's folder, held until it is dropped.
#[derive(Debug)]
pub struct Lock {
    _folder: Option<fs::File>,
}

/// Creates the folder of a run, if it does not exist, and locks it for this process.
///
/// # Errors
/// The folder can't be created, or another process has locked it.
pub fn lock(out: &Path) -> Result<Lock> {
    fs::create_dir_all(out).map_err(Error::io("create", out))?;
    // Some systems can't open or lock folders; there, runs go on without a lock.
    let Ok(folder) = fs::File::open(out) else { return Ok(Lock { _folder: None }) };
    match folder.try_lock() {
        Err(fs::TryLockError::WouldBlock) => Err(Error::Busy { path: out.to_path_buf() }),
        Ok(()) => Ok(Lock { _folder: Some(folder) }),
        Err(fs::TryLockError::Error(_)) => Ok(Lock { _folder: None }),
    }
}

/// Writes files under temporary names, and renames them one after the other, in this order, once all of them are written. If
/// one can't be written, none gets its name.
///
/// # Errors
/// A file can't be written or renamed.
pub fn write_all(folder: &Path, files: &[(&str, Vec<u8>)]) -> Result<()> {
    let partial = |name: &str| folder.join(format!(".{name}.partial"));
    let written = files.iter().try_for_each(|(name, bytes)| write(&partial(name), bytes));
    if let Err(error) = written {
        for (name, _) in files {
            let _ = fs::remove_file(partial(name));
        }
        return Err(error);
    }
    files.iter().try_for_each(|(name, _)| {
        let target = folder.join(name);
        fs::rename(partial(name), &target).map_err(Error::io("name", &target))
    })
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let written = fs::File::create(path).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(Error::io("write", path))
}

fn serialized(tensors: &HashMap<String, Tensor>) -> Result<Vec<u8>> {
    // transformers reads only files whose metadata name a framework.
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    Ok(safetensors::serialize(tensors, Some(metadata))?)
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
        fs::create_dir_all(out).map_err(Error::io("create", out))?;
        let mut config = self.settings.config.clone();
        config["dtype"] = serde_json::json!(if dtype == DType::BF16 { "bfloat16" } else { "float32" });
        // The config comes last, so that a folder that has one is complete.
        let files = [
            (WEIGHTS, serialized(&self.weights(dtype)?)?),
            ("tokenizer.json", tokenizer.as_bytes().to_vec()),
            ("config.json", serde_json::to_vec_pretty(&config)?),
        ];
        write_all(out, &files)
    }

    /// Writes the folder `checkpoint-N` into `out`, N being the steps done, removes older checkpoints beyond the two that are
    /// kept, and returns the new folder.
    ///
    /// # Errors
    /// The folder can't be written, or an older one can't be removed.
    pub fn save(&self, out: &Path, tokenizer: &str) -> Result<PathBuf> {
        let name = format!("{PREFIX}{:07}", self.done);
        let (target, partial) = (out.join(&name), out.join(format!(".{name}.partial")));
        if partial.exists() {
            fs::remove_dir_all(&partial).map_err(Error::io("remove", &partial))?;
        }
        self.export(&partial, tokenizer, DType::F32)?;
        let mut moments = HashMap::new();
        for (name, p) in &self.parameters {
            let tensor = |data: &[f32]| Tensor::from_slice(data, data.len(), &Device::Cpu);
            moments.insert(format!("mean.{name}"), tensor(&p.moments.mean)?);
            moments.insert(format!("square.{name}"), tensor(&p.moments.square)?);
        }
        write(&partial.join(MOMENTS), &serialized(&moments)?)?;
        let mut tensors = BTreeMap::new();
        for (file, all) in [(WEIGHTS, &self.weights(DType::F32)?), (MOMENTS, &moments)] {
            for (name, tensor) in all {
                tensors.insert(format!("{file}: {name}"), digest(tensor)?);
            }
        }
        let state = State { step: self.done, settings: self.settings.clone(), tensors };
        let state = serde_json::to_string(&state)?;
        let sealed = Sealed { sha256: loader::sha256(&state), state };
        write(&partial.join(STATE), &serde_json::to_vec_pretty(&sealed)?)?;
        if target.exists() {
            fs::remove_dir_all(&target).map_err(Error::io("replace", &target))?;
        }
        fs::rename(&partial, &target).map_err(Error::io("name", &target))?;
        let all = list(out)?;
        for (_, old) in &all[..all.len().saturating_sub(KEEP)] {
            fs::remove_dir_all(old).map_err(Error::io("remove", old))?;
        }
        Ok(target)
    }

    /// Loads the newest checkpoint in `out`, from which the run goes on; false if there is none.
    ///
    /// # Errors
    /// The checkpoint has other settings (the error names the first that differs), is damaged, or can't be read.
    pub fn resume(&mut self, out: &Path) -> Result<bool> {
        let Some((_, folder)) = list(out)?.pop() else { return Ok(false) };
        let read = |name: &str| -> Result<Vec<u8>> {
            let path = folder.join(name);
            fs::read(&path).map_err(Error::io("read", &path))
        };
        let state = read_state(&folder.join(STATE), &read(STATE)?)?;
        if let Some(setting) = first_difference(&state.settings, &self.settings)? {
            return Err(Error::OtherSettings { folder, setting });
        }
        let load = |file: &str| -> Result<HashMap<String, Tensor>> {
            let other =
                |error| Error::checkpoint(&folder.join(file), format!("it can't be read as safetensors: {error}"));
            candle_core::safetensors::load_buffer(&read(file)?, &Device::Cpu).map_err(other)
        };
        let (weights, moments) = (load(WEIGHTS)?, load(MOMENTS)?);
        let find = |file: &str, all: &HashMap<String, Tensor>, name: &str| -> Result<Tensor> {
            let missing = || Error::checkpoint(&folder.join(file), format!("tensor {name} is missing"));
            let tensor = all.get(name).ok_or_else(missing)?;
            let whole =
                tensor.dtype() == DType::F32 && state.tensors.get(&format!("{file}: {name}")) == Some(&digest(tensor)?);
            match whole {
                true => Ok(tensor.clone()),
                false => Err(Error::Damaged { path: folder.join(file), tensor: Some(name.to_string()) }),
            }
        };
        for (name, p) in &mut self.parameters {
            p.var.set(&find(WEIGHTS, &weights, name)?)?;
            let vector = |key: String| -> Result<Vec<f32>> {
                let data = find(MOMENTS, &moments, &key)?.to_vec1::<f32>()?;
                match data.len() == p.var.elem_count() {
                    true => Ok(data),
                    false => {
                        Err(Error::checkpoint(&folder, "the optimizer's state does not have the shapes of the weights"))
                    }
                }
            };
            p.moments = Moments { mean: vector(format!("mean.{name}"))?, square: vector(format!("square.{name}"))? };
        }
        self.done = state.step;
        Ok(true)
    }
}

fn read_state(path: &Path, bytes: &[u8]) -> Result<State> {
    let other = |error| Error::checkpoint(path, format!("it is not the state of a trainer: {error}"));
    let sealed: Sealed = serde_json::from_slice(bytes).map_err(other)?;
    if loader::sha256(&sealed.state) != sealed.sha256 {
        return Err(Error::Damaged { path: path.to_path_buf(), tensor: None });
    }
    serde_json::from_str(&sealed.state).map_err(other)
}

/// The name of the first setting that differs.
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
        Err(e) => return Err(Error::io("read", out)(e)),
        Ok(entries) => {
            for entry in entries {
                let entry = entry.map_err(Error::io("read", out))?;
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
            Err(e) => return Err(Error::io("read", &path)(e)),
        };
        // A last line that is incomplete because the process was killed is dropped too.
        let steps: Vec<Step> =
            old.lines().filter_map(|line| serde_json::from_str(line).ok()).filter(|s: &Step| s.step <= done).collect();
        let mut text = String::new();
        for step in &steps {
            text.push_str(&serde_json::to_string(step)?);
            text.push('\n');
        }
        let partial = out.join(".train.jsonl.partial");
        write(&partial, text.as_bytes())?;
        fs::rename(&partial, &path).map_err(Error::io("name", &path))?;
        let file = fs::OpenOptions::new().append(true).open(&path).map_err(Error::io("write", &path))?;
        Ok(Self { path, steps, file })
    }

    /// Appends a step.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn add(&mut self, step: &Step) -> Result<()> {
        let line = format!("{}\n", serde_json::to_string(step)?);
        self.file.write_all(line.as_bytes()).map_err(Error::io("write", &self.path))?;
        self.steps.push(step.clone());
        Ok(())
    }

    /// All steps so far.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }
}
