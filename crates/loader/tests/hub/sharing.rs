//! A cache that several threads and processes use, one of which may be killed.

use crate::common::hub::{Hub, Reply, sha256};
use crate::common::two_tensors;
use crate::{cache, fails, fails_for, nothing_broken, repo, weights};
use loader::{LoadError, download};
use std::path::Path;
use std::time::{Duration, Instant};

#[test]
fn two_at_once_download_once() {
    let big = weights(50_000);
    let (hub, dir) = (Hub::new(&[("config.json", b"{}"), ("model.safetensors", &big)]), cache());
    hub.delay(Duration::from_millis(300));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| download("org/name", &hub.options(dir.path())).unwrap());
        }
    });
    nothing_broken(dir.path());
    assert_eq!(hub.hits("storage"), 1);
}

/// Not a test by itself: the next two tests run it in another process.
#[test]
#[ignore = "run by other tests"]
fn child() {
    let [url, cache] = ["TEST_HUB_URL", "TEST_HUB_CACHE"].map(|v| std::env::var(v).unwrap());
    let mut options = Hub::with_model().options(Path::new(&cache));
    options.hub.endpoint = url;
    download("org/name", &options).unwrap();
}

fn spawn(hub: &Hub, cache: &Path) -> std::process::Child {
    std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sharing::child", "--ignored"])
        .env("TEST_HUB_URL", &hub.url)
        .env("TEST_HUB_CACHE", cache)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn two_processes_download_once() {
    let big = weights(50_000);
    let (hub, dir) = (Hub::new(&[("config.json", b"{}"), ("model.safetensors", &big)]), cache());
    hub.delay(Duration::from_millis(500));
    let children = [spawn(&hub, dir.path()), spawn(&hub, dir.path())];
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    nothing_broken(dir.path());
    assert_eq!(hub.hits("storage"), 1);
}

/// A download whose process is killed, as by SIGKILL, is continued by the next one.
#[test]
fn a_killed_download_is_continued() {
    let big = weights(400_000);
    let (hub, dir) = (Hub::new(&[("config.json", b"{}"), ("model.safetensors", &big)]), cache());
    hub.script("storage", Reply { delay: Duration::from_secs(600), ..Reply::status(200).body(&big) });
    let mut child = spawn(&hub, dir.path());
    let part = repo(dir.path()).join("blobs").join(format!("{}.incomplete", sha256(&big)));
    let start = Instant::now();
    while std::fs::metadata(&part).map_or(0, |m| m.len()) < big.len() as u64 / 2 {
        assert!(start.elapsed() < Duration::from_secs(60), "the download did not start");
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    nothing_broken(dir.path());
    assert!(!repo(dir.path()).join("refs").exists());
    // The lock ended with the process.
    download("org/name", &hub.options(dir.path())).unwrap();
    assert_eq!(hub.log().last().unwrap().range, Some(format!("bytes={}-", big.len() / 2)));
    nothing_broken(dir.path());
}

#[test]
fn a_lock_that_is_never_released() {
    let (hub, dir) = (Hub::with_model(), cache());
    let locks = dir.path().join(".locks/models--org--name");
    std::fs::create_dir_all(&locks).unwrap();
    let held = std::fs::File::create(locks.join(format!("{}.lock", sha256(&two_tensors())))).unwrap();
    held.lock().unwrap();
    let mut options = hub.options(dir.path());
    options.hub.lock_patience = Duration::from_millis(300);
    let err = fails_for("org/name", &options, dir.path());
    assert!(matches!(err, LoadError::Locked { .. }), "{err}");
    drop(held);
    download("org/name", &options).unwrap();
}

#[cfg(unix)]
#[test]
fn a_cache_that_can_not_be_written() {
    let (hub, dir) = (Hub::with_model(), cache());
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let err = download("org/name", &hub.options(&file.join("cache"))).unwrap_err();
    assert!(matches!(err, LoadError::Io { .. }) && err.to_string().contains("cache"), "{err}");
    // A device that is always full stands for a full disk.
    if Path::new("/dev/full").exists() {
        let part = repo(dir.path()).join("blobs").join(format!("{}.incomplete", sha256(&two_tensors())));
        std::fs::create_dir_all(part.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink("/dev/full", &part).unwrap();
        let err = fails(&hub, dir.path()).to_string();
        assert!(err.contains("can't write"), "{err}");
    }
}
