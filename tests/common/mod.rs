//! Golden models and their expected values, loaded as a user would load them.
#![allow(dead_code)] // every test uses only some of these functions

pub(crate) mod checks;
pub(crate) mod llama;

use attn_models::{Model, Options};
use candle_core::{DType, Device, Tensor};
use loader::{Checkpoint, LoadOptions};
use std::{collections::HashMap, path::PathBuf};

/// A model and what transformers computed with it.
pub(crate) struct Golden {
    /// The model, loaded by this project.
    pub(crate) model: Model,
    /// The inputs that transformers was given, and its outputs.
    pub(crate) expected: HashMap<String, Tensor>,
}

/// The folder of golden models.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden/models")
}

/// Opens a checkpoint folder and builds its model.
pub(crate) fn open(dir: &std::path::Path) -> Result<Model, String> {
    let options = LoadOptions { quiet: true, ..LoadOptions::default() };
    let checkpoint = Checkpoint::open(&dir.to_string_lossy(), &options).map_err(|e| e.to_string())?;
    Model::load(&checkpoint.config, checkpoint.weights, &Options::default()).map_err(|e| e.to_string())
}

/// Loads a golden model.
pub(crate) fn load(name: &str) -> Result<Golden, String> {
    let dir = root().join(name);
    let expected = candle_core::safetensors::load(dir.join("expected.safetensors"), &Device::Cpu);
    Ok(Golden { model: open(&dir)?, expected: expected.map_err(|e| e.to_string())? })
}

/// Expected token ids as u32.
pub(crate) fn ids_of(golden: &Golden, name: &str) -> Tensor {
    golden.expected[name].to_dtype(DType::U32).unwrap()
}

/// Largest absolute difference.
pub(crate) fn difference(a: &Tensor, b: &Tensor) -> f32 {
    let difference = (a - b).and_then(|d| d.abs()?.max_all()?.to_scalar::<f32>());
    difference.unwrap_or(f32::INFINITY)
}
