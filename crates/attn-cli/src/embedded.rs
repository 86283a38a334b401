//! The models inside the program, so that it has something to show without a network.
//!
//! `tiny-austen` is the default MODEL. The others differ in their position encoding alone: block, first weights, batches
//! and tokenizer are the same (`models/SOURCES.md` of this package).

use anyhow::Result;
use attn_models::{Model, Options};
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

macro_rules! embedded {
    ($name:literal, $tokenizer:literal) => {
        Embedded {
            name: $name,
            config: include_bytes!(concat!("../models/", $name, "/config.json")),
            weights: include_bytes!(concat!("../models/", $name, "/model.safetensors")),
            tokenizer: include_bytes!(concat!("../models/", $tokenizer, "/tokenizer.json")),
        }
    };
}

/// The default model.
static DEFAULT: Embedded = embedded!("tiny-austen", "tiny-austen");
/// One model per encoding, by the encoding's name.
static ENCODINGS: [(&str, Embedded); 6] = [
    ("rope", embedded!("tiny-rope", "tiny-rope")),
    ("alibi", embedded!("tiny-alibi", "tiny-rope")),
    ("t5", embedded!("tiny-t5", "tiny-rope")),
    ("sinusoidal", embedded!("tiny-sinusoidal", "tiny-rope")),
    ("learned", embedded!("tiny-learned", "tiny-rope")),
    ("none", embedded!("tiny-nope", "tiny-rope")),
];

impl Embedded {
    /// The checkpoint that MODEL means, if it is one of these; a file or folder of the name comes first.
    pub(crate) fn find(model: Option<&str>) -> Option<&'static Self> {
        let Some(name) = model else { return Some(&DEFAULT) };
        Self::all().find(|model| model.name == name && !Path::new(name).exists())
    }

    /// All of them.
    pub(crate) fn all() -> impl Iterator<Item = &'static Self> {
        std::iter::once(&DEFAULT).chain(ENCODINGS.iter().map(|(_, model)| model))
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
    let mut checkpoints = ENCODINGS.iter().map(|(_, model)| model.open()).collect::<Result<Vec<_>>>()?;
    let load = |((encoding, _), checkpoint): (&(&'static str, Embedded), &Checkpoint)| {
        Ok((*encoding, Model::load(&checkpoint.config, checkpoint.weights.clone(), options)?))
    };
    let models = ENCODINGS.iter().zip(&checkpoints).map(load).collect::<Result<_>>()?;
    Ok((checkpoints.swap_remove(0), models))
}
