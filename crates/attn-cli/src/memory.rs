//! Whether a run fits into memory, asked before anything large is allocated.
//!
//! An allocation that fails aborts a program, and one that only fits on paper gets it killed by the system without a
//! word. So commands work out what a context takes ([`attn_models::memory`]) and hold it against what is free: on Linux
//! the least of `MemAvailable`, what the control groups this process is in leave it (versions 1 and 2), and the limit
//! on its address space. Swap does not count. Other systems and other devices than the CPU are not asked; there the
//! check is left out.

use crate::model::Opened;
use anyhow::{Result, bail};
use attn_models::Model;
use attn_models::memory::Workload;
use candle_core::Device;
use std::fs;
use std::path::{Path, PathBuf};

/// Refuses a run over `tokens` tokens if `work`, which says what a run over so many asks of the model, does not fit.
///
/// # Errors
/// It does not fit: what it takes, what there is, and how many tokens would fit.
pub(crate) fn check(opened: &Opened, tokens: usize, work: impl Fn(usize) -> Workload) -> Result<()> {
    let model = &opened.model;
    match available(Path::new("/")) {
        Some(free) if opened.check_memory && matches!(model.device(), Device::Cpu) => {
            compare(tokens, free, &|n| total(model, &work(n)))
        }
        _ => Ok(()),
    }
}

/// Refuses to keep `kept` bytes of what the model as it is predicts beside a run that asks `work` of it, if they don't fit.
///
/// # Errors
/// They do not.
pub(crate) fn check_kept(opened: &Opened, kept: u64, work: &Workload) -> Result<()> {
    let bytes = kept.saturating_add(total(&opened.model, work));
    match available(Path::new("/")) {
        Some(free)
            if kept > 0 && bytes > free && opened.check_memory && matches!(opened.model.device(), Device::Cpu) =>
        {
            bail!(
                "the divergence takes about {} of memory, most of it to keep what the model as it is predicts, but {} are \
                 free: leave kl out of --metrics, or use fewer tokens (--max-tokens)",
                shown(bytes),
                shown(free)
            )
        }
        _ => Ok(()),
    }
}

/// Refuses weights of `bytes` bytes that do not fit.
///
/// # Errors
/// They do not.
pub(crate) fn check_weights(name: &str, bytes: u64) -> Result<()> {
    match available(Path::new("/")) {
        Some(free) if bytes > free => bail!(
            "the weights of {name} take {}, but {} of memory are free: use --dtype bf16 or --keep-quantized, or a \
             smaller model (--no-memory-check tries all the same)",
            shown(bytes),
            shown(free)
        ),
        _ => Ok(()),
    }
}

/// Bytes that the work takes beside the weights.
pub(crate) fn needed(opened: &Opened, work: &Workload) -> u64 {
    total(&opened.model, work)
}

/// Refuses a text for which `bytes` bytes of memory are needed and `free` are there.
///
/// # Errors
/// They do not fit.
pub(crate) fn check_text(path: &Path, bytes: u64, free: u64) -> Result<()> {
    if bytes <= free {
        return Ok(());
    }
    let (name, needed, free) = (path.display(), shown(bytes), shown(free));
    bail!("{name} takes about {needed} of memory, but {free} are free for it: take a part of it (--max-tokens)")
}

/// Bytes that this process can still use; `None` where the system doesn't say.
pub(crate) fn free() -> Option<u64> {
    available(Path::new("/"))
}

fn total(model: &Model, work: &Workload) -> u64 {
    model.spec().memory(work, model.dtype()).total()
}

fn compare(tokens: usize, free: u64, needed: &dyn Fn(usize) -> u64) -> Result<()> {
    let bytes = needed(tokens);
    if bytes <= free {
        return Ok(());
    }
    // The most tokens that fit: between none and one less than were asked for.
    let (mut fits, mut too_many) = (0, tokens);
    while too_many - fits > 1 {
        let middle = fits + (too_many - fits) / 2;
        if needed(middle) <= free { fits = middle } else { too_many = middle }
    }
    let advice = match fits {
        0 => "not even one token would fit".to_string(),
        n => format!("{n} tokens would fit"),
    };
    bail!(
        "{tokens} tokens take about {} of memory beside the weights, but {} are free: {advice} (--no-memory-check tries \
         all the same)",
        shown(bytes),
        shown(free)
    )
}

/// Bytes for people, and exactly.
fn shown(bytes: u64) -> String {
    match bytes {
        u64::MAX => "more than any machine has".to_string(),
        0..1_000_000_000 => format!("{:.1} MB ({bytes} bytes)", bytes as f64 / 1e6),
        _ => format!("{:.1} GB ({bytes} bytes)", bytes as f64 / 1e9),
    }
}

/// Bytes that this process can still use, as the files under `root` say; `None` where there are none.
fn available(root: &Path) -> Option<u64> {
    let all = [machine(root), groups(root), address_space(root)];
    all.into_iter().flatten().min()
}

/// `MemAvailable`: what is free, and what the system can take back from its caches.
fn machine(root: &Path) -> Option<u64> {
    kilobytes(&fs::read_to_string(root.join("proc/meminfo")).ok()?, "MemAvailable:")
}

