//! `attn download`: a model from the hub into the cache that all Hugging Face tools share.

use crate::output::{note, print, usage};
use anyhow::Result;
use clap::Args;
use loader::{Checkpoint, LoadOptions, ModelRef};

/// `attn download`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  attn download HuggingFaceTB/SmolLM2-135M-Instruct
  HF_ENDPOINT=https://mirror.example attn download org/name@v1.0

The cache is shared with other Hugging Face tools. HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE \
have their usual effect.")]
pub(crate) struct DownloadArgs {
    /// Hub id: org/name or org/name@revision
    pub(crate) model: String,
}

/// Runs the command; prints the folder of the snapshot. What was fetched is also opened, so that a model that cannot be
/// used is refused here and not at its first run.
///
/// # Errors
/// MODEL is no hub id, can't be fetched, or is no checkpoint.
pub(crate) fn run(args: &DownloadArgs) -> Result<()> {
    if let ModelRef::Path(path) = ModelRef::parse(&args.model)? {
        return usage(format!("{} is already on this machine", path.display()));
    }
    let checkpoint = Checkpoint::open(&args.model, &LoadOptions::default())?;
    let origin = &checkpoint.origin;
    let bytes: u64 = origin.files.iter().map(|file| file.size).sum();
    let commit = origin.commit.as_deref().unwrap_or("unknown");
    note(&format!("{} files, {:.1} MB, commit {commit}", origin.files.len(), bytes as f64 / 1e6));
    match origin.files.iter().find_map(|file| file.path()?.parent()) {
        Some(folder) => print(&format!("{}\n", folder.display())),
        None => Ok(()),
    }
}
