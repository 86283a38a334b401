//! The cache on disk, laid out as `huggingface_hub` does, so that all tools share one copy.
//!
//! `models--org--name/blobs/ETAG` hold the contents, `snapshots/COMMIT/file` are links to them, and `refs/REVISION`
//! says which commit a branch or tag was at when it was last looked up.

use super::{Fetched, HubConfig};
use crate::source::HubRef;
use std::path::PathBuf;

/// The folder of one repository.
pub(super) fn repo_folder(config: &HubConfig, repo: &str) -> PathBuf {
    config.cache.join(format!("models--{}", repo.replace('/', "--")))
}

/// Whether `revision` is a full commit id.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The commit that `revision` was at when it was last looked up.
pub(super) fn cached_commit(config: &HubConfig, id: &HubRef) -> Option<String> {
    if is_commit(id.revision()) {
        return Some(id.revision().to_string());
    }
    let text = std::fs::read_to_string(repo_folder(config, &id.repo).join("refs").join(id.revision())).ok()?;
    let commit = text.trim();
    is_commit(commit).then(|| commit.to_string())
}

/// The snapshot of what is asked for, if the cache has it.
pub(super) fn find(id: &HubRef, config: &HubConfig) -> Option<Fetched> {
    let commit = cached_commit(config, id)?;
    let folder = repo_folder(config, &id.repo).join("snapshots").join(&commit);
    let needed = id.file.as_deref().unwrap_or("config.json");
    folder.join(needed).exists().then_some(Fetched { folder, commit })
}
