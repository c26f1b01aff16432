"""What several tests share: where data lies, and a pipeline small enough to run in seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import forking
import pytest

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder is not here")

TINY = (
    "load.kind=topics",
    "load.options.seed_prompts=300",
    "load.options.pool_prompts=60",
    "load.options.test_prompts=20",
    "select.keep=24",
    "sft.steps=30",
    "sft.batch=32",
    "augment.responses=5",
    "augment.max_tokens=16",
    "score.kind=verifier",
    "gradients.rank=4",
    "gradients.dim=64",
    "allocate.budget=0",
    "train.steps=4",
    "train.batch=8",
    "evaluate.max_tokens=16",
)
"""The quickstart on a hand's breadth: every stage real, nothing learnt worth having."""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "bpo_data.pipelines.run", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def start(*arguments: str, **options: Any) -> forking.Forked:
    """The command line in a process of its own, forked from one that has done the imports."""
    words = command(*arguments)[1:]
    return forking.fork(words, **{"environment": environment(), **options})


def run(*arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """The same to its end."""
    with start(*arguments) as process:
        try:
            out, error = process.communicate(timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command(*arguments), process.returncode, out, error)


def run_from_scratch(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line as a user starts it, imports and all."""
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, env=environment(), timeout=240
    )
