//! The cache on disk, laid out as `huggingface_hub` does, so that all tools share one copy.
//!
//! `models--org--name/blobs/ETAG` hold the contents, `snapshots/COMMIT/file` are links to them, and `refs/REVISION`
//! says which commit a branch or tag was at when it was last looked up. Links and refs are put in place by renaming.

use super::config::HubConfig;
use crate::{
    error::{LoadError, Result},
    folder::{INDEX, SINGLE},
    safetensors,
    source::HubRef,
};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use std::path::{Path, PathBuf};

/// The folders of one repository in the cache.
pub(super) struct RepoCache {
    repo: Repo,
    paths: CacheRepo,
    root: PathBuf,
}

/// Whether `text` is a full commit id.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && is_hex(text)
}

/// Whether `text` is one or more hexadecimal digits, and so safe as a file name.
pub(super) fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit())
}

impl RepoCache {
    pub(super) fn new(config: &HubConfig, id: &HubRef) -> Self {
        let repo = Repo::with_revision(id.repo.clone(), RepoType::Model, id.revision().to_string());
        let paths = Cache::new(config.cache.clone()).repo(repo.clone());
        Self { repo, paths, root: config.cache.clone() }
    }

    /// The repository as hf-hub sees it.
    pub(super) fn repo(&self) -> &Repo {
        &self.repo
    }

    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.paths.blob_path(etag)
    }

    /// A download that is not complete yet; `huggingface_hub` uses the same name.
    pub(super) fn partial(&self, etag: &str) -> PathBuf {
        self.paths.blob_path(&format!("{etag}.incomplete"))
    }

    /// The lock that `huggingface_hub` takes for the same file.
    pub(super) fn lock(&self, etag: &str) -> PathBuf {
        self.root.join(".locks").join(self.repo.folder_name()).join(format!("{etag}.lock"))
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.paths.pointer_path(commit)
    }

    fn reference(&self) -> PathBuf {
        self.root.join(self.repo.folder_name()).join("refs").join(self.repo.revision())
    }

    /// The commit that the revision was at when it was last looked up.
    pub(super) fn commit(&self) -> Option<String> {
        if is_commit(self.repo.revision()) {
            return Some(self.repo.revision().to_string());
        }
        let text = std::fs::read_to_string(self.reference()).ok()?;
        is_commit(text.trim()).then(|| text.trim().to_string())
    }

    /// Remembers which commit the revision is at.
    pub(super) fn set_commit(&self, commit: &str) -> Result<()> {
        let path = self.reference();
        if is_commit(self.repo.revision()) || std::fs::read_to_string(&path).is_ok_and(|old| old == commit) {
            return Ok(());
        }
        in_place(&path, |tmp| std::fs::write(tmp, commit))
    }

    /// Puts `file` of `commit` in place as a link to its blob.
    pub(super) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<()> {
        let path = self.snapshot(commit).join(file);
        let blob = self.blob(etag);
        if std::fs::canonicalize(&path).is_ok_and(|p| std::fs::canonicalize(&blob).is_ok_and(|b| p == b)) {
            return Ok(());
        }
        let depth = file.split('/').count() + 1;
        let target: PathBuf = std::iter::repeat_n("..", depth).chain(["blobs", etag]).collect();
        in_place(&path, |tmp| symlink(&target, &blob, tmp))
    }

    /// The files of `commit` in the cache, if they are all there.
    pub(super) fn complete(&self, commit: &str, id: &HubRef) -> Option<Vec<PathBuf>> {
        let folder = self.snapshot(commit);
        let present = |name: &str| Some(folder.join(name)).filter(|p| p.exists());
        if let Some(file) = &id.file {
            return crate::gguf::part_names(file).iter().map(|part| present(part)).collect();
        }
        let mut files: Vec<PathBuf> = crate::folder::SMALL_FILES.iter().filter_map(|f| present(f)).collect();
        present("config.json")?;
        match present(SINGLE) {
            Some(single) => files.push(single),
            None => {
                let index = present(INDEX)?;
                for shard in safetensors::shards(&index).ok()? {
                    files.push(present(&shard)?);
                }
                files.push(index);
            }
        }
        Some(files)
    }
}

/// Makes something beside `path` and renames it there, so that no other process ever sees it incomplete.
fn in_place(path: &Path, make: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<()> {
    let io = |e| LoadError::io(path, "create")(e);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(io)?;
    }
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    // Two threads of a process may link the same file at once.
    static CALLS: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let call = CALLS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    name.push(format!(".{}.{call}.tmp", std::process::id()));
    let tmp = path.with_file_name(name);
    let _ = std::fs::remove_file(&tmp);
    make(&tmp).and_then(|()| std::fs::rename(&tmp, path)).map_err(|e| {
        let _ = std::fs::remove_file(&tmp);
        io(e)
    })
}

#[cfg(unix)]
fn symlink(target: &Path, _blob: &Path, at: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, at)
}

/// Where links need a privilege, `huggingface_hub` copies too.
#[cfg(not(unix))]
fn symlink(_target: &Path, blob: &Path, at: &Path) -> std::io::Result<()> {
    std::fs::hard_link(blob, at).or_else(|_| std::fs::copy(blob, at).map(drop))
}
