//! How much memory this process can still use, asked before anything large is allocated: an allocation that fails aborts a
//! program, and one that the system grants but can't back gets it killed without an error message.

use std::fs;
use std::path::{Path, PathBuf};

/// Bytes that this process can still use; `None` where the system doesn't say.
///
/// On Linux it is the least of `MemAvailable`, what the control groups that this process is in leave it (versions 1 and 2),
/// and the limit on its address space. Swap does not count. No other system is asked.
pub fn free_memory() -> Option<u64> {
    available(Path::new("/"))
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
}
