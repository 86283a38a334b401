#![doc = include_str!("../README.md")]

/// A checkpoint, file by file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct TinyModel {
    /// What it is called: `tiny-rope`.
    pub name: &'static str,
    /// Its position encoding: `rope`, `alibi`, `t5`, `sinusoidal`, `learned` or `none`.
    pub encoding: &'static str,
    /// `config.json`, as Hugging Face spells it.
    pub config: &'static [u8],
    /// `model.safetensors`, in bf16.
    pub weights: &'static [u8],
    /// `tokenizer.json`, the same for all.
    pub tokenizer: &'static [u8],
}

macro_rules! model {
    ($name:literal, $encoding:literal) => {
        TinyModel {
            name: $name,
            encoding: $encoding,
            config: include_bytes!(concat!("../models/", $name, "/config.json")),
            weights: include_bytes!(concat!("../models/", $name, "/model.safetensors")),
            tokenizer: include_bytes!("../models/tiny-rope/tokenizer.json"),
        }
    };
}

/// One model per encoding.
pub static MODELS: [TinyModel; 6] = [
    model!("tiny-rope", "rope"),
    model!("tiny-alibi", "alibi"),
    model!("tiny-t5", "t5"),
    model!("tiny-sinusoidal", "sinusoidal"),
    model!("tiny-learned", "learned"),
    model!("tiny-nope", "none"),
];
