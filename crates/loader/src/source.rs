//! What MODEL means: a path or a name on the hub.

use crate::error::{LoadError, Result};
use std::path::{Path, PathBuf};

/// A parsed MODEL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelRef {
    /// Something on this machine, which exists.
    Path(PathBuf),
    /// A repository on the hub.
    Hub(HubRef),
}

/// A repository on the hub, and what of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubRef {
    /// `org/name`, or `name` for the oldest ones.
    pub repo: String,
    /// A branch, tag or commit; `main` if not given.
    pub revision: Option<String>,
    /// A `.gguf` file in the repository, from `org/name/file.gguf`.
    pub file: Option<String>,
}

impl HubRef {
    /// The revision, `main` by default.
    #[must_use]
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }
}

impl ModelRef {
    /// Decides what `model` means: whatever exists on disk or is spelled like a path is a path, the rest a hub id.
    ///
    /// # Errors
    /// A path that does not exist, or a name that no repository can have.
    pub fn parse(model: &str) -> Result<Self> {
        let path = expand_home(model);
        if !model.is_empty() && path.exists() {
            return Ok(Self::Path(path));
        }
        // A link that leads nowhere is a path all the same.
        if std::fs::symlink_metadata(&path).is_ok() {
            return Err(LoadError::NotFound { path });
        }
        let starts = [".", "/", "~", "\\"].iter().any(|p| model.starts_with(p));
        if starts || model.contains('\\') || model.chars().nth(1) == Some(':') {
            return Err(LoadError::NotFound { path });
        }
        let bad = |reason: &str| LoadError::BadModel { model: model.to_string(), reason: reason.to_string() };
        let (name, revision) = match model.split_once('@') {
            Some((name, revision)) => (name, Some(revision)),
            None => (model, None),
        };
        if revision.is_some_and(|r| !valid_revision(r)) {
            return Err(bad("the revision after @ has characters that are not allowed"));
        }
        let revision = revision.map(str::to_string);
        let parts: Vec<&str> = name.split('/').collect();
        let is_gguf = name.to_ascii_lowercase().ends_with(".gguf");
        let (repo, file) = match parts.as_slice() {
            [_, _, rest @ ..] if is_gguf && !rest.is_empty() => (parts[..2].join("/"), Some(rest.join("/"))),
            // `name.gguf` and `folder/name.gguf` are files that do not exist rather than repositories.
            _ if is_gguf || parts.len() > 2 => return Err(LoadError::NotFound { path }),
            _ => (name.to_string(), None),
        };
        if !repo.split('/').all(valid_name) {
            return Err(bad("no file or folder has this name, and it is not a valid name of a hub repository"));
        }
        if let Some(file) = &file {
            crate::safetensors::check_relative(Path::new(model), file)?;
        }
        Ok(Self::Hub(HubRef { repo, revision, file }))
    }
}

/// The hub's own rule for names.
fn valid_name(name: &str) -> bool {
    let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let edge = |c: Option<char>| c.is_some_and(|c| c != '-' && c != '.');
    (1..=96).contains(&name.len())
        && name.chars().all(ok)
        && edge(name.chars().next())
        && edge(name.chars().last())
        && !name.contains("--")
        && !name.contains("..")
}

fn valid_revision(revision: &str) -> bool {
    let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | '+');
    (1..=200).contains(&revision.len())
        && revision.chars().all(ok)
        && revision.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

fn expand_home(model: &str) -> PathBuf {
    match model.strip_prefix("~/").and_then(|rest| Some(home()?.join(rest))) {
        Some(path) => path,
        None => PathBuf::from(model),
    }
}

/// The user's home folder.
pub(crate) fn home() -> Option<PathBuf> {
    let var = if cfg!(windows) { "USERPROFILE" } else { "HOME" };
    std::env::var_os(var).filter(|v| !v.is_empty()).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(repo: &str, revision: Option<&str>, file: Option<&str>) -> ModelRef {
        let owned = |s: Option<&str>| s.map(str::to_string);
        ModelRef::Hub(HubRef { repo: repo.to_string(), revision: owned(revision), file: owned(file) })
    }

    #[test]
    fn hub_ids() {
        let parse = |s| ModelRef::parse(s).unwrap();
        assert_eq!(parse("gpt2"), hub("gpt2", None, None));
        assert_eq!(parse("org/name"), hub("org/name", None, None));
        assert_eq!(parse("org/Name-1.5_b@refs/pr/3"), hub("org/Name-1.5_b", Some("refs/pr/3"), None));
        assert_eq!(parse("org/name/q4/x.Q4_0.gguf"), hub("org/name", None, Some("q4/x.Q4_0.gguf")));
    }

    #[test]
    fn paths_that_do_not_exist() {
        for path in ["./x", "../x", "/no/such", "~/no/such/x", "a/b/c", "x.gguf", "dir/x.gguf", "C:\\x", "a\\b", "."] {
            match ModelRef::parse(path) {
                Err(LoadError::NotFound { .. }) => {}
                Ok(ModelRef::Path(_)) if path == "." => {}
                other => panic!("{path}: {other:?}"),
            }
        }
    }

    #[test]
    fn names_nobody_can_have() {
        for name in ["", "a b", "org/", "a--b", "a..b", "-a", "a.", "org/na me", "a@", "a@..", "a@x/../y", "a@b c", "é"]
        {
            assert!(ModelRef::parse(name).is_err(), "{name}");
        }
    }
}
