//! The models inside the program, so that it has something to show without a network.
//!
//! `tiny-austen` is the default MODEL (`models/SOURCES.md` of this package). The others differ only in their position
//! encoding and come from a package of their own, [`attn_tiny_models`].

use anyhow::Result;
use attn_models::{Model, Options};
use attn_tiny_models::{MODELS, TinyModel};
use loader::Checkpoint;
use std::path::Path;

/// A checkpoint inside the program.
#[derive(Debug)]
pub(crate) struct Embedded {
    /// What MODEL calls it.
    pub(crate) name: &'static str,
    config: &'static [u8],
    weights: &'static [u8],
    tokenizer: &'static [u8],
}

/// The default model.
const DEFAULT: Embedded = Embedded {
    name: "tiny-austen",
    config: include_bytes!("../models/tiny-austen/config.json"),
    weights: include_bytes!("../models/tiny-austen/model.safetensors"),
    tokenizer: include_bytes!("../models/tiny-austen/tokenizer.json"),
};

impl From<&TinyModel> for Embedded {
    fn from(&TinyModel { name, config, weights, tokenizer, .. }: &TinyModel) -> Self {
        Self { name, config, weights, tokenizer }
    }
}

impl Embedded {
    /// The checkpoint that MODEL means, if it is one of these; a file or folder of the name comes first.
    pub(crate) fn find(model: Option<&str>) -> Option<Self> {
        let Some(name) = model else { return Some(DEFAULT) };
        Self::all().find(|model| model.name == name && !Path::new(name).exists())
    }

    /// All of them.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        std::iter::once(DEFAULT).chain(MODELS.iter().map(Self::from))
    }

    /// Opens it.
    ///
    /// # Errors
    /// As [`Checkpoint::from_bytes`].
    pub(crate) fn open(&self) -> Result<Checkpoint> {
        Ok(Checkpoint::from_bytes(self.config, self.weights, Some(self.tokenizer))?)
    }

    /// Its files but the config.
    pub(crate) fn files(&self) -> [(&'static str, &'static [u8]); 2] {
        [("model.safetensors", self.weights), ("tokenizer.json", self.tokenizer)]
    }

    /// Its files.
    pub(crate) fn everything(&self) -> impl Iterator<Item = (&'static str, &'static [u8])> {
        self.files().into_iter().chain([("config.json", self.config)])
    }
}

/// The model of every encoding, by the encoding's name, and the checkpoint of the first for its tokenizer.
///
/// # Errors
/// As [`Model::load`].
pub(crate) fn encodings(options: &Options) -> Result<(Checkpoint, Vec<(&'static str, Model)>)> {
    let mut checkpoints = MODELS.iter().map(|model| Embedded::from(model).open()).collect::<Result<Vec<_>>>()?;
    let load = |(model, checkpoint): (&TinyModel, &Checkpoint)| {
        Ok((model.encoding, Model::load(&checkpoint.config, checkpoint.weights.clone(), options)?))
    };
    let models = MODELS.iter().zip(&checkpoints).map(load).collect::<Result<_>>()?;
    Ok((checkpoints.swap_remove(0), models))
}