/// The number in a line `KEY  N kB`.
fn kilobytes(text: &str, key: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// What the soft limit on the address space (`ulimit -v`) leaves.
fn address_space(root: &Path) -> Option<u64> {
    let limits = fs::read_to_string(root.join("proc/self/limits")).ok()?;
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    let limit: u64 = limit.split_whitespace().next()?.parse().ok()?;
    let used = kilobytes(&fs::read_to_string(root.join("proc/self/status")).ok()?, "VmSize:")?;
    Some(limit.saturating_sub(used))
}

/// The least that any control group on the way from this process's own to the root leaves.
fn groups(root: &Path) -> Option<u64> {
    let text = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let left = text.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let version = match controllers {
            "" => &V2,
            list if list.split(',').any(|name| name == "memory") => &V1,
            _ => return None,
        };
        group(&root.join(version.mount), path, version)
    });
    left.min()
}

/// Where a version of control groups keeps its figures.
struct Version {
    mount: &'static str,
    limit: &'static str,
    usage: &'static str,
    /// Pages of files that were not used lately, which the group gives back when it has to.
    reclaimable: &'static str,
}

const V1: Version = Version {
    mount: "sys/fs/cgroup/memory",
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    reclaimable: "total_inactive_file",
};
const V2: Version =
    Version { mount: "sys/fs/cgroup", limit: "memory.max", usage: "memory.current", reclaimable: "inactive_file" };

fn group(mount: &Path, path: &str, version: &Version) -> Option<u64> {
    // In a container the path may be that of the host, which is not mounted here; the mount's root is the group then.
    let own: PathBuf = mount.join(path.trim_start_matches('/'));
    let mut folder = if own.is_dir() { own.as_path() } else { mount };
    let mut least = None;
    loop {
        let left = left_in(folder, version);
        least = [least, left].into_iter().flatten().min();
        match folder.parent() {
            Some(parent) if folder != mount => folder = parent,
            _ => return least,
        }
    }
}

fn left_in(folder: &Path, version: &Version) -> Option<u64> {
    let number = |file: &str| -> Option<u64> { fs::read_to_string(folder.join(file)).ok()?.trim().parse().ok() };
    // "max", or a number past any memory, is no limit.
    let limit = number(version.limit).filter(|&limit| limit < 1 << 62)?;
    let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let mut pairs = stat.lines().filter_map(|line| line.split_once(' '));
    let reclaimable = pairs.find(|(key, _)| *key == version.reclaimable);
    let reclaimable = reclaimable.and_then(|(_, bytes)| bytes.parse().ok()).unwrap_or(0);
    Some(limit.saturating_sub(number(version.usage)?.saturating_sub(reclaimable)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root folder with these files.
    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal: 100 kB\nMemAvailable:     50 kB\nSwapFree: 9 kB\n");

    #[test]
    fn the_machine_alone_and_no_machine_at_all() {
        assert_eq!(available(root(&[MEMINFO]).path()), Some(50 * 1024));
        assert_eq!(available(root(&[]).path()), None);
    }

    #[test]
    fn groups_of_both_versions_count_with_all_above_them() {
        let v2 = root(&[
            MEMINFO,
            ("proc/self/cgroup", "0::/a/b\n"),
            ("sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("sys/fs/cgroup/a/memory.max", "40000\n"),
            ("sys/fs/cgroup/a/memory.current", "30000\n"),
            ("sys/fs/cgroup/a/memory.stat", "anon 1\ninactive_file 5000\n"),
        ]);
        assert_eq!(available(v2.path()), Some(15_000));
        let v1 = root(&[
            MEMINFO,
            ("proc/self/cgroup", "4:cpu,memory:/x\n1:name=systemd:/y\n"),
            ("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "20000"),
            ("sys/fs/cgroup/memory/x/memory.usage_in_bytes", "19000"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "5"),
        ]);
        assert_eq!(available(v1.path()), Some(1000));
        // A container that is shown the host's path.
        let inside = root(&[
            MEMINFO,
            ("proc/self/cgroup", "0::/docker/0123\n"),
            ("sys/fs/cgroup/memory.max", "7000"),
            ("sys/fs/cgroup/memory.current", "8000"),
        ]);
        assert_eq!(available(inside.path()), Some(0));
    }

    #[test]
    fn the_address_space_counts() {
        let limits = "Limit   Soft Limit  Hard Limit  Units\nMax address space         60000   unlimited   bytes\n";
        let files = [MEMINFO, ("proc/self/limits", limits), ("proc/self/status", "VmPeak: 1 kB\nVmSize:\t 20 kB\n")];
        assert_eq!(available(root(&files).path()), Some(60_000 - 20 * 1024));
        let unlimited = limits.replace("60000", "unlimited");
        let files = [MEMINFO, ("proc/self/limits", &unlimited), files[2]];
        assert_eq!(available(root(&files).path()), Some(50 * 1024));
    }

    #[test]
    fn a_refusal_names_the_bytes_and_what_fits() {
        let needed = |tokens: usize| 1000 + 10 * tokens as u64;
        compare(100, 2000, &needed).unwrap();
        let error = compare(1000, 2005, &needed).unwrap_err().to_string();
        assert!(
            error.contains("11000 bytes") && error.contains("2005 bytes") && error.contains("100 tokens"),
            "{error}"
        );
        let none = compare(1000, 5, &needed).unwrap_err().to_string();
        assert!(none.contains("not even one"), "{none}");
        assert!(check_weights("m", u64::MAX).is_err() || available(Path::new("/")).is_none());
    }
}
