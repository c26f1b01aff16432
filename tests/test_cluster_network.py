"""Ray on two hosts, one of them a network namespace of its own, whose link is cut for a minute."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
from clusters import driver, wait_for
from helpers import ROOT
from making import Squares, make

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="the extra ray is not installed"),
]

HERE, THERE, PORT = "10.219.7.1", "10.219.7.2", 6399
SMALL = ("--object-store-memory=100000000",)
CUT = 60.0


def sh(line: str) -> None:
    subprocess.run(line.split(), check=True, capture_output=True)


@pytest.fixture
def link() -> Iterator[tuple[str, str]]:
    """(our end of a link, the name of the host at its other end)."""
    host = f"bpo{os.getpid()}"
    ours, theirs = f"a{os.getpid()}", f"b{os.getpid()}"
    try:
        sh(f"ip netns add {host}")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this machine lets nobody make network namespaces: {error}")
    try:
        sh(f"ip link add {ours} type veth peer name {theirs} netns {host}")
        sh(f"ip addr add {HERE}/24 dev {ours}")
        sh(f"ip link set {ours} up")
        sh(f"ip -n {host} addr add {THERE}/24 dev {theirs}")
        sh(f"ip -n {host} link set {theirs} up")
        sh(f"ip -n {host} link set lo up")
        yield ours, host
    finally:
        with suppress(subprocess.CalledProcessError):
            sh(f"ip link del {ours}")
        sh(f"ip netns del {host}")


@pytest.fixture
def hosts(link) -> Iterator[str]:
    """A head here and a machine there, one worker each; our end of the link between them."""
    ours, host = link
    folder = tempfile.mkdtemp(prefix="bpo-test-")
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.enter_context(
            ray_start("--head", f"--node-ip-address={HERE}", f"--port={PORT}", "--num-cpus=1",
                      "--include-dashboard=false", f"--temp-dir={folder}")
        )  # fmt: skip
        stack.enter_context(
            ray_start(f"--address={HERE}:{PORT}", f"--node-ip-address={THERE}", "--num-cpus=1",
                      before=("ip", "netns", "exec", host))
        )  # fmt: skip
        yield ours


class ray_start:
    """``ray start --block`` within; its processes end with it."""

    def __init__(self, *options: str, before: tuple[str, ...] = ()) -> None:
        command = Path(sys.executable).with_name("ray")
        self.process = subprocess.Popen(
            [
                *before,
                str(command),
                "start",
                "--block",
                "--object-store-memory=100000000",
                *options,
            ],
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def __enter__(self) -> None:
        time.sleep(8)
        assert self.process.poll() is None

    def __exit__(self, *raised: object) -> None:
        os.killpg(self.process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(15)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def environment() -> dict[str, str]:
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    return {**os.environ, "PYTHONPATH": paths, **quiet}


def test_a_link_that_is_cut_for_a_minute(hosts, tmp_path, monkeypatch):
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    unbroken = make(tmp_path / "unbroken", None, Squares(tmp_path / "own")).digest
    notes, runs = tmp_path / "notes", tmp_path / "runs"
    begun = time.monotonic()
    run = driver(runs, notes, f"{HERE}:{PORT}", 2, 2)
    wait_for(lambda: len(list(notes.glob("made-*"))) >= 2, 120)
    sh(f"ip link set {hosts} down")
    cut = time.monotonic()
    ended = 0.0
    while time.monotonic() - cut < CUT:
        time.sleep(0.2)
        ended = ended or (run.poll() is not None and time.monotonic() - cut) or 0.0
    sh(f"ip link set {hosts} up")
    output, errors = run.communicate(timeout=150)
    print(f"TOOK {time.monotonic() - begun:.1f} s; done {ended:.1f} s after the cut\n{errors}")
    assert output.strip() == unbroken, errors
    time.sleep(10)  # what the machine there still had under way
    assert [path.name.partition("-")[0] for path in runs.iterdir()] == ["squares"]
    assert not list(runs.glob("*.partial"))
