//! How a checkpoint is opened, wherever it is.

use crate::hub::config::HubConfig;
use attn_models::config::UnknownKeys;

/// How to open a checkpoint.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Let [`TensorSource::quantized`](attn_models::TensorSource::quantized) hand out a GGUF file's blocks as they are. Off by
    /// default.
    pub keep_quantized: bool,
    /// Memory-map weights (the default) rather than reading them. A mapped file that another process truncates kills
    /// the program with SIGBUS; with plain reads the same is an error.
    pub mmap: bool,
    /// What becomes of metadata and tensors of a GGUF file that nothing reads: an error (the default), or a warning.
    pub unknown_keys: UnknownKeys,
    /// Never draw progress bars; they are only drawn on a terminal anyway.
    pub quiet: bool,
    /// Where the hub and its cache are.
    pub hub: HubConfig,
}

impl Default for LoadOptions {
    /// Mapped, dequantised, with the hub as the environment describes it.
    fn default() -> Self {
        Self {
            keep_quantized: false,
            mmap: true,
            unknown_keys: UnknownKeys::default(),
            quiet: false,
            hub: HubConfig::from_env(),
        }
    }
}
