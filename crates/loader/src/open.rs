//! From MODEL, or from bytes, to a [`Checkpoint`]: which of the readers of folders, GGUF files and the hub has it.

use crate::{
    checkpoint::Checkpoint,
    error::{LoadError, Result},
    folder, gguf, hub,
    options::LoadOptions,
    source::ModelRef,
};
use std::borrow::Cow;

impl Checkpoint {
    /// Opens MODEL: a folder, a `.gguf` file, or a hub id (`org/name`, `org/name@revision`, `org/name/file.gguf`),
    /// which is downloaded unless the cache has it.
    ///
    /// # Errors
    /// MODEL does not exist, can't be fetched, or is not a checkpoint that can be used; see [`LoadError`].
    pub fn open(model: &str, options: &LoadOptions) -> Result<Self> {
        match ModelRef::parse(model)? {
            ModelRef::Path(path) if path.is_dir() => folder::open(&path, model, None, options),
            ModelRef::Path(path) if gguf::is_gguf(&path) => gguf::open(&path, model, None, options),
            ModelRef::Path(_) => {
                let reason = "it is a file, but not a GGUF one (for safetensors, give the folder)".to_string();
                Err(LoadError::BadModel { model: model.to_string(), reason })
            }
            ModelRef::Hub(id) => {
                let fetched = hub::fetch(&id, &options.hub, options.quiet)?;
                match &id.file {
                    Some(file) => gguf::open(&fetched.folder.join(file), model, Some(fetched.commit), options),
                    None => folder::open(&fetched.folder, model, Some(fetched.commit), options),
                }
            }
        }
    }

    /// A checkpoint whose files are in memory, such as one embedded with `include_bytes!`.
    ///
    /// # Errors
    /// One of the files is malformed.
    pub fn from_bytes(config: &[u8], weights: impl Into<Cow<'static, [u8]>>, tokenizer: Option<&[u8]>) -> Result<Self> {
        folder::from_bytes(config, weights.into(), tokenizer)
    }
}
