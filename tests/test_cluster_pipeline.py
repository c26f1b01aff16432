"""The real pipeline on Ray: one process's bytes, requests paid once, nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
from helpers import ROOT, TINY, environment

from bpo_data.llm.stub import StubServer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="the extra ray is not installed"),
]

SMALL_PARTS = """
import sys
from bpo_data.pipelines.run import main
from bpo_data.stages import augment, gradients
augment.PART_ROWS = gradients.PART_ROWS = 16
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""
"""The command line with parts that a tiny run has many of."""
RAY = ("runtime.engine=ray", "runtime.processes=2", "runtime.device=cpu")
KEY = {"OPENAI_API_KEY": "none"}


def started(folder: Path, *words: str) -> subprocess.Popen[str]:
    script = folder / "small_parts.py"
    script.write_text(SMALL_PARTS)
    arguments = [f"runtime.folder={folder / 'runs'}", *TINY, *words]
    return subprocess.Popen(
        [sys.executable, str(script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment(), **KEY},
        cwd=ROOT,
        start_new_session=True,
    )


def done(folder: Path, *words: str) -> tuple[str, str]:
    process = started(folder, *words)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output, errors


def digests(folder: Path) -> dict[str, str]:
    found = {}
    for path in (folder / "runs").glob("*/manifest.json"):
        manifest = json.loads(path.read_text())
        found[manifest["stage"]] = manifest["digest"]
    return found


def left_behind() -> tuple[set[str], set[str]]:
    """(processes of Ray that this machine runs for us, folders of theirs)."""
    processes = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = " ".join(process.cmdline())
            if "bpo-ray-" in words:
                processes.add(words)
    temporary = Path(os.environ.get("TMPDIR", "/tmp"))
    return processes, {path.name for path in temporary.glob("bpo-ray-*")}


@pytest.fixture(scope="module")
def before(tmp_path_factory) -> Path:
    """What both engines start from: everything up to the policy."""
    folder = tmp_path_factory.mktemp("before")
    done(folder, "stage=sft")
    return folder


@pytest.fixture
def folder(before, tmp_path) -> Path:
    shutil.copytree(before / "runs", tmp_path / "ray" / "runs")
    return tmp_path / "ray"


def beside(before: Path, folder: Path) -> Path:
    """Another folder that starts the same."""
    other = folder.parent / "local"
    shutil.copytree(before / "runs", other / "runs")
    return other


def test_the_pipeline_makes_the_same_bytes_on_ray_and_leaves_nothing(before, folder):
    already = left_behind()
    begun = time.monotonic()
    output, errors = done(folder, "stage=gradients", *RAY)
    print(f"TOOK {time.monotonic() - begun:.1f} s")
    assert {line.split()[1] for line in output.splitlines()} == {"made", "kept"}
    local = beside(before, folder)
    assert done(local, "stage=gradients")[1] == errors, "Ray says nothing"
    assert digests(folder) == digests(local)
    assert left_behind() == already


@pytest.fixture
def asked_once(before, folder) -> Iterator[tuple[StubServer, tuple[str, ...]]]:
    with StubServer() as server:
        words = ("augment.client=openai", "augment.model=writer", f"augment.base_url={server.url}")
        yield server, ("stage=gradients", *words)


@pytest.mark.parametrize(
    "signals", [[signal.SIGKILL], [signal.SIGTERM], [signal.SIGINT, signal.SIGINT]]
)
def test_a_driver_that_is_ended_pays_for_no_request_twice(before, folder, asked_once, signals):
    server, words = asked_once
    already = left_behind()
    first = started(folder, *words, *RAY)
    runs = folder / "runs"
    end = time.monotonic() + 200
    while not list(runs.glob("gradients-*.partial/gradients-*.parquet")):
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
    sent = time.monotonic()
    for number in signals:
        first.send_signal(number)
        time.sleep(0.2)
    _, errors = first.communicate(timeout=60)
    print(f"ENDED after {time.monotonic() - sent:.1f} s")
    if signals != [signal.SIGKILL]:
        assert first.returncode == 130
        assert "stopped in gradients; the same command goes on from here." in errors
    parts = list(runs.glob("gradients-*.partial/gradients-*.parquet"))
    paid = server.asked()
    assert set(paid.values()) == {1}
    stamps = {path.name: path.stat().st_mtime_ns for path in parts}
    done(folder, *words, *RAY)
    kept = {path.name: path.stat().st_mtime_ns for path in runs.glob("gradients-*/*.parquet")}
    assert stamps.items() <= kept.items(), "parts that were done are kept"
    assert server.asked() == paid, "nothing was asked again"
    local = beside(before, folder)
    done(local, *words)
    assert digests(folder) == digests(local)
    assert left_behind() == already, "the next run cleared what the killed one left"
