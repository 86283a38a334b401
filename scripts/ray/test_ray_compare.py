#!/usr/bin/env python3
"""Tests ray_compare.py on a local Ray cluster of two nodes: one worker is killed while it measures, then a node.

    pip install ray
    cargo build --release
    scripts/ray/test_ray_compare.py [target/release/attn]

The merged figures have to equal those of one run without shards, to the last digit. Linux only (/proc).
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

HERE = Path(__file__).resolve().parent
COMPARE = ["--contexts", "256,512", "--max-tokens", "4096", "--modes", "none,linear,yarn"]
SHARDS = 4


def figures(text):
    """A comparison without the values that depend on time, place and speed."""
    document = json.loads(text)
    for cell in document["cells"]:
        cell.pop("seconds")
    return {key: document[key] for key in ("cells", "differences", "verdict", "texts", "settings")}


def measuring(folder):
    """The processes that measure a shard into `folder`, with the workers that started them."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            status = (process / "status").read_text()
        except OSError:  # it has ended, or is not a process
            continue
        if b"--shard" in words and any(word.startswith(str(folder).encode()) for word in words):
            parent = int(status.split("PPid:")[1].split()[0])
            found.append((int(process.name), parent))
    return found


def wait_for(what, condition, seconds=300):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)
    raise SystemExit(f"error: {what} did not happen within {seconds} s")


def main():
    attn = str(Path(sys.argv[1] if len(sys.argv) > 1 else HERE.parents[1] / "target/release/attn").resolve())
    alone = subprocess.run([attn, "compare", *COMPARE, "--threads", "1", "--json"], check=True, capture_output=True, text=True)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve() / "run"
        command = [sys.executable, str(HERE / "ray_compare.py"), "--address", cluster.address, "--shards", str(SHARDS),
                   "--dir", str(folder), "--attn", attn, "--", *COMPARE, "--json"]
        driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        child, worker = wait_for("a measurement", lambda: measuring(folder))[0]
        os.kill(worker, signal.SIGKILL)
        wait_for("the end of attn under the killed worker", lambda: child not in dict(measuring(folder)))
        wait_for("another measurement", lambda: measuring(folder))
        cluster.remove_node(node, allow_graceful=False)
        out, err = driver.communicate(timeout=900)
        print(err, end="", file=sys.stderr)
        print(out[:200], file=sys.stderr) if not out.startswith("{") else None
        assert driver.returncode == 0, f"ray_compare.py ended with {driver.returncode}"
        assert "trying again" in err, "nothing was retried"
        assert figures(out) == figures(alone.stdout), "the merged figures differ from those of one run"
        assert len(list(folder.glob("shard-*.jsonl"))) == SHARDS
        again = subprocess.run(command, check=True, capture_output=True, text=True)
        assert figures(again.stdout) == figures(out), "a second start measured anew"
    ray.shutdown()
    cluster.shutdown()
    print(f"fine: {SHARDS} shards on three workers, a worker and a node killed, figures equal to one run")


if __name__ == "__main__":
    main()
