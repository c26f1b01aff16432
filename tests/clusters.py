"""A Ray cluster on this machine whose nodes tests break, and the driver that uses it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from helpers import ROOT, environment
from making import Squares, make

from bpo_data.artifacts import Artifact
from bpo_data.engines import engine_of
from bpo_data.engines.connecting import init
from bpo_data.runtime import Runtime

RUNTIME = Runtime(device="cpu", engine="ray", processes=2, address="given")
"""Of a driver that is connected already."""


APART = 'mount -t tmpfs none "$0" && exec "$@"'
"""A shell's command: run another one for which a folder is empty."""


def lets_mount() -> bool:
    """Whether a process may have a view of the disk of its own."""
    line = ["unshare", "-m", "--propagation", "private", "mount", "-t", "tmpfs", "none", "/mnt"]
    if not shutil.which("unshare"):
        return False
    return subprocess.run(line, capture_output=True).returncode == 0


class Nodes:
    """A head without workers, and as many nodes of one worker as a test asks for."""

    def __init__(self, folder: str) -> None:
        from ray.cluster_utils import Cluster

        self.folder = folder
        self.apart: list[subprocess.Popen[bytes]] = []
        self.cluster = Cluster()
        self.add(num_cpus=0)

    def add(self, **options: Any) -> Any:
        return self.cluster.add_node(temp_dir=self.folder, include_dashboard=False, **options)

    def add_apart(self, hidden: Path, workers: int = 1, **variables: object) -> int:
        """A node that finds nothing in a folder: its disk is its own. Returns its process."""
        known = self.count()
        options = ("--block", f"--address={self.cluster.address}", f"--num-cpus={workers}")
        words = [
            *("unshare", "-m", "--propagation", "private", "sh", "-c", APART, str(hidden)),
            *(str(Path(sys.executable).with_name("python")), "-m", "ray.scripts.scripts", "start"),
            *(*options, "--object-store-memory=100000000"),
        ]
        process = subprocess.Popen(
            words,
            env=os.environ | {name: str(value) for name, value in variables.items()},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.apart.append(process)
        wait_for(lambda: self.count() > known or process.poll() is not None)
        assert process.poll() is None
        return process.pid

    def count(self) -> int:
        import ray

        return sum(node["Alive"] for node in ray.nodes())

    def kill(self, node: Any) -> None:
        """End it without a word to the others."""
        for process in processes_of(node):
            process.kill()
        self.cluster.remove_node(node, allow_graceful=False)

    def remove_all(self) -> None:
        """And wait until the head knows it."""
        for node in list(self.cluster.worker_nodes):
            self.cluster.remove_node(node)  # in good order: the head knows of it at once
        for process in self.apart:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)
        self.apart.clear()
        wait_for(lambda: self.count() == 1)


def processes_of(node: Any) -> list[psutil.Process]:
    """A node's raylet and its workers."""
    (raylet,) = node.all_processes["raylet"]
    parent = psutil.Process(raylet.process.pid)
    return [parent, *parent.children(recursive=True)]


@contextmanager
def started() -> Iterator[Nodes]:
    """A cluster with this process as its driver."""
    import ray

    before = dict(os.environ)
    handler = signal.getsignal(signal.SIGTERM)
    os.environ |= {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
    }
    folder = tempfile.mkdtemp(prefix="bpo-test-")
    nodes = Nodes(folder)
    try:
        init(ray, address=nodes.cluster.address)
        yield nodes
    finally:
        ray.shutdown()
        nodes.cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
        os.environ.clear()
        os.environ |= before
        signal.signal(signal.SIGTERM, handler)


def made_by(folder: Path, squares: Squares, runtime: Runtime = RUNTIME) -> Artifact:
    return make(folder, engine_of(runtime), squares)


class Making:
    """What is made in a thread while the main one, which alone may start nodes, breaks things."""

    def __init__(self, folder: Path, squares: Squares, runtime: Runtime = RUNTIME) -> None:
        self.made: Artifact | None = None
        self.error: BaseException | None = None
        self.seconds = 0.0
        self.thread = threading.Thread(target=self.run, args=(folder, squares, runtime))

    def run(self, folder: Path, squares: Squares, runtime: Runtime) -> None:
        begun = time.monotonic()
        try:
            self.made = made_by(folder, squares, runtime)
        except BaseException as error:  # noqa: BLE001  (the test's thread raises it)
            self.error = error
        self.seconds = time.monotonic() - begun

    def __enter__(self) -> Making:
        self.thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.thread.join()

    def ended(self, seconds: float) -> Artifact:
        """What came of it, within so many seconds from the start."""
        self.thread.join(seconds)
        assert not self.thread.is_alive(), f"not done after {seconds:g} s"
        if self.error:
            raise self.error
        print(f"TOOK {self.seconds:.1f} s, bound {seconds:g}")
        assert self.made is not None
        return self.made


def wait_for(true: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.05)


def driver(*arguments: object) -> subprocess.Popen[str]:
    """A driver in a process of its own, which can be killed."""
    return subprocess.Popen(
        [sys.executable, "-m", "making", *map(str, arguments)],
        env={**environment(), "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
